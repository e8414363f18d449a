"""Sanitizers watch the kernels run: no race between threads, no access beyond an array."""

import os
import re
import subprocess

import pytest

from loramerge.cuda.load import FOLDER
from tests.cuda.host import built

BARRIER = re.compile(r"^\s*__syncthreads\(\);.*\n", re.MULTILINE)
RACES = 66  # exit code of ThreadSanitizer


SIZES, LARGE = (1, 31, 32, 33, 64, 112), (168, 512)  # units


def run(program, sizes=SIZES):
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [program, *map(str, sizes)], capture_output=True, text=True, env=environment, timeout=300
    )


def checked(*flags, sizes=SIZES):
    return run(built("-DMAIN", "-O1", "-g", *flags), sizes)


ALL_SIZES = pytest.mark.parametrize(
    "sizes", [SIZES, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["usual", "large"]
)


@ALL_SIZES
def test_no_thread_reads_what_another_may_be_writing(sizes):
    done = checked("-fsanitize=thread", sizes=sizes)

    assert done.returncode == 0, done.stderr[:2000]
    assert len(done.stdout.splitlines()) == len(sizes) + 1


@ALL_SIZES
def test_nothing_is_touched_beyond_an_array(sizes):
    done = checked("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", sizes=sizes)

    assert done.returncode == 0, done.stderr[:2000]


def test_a_planted_race_is_seen():
    done = checked("-fsanitize=thread", "-DWITHOUT_BARRIERS")

    assert done.returncode == RACES
    assert "data race" in done.stderr


def barriers():
    return [
        (path.name, found.start())
        for path in sorted(FOLDER.glob("*.cu*"))
        for found in BARRIER.finditer(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "where"), barriers())
def test_no_barrier_can_be_left_out(file, where, tmp_path):
    for path in FOLDER.glob("*.cu*"):
        text = path.read_text(encoding="utf-8")
        if path.name == file:
            text = text[:where] + BARRIER.sub("", text[where:], count=1)
        (tmp_path / path.name).write_text(text, encoding="utf-8")

    program = built("-DMAIN", "-O1", "-g", "-fsanitize=thread", kernels=tmp_path)

    assert run(program).returncode == RACES
