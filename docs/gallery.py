"""Adapters that the site shows: the trained fixtures, and others that are made here, with their reports.

The made ones have the names of real models and the falling spectra of trained adapters, in small sizes. No
training stands behind their numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import chdir
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import loramerge as lm
from loramerge.charts.draw import drawn
from loramerge.charts.spectra import spectra
from loramerge.charts.table import MODULE, SOURCE
from loramerge.merge import columns
from loramerge.pages.page import Page
from loramerge.sources.modules import modules

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SHOWN = "model.layers.1.self_attn.q_proj"
Shapes = Mapping[str, tuple[int, int]]


def fixtures() -> list[lm.Adapter]:
    return [lm.load(FIXTURES / f"{name}.safetensors") for name in "ab"]


def made(name: str, shapes: Shapes, rank: int, seed: int, near: int | None = None) -> lm.Adapter:
    """An adapter whose σ fall as those of trained ones do; `near`: the seed of a task that it shares."""
    own, task = np.random.default_rng(seed), np.random.default_rng(near)
    fall = 0.6 ** np.arange(rank)

    def update(outs: int, ins: int, depth: float) -> lm.LowRank:
        sides = [own.standard_normal((outs, rank)), own.standard_normal((rank, ins))]
        if near is not None:
            sides = [0.5 * side + task.standard_normal(side.shape) for side in sides]
        up, down = sides[0] * fall * (0.3 + depth), sides[1] / ins
        return lm.LowRank(up.astype(np.float32), down.astype(np.float32), 2.0)

    count = len(shapes)
    return lm.Adapter.of(
        {path: update(*size, i / count) for i, (path, size) in enumerate(shapes.items())}, name
    )


def flux_shapes() -> Shapes:
    """The attention of a Flux transformer, double blocks first, 48 wide."""
    double = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj")
    single = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    found = {f"transformer_blocks.{i}.{name}": (48, 48) for i in range(8) for name in double}
    for i in range(12):
        for name in single:
            wide = 192 if name == "proj_mlp" else 48
            found[f"single_transformer_blocks.{i}.{name}"] = (wide, 48)
    return found


def llama_shapes(layers: int) -> Shapes:
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]
    return {f"model.layers.{i}.{name}": (32, 32) for i in range(layers) for name in names}


def llm() -> Page:
    with chdir(FIXTURES.parent):  # names that a reader can type
        return lm.report(lm.combine(["fixtures/a.safetensors", "fixtures/b.safetensors"], "lego", rank=8))


def flux() -> Page:
    shapes = flux_shapes()
    named = {"ink-drawing": (8, 1), "a-cat-called-Mo": (4, 2), "film-grain": (8, 3)}
    files = {name: f"{name}.safetensors" for name in named}
    with TemporaryDirectory() as place, chdir(place):
        for name, (rank, seed) in named.items():
            lm.save(made(name, shapes, rank, seed), files[name], format="diffusers")
        return lm.report(list(files.values()))


def fleet() -> Page:
    """Three tasks with four users each: squares of colour on the diagonal of overlaps."""
    shapes = llama_shapes(6)
    names = {f"task-{t + 1}-user-{u + 1}": (t, u) for t in range(3) for u in range(4)}
    with TemporaryDirectory() as place, chdir(place):
        for name, (t, u) in names.items():
            lm.save(made(name, shapes, 4, 10 * t + u, near=100 + t), name)
        return lm.report(list(names), methods=["svd", "lego", "karcher", "core"])


GALLERY: Mapping[str, tuple[str, Callable[[], Page]]] = {
    "llm": (
        "two trained adapters of a tiny Llama, the fixtures of this repository, and their merge by LEGO",
        llm,
    ),
    "flux": ("three adapters of a transformer with the modules of Flux; their numbers are made", flux),
    "fleet": ("twelve adapters of four users on three tasks; their numbers are made", fleet),
}


FOUND = {  # pages about adapters of others, which are not part of this repository: name -> words, places
    "gpt2": ("real adapters of GPT-2, two of one author and one of another", ["A-gpt2/*"]),
    "sd15": ("real adapters of Stable Diffusion 1.5, of two authors", ["G-sd15-attn/*"]),
}


def found() -> Mapping[str, tuple[str, Callable[[], Page]]]:
    """Pages about real adapters, where LORAMERGE_REAL_ADAPTERS says a folder that has them."""
    place = os.environ.get("LORAMERGE_REAL_ADAPTERS")

    def page(names: list[str]) -> Page:
        return lm.report([f"{place}/{name}" for name in names], extras="drop")

    here = {n: each for n, each in FOUND.items() if place and list(Path(place).glob(each[1][0]))}
    return {name: (words, partial(page, names)) for name, (words, names) in here.items()}


def sources(name: str) -> tuple[list[lm.Adapter], dict[str, Any]]:
    """What a method is shown on: the fixtures, or what it needs."""
    a, b = fixtures()
    if name in ("fair", "fedavg"):  # which need one rank
        return [lm.resize(a, rank=4).adapter, b], {}
    if name == "ffa":  # which needs one lora_A
        slots = {t: lm.LowRank(np.roll(a[t].up, 1, axis=1), a[t].down, a[t].scale) for t in a}
        return [a, lm.Adapter.of({t.path: slots[t] for t in a}, "b, with the lora_A of a")], {}
    if name == "sg":
        told = {"a.safetensors": "Reverses a word.", "b.safetensors": "Shifts the letters of a word."}
        return [a, b], {"describe": "a word backwards", "descriptions": told}
    return [a, b], {}


def picture(name: str) -> str:
    """Spectra of the sources and of their merge by a method, in one module, as SVG."""
    import vl_convert

    adapters, asked = sources(name)
    sized = {"rank": 8} if "rank" in lm.METHODS[name].names() else {}
    merge = lm.combine(adapters, name, **sized, **asked)
    named = [*((f"{i} {a.name}", a) for i, a in enumerate(adapters, 1)), (f"merge by {name}", merge.adapter)]
    measured = {label: [m for m in modules(adapter) if m.name == SHOWN] for label, adapter in named}
    chart = drawn(spectra, columns.spectra(measured))
    assert {row[SOURCE] for row in columns.spectra(measured).records()} == set(measured), MODULE
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))
