"""Bases and adapters, trained on the CPU with PEFT, kept in the work folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.quality import stack
from benchmarks.quality.domains import DOMAINS, Samples, base_of
from benchmarks.quality.model import TARGETS, Transformer
from benchmarks.quality.plan import Size, Training
from benchmarks.quality.store import key
from benchmarks.quality.store import training as code_of_training

RANK, ALPHA, BATCH = 8, 16, 64
HEAD = "head.weight"
RATE = 1e-3  # of adapters; at 5e-3 pairs of them hardly worked together, whatever merged them


@cache
def base(domain: str, size: Size, work: Path) -> Transformer:
    """The base of a domain, trained on what its tasks start from."""
    about = DOMAINS[base_of(domain)]
    torch.manual_seed(0)
    model = Transformer(about.classes, about.causal, size.width)
    name = key(base=base_of(domain), steps=size.steps[1], width=size.width, code=code_of_training())
    path = work / "bases" / f"{name}.safetensors"
    if not path.exists():
        rng = np.random.default_rng([0, 0])
        fit(model, lambda: about.draw(-1, "train", BATCH, rng), size.steps[1], 3e-3)
        write(dict(model.state_dict()), path)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def name_of(training: Training, size: Size) -> str:
    """The key of an adapter."""
    return key(
        **asdict(training),
        steps=size.steps,
        width=size.width,
        rank=RANK,
        alpha=ALPHA,
        code=code_of_training(),
    )


def adapter(training: Training, size: Size, work: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, as PEFT names them, and its head; trained if they are not there."""
    path = place(training, size, work)
    if not path.exists():
        adapters([training], size, work)
    return load_file(path)


def place(training: Training, size: Size, work: Path) -> Path:
    """The file of an adapter."""
    return work / "adapters" / f"{name_of(training, size)}.safetensors"


def adapters(group: list[Training], size: Size, work: Path) -> None:
    """Train those of one domain that are not there, all at once."""
    group = [one for one in group if not place(one, size, work).exists()]
    if not group:
        return
    model = base(group[0].domain, size, work)
    starts = [untrained(model, one.start) for one in group]
    factors = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
    if DOMAINS[group[0].domain].heads:
        factors[HEAD] = model.head.weight.repeat(len(group), 1, 1)
    fit_many(model, factors, group, size.steps[0])
    for n, one in enumerate(group):
        write({name: factor[n] for name, factor in factors.items()}, place(one, size, work))


def untrained(model: Transformer, start: int) -> dict[str, torch.Tensor]:
    """The tensors of an adapter as PEFT begins it."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(wrapped(model, start))


def wrapped(model: Transformer, start: int) -> torch.nn.Module:
    """A copy of the base with an untrained adapter, whose A comes from the seed `start`."""
    import copy

    torch.manual_seed(1000 + start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks any model what transformers' models have
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        return get_peft_model(copy.deepcopy(model), config)


def fit(model: torch.nn.Module, draw: Callable[[], Samples], steps: int, rate: float) -> None:
    """Train what of a model may be trained: a whole base, or an adapter of PEFT on one."""
    some = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = descent(some, steps, rate)
    for _ in range(steps):
        x, y = draw()
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        schedule.step()


def fit_many(model: Transformer, factors: dict[str, torch.Tensor], group: list[Training], steps: int) -> None:
    """Train adapters side by side, each as PEFT would train it alone; factors (S, ...) are changed."""
    orders = [one.task + 1000 * one.seed + 100_000 * one.copy for one in group]
    draws = [np.random.default_rng([order, one.task + 1]) for order, one in zip(orders, group, strict=True)]
    some = [factor.requires_grad_() for factor in factors.values()]
    optimizer, schedule = descent(some, steps, RATE)
    for _ in range(steps):
        drawn = [
            DOMAINS[one.domain].draw(one.task, "train", BATCH, rng)
            for one, rng in zip(group, draws, strict=True)
        ]
        x, y = (torch.stack(each) for each in zip(*drawn, strict=True))
        said = stack.logits(changed(model, factors), model.causal, x, len(model.blocks))
        loss = torch.nn.functional.cross_entropy(said.flatten(0, 2), y.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        (loss * len(group)).backward()  # each counts equally many labels: the sum of their means
        clip_each(some)
        optimizer.step()
        schedule.step()
    for factor in some:
        factor.requires_grad_(False)


def descent(
    some: list[torch.Tensor], steps: int, rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, the rate rising for a tenth of the steps and then falling to zero."""
    optimizer = torch.optim.AdamW(some, lr=rate, weight_decay=0.01, fused=True)
    rise = max(steps // 10, 1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / rise, 1 - n / steps)
    )


def clip_each(some: list[torch.Tensor]) -> None:
    """The gradient of each adapter is brought to length 1 at most."""
    grads = [one.grad for one in some if one.grad is not None]
    lengths = torch.sqrt(sum((grad.flatten(1).square().sum(dim=1) for grad in grads), torch.zeros(())))
    shares = (1.0 / (lengths + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad *= shares[:, None, None]


def changed(model: Transformer, factors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the base with each adapter added: (S, out, in) where there is one, or a head."""
    state = dict(model.state_dict()) | {name: each for name, each in factors.items() if name == HEAD}
    for name in [name for name in factors if name.endswith("lora_A.weight")]:
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up, down = factors[name.replace("lora_A", "lora_B")], factors[name]
        state[f"{path}.weight"] = state[f"{path}.weight"] + ALPHA / RANK * (up @ down)
    return state


def write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """The file appears whole, also where two processes make it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, part)
    part.replace(path)
