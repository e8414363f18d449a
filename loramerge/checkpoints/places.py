"""Where in a model the modules of an adapter lie, whatever names the model has on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.checkpoints import kinds, single
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.checkpoints.grain import Piece, others, pieces
from loramerge.checkpoints.modules import is_conv1d
from loramerge.checkpoints.names import older
from loramerge.checkpoints.tie import HEAD, head
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.dialects.grain import split
from loramerge.formats.dialects.places import located
from loramerge.formats.models.renames import newer
from loramerge.formats.models.stems import TOWERS, WRAPS, parted

EXPERTS = {  # fused parameter -> its parts as modules of one expert, in the order of the rows
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
OLDER = {"mlp.experts": "block_sparse_moe.experts"}  # transformers 5's name -> that on the disk
PARTS = TOWERS - WRAPS - {"text_model"}  # which no change of leading names may leave or enter
LOOSE = 4  # leading names by which the paths of an adapter and of a model may differ


@dataclass(frozen=True, slots=True)
class Place:
    """Some outputs of an update, and the part of a tensor that they are added to.

    Args:
        key: of the tensor.   outs: rows of the update; all where it is None.
        rows: of the tensor, where it holds other modules too.   index: its first index, for experts.
        turned: it is stored as (in, out).
    """

    key: Key
    outs: slice | None = None
    rows: tuple[slice, ...] = ()
    index: int = -1
    turned: bool = False


def home(checkpoint: Checkpoint, adapter: Adapter) -> Adapter:
    """The adapter under the names of the parts of this model.

    Raises:
        IncompatibleError: it is for a pipeline of several models, and this is one.
    """
    if is_image(checkpoint):
        return located(adapter)
    if "model" not in checkpoint.models and not checkpoint.bare:
        return split(located(adapter))
    parts = {target.component for target in adapter.slots}
    if len(parts) > 1:
        raise IncompatibleError(
            f"{printable(adapter.name)} adapts several models ({', '.join(sorted(parts))}), and "
            f"{printable(checkpoint.name, 1000)} is one: name the pipeline, or choose with {say('only')}."
        )

    def alone(target: Target) -> Target:
        return replace(target, component="model")

    whole = split(adapter)
    slots = {alone(target): slot for target, slot in whole.slots.items()}
    return replace(whole, slots=slots, biases={alone(target): bias for target, bias in whole.biases.items()})


def is_image(checkpoint: Checkpoint) -> bool:
    """Whether it is an image model in one file, under its first names."""
    return checkpoint.bare and single.is_image(key for _, key in checkpoint.tensors)


class Places:
    """The places of an adapter's modules in a model.

    Raises:
        IncompatibleError: the model has no such module, or one of another shape.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self.checkpoint, self.adapter = checkpoint, adapter
        self.shapes = {key: tensor.shape for key, tensor in checkpoint.tensors.items()}
        image = is_image(checkpoint)
        names = {key: shape for (_, key), shape in self.shapes.items()} if image else {}
        self._newer: dict[str, dict[str, str]] = {}
        self._image = single.by_name(names) if image else None
        self._moved = {} if image else self._renaming()

    def _renaming(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(component, what stands before the layers) -> (what such paths lose, what they get)."""
        paths: dict[str, set[str]] = {}
        for target in self.adapter.slots:
            where = f"{target.path}.{target.parameter}" if target.kind == "expert" else target.path
            paths.setdefault(target.component, set()).add(where)
        return {key: change for part, found in paths.items() for key, change in self._changes(part, found)}

    def _changes(self, component: str, paths: set[str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """One change for all paths, or each tower its own: transformers has moved vision and language."""
        stems: dict[str, set[str]] = {}
        for path in paths:
            stems.setdefault(parted(path)[0], set()).add(path)
        whole = self._affixes(component, paths)
        for stem, some in stems.items():
            yield (component, stem), whole or self._affixes(component, some) or ("", "")

    def _affixes(self, component: str, paths: set[str]) -> tuple[str, str] | None:
        part = self.part(component)
        known = {key.rpartition(".")[0] for where, key in self.shapes if where == part}
        known |= {key for (where, key), shape in self.shapes.items() if where == part and len(shape) == 3}
        return self._change(paths, known) or self._change(paths, known | self._renamed(part).keys())

    def _change(self, paths: set[str], known: set[str]) -> tuple[str, str] | None:
        first = min(paths)
        for old, new in chain.from_iterable(_candidates(each, known) for each in (first, *others(first))):
            if all(self._holds(known, new + path.removeprefix(old)) for path in paths):
                return old, new
        return None

    def _renamed(self, part: str) -> dict[str, str]:
        """Module as transformers has it now -> as it is on the disk, where more than its start differs."""
        if part not in self._newer:
            paths = {key.rpartition(".")[0] for where, key in self.shapes if where == part}
            found = ((new, path) for path in paths if ".experts." not in path for new in newer(path))
            self._newer[part] = {new: path for new, path in found if new not in paths}
        return self._newer[part]

    def _holds(self, known: set[str], path: str) -> bool:
        """Whether a model has a module, or those that a parameter of experts is stored as."""
        if path in known or path.rpartition(".")[2] == "lm_head":  # which may be tied
            return True
        if any(other in known for other in others(path)):
            return True
        experts, _, parameter = path.rpartition(".")
        return parameter in EXPERTS and any(_first(each, parameter) & known for each in _spellings(experts))

    def part(self, component: str) -> str:
        """The component of the model that one of the adapter means.

        Raises:
            IncompatibleError: there is none.
        """
        models = self.checkpoint.models
        if component in models:
            return component
        if component == "model" and len(models) == 1:
            return next(iter(models))
        raise IncompatibleError(
            f"{printable(self.checkpoint.name, 1000)} has no {printable(component)}, which "
            f"{printable(self.adapter.name)} adapts."
        )

    def path(self, component: str, path: str) -> str:
        """A path of the adapter as the model has it."""
        stem = parted(path)[0]
        known = {its: change for (part, its), change in self._moved.items() if part == component}
        changes = [known[stem]] if stem in known else sorted(known.values(), key=lambda it: -len(it[0]))
        return next((new + path.removeprefix(old) for old, new in changes if path.startswith(old)), path)

    def tensor(self, component: str, path: str, parameter: str) -> tuple[Key, tuple[slice, ...], bool] | None:
        """(key, rows, whether it is turned) of a parameter; None where the model has none of that name."""
        if self._image is not None:
            found = self._image.get((component, path, parameter))
            return None if found is None else (("file", found[0]), found[1].rows, found[1].turned)
        part = self.part(component)
        name = self.path(component, path)
        full = f"{name}.{parameter}" if name else parameter
        key = part, full if (part, full) in self.shapes else older(full)
        if key not in self.shapes and (there := self._renamed(part).get(name)) is not None:
            key = part, f"{there}.{parameter}"
        if full == HEAD and key not in self.shapes:
            key = head(self.checkpoint) or key
        return (key, (), False) if key in self.shapes else None

    def of(self, target: Target) -> Iterator[Place]:
        """Where the update of a module is added.

        Raises:
            IncompatibleError: nowhere.
        """
        if target.kind == "expert":
            yield from self._of_expert(target)
            return
        found = self.tensor(target.component, target.path, target.parameter)
        if found is None:
            yield from self._in_other_grain(target)
            return
        key, rows, turned = found
        if target.kind == "embedding":
            turned = not turned
        elif target.kind == "linear" and is_conv1d(self.checkpoint, key[0], key[1].rpartition(".")[0]):
            turned = True
        if target.index >= 0:  # a group of a convolution
            high = self.adapter.slots[target].shape[0]
            rows = (slice(target.index * high, (target.index + 1) * high),)
        yield self._checked(target, Place(key, None, rows, turned=turned))

    def _in_other_grain(self, target: Target) -> Iterator[Place]:
        outs, path = self.adapter.slots[target].shape[0], self.path(target.component, target.path)
        found: list[Piece] = []
        if target.kind == "linear" and self._image is None:
            found = pieces(path, outs, *self._heights(self.part(target.component), target))
        if not found:
            raise self._absent(target)
        for name, some, rows in found:
            key = self.part(target.component), f"{name}.{target.parameter}"
            yield self._checked(target, Place(key, some, rows))

    def _heights(self, part: str, target: Target) -> tuple[dict[str, int], dict[str, int]]:
        """The outputs of the model's modules beside this one, and of the adapter's, by their paths there."""
        end = f".{target.parameter}"
        parent = self.path(target.component, target.path).rpartition(".")[0]
        ours = {
            key.removesuffix(end): shape[0]
            for (where, key), shape in self.shapes.items()
            if where == part and key.startswith(f"{parent}.") and key.endswith(end) and len(shape) == 2
        }
        theirs = {
            self.path(each.component, each.path): slot.shape[0]
            for each, slot in self.adapter.slots.items()
            if each.component == target.component
        }
        return ours, theirs

    def _of_expert(self, target: Target) -> Iterator[Place]:
        part = self.part(target.component)
        path = self.path(target.component, target.path)
        outs = self.adapter.slots[target].shape[0]
        turned = kinds.are_experts_turned(self.checkpoint.config(part))
        for spelling in _spellings(path):
            if (key := (part, f"{spelling}.{target.parameter}")) in self.shapes:
                yield self._checked(target, Place(key, None, (), max(target.index, 0), turned))
                return
            for names in EXPERTS.get(target.parameter, ()):
                keys = [(part, f"{spelling}.{max(target.index, 0)}.{name}.weight") for name in names]
                if all(key in self.shapes for key in keys):
                    high = outs // len(keys)
                    for i, key in enumerate(keys):
                        yield self._checked(target, Place(key, slice(i * high, (i + 1) * high)))
                    return
        raise self._absent(target)

    def _checked(self, target: Target, place: Place) -> Place:
        outs, ins = self.adapter.slots[target].shape
        shape = self.shapes[place.key][1:] if place.index >= 0 else self.shapes[place.key]
        height = sum(rows.stop - rows.start for rows in place.rows) or shape[0]
        width = 1
        for n in shape[1:]:
            width *= n
        wanted = (outs if place.outs is None else place.outs.stop - place.outs.start, ins)
        if ((width, height) if place.turned else (height, width)) != wanted:
            raise IncompatibleError(
                f"{printable(target)} is {list(wanted)} in {printable(self.adapter.name)}, but its weight in "
                f"{printable(self.checkpoint.name, 1000)} is {list(self.shapes[place.key])}: it was trained "
                "on another model."
            )
        return place

    def _absent(self, target: Target) -> IncompatibleError:
        return IncompatibleError(
            f"{printable(self.checkpoint.name, 1000)} has no {printable(target)}, which "
            f"{printable(self.adapter.name)} adapts: {self._regrained(target)}."
        )

    def _regrained(self, target: Target) -> str:
        """Why a module is absent: the model may have it as a part of another, or in parts."""
        path = self.path(target.component, target.path)
        there = {key.removesuffix(f".{target.parameter}") for _, key in self.shapes}
        if known := [each.rpartition(".")[2] for each in others(path) if each in there]:
            return (
                f"the model has {' and '.join(known)} in its place, and which rows belong together is not "
                f"known; leave it out with {say('exclude')}"
            )
        return "it was trained on another model"


def _candidates(path: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """(lost, got) by which a path becomes that of a known module, the smallest change first."""
    yield "", ""
    names = path.split(".")
    ends: Mapping[int, str] = {i: ".".join(names[i:]) for i in range(min(LOOSE, len(names) - 1))}
    for i, end in ends.items():
        for module in sorted(known, key=len):
            for spelling in _spellings(end):
                lost = f"{'.'.join(names[:i])}." if i else ""
                stem = spelling.rpartition(".")[0]
                if module == spelling or module.endswith(f".{spelling}"):
                    got = module.removesuffix(spelling)
                elif f".{stem}.0." in f".{module}" and stem.endswith("experts"):
                    got = f".{module}".partition(f".{stem}.0.")[0].lstrip(".") + "."
                else:
                    continue
                if _is_same_layer(lost, got, spelling) and _is_same_tower(lost, got, spelling):
                    yield lost, got


def _is_same_layer(lost: str, got: str, kept: str) -> bool:
    """Whether a change of leading names leaves the number of a layer as it is.

    >>> _is_same_layer("model.layers.7.", "model.layers.1.", "self_attn.q_proj")
    False
    >>> _is_same_layer("", "0.auto_model.", "encoder.layer.3.output.dense")
    True
    """
    before, after, own = ([each for each in path.split(".") if each.isdigit()] for path in (lost, got, kept))
    return before == after or bool(own and not (before and after))


def _is_same_tower(lost: str, got: str, kept: str) -> bool:
    """Whether a change of leading names stays in one part of a model: none of vision becomes one of language.

    >>> _is_same_tower("model.vision_tower.", "model.", "layers.0.self_attn.q_proj")
    False
    >>> _is_same_tower("vision_tower.vision_model.", "model.visual.", "encoder.layers.0.self_attn.q_proj")
    True
    """
    before, after, own = (
        {"vision" if "vis" in each or "image" in each else each for each in path.split(".") if each in PARTS}
        for path in (lost, got, kept)
    )
    return before == after or bool(own and not (before and after))


def _spellings(path: str) -> tuple[str, ...]:
    """A path of experts as transformers has it now, and as it is on older disks."""
    for now, before in OLDER.items():
        if now in path:
            return path, path.replace(now, before)
    return (path,)


def _first(experts: str, parameter: str) -> set[str]:
    """The modules of the first expert that a fused parameter is stored as."""
    return {f"{experts}.0.{name}" for names in EXPERTS[parameter] for name in names}
