"""kill -9 at 200 random moments: the output is absent, old or new, never half; the next run succeeds.

python -m pytest -m slow tests/test_killed.py
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loramerge as lm
from tests.helpers.files import content

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT / "fixtures" / f"{name}.safetensors") for name in "ab"]
MOMENTS = 50  # for each of four kinds of output
MERGE = """
import sys
import loramerge as lm
out, *sources = sys.argv[1:]
lm.combine(sources[:1])  # everything is imported
print("ready", flush=True)
lm.combine(sources, out=out, overwrite=True)
print("done", flush=True)
"""


def merging(out):
    """A process that is about to write."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MERGE, str(out), *SOURCES]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert child.stdout.readline() == b"ready\n"
    return child


def duration(out):
    """Seconds that the writing takes."""
    with merging(out) as child:
        begin = time.perf_counter()
        assert child.stdout.readline() == b"done\n"
        return time.perf_counter() - begin


@pytest.mark.slow
@pytest.mark.parametrize("overwriting", [False, True], ids=["new", "overwriting"])
@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_a_killed_merge_leaves_old_or_new_and_the_next_one_succeeds(tmp_path, name, overwriting):
    for age in ("old", "new"):
        (tmp_path / age).mkdir()
    lm.combine(SOURCES[:1], "svd", rank=1, out=tmp_path / "old" / name)
    lm.combine(SOURCES, out=tmp_path / "new" / name)
    old, new = (content(tmp_path / age / name) for age in ("old", "new"))
    span, rng, seen = duration(tmp_path / name), random.Random(0), {"old": 0, "new": 0, "absent": 0}
    for moment in range(MOMENTS):
        place = tmp_path / str(moment)
        place.mkdir()
        if overwriting:
            lm.combine(SOURCES[:1], "svd", rank=1, out=place / name)
        with merging(place / name) as child:
            time.sleep(rng.random() * 1.1 * span)
            child.send_signal(signal.SIGKILL)
        there = content(place / name) if (place / name).exists() else None
        assert there in ((old, new, None) if overwriting else (new, None)), "half an output"
        seen["absent" if there is None else "old" if there == old else "new"] += 1
        lm.combine(SOURCES, out=place / name, overwrite=True)
        assert content(place / name) == new
        assert os.listdir(place) == [name]
    print(name, seen)
    assert seen["new"] < MOMENTS, "some were killed before the end"
