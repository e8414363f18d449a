"""Files that go or are replaced while they are looked at: one state is told of, or none."""

import os

import pytest

import loramerge as lm
from loramerge.algorithms import find
from loramerge.consumers import check
from loramerge.errors import ChangedError, alike
from loramerge.verbs import inspect
from tests.helpers.files import folder, tensors

PLACES = {"inspect": (inspect, "facts_of"), "check": (check, "_of_raw")}
FILES = ["adapter_config.json", "adapter_model.safetensors"]


def removed(file):
    file.unlink()


def replaced(file):
    other = folder(file.parent.with_name("other"), tensors(1), r=3)
    os.replace(other / file.name, file)


def touched(file):
    file.chmod(0o600)
    os.link(file, file.with_name("link"))


def looked(verb, source):
    return lm.inspect(source).loads if verb == "inspect" else lm.check(source, "peft")


@pytest.mark.parametrize("act", [removed, replaced, touched])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verb", PLACES)
def test_what_is_told_is_of_one_state(tmp_path, monkeypatch, verb, name, act):
    """Between two looks at a file."""
    source = folder(tmp_path / "a", tensors(0))
    owner, step = PLACES[verb]
    true, acted = getattr(owner, step), []

    def meddling(*given, **more):
        if not acted:
            acted.append(act(source / name))
        return true(*given, **more)

    monkeypatch.setattr(owner, step, meddling)
    if act is touched:
        assert looked(verb, source) is not None
    else:
        with pytest.raises(ChangedError, match=rf"{name} .*was (removed|changed|replaced)"):
            looked(verb, source)
    assert acted


def test_a_name_without_end_resembles_nothing_and_is_not_compared(monkeypatch):
    def compared(*given):
        raise AssertionError("compared")

    monkeypatch.setattr("difflib.get_close_matches", compared)
    assert alike("a" * 201, ["a" * 200]) == []
    with pytest.raises(lm.UsageError, match="There is no method 'aaa") as told:
        find("a" * 2**16)
    assert len(str(told.value)) < 2000
