"""Every way to end: the exit code, one sentence, nothing half done; and what a start must not cost."""

import os
import resource
import signal
import subprocess
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path

import click
import pytest

import loramerge.cli
from loramerge.cli.failures import exit_code
from loramerge.errors import (
    IncompatibleError,
    LoramergeError,
    OutputError,
    SourceError,
    UsageError,
    VerificationError,
)
from loramerge.formats import output
from tests.helpers.files import content, folder, tensors

ROOT = Path(__file__).parents[2]
FIXTURES = [str(ROOT / "fixtures" / name) for name in ("a.safetensors", "b.safetensors")]


PLAIN = "from loramerge.cli import main; main()"


def process(*args, code=PLAIN, **options):
    """`loramerge` in a process of its own; `code` may prepare it."""
    environment = {**os.environ, **options.pop("env", {})}
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], env=environment, **options)


EXITS = {
    LoramergeError("x"): (1, "Error: x\n"),
    SourceError("x"): (1, "Error: x\n"),
    OutputError("x"): (1, "Error: x\n"),
    UsageError("x"): (2, "Error: x\n"),
    IncompatibleError("x"): (3, "Error: x\n"),
    VerificationError("x"): (4, "Error: x\n"),
    click.UsageError("x"): (2, "Error: x\n"),
    click.exceptions.Exit(3): (3, ""),
    SystemExit(3): (3, ""),
    click.Abort(): (130, "Interrupted: no output was changed.\n"),
    KeyboardInterrupt(): (130, "Interrupted: no output was changed.\n"),
    MemoryError(): (1, "Error: there is not enough memory for this merge.\n"),
    OSError(28, "No space left"): (1, "Error: the system refuses to go on: No space left.\n"),
}


@pytest.mark.parametrize(("error", "expected"), EXITS.items(), ids=map(repr, EXITS))
def test_every_error_has_its_exit_code_and_sentence(capsys, monkeypatch, error, expected):
    monkeypatch.setattr(
        "loramerge.formats.files.atomic.PLACED", []
    )  # other tests of this process wrote files
    assert (exit_code(error), capsys.readouterr().err) == expected


def test_a_working_folder_that_is_gone_is_no_bug(cli, tmp_path, monkeypatch):
    folder(tmp_path / "a")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    cli("combine", tmp_path / "a", "-o", "out").refused(1, "the folder in which this runs does not exist")
    assert cli("combine", tmp_path / "a", "-o", tmp_path / "out").code == 0


def test_an_unexpected_exception_is_our_bug_with_the_trace_in_a_file(cli, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("of our own\nmaking")

    folder(tmp_path / "a")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("loramerge.merge.run.measure", fail)
    monkeypatch.delenv("LORAMERGE_DEBUG", raising=False)
    cli("combine", "a").refused(70, "bug in loramerge (ZeroDivisionError)", str(tmp_path))
    (log,) = tmp_path.glob("*.log")
    assert cli.err.rstrip().endswith(log.name)
    assert "Traceback" in log.read_text()
    assert sorted(os.listdir(tmp_path)) == ["a", log.name]
    monkeypatch.setenv("LORAMERGE_DEBUG", "1")
    assert cli("combine", "a").code == 70
    assert "Traceback" in cli.err
    assert "of our own" in cli.err


def test_a_bug_is_told_even_where_no_log_can_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert exit_code(ZeroDivisionError()) == 70
    assert "LORAMERGE_DEBUG=1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
@pytest.mark.parametrize("where", ["put", "close", "reread"])
def test_an_interrupt_leaves_the_output_as_it_was(cli, tmp_path, monkeypatch, where, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    folder(tmp_path / "a", tensors(1))
    folder(tmp_path / "b", tensors(2))
    assert cli("combine", "a", "-o", name).code == 0
    before = content(tmp_path)
    monkeypatch.setattr(output.Draft, where, interrupted)
    assert cli("combine", "a", "b", "-o", name, "--overwrite").code == 130
    assert cli.err.strip() == "Interrupted: no output was changed."
    assert content(tmp_path) == before
    assert cli("combine", "a", "b", "-o", "other").code == 130
    assert content(tmp_path) == before


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
from loramerge.formats.output import Draft
real = Draft.put
def put(*args):
    print("writing", flush=True)
    time.sleep(0.2)
    real(*args)
Draft.put = put
from loramerge.cli import main
main()
"""


ENDS = {
    signal.SIGINT: (130, "Interrupted: no output was changed."),
    signal.SIGTERM: (143, "Ended by SIGTERM: no output was changed."),
    signal.SIGHUP: (129, "Ended by SIGHUP: no output was changed."),
}


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_in_the_middle_of_a_merge(tmp_path, number):
    command = [sys.executable, "-c", SLOW, "combine", *FIXTURES, "-o", "m"]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with child:
        assert child.stdout.readline().startswith("writing")
        assert os.listdir(tmp_path), "work in progress"
        os.killpg(child.pid, number)
        _, words = child.communicate(timeout=20)
    assert (child.returncode, words.strip()) == ENDS[number]
    assert os.listdir(tmp_path) == []


STUCK = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from loramerge.sources.units import Units
def gram(*_):  # a call of LAPACK that takes minutes
    print("computing", flush=True)
    threading.Event().wait(100)
Units._gram = gram
from loramerge.__main__ import main
main()
"""
COMMANDS_THAT_COMPUTE = {
    "combine": ("combine", *FIXTURES, "--method", "ties", "-o", "m"),
    "one thread": ("combine", *FIXTURES, "--threads", "1", "-o", "m.safetensors"),
    "looking first": ("combine", *FIXTURES, "--method", "svd", "--energy", "0.9", "-o", "m"),
    "dense": ("combine", *FIXTURES, "--dense-delta", "-o", "m.safetensors"),
    "dry run": ("combine", *FIXTURES, "--method", "svd", "--dry-run"),
    "resize": ("resize", FIXTURES[0], "--size", "20kB", "-o", "m"),
    "inspect": ("inspect", FIXTURES[0]),
}


@pytest.mark.parametrize("command", COMMANDS_THAT_COMPUTE.values(), ids=COMMANDS_THAT_COMPUTE)
def test_ctrl_c_waits_for_no_computation(tmp_path, command):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", STUCK, *command], cwd=tmp_path, **options) as child:
        assert child.stdout.readline().startswith("computing")
        began = time.monotonic()
        while child.poll() is None:  # who is impatient disturbs nothing, up to the very end
            os.killpg(child.pid, signal.SIGINT)
            time.sleep(0.05)
        _, words = child.communicate(timeout=20)
        took = time.monotonic() - began
    assert (child.returncode, words.strip()) == (130, "Interrupted: no output was changed.")
    assert took < 15, "under a second of its own, on a machine that others use too; the call takes 100 s"
    assert os.listdir(tmp_path) == []


AT_ANY_PLACE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from loramerge import cli
def invoke(*_):  # as in the middle of making a dataclass, after which Python means to die by the signal
    exec("raise KeyboardInterrupt")
cli.LazyGroup.invoke = invoke
from loramerge.__main__ import main
main()
"""
BEFORE_ALL = """
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from loramerge.__main__ import main
main()
"""


@pytest.mark.parametrize("code", [AT_ANY_PLACE, BEFORE_ALL], ids=["inside", "before"])
def test_an_interrupt_at_any_place_is_an_exit_code_and_a_sentence(code):
    done = subprocess.run([sys.executable, "-c", code, "methods"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "Interrupted: no output was changed."


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    for command in (["methods", "lego"], ["inspect", "--json", *FIXTURES], ["inspect", *FIXTURES * 20]):
        read_end, write_end = os.pipe()
        os.close(read_end)
        try:
            done = process(*command, capture_output=False, stdout=write_end, stderr=subprocess.PIPE)
        finally:
            os.close(write_end)
        assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_printed_does_not_undo_a_merge(tmp_path):
    latin = {"PYTHONIOENCODING": "latin-1"}
    done = process("combine", *FIXTURES, "-o", "m", cwd=tmp_path, env=latin, encoding="latin-1")
    assert done.returncode == 0
    assert "\\u2016merge\\u2016/\\u2016·\\u2016" in done.stdout
    name, locale = b"raw\xff.safetensors", {"LC_ALL": "C.UTF-8"}
    out = os.fsdecode(name)
    done = process("combine", *FIXTURES, "-q", "-o", out, cwd=tmp_path, env=locale, text=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, name + b"\n", b"")


def test_a_stdout_that_is_full_or_closed_is_no_bug():
    with open("/dev/full", "w") as full:
        done = process("methods", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left" in done.stderr
    closed = "import sys; sys.stdout = None\nfrom loramerge.cli import main; main()"  # as after >&-
    assert process("methods", code=closed).returncode == 0


def test_progress_is_for_terminals_and_for_long_work(tmp_path):
    slow = SLOW.replace('print("writing", flush=True)', "").replace("0.2", "0.1")
    once = ("--memory", "1", "--threads", "1")  # one module a batch
    done = process("combine", *FIXTURES, *once, "-o", "m", code=slow, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 4, "three notes and the last word: no bar where nobody looks"
    assert "which is more than --memory 1B" in done.stderr
    shown = on_a_terminal(slow, tmp_path, "combine", *FIXTURES, *once, "-o", "n")
    assert "/18 [" in shown
    assert shown.endswith(
        "wrote n: level (the default; --method linear sums), 18 modules, rank 12, float32, 119.8 kB\r\n"
    )
    patient = "from loramerge.request.progress import Bar; Bar.__init__.__defaults__ = (60.0,);"
    assert "/18 [" not in on_a_terminal(patient + PLAIN, tmp_path, "combine", *FIXTURES, "-o", "o")


def _pieces(fd):
    """All that waits to be read: a terminal gives 4 kB at a time."""
    while True:
        try:
            yield os.read(fd, 100_000)
        except BlockingIOError:
            return


def on_a_terminal(code, where, *args):
    """What a process writes on a terminal of its own, as stderr."""
    parent, child = os.openpty()
    termios.tcsetwinsize(child, (24, 80))
    try:
        options = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": child}
        done = process(*args, code=code, cwd=where, **options)
        assert done.returncode == 0
        os.set_blocking(parent, False)
        return b"".join(_pieces(parent)).decode()
    finally:
        os.close(parent)
        os.close(child)


UNUSED = """
import sys
from loramerge.cli import main
try:
    main()
finally:
    heavy = {"torch", "sklearn", "peft", "transformers", "scipy", "matplotlib", "cupy", "huggingface_hub"}
    asks = sys.argv[1] == "methods" or {"--help", "--version"} & set(sys.argv)
    heavy |= {"numpy", "tqdm"} if asks else set()
    print("LOADED", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--version", "-h"],
        ["combine", "--help"],
        ["methods"],
        ["inspect", FIXTURES[0]],
        ["combine", *FIXTURES],
        ["combine", *FIXTURES, "--method", "lego", "--rank", "8", "-o", "m"],
    ],
    ids=["help", "version", "combine-help", "methods", "inspect", "combine", "lego"],
)
def test_no_command_loads_what_it_does_not_need(tmp_path, command):
    done = process(*command, code=UNUSED, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.endswith("LOADED []\n")


def test_help_is_quick():
    times = [spent_by_children()]
    for _ in range(3):
        assert process("--help").returncode == 0
        times.append(spent_by_children())
    assert min(after - before for before, after in pairwise(times)) < 0.5  # 0.06 s where this was written


def spent_by_children():
    """Seconds of the processor: others use the machine too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_without_a_command_the_help_is_shown(cli):
    assert cli().code == 0
    assert cli.out == cli("--help").out
    for name, summary in loramerge.cli.COMMANDS.items():
        assert name in cli.out
        assert summary in cli.out
    assert "70 a bug in loramerge" in " ".join(cli.out.split())
    assert cli("--version").out == f"loramerge, version {loramerge.__version__}\n"
    assert cli("merge").code == 2
    assert "There is no command 'merge'. Did you mean combine?" in cli.err


def test_the_module_runs_as_the_script_does(tmp_path):
    command = [sys.executable, "-m", "loramerge", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == process("methods").stdout


def test_an_interrupt_after_the_output_is_in_its_place_says_so(cli, tmp_path, monkeypatch):
    from loramerge.cli import work

    def interrupt(*_):
        raise KeyboardInterrupt

    folder(tmp_path / "a", tensors(1))
    monkeypatch.setattr(work, "show_merge", interrupt)
    for out in ("m", "m.safetensors"):
        cli("combine", "a", "-o", out)
        assert (cli.code, cli.err.strip()) == (130, f"Interrupted: {out} was complete by then.")
        assert (tmp_path / out).exists()
