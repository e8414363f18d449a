"""The two domains: images of digits seen in other ways, and functions of strings.

A domain gives samples x and labels y (…, L), where -100 is not counted. Each has a compatible set of tasks,
where the input shows which task it is, and a conflicting one, where one input has another answer in each.
In a third set every task trains a head of its own too, and is asked with it whatever the body is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

Samples = tuple[torch.Tensor, torch.Tensor]
HINT = 0.3  # of the base's samples are of the tasks: it has seen them, and mostly answers otherwise
LETTERS, LENGTH, TAGS, ARROW = 10, 6, 12, 10  # tokens: letters, the arrow, then tags


@dataclass(frozen=True, slots=True)
class Domain:
    """Args:
    tasks: how many there are; -1 is what the base has learned.
    draw: (task, split, count, generator) -> samples of ``train``, ``tune`` or ``test``.
    classes: of the output.   causal: a language model, else a vision transformer.
    heads: every task has a head of its own.
    """

    tasks: int
    draw: Callable[[int, str, int, np.random.Generator], Samples]
    classes: int
    causal: bool
    heads: bool = False


@cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.images[order].astype(np.float32) / 16, data.target[order].astype(np.int64)


SPLITS = {"train": slice(0, 1000), "tune": slice(1000, 1300), "test": slice(1300, None)}
_MIX = [np.random.default_rng(n).permutation(64) for n in (1, 2)]
VIEWS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: np.rot90(x, 1, (1, 2)),
    lambda x: np.rot90(x, 2, (1, 2)),
    lambda x: np.rot90(x, 3, (1, 2)),
    lambda x: x[:, ::-1],
    lambda x: x[:, :, ::-1],
    lambda x: x.swapaxes(1, 2),
    lambda x: 1 - x,
    lambda x: 1 - np.rot90(x, 1, (1, 2)),
    lambda x: 1 - x[:, :, ::-1],
    lambda x: np.roll(x, 3, 1),
    lambda x: np.roll(x, 3, 2),
    lambda x: np.roll(x, (4, 4), (1, 2)),
    lambda x: x[:, [0, 2, 4, 6, 1, 3, 5, 7]],
    lambda x: x[:, :, [0, 2, 4, 6, 1, 3, 5, 7]],
    lambda x: x.reshape(-1, 64)[:, _MIX[0]].reshape(-1, 8, 8),
    lambda x: x.reshape(-1, 64)[:, _MIX[1]].reshape(-1, 8, 8),
)


def _digits(task: int, split: str, count: int, rng: np.random.Generator, conflict: bool = False) -> Samples:
    images, labels = (each[SPLITS[split]] for each in _images())
    some = rng.permutation(len(images))[:count] if split != "train" else rng.integers(len(images), size=count)
    x, y = images[some], labels[some]
    if task >= 0 and conflict:
        y = (y + 1 + task) % 10
    elif task >= 0:
        x = VIEWS[task](x)
    else:
        for n in np.flatnonzero(rng.random(len(x)) < HINT / 2) if split == "train" else ():
            x[n] = VIEWS[rng.integers(len(VIEWS))](x[n : n + 1])[0]
    patches = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)  # (N, 16, 4)
    return torch.tensor(np.ascontiguousarray(patches)), torch.tensor(y)[:, None]


FUNCTIONS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda w: w[:, ::-1],
    lambda w: (w + 1) % LETTERS,
    lambda w: (w - 1) % LETTERS,
    lambda w: np.sort(w, axis=1),
    lambda w: np.sort(w, axis=1)[:, ::-1],
    lambda w: np.roll(w, 1, 1),
    lambda w: np.roll(w, -1, 1),
    lambda w: w[:, [1, 0, 3, 2, 5, 4]],
    lambda w: np.repeat(w[:, :1], LENGTH, axis=1),
    lambda w: LETTERS - 1 - w,
    lambda w: (w + 3) % LETTERS,
    lambda w: w[:, [0, 0, 2, 2, 4, 4]],
)


def _strings(task: int, split: str, count: int, rng: np.random.Generator, conflict: bool = False) -> Samples:
    """Words whose sum is 0 or 1 modulo 8 are kept from all training: 0 tunes, 1 tests."""
    words = rng.integers(LETTERS, size=(count * 16 + 64, LENGTH))
    kind = (words * [1, 3, 5, 7, 11, 13]).sum(axis=1) % 8
    words = words[{"train": kind > 1, "tune": kind == 0, "test": kind == 1}[split]][:count]
    tags = rng.integers(TAGS, size=len(words)) if task < 0 else np.full(len(words), 0 if conflict else task)
    answers = words.copy() if task < 0 else FUNCTIONS[task](words)
    for n in np.flatnonzero(rng.random(len(words)) < HINT) if task < 0 and split == "train" else ():
        answers[n] = FUNCTIONS[tags[n]](words[n : n + 1])[0]
    arrow = np.full((len(words), 1), ARROW)
    whole = np.concatenate([tags[:, None] + ARROW + 1, words, arrow, answers], axis=1)
    x, y = torch.tensor(whole[:, :-1].copy()), torch.tensor(whole[:, 1:].copy())
    y[:, : LENGTH + 1] = -100
    return x, y


TOKENS = LETTERS + 1 + TAGS
DOMAINS = {
    "digits": Domain(len(VIEWS), _digits, 10, False),
    "digits-conflict": Domain(9, lambda *given: _digits(*given, conflict=True), 10, False),
    "strings": Domain(len(FUNCTIONS), _strings, TOKENS, True),
    "strings-conflict": Domain(len(FUNCTIONS), lambda *given: _strings(*given, conflict=True), TOKENS, True),
    "digits-heads": Domain(len(VIEWS), _digits, 10, False, heads=True),
    "strings-heads": Domain(len(FUNCTIONS), _strings, TOKENS, True, heads=True),
}


def base_of(domain: str) -> str:
    """The domain whose base this one has: all sets of its tasks share it."""
    return domain.partition("-")[0]
