"""Train, merge by every method, measure, and print tables.

    python -m benchmarks.quality [--quick] [--work DIR] [--json FILE] [--page FILE] [--jobs 2] [--train]
    python -m benchmarks.quality --half reporting     once, after choice.json is committed

Needs the `test` extra. Everything is kept in DIR, so that a run that was stopped goes on where it ended; the
trainings alone come with --train.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from benchmarks.quality import findings, plan, report, score, train
from benchmarks.quality.contenders import CONTENDERS, FEW, REFERENCE, Contender
from benchmarks.quality.domains import DOMAINS, base_of
from benchmarks.quality.plan import BEST, EASY, MANY, Cell, Size, Training
from benchmarks.quality.store import key, merging
from benchmarks.quality.train import RANK

CHOSEN = "level"  # the candidate of choice.json
CURVES = ("linear", "svd", "PEFT svd", CHOSEN)
SIZES = {"full": plan.FULL, "quick": plan.QUICK, "toy": plan.TOY}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", dest="size", action="store_const", const="quick", default="full", help="--size quick"
    )
    parser.add_argument("--size", choices=SIZES, help="how much is trained and merged (full)")
    parser.add_argument(
        "--half", choices=("choosing", "reporting"), default="choosing", help="which seeds (choosing)"
    )
    parser.add_argument("--work", type=Path, default=Path("quality"), help="the folder of all that is made")
    parser.add_argument("--json", type=Path, help="every row, and what it depends on")
    parser.add_argument("--page", type=Path, help="the tables, as Markdown")
    parser.add_argument("--pictures", type=Path, help="the folder of two pictures")
    parser.add_argument("--jobs", type=whole(1), default=2, help="how many processes (2)")
    parser.add_argument("--train", action="store_true", help="train what is missing, and stop")
    parser.add_argument("--seeds", type=whole(1), help="only so many of the half")
    parser.add_argument("--counts", type=whole(2), nargs="+", help="only merges of so many adapters")
    parser.add_argument("--ranks", type=whole(0), nargs="+", help="only merges of these ranks; 0 is no limit")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help="only these contenders")
    asked = parser.parse_args(given)
    if (wrong := unmet(asked)) is not None:
        parser.error(wrong)
    try:
        carried(asked)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not below."""

    def number(text: str) -> int:
        if (found := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{found} is below {least}")
        return found

    number.__name__ = "whole number"  # argparse says so of what is none
    return number


def unmet(asked: argparse.Namespace) -> str | None:
    """What a run would end with after its work is done; None if nothing."""
    there = len(plan.half(asked.half))
    if (asked.seeds or 0) > there:
        return f"--seeds {asked.seeds}: the {asked.half} half has {there}"
    for name in ("json", "page"):
        if (path := getattr(asked, name)) is not None and (path.is_dir() or not path.parent.is_dir()):
            return f"--{name} {path}: it must be a file in a folder that is there"
    for name in ("work", "pictures"):
        if (path := getattr(asked, name)) is not None and path.exists() and not path.is_dir():
            return f"--{name} {path}: it is not a folder"
    missing = [name for name in ("altair", "vl_convert") if asked.pictures and find_spec(name) is None]
    return f"--pictures needs {missing[0]}, which the test extra brings" if missing else None


def carried(asked: argparse.Namespace) -> None:
    """Train, measure, and write what was asked for."""
    size, start = part(SIZES[asked.size], asked), time.perf_counter()
    label = labelled(asked.half, asked.work, f"{asked.size}, {size.seeds} seeds")
    seeds = plan.half(asked.half)
    cells = list(plan.cells(size, seeds, {name: domain.tasks for name, domain in DOMAINS.items()}))
    if missing := [one for one in trainings(cells) if not train.place(one, size, asked.work).exists()]:
        each(partial(_base, size=size, work=asked.work), bases(missing), asked.jobs)
        each(partial(_train, size=size, work=asked.work), groups(missing), asked.jobs)
    print(f"trained: {time.perf_counter() - start:.0f} s", flush=True)
    if asked.train:
        return
    names = list(dict.fromkeys(asked.only or (FEW if size.few else CONTENDERS)))
    rows = measured(cells, size, asked.work, asked.jobs, names)
    print(f"measured: {time.perf_counter() - start:.0f} s", flush=True)
    text = report.page(rows, label, REFERENCE)
    easy = report.sets(rows).get("compatible", [])
    print(text)
    if asked.page:
        asked.page.write_text(text)
    if asked.pictures:
        from benchmarks.quality.pictures import draw  # Altair is for those who look

        draw(easy, CHOSEN, REFERENCE, asked.pictures)
    if asked.json:
        facts = {
            "schema": 2,
            "label": label,
            "merging": merging(),
            "seeds": seeds[: size.seeds],
            "rho": plan.RHO,
        }
        kept = facts | {"curves": findings.curves(easy, CURVES, RANK)}
        kept |= {"beside": findings.beside(easy, CHOSEN, RANK)} | findings.short(rows)
        asked.json.write_text(lined(kept))


def lined(kept: dict[str, Any]) -> str:
    """JSON with one line for each contender."""
    lines = ",\n".join(
        f"  {json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in kept.pop("lines").items()
    )
    head = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in kept.items())
    return f'{{\n{head},\n "lines": {{\n{lines}\n }}\n}}\n'


def part(size: Size, asked: argparse.Namespace) -> Size:
    """A size with fewer seeds, numbers of adapters or ranks. Trainings and results are the same files."""
    given = {name: getattr(asked, name) for name in ("seeds", "counts", "ranks")}
    each_once = {name: tuple(dict.fromkeys(v)) if isinstance(v, list) else v for name, v in given.items()}
    return replace(size, **{name: value for name, value in each_once.items() if value})


def labelled(half: str, work: Path, size: str) -> str:
    """The title of the run. Only the first run on the reporting half is the result; later ones say so."""
    if half == "choosing":
        return f"Choosing half, {size}"
    name = key(choice=plan.frozen())
    log = work / "opened.json"
    opened = json.loads(log.read_text()) if log.exists() else []
    if not opened or opened[-1] != [name, merging()]:  # the same run may go on
        opened.append([name, merging()])
        work.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps(opened))
    again = f", run {len(opened)}: the seeds had been opened before" if len(opened) > 1 else ""
    return f"Reporting half, {size}{again}"


def trainings(cells: list[Cell]) -> list[Training]:
    """Each once, in order."""
    return list(dict.fromkeys(one for cell in cells for one in cell.trainings))


def bases(each: list[Training]) -> list[str]:
    """The domains of the bases that they need, which come first: else each process would train its own."""
    return list(dict.fromkeys(base_of(one.domain) for one in each))


def groups(each: list[Training]) -> list[list[Training]]:
    """Those that are trained together: of one seed, domain and regime."""
    found: dict[tuple[object, ...], list[Training]] = {}
    for one in each:
        found.setdefault((one.seed, one.domain, one.regime, one.copy), []).append(one)
    return list(found.values())


def measured(cells: list[Cell], size: Size, work: Path, jobs: int, names: list[str]) -> list[dict[str, Any]]:
    """Few adapters by all contenders; many by the best with 8, or by all if 8 are not asked for."""
    few = [cell for cell in cells if cell.count <= MANY]
    rows = each(partial(_measure, size=size, work=work, names=names, ranks=size.ranks), few, jobs)
    if many := [cell for cell in cells if cell.count > MANY]:
        chosen = list(dict.fromkeys([*(report.best(rows, BEST) or names), REFERENCE]))
        rows += each(partial(_measure, size=size, work=work, names=chosen, ranks=(8,)), many, jobs)
    return rows


def wanted(names: list[str], ranks: tuple[int, ...]) -> list[tuple[Contender, int]]:
    """Every contender at each rank that it can have."""
    return [(one, rank) for one in map(CONTENDERS.__getitem__, names) for rank in ranks if one.takes(rank)]


def each(work: Any, things: list[Any], jobs: int) -> list[Any]:
    """What `work` makes of all things, one after another, by so many processes."""
    if jobs == 1:
        return [row for thing in things for row in work(thing)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_stoppable) as pool:
        try:
            return [row for rows in pool.map(work, things) for row in rows]
        except KeyboardInterrupt:  # the pool would wait for all that has begun
            for child in active_children():
                child.terminate()
            raise


def _stoppable() -> None:
    """Ctrl-C ends another process at once; what it was making is not there, or whole."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _base(domain: str, size: Size, work: Path) -> list[None]:
    _one_thread()
    train.base(domain, size, work)
    return []


def _train(group: list[Training], size: Size, work: Path) -> list[None]:
    _one_thread()
    train.adapters(group, size, work)
    return []


def _measure(
    cell: Cell, size: Size, work: Path, names: list[str], ranks: tuple[int, ...]
) -> list[dict[str, Any]]:
    _one_thread()
    if cell.domain not in EASY:
        ranks = tuple(rank for rank in ranks if rank == RANK)  # sets that are merged in one size
    return score.cell_rows(cell, size, work, wanted(names, ranks))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
