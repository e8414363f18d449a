"""Bases and adapters, trained on the CPU with PEFT, kept in the work folder."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.quality.domains import DOMAINS, base_of
from benchmarks.quality.model import TARGETS, Transformer
from benchmarks.quality.plan import Size, Training
from benchmarks.quality.store import key
from benchmarks.quality.store import training as code_of_training

RANK, ALPHA, BATCH = 8, 16, 64
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
        fit(model, base_of(domain), -1, size.steps[1], 0, 3e-3)
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
    """The tensors of an adapter, as PEFT names them; trained if they are not there."""
    path = work / "adapters" / f"{name_of(training, size)}.safetensors"
    if not path.exists():
        model = wrapped(base(training.domain, size, work), training.start)
        order = training.task + 1000 * training.seed + 100_000 * training.copy
        fit(model, training.domain, training.task, size.steps[0], order, RATE)
        from peft import get_peft_model_state_dict

        write(get_peft_model_state_dict(model), path)
    return load_file(path)


def wrapped(model: Transformer, start: int) -> torch.nn.Module:
    """A copy of the base with an untrained adapter, whose A comes from the seed `start`."""
    import copy

    torch.manual_seed(1000 + start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks any model what transformers' models have
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        return get_peft_model(copy.deepcopy(model), config)


def fit(model: torch.nn.Module, domain: str, task: int, steps: int, seed: int, rate: float) -> None:
    """AdamW, the rate rising for a tenth of the steps and then falling to zero."""
    rng = np.random.default_rng([seed, task + 1])
    some = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(some, lr=rate, weight_decay=0.01)
    rise = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / rise, 1 - n / steps))
    for _ in range(steps):
        x, y = DOMAINS[domain].draw(task, "train", BATCH, rng)
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        schedule.step()


def write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """The file appears whole, also where two processes make it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, part)
    part.replace(path)
