"""Two signals, the second while the first is cleaned up after: no command that writes leaves anything."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.helpers.files import content, folder, tensors
from tests.helpers.models import random_model, save_model

Q = "model.layers.0.self_attn.q_proj"
COMMANDS = {
    "combine": ("combine", "a", "b", "-o", "out"),
    "one file": ("combine", "a", "b", "-o", "out.safetensors"),
    "dense": ("combine", "a", "b", "--dense-delta", "-o", "out.safetensors"),
    "into a model": ("combine", "a", "b", "--fuse", "M", "-o", "out"),
    "convert": ("convert", "a", "out", "--to", "mlx"),
    "resize": ("resize", "a", "--rank", "1", "-o", "out"),
    "restore": ("restore", "m", "--task", "a", "-o", "out"),
    "replay": ("replay", "m", "-o", "out"),
    "extract": ("extract", "T", "M", "-o", "out"),
    "fuse": ("fuse", "a", "M", "-o", "out"),
    "route": ("route", "a", "b", "-o", "out"),
}
PAIRS = [
    ("INT", "TERM"),
    ("TERM", "INT"),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("INT", "INT"), ("HUP", "TERM"), ("HUP", "HUP"))
    ),
]
CODES = {"INT": 130, "TERM": 143, "HUP": 129}

# The first signal comes where bytes are flushed to the disk, the second where the work is taken away. Each
# case is a fork of one process that has imported everything, as starting so many would take minutes.
SIGNALLED = """
import json, os, shutil, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from loramerge.cli import main
cases, found = json.load(sys.stdin), []
if not os.fork():  # what is imported on the way
    sys.stdout = sys.stderr = open(os.devnull, "w")
    main(["--version"])
os.wait()
import loramerge.verbs.combine, loramerge.verbs.extract, loramerge.verbs.fuse, loramerge.verbs.route
def once(function, name):
    sent = []
    def call(*args, **named):
        if not sent:
            sent.append(name)
            os.kill(os.getpid(), getattr(signal, "SIG" + name))
        return function(*args, **named)
    return call
for command, first, second in cases:
    child = os.fork()
    if not child:
        sys.stderr = os.fdopen(os.open("said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), "w")
        sys.stdout = open(os.devnull, "w")
        os.fsync = once(os.fsync, first)
        shutil.rmtree, os.unlink = once(shutil.rmtree, second), once(os.unlink, second)
        try:
            main([*command, "--overwrite"])
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(stop.code)
    _, status = os.waitpid(child, 0)
    found.append((os.waitstatus_to_exitcode(status), open("said").read(), sorted(os.listdir())))
    os.unlink("said")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("signals")
    weights = random_model()
    for seed, name in enumerate("ab"):
        folder(place / name, tensors(seed, shapes={Q: (16, 16)}))
    save_model(place / "M", weights)
    save_model(place / "T", {key: 1.5 * each for key, each in weights.items() if "proj" in key} | {
        key: each for key, each in weights.items() if "proj" not in key})  # fmt: skip
    command = [sys.executable, "-m", "loramerge", "combine", "a", "b", "--method", "mergevla", "-o", "m"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    return place


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_second_signal_disturbs_no_cleaning(place, first, second):
    before = content(place)
    cases = json.dumps([(command, first, second) for command in COMMANDS.values()])
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], input=cases, cwd=place, capture_output=True, text=True, check=True
    )
    for name, (code, said, left) in zip(COMMANDS, json.loads(done.stdout), strict=True):
        assert code == CODES[first], (name, code, said)
        assert said.strip().endswith("no output was changed."), (name, said)
        assert left == ["M", "T", "a", "b", "m", "said"], name
    assert content(place) == before


# A signal on one side of the n-th rename, and one where Python turns what is raised into another error.
RENAMED = """
import json, os, signal, sys
from loramerge.cli import main
import loramerge.verbs.combine
class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
found = []
for place, at, before in json.load(sys.stdin):
    child = os.fork()
    if not child:
        sys.stderr = os.fdopen(os.open("said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), "w")
        sys.stdout = open(os.devnull, "w")
        count = 0
        def counted(real, call):
            def act(*args, **named):
                global count
                count += 1
                now = count == at or call == "fsync"
                if now and call == "fsync":
                    at or type("Made", (), {"field": Field()})
                elif now and before:
                    os.kill(os.getpid(), signal.SIGTERM)
                try:
                    return real(*args, **named)
                finally:
                    if now and call != "fsync" and not before:
                        os.kill(os.getpid(), signal.SIGTERM)
            return act
        os.rename, os.replace = counted(os.rename, "rename"), counted(os.replace, "replace")
        if not at:
            os.fsync = counted(os.fsync, "fsync")
        try:
            main(["combine", "a", "b", "-o", place, "--overwrite"])
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(stop.code)
    _, status = os.waitpid(child, 0)
    found.append((os.waitstatus_to_exitcode(status), open("said").read(), sorted(os.listdir())))
    os.unlink("said")
print(json.dumps(found))
"""


def test_a_signal_at_a_rename_tells_what_is_there(place, tmp_path):
    for name in "ab":
        shutil.copytree(place / name, tmp_path / name)
    cases = [("out", 1, True), ("out", 1, False), ("out", 2, True), ("out", 2, False), ("new", 0, True)]
    for folder_, at, before in cases:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "b", tmp_path / "out")
        old = content(tmp_path / "out")
        done = subprocess.run(
            [sys.executable, "-c", RENAMED], input=json.dumps([(folder_, at, before)]), cwd=tmp_path,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        [(code, said, left)] = json.loads(done.stdout)
        assert (code, left) == (143, ["a", "b", "out", "said"]), (at, before, said)
        told = "out was complete by then." if at else "no output was changed."
        assert said.strip().endswith(told), (at, before)
        assert (content(tmp_path / "out") == old) == (not at), (at, before)
