"""A bundle on a model beside PEFT's `cat` adapter of the same units, and beside PEFT's own Arrow.

Forward passes of one model in one process, in turns, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import loramerge as lm
from benchmarks.speed.measure import Cost
from benchmarks.speed.sections import Row, sources
from loramerge.routing.torch import attach, put_prototypes

WIDTH, INNER, LAYERS = 1024, 2816, 2
COUNT, BATCH, TOKENS, TURNS = 8, 8, 128, 7
BOTH = (WIDTH, WIDTH)
MODULES = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), BOTH),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (INNER, WIDTH)),
    "mlp.down_proj": (WIDTH, INNER),
}
SHAPES = {f"model.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in MODULES.items()}
GATES = {"static": {}, "arrow": {"top_k": 2}, "spectr": {"top_k": 2}, "rank-absproj": {"top_k": 32}}


def rows(where: Path) -> Iterator[Row]:
    """The cat adapter; our gates; PEFT's Arrow, and how far its prototypes are off."""
    import peft
    import torch

    torch.set_num_threads(1)
    folders = sources(where, COUNT, SHAPES)
    cat = where / "cat"
    lm.combine(folders, "cat", out=cat, overwrite=True, threads=1)
    bundles = {gate: where / f"bundle-{gate}" for gate in GATES}
    for gate, options in GATES.items():
        lm.route(folders, gate, out=bundles[gate], overwrite=True, threads=1, **options)
    model = _model(torch)
    ids = torch.randint(0, 64, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    whole = peft.PeftModel.from_pretrained(_model(torch), str(cat)).eval()
    tasks = [str(bundles["arrow"] / f"task_{e}") for e in range(COUNT)]
    arrow = peft.create_arrow_model(_model(torch), tasks, peft.ArrowConfig(top_k=2)).eval()

    def forward(called: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return called(input_ids=ids).logits

        return run

    ways: dict[str, Callable[[], Any]] = {"cat": forward(whole), "PEFT arrow": forward(arrow)}
    off = _prototypes(arrow, lm.load_bundle(bundles["arrow"]), ways["PEFT arrow"])
    for gate, place in bundles.items():
        ways[gate] = _attached(model, lm.load_bundle(place), forward(model))
    _check(ways, arrow, lm.load_bundle(bundles["arrow"]))
    costs = _in_turns(ways)
    base = f"{BATCH}×{TOKENS} tokens, {COUNT}×r16 in {len(SHAPES)} modules of a model of width {WIDTH}"
    yield Row(f"{base}: PEFT's cat adapter of all units", costs["cat"])
    for gate in GATES:
        name, cost = f"ours, gate {gate}", costs[gate]
        yield Row(name, cost, "cat, CPU", costs["cat"].cpu / cost.cpu, "≥ 0.87 (1 / 1.15)")
    theirs = f"PEFT's Arrow; its prototypes are off by up to {off:.1e} (ours by less than 1e-6)"
    yield Row(theirs, costs["PEFT arrow"], "cat, CPU", costs["cat"].cpu / costs["PEFT arrow"].cpu)


def _model(torch: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _attached(model: Any, bundle: lm.Bundle, forward: Callable[[], Any]) -> Callable[[], Any]:
    """A forward pass under a bundle that has been attached once."""
    context = attach(model, bundle)
    attached = context.__enter__()
    hooks = [(t, attached.hook(t)) for t in bundle]
    context.__exit__(None, None, None)
    named = dict(model.named_modules())

    def run() -> Any:
        handles = [named[target.path].register_forward_hook(hook, with_kwargs=True) for target, hook in hooks]
        try:
            return forward()
        finally:
            for handle in handles:
                handle.remove()

    return run


def _prototypes(model: Any, bundle: lm.Bundle, forward: Callable[[], Any]) -> float:
    """The largest distance of one of PEFT's prototypes from the exact one, its sign apart."""
    forward()
    first = next(iter(bundle))
    _, _, vt = np.linalg.svd(bundle[first].expert(0).dense())
    assert 1 - abs(float(bundle[first].tensors["prototypes"][0] @ vt[0])) < 1e-6, "ours are exact"
    worst = 0.0
    for target in bundle:
        layer = model.get_submodule(f"base_model.model.{target.path}")
        theirs = layer.lora_arrow["arrow_router"].prototypes.numpy()
        exact = bundle[target].tensors["prototypes"]
        signs = np.sign((theirs * exact).sum(axis=1, keepdims=True))
        worst = max(worst, float(np.linalg.norm(theirs * signs - exact, axis=1).max()))
    return worst


def _check(ways: dict[str, Callable[[], Any]], arrow: Any, bundle: lm.Bundle) -> None:
    """With exact prototypes PEFT's Arrow does what ours does; static is cat."""
    assert (ways["static"]() - ways["cat"]()).abs().max() < 1e-3
    put_prototypes(arrow, bundle)
    assert (ways["PEFT arrow"]() - ways["arrow"]()).abs().max() < 1e-3


def _in_turns(ways: dict[str, Callable[[], Any]]) -> dict[str, Cost]:
    """Medians over turns in which each way comes once."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, run in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Cost(*(statistics.median(each) for each in zip(*runs, strict=True)))
        for name, runs in found.items()
    }
