"""Files of every family in every spelling that is met, and what they come to in float64."""

from __future__ import annotations

import numpy as np

from loramerge.formats.models.family import FIRST
from loramerge.formats.models.rules import filled
from loramerge.formats.models.spellings import MET, Met
from tests.helpers.families import size

RANK, ALPHA = 2, 1.0


def label(met: Met) -> str:
    return f"{met.family.name} {met.spelling} {met.naming}"


ROWS = {label(met): met for met in MET}


def modules(
    met: Met, block: int = 0, width: int = 12, around: bool = False
) -> dict[str, tuple[tuple[str, ...], tuple[int, int], list]]:
    """Name in the file -> (diffusers' names of its rows, (outs, ins), which rows each has), of one block.

    Args:
        around: with the modules that are in no block, or in a block of a block.
    """
    first = {rule.ours: rule for rule in met.family.namings[FIRST].rules}
    wholes = {part: rule for rule in first.values() for part in rule.ours}
    found = {}
    for rule in met.family.namings[met.naming].rules:
        stars = rule.theirs.count("*")
        if stars != 1 and not around:
            continue
        whole = wholes.get(rule.ours[0], rule)
        outs, ins = size(whole, width)
        spans = whole.spans(outs, ins) if whole.fused else [[slice(0, outs)]]
        if len(rule.ours) == 1 and not rule.fused and whole.fused:  # a part by itself
            (spans,) = ([each] for each in [spans[whole.ours.index(rule.ours[0])]])
            outs = sum(span.stop - span.start for span in spans[0])
            spans = [[slice(0, outs)]]
        name = filled(rule.theirs, (str(block),) * stars)
        parts = tuple(filled(part, (str(block),) * stars) for part in rule.ours)
        found[name] = parts, (outs, ins), spans
    return found


def tensors(
    met: Met, seed: int, width: int = 12, around: bool = False, block: int = 0
) -> dict[str, np.ndarray]:
    """A file with random factors."""
    rng, made = np.random.default_rng(seed), {}
    for name, (_, (outs, ins), _) in modules(met, block, width, around).items():
        stem = met.stem(name)
        made[f"{stem}{met.ends[0]}"] = rng.standard_normal((RANK, ins)).astype("f4")
        made[f"{stem}{met.ends[1]}"] = rng.standard_normal((outs, RANK)).astype("f4")
        if met.alpha:
            made[f"{stem}.alpha"] = np.array(ALPHA, "f4")
    return made


def updates(met: Met, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """diffusers' name of a module -> ΔW in float64, of a file in this spelling."""
    return {name: up @ down for name, (up, down) in factors(met, found).items()}


def factors(
    met: Met, found: dict[str, np.ndarray], width: int = 12, around: bool = False
) -> dict[str, tuple]:
    """diffusers' name of a module -> (up, down) in float64, of a file in this spelling."""
    made = {}
    for name, (parts, _, spans) in modules(met, width=width, around=around).items():
        stem = met.stem(name)
        if (key := next((k for k in _downs(stem) if k in found), None)) is None:
            continue
        up = found[key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")].astype(float)
        down = found[key].astype(float)
        alpha = float(found.get(f"{stem}.alpha", len(down)))
        for part, rows in zip(parts, spans, strict=True):
            made[part] = alpha / len(down) * np.concatenate([up[span] for span in rows]), down
    return made


def _downs(stem: str) -> list[str]:
    return [f"{stem}{end}" for end in (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight")]


def stems(found: dict[str, np.ndarray]) -> set[str]:
    """What the keys of a file's modules begin with."""
    return {key.split(".lora_")[0] for key in found if ".lora_" in key}
