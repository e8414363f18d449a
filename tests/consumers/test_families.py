"""Verdicts on every family in every spelling: those on diffusers are what its own loaders do."""

import pytest

import loramerge as lm
from loramerge.consumers.families import LOADERS, NONE, OWN, oracle, reads
from tests.helpers.files import bare
from tests.helpers.loaders import MIXINS, share
from tests.helpers.spelled import ROWS, tensors

PLAIN = {"hunyuan-video": "self_attn_qkv", "chroma": "distilled_guidance"}  # modules without which it is read


def file(tmp_path, row, width=12):
    met = ROWS[row]
    values = tensors(met, 0, width)
    if met.naming != "diffusers":
        trips = PLAIN.get(met.family.name, "\0")
        values = {key: value for key, value in values.items() if trips not in key}
    return bare(tmp_path / "a.safetensors", values, {"modelspec.architecture": met.family.name}), values


@pytest.mark.parametrize("row", [row for row, met in ROWS.items() if met.family.name in MIXINS])
def test_diffusers_itself_reads_what_the_table_says(row):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    met = ROWS[row]
    without = PLAIN.get(met.family.name, "") if met.naming != "diffusers" else ""
    found, _ = share(met, next(iter(met.family.widths)), without)
    assert (found == "all") is reads("diffusers", met)


@pytest.mark.parametrize("consumer", ["diffusers", "comfyui"])
@pytest.mark.parametrize("row", [row for row, met in ROWS.items() if met.dialect != "peft"])
def test_check_says_what_the_table_says(consumer, row, tmp_path):
    """A bare file of PEFT's names does not say its alpha, so that no program can be told about it."""
    path, _ = file(tmp_path, row)
    effects = {finding.effect for finding in lm.check(path, consumer)}
    wanted = reads(consumer, ROWS[row])
    if ROWS[row].family.name == "flux.1":  # whose rules are tested one by one
        return
    assert effects == (set() if wanted else {"unknown"}) if wanted in (True, None) else effects - {"unknown"}


def test_no_row_is_without_a_verdict_and_its_oracle():
    said = {c: [reads(c, met) for met in ROWS.values()] for c in ("diffusers", "comfyui")}
    assert None not in said["diffusers"]
    assert {oracle("diffusers", met) for met in ROWS.values()} == {LOADERS}
    assert all(
        (oracle("comfyui", met) == NONE) is (reads("comfyui", met) is not True) for met in ROWS.values()
    )
    assert sum(oracle("comfyui", met) == OWN for met in ROWS.values()) > 20
