"""How the work grows with modules, sources and tensors, up to the largest that users have.

The last number of a row is the exponent from the size before: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import loramerge as lm
from benchmarks.speed.measure import Cost, call
from benchmarks.speed.sections import Row
from loramerge.verbs.push import card_facts

RULES = (100, 1_000, 10_000)
MODULES = (1_000, 3_000, 10_000)
SOURCES = (100, 1_000, 10_000)
KEYS = (1_000, 10_000, 100_000)
GOAL = "≤ 1.3"
PREFIX = "base_model.model"


def rows(work: Path) -> Iterator[Row]:
    """The curves, each from its smallest size on."""
    for verb, act in VERBS.items():
        yield from curve(verb, MODULES, lambda n, act=act: act(adapter(work / f"modules{n}", n)))
    yield from curve("merge of sources", SOURCES, fleet)
    yield from curve(
        "plan of 10,000 modules by rules", RULES, lambda n: ruled(adapter(work / "modules10000", 10_000), n)
    )
    for verb, act in HEADERS.items():
        yield from curve(verb, KEYS, lambda n, act=act: act(adapter(work / f"keys{n}", 20, n)))


def curve(what: str, sizes: tuple[int, ...], make: Callable[[int], Callable[[], object]]) -> Iterator[Row]:
    """A row for each size; what is made beforehand is not timed."""
    before: tuple[int, Cost] | None = None
    make(sizes[0])()  # everything is imported
    for size in sizes:
        cost = call(make(size), repeats=1)
        exponent = None
        if before is not None:
            exponent = math.log(cost.cpu / before[1].cpu) / math.log(size / before[0])
        yield Row(f"{what}, {size:,}", cost, "exponent" if exponent is not None else "", exponent, GOAL)
        before = size, cost


def adapter(folder: Path, modules: int, extras: int = 0) -> Path:
    """A folder of so many modules, each with a rank of its own, and so many tensors beside them."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    values, patterns = {}, {}
    for i in range(modules):
        path, rank = name(i), 1 + i % 3
        values[f"{PREFIX}.{path}.lora_A.weight"] = np.full((rank, 4), 0.5, np.float32)
        values[f"{PREFIX}.{path}.lora_B.weight"] = np.full((4, rank), 0.5, np.float32)
        patterns["^" + path.replace(".", r"\.")] = rank
    values |= {f"{PREFIX}.head.{i}.weight": np.ones(2, np.float32) for i in range(extras)}
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    config |= {"rank_pattern": patterns, "alpha_pattern": patterns, "base_model_name_or_path": "tiny"}
    save_file(values, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def name(number: int) -> str:
    return f"model.layers.{number // 7}.self_attn.{'qkvoabc'[number % 7]}_proj"


def ruled(place: Path, count: int) -> Callable[[], object]:
    """A plan by so many rules, each for a module of its own and no plain name."""
    names = ["(self_attn|attn)".join(path.split("self_attn")) for path in map(name, range(count))]
    rules = [lm.Rule(f"^{each}$", rank=2) for each in names]
    return lambda: lm.plan([place], "svd", rank=1, rules=rules)


def fleet(count: int) -> Callable[[], object]:
    """A merge of so many sources of rank 1, fewer than a module has rows and columns or not."""
    rng = np.random.default_rng(0)
    one = lm.LowRank(rng.standard_normal((64, 1)), rng.standard_normal((1, 64)))
    slots = lm.Adapter.of({"layers.0.q": one, "layers.1.q": one}).slots
    config = {"target_modules": ["q"], "base_model_name_or_path": "tiny"}
    sources = [lm.Adapter(f"s{i}", slots, config=config) for i in range(count)]
    return lambda: json.dumps(lm.combine(sources, "svd", rank=1, threads=1).report.to_dict())


VERBS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "inspect modules": lambda place: lambda: str(lm.inspect(place)),
    "check modules": lambda place: lambda: lm.check(place, "vllm"),
    "push modules (its card)": lambda place: lambda: card_facts(place, lm.load(place), "me/merged", None),
    "plan for vLLM of modules": lambda place: (
        lambda: lm.plan([place, place], "svd", rank=1, consumer="vllm", allow_unknown=True)
    ),
    "merge modules": lambda place: lambda: lm.combine([place, place], "svd", rank=1, threads=1),
}
HEADERS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "load tensors": lambda place: lambda: lm.load(place),
    "check tensors": lambda place: lambda: lm.check(place, "vllm"),
    "plan with tensors": lambda place: lambda: lm.plan([place, place], "svd", rank=1, extras="first"),
}
