"""The router of a merge with masks: which task an input is of, from the input spaces of the sources.

It lies beside the masks, with the tensors and the gate of a bundle: `restore` asks it where no task is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.adapters.arguments import checked
from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.presence import is_file
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.errors import SourceError, UsageError, printable
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.destination import ROUTER
from loramerge.formats.files.npz import read_npz
from loramerge.formats.files.safetensors import Writer, open_file
from loramerge.formats.masks import FOLDER
from loramerge.routing.bank import Bank, Layout, stacked
from loramerge.routing.gates.names import make, name_of
from loramerge.routing.gates.smile import Smile
from loramerge.routing.inputs import tokens_of

PLACE = f"{FOLDER}/{ROUTER}"  # in the folder of the merge
KEY = "loramerge.router"
VALUES = frozenset({"v_proj", "to_v", "v", "value", "wv"})  # by these MergeVLA routes: 90 % right, by K 54 %
Inputs = Mapping[str, Any] | str | Path


@dataclass(frozen=True, eq=False)
class Router:
    """Which task some inputs are of.

    Args:
        tasks: (E,) names.   directions: module -> (E · k, in).
    """

    tasks: tuple[str, ...]
    gate: Smile
    directions: Mapping[str, Tensor]

    def __repr__(self) -> str:
        tasks = printable(", ".join(self.tasks))
        return f"<Router of {len(self.tasks)} tasks ({tasks}) by {len(self.directions)} modules>"

    def scores(self, inputs: Mapping[str, Any]) -> Array:
        """(E,) the shares of the tasks: a softmax of the mean ‖P_e x‖ over tokens and modules.

        Args:
            inputs: module -> (…, in) what goes into it.

        Raises:
            UsageError: no module of the router is among them, or one has another width, no token, or what
                is no finite real number.
        """
        if not isinstance(inputs, Mapping):
            raise UsageError(f"inputs={printable(repr(inputs), 60)} is no mapping: {{module: array}}.")
        means = [self._mean(name, x) for name, x in inputs.items() if name in self.directions]
        if not means:
            some = ", ".join(printable(name) for name in list(self.directions)[:3])
            raise UsageError(f"The router looks at the inputs of {some}, and none of them is given.")
        total = np.mean(means, axis=0)
        heat = np.exp((total - total.max()) / self.gate.temperature)
        return np.asarray(heat / heat.sum())

    def choose(self, inputs: Mapping[str, Any]) -> str:
        """The task of the largest share."""
        return self.tasks[int(self.scores(inputs).argmax())]

    def _mean(self, name: str, inputs: Any) -> Array:
        directions = wide(self.directions[name].read())
        x = tokens_of(inputs, name, directions.shape[1])
        if not x.size:
            raise UsageError(f"The inputs of {printable(name)} hold no token.")
        seen = (x.reshape(-1, x.shape[-1]) @ directions.T).reshape(-1, len(self.tasks), self.gate.directions)
        return np.asarray(np.sqrt((seen**2).sum(axis=2)).mean(axis=0))


def looked_at(targets: Sequence[Target]) -> list[Target]:
    """The modules that a router looks at: projections to values, or all if none is known as one."""
    found = [target for target in targets if target.path.rpartition(".")[2] in VALUES]
    return found or list(targets)


def write_router(adapters: Sequence[Adapter], tasks: Sequence[str], where: Path) -> None:
    """Write what tells the tasks of a merge apart, beside its masks.

    Args:
        tasks: names of those adapters that have masks.   where: the folder of the merge.
    """
    sources = [adapter for adapter in adapters if adapter.name in set(tasks)]
    gate = Smile().settled(len(sources))
    targets = looked_at(sorted({target for adapter in sources for target in adapter}))
    layouts = {target: _layout(sources, target) for target in targets}
    shapes = {f"{t}.directions": ("F32", gate.shapes(each)["directions"]) for t, each in layouts.items()}
    said = {"gate": {"name": name_of(gate), "options": gate.options()}, "tasks": [a.name for a in sources]}
    metadata = {KEY: json.dumps(said, sort_keys=True)}
    with Writer(where / FOLDER / ROUTER, shapes, metadata) as writer:
        for target, layout in layouts.items():
            writer.write_pieces(f"{target}.directions", _directions(gate, sources, target, layout))


@checked("folder", "name")
def load_router(folder: str | Path, name: str | None = None) -> Router:
    """The router of a merge that was made with `mergevla`.

    Raises:
        SourceError: there is none, or it cannot be read.
    """
    place, shown = Path(folder), printable(folder if name is None else name)
    put_back(place)
    if not is_file(place / PLACE):
        raise SourceError(f"{shown} has no {PLACE}: name the task, or merge it again with mergevla.")
    file = open_file(place / PLACE, f"{shown}/{PLACE}")
    try:
        said = json.loads(file.metadata[KEY])
        gate, tasks = make(str(said["gate"]["name"]), said["gate"]["options"]), tuple(map(str, said["tasks"]))
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise SourceError(f"{shown}/{PLACE} does not say its gate and its tasks: merge again.") from error
    directions = {key.removesuffix(".directions"): tensor for key, tensor in file.tensors.items()}
    rows = len(tasks) * gate.directions if isinstance(gate, Smile) else -1
    if not isinstance(gate, Smile) or any(
        len(t.shape) != 2 or t.shape[0] != rows for t in directions.values()
    ):
        raise SourceError(f"{shown}/{PLACE} has other tensors than its gate needs: merge again.")
    return Router(tasks, replace(gate, top_k=1), directions)


def read_inputs(inputs: Inputs) -> Mapping[str, Any]:
    """Module -> what goes into it; from a .npz, or as given."""
    if isinstance(inputs, Mapping):
        return inputs
    if not str(inputs).endswith(".npz"):
        raise UsageError(f"{printable(inputs)} is no .npz of inputs by the names of modules.")
    return read_npz(Path(inputs), str(inputs))


def _layout(sources: Sequence[Adapter], target: Target) -> Layout:
    shape = next(each.slots[target].shape for each in sources if target in each.slots)
    return Layout(shape, tuple(each.slots[target].rank if target in each.slots else 0 for each in sources))


def _directions(gate: Smile, sources: Sequence[Adapter], target: Target, layout: Layout) -> Iterator[Array]:
    """Those of each source, which do not depend on the others: so no more than one is held."""
    for source, rank in zip(sources, layout.ranks, strict=True):
        own = Bank(Layout(layout.shape, (rank,)), *stacked([_update(source, target, layout)]))
        yield gate.keys(own)["directions"].astype(np.float32).reshape(-1)


def _update(adapter: Adapter, target: Target, layout: Layout) -> LowRank:
    if target in adapter.slots:
        return adapter[target]
    return LowRank(np.zeros((layout.shape[0], 0)), np.zeros((0, layout.shape[1])))
