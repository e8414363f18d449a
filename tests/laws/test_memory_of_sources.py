"""What a merge holds follows its statement whatever its sources are: stacks, heads, ranks, types, forms."""

import tracemalloc
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import loramerge as lm
from tests.helpers.files import bare, folder, tensors

SPARE = 1 << 20  # of Python's own, and of what is the same for all
LINE = {"layers.0.q": (24, 40_000)}  # of rank 8 a factor of float32 has 1.3 MB
EXPERT, EXPERTS, RANK, LAYERS = (16, 8000), 16, 4, 3  # the stack of a layer has 2 MB


def line(path, seed, rank=8, dtype=np.float32, shapes=LINE):
    return folder(path, tensors(seed, rank, shapes, dtype), r=rank, lora_alpha=rank)


def stacked(path, seed):
    """All experts of a layer in one pair."""
    values, (outs, ins) = {}, EXPERT
    for n in range(LAYERS):
        made = tensors(seed, EXPERTS * RANK, {"experts": (outs, ins)})
        values |= {name.replace("experts", f"layers.{n}.mlp.experts"): each for name, each in made.items()}
    return folder(path, values, r=RANK, lora_alpha=1, target_parameters=["mlp.experts.up_proj"])


def loose(path, seed, experts):
    """The same experts as modules of their own; not all of them."""
    shapes = {f"layers.{n}.mlp.experts.{e}.up_proj": EXPERT for n in range(LAYERS) for e in experts}
    return line(path, seed, RANK, shapes=shapes)


def stacks(where):
    return [stacked(where / name, seed) for seed, name in enumerate("ab")], {}


def stacks_of_several_kinds(where):
    """Experts of one stack that other sources have: they are merged in other batches."""
    return [stacked(where / "a", 0), loose(where / "b", 1, (1, 4, 5)), loose(where / "c", 2, (4,))], {}


def heads(where):
    """A head of 8 MB, averaged."""
    given = []
    for seed, name in enumerate("abc"):
        head = np.random.default_rng(seed).standard_normal((2000, 1000)).astype(np.float32)
        values = {**tensors(seed), "base_model.model.lm_head.weight": head}
        given.append(folder(where / name, values, modules_to_save=["lm_head"]))
    return given, {"extras": "average"}


def ranks(where):
    """A long module of rank 2 beside a small one of rank 64, to which it is filled up."""
    shapes = {"layers.0.q": (64, 64), "layers.0.v": (24, 20_000)}
    rank = {"layers.0.q": 64, "layers.0.v": 2}
    given = [
        folder(where / name, tensors(seed, rank, shapes), r=64, lora_alpha=64, rank_pattern={"v": 2})
        for seed, name in enumerate("ab")
    ]
    return given, {"profile": "portable"}


def types(kind, **options):
    def make(where):
        return [line(where / name, seed, dtype=kind) for seed, name in enumerate("ab")], options

    return make


def many(where):
    return [line(where / str(seed), seed, 1, shapes={"layers.0.q": (24, 16_000)}) for seed in range(24)], {}


def matrices(where):
    rng = np.random.default_rng(0)
    values = [{"lora_unet_proj_in.diff": rng.standard_normal((24, 20_000)).astype(np.float32)}] * 2
    return [bare(where / f"{i}.safetensors", each) for i, each in enumerate(values)], {"rank": 8}


def computed(where):
    """DoRA: the matrix is made of the pair and the weight of the base."""
    rng = np.random.default_rng(0)
    (where / "base").mkdir()
    weight = rng.standard_normal((24, 40_000)).astype(np.float32)
    bare(where / "base" / "model.safetensors", {"layers.0.q.weight": weight})

    values = tensors(0, 2, LINE) | {
        "base_model.model.layers.0.q.lora_magnitude_vector": rng.random(24).astype(np.float32)
    }
    return [folder(where / "a", values, use_dora=True)], {"rank": 8, "base": where / "base"}


KINDS = {
    "stacks": stacks,
    "stacks of several kinds": stacks_of_several_kinds,
    "heads": heads,
    "ranks": ranks,
    "float64": types(np.float64),
    "bfloat16": types(ml_dtypes.bfloat16),
    "float16": types(np.float16),
    "to float64": types(np.float32, dtype="float64"),
    "many": many,
    "matrices": matrices,
    "computed": computed,
}


@pytest.mark.parametrize(("kind", "threads"), [*((kind, 1) for kind in KINDS), ("stacks", 2), ("ranks", 2)])
def test_a_merge_holds_what_it_says(kind, threads, tmp_path):
    sources, options = KINDS[kind](tmp_path)
    lm.combine(
        sources[:1], "svd", **{"rank": 1, **options}, out=tmp_path / "first.safetensors"
    )  # everything is imported
    plan = lm.plan(sources, "svd", threads=threads, **options)
    held = threads * max(plan.held, *plan.outline.held_beside().values(), 0)
    asked = replace(plan.request, out=tmp_path / "out.safetensors", memory=float(threads * plan.held))
    plan = replace(plan, request=asked)
    assert plan.effort.workers == threads
    tracemalloc.start()
    try:
        lm.merge.run.run(plan)
        found = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found <= held + SPARE, f"{found / 1e6:.1f} MB, and {held / 1e6:.1f} were said"
