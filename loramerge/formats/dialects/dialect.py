"""What a dialect is: one way in which tools name, shape and scale the factors of an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from loramerge.adapters.adapter import Adapter, Provenance, Scaled, Slot, Tensor
from loramerge.adapters.late import late
from loramerge.adapters.target import Kind, Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.dialects.model import Placed
from loramerge.formats.files.safetensors import File
from loramerge.formats.forms.beside import refuse_inside, refuse_odd
from loramerge.formats.forms.form import Base
from loramerge.formats.peft.alpha import Alpha, already_known
from loramerge.formats.peft.keys import Shape, laid, shapes, within
from loramerge.formats.peft.names import check_names

FACTOR = late(  # how the keys of factors end, in any dialect
    r"(?P<module>.*)(?:\.lora_(?:[abAB]|up|down)(?:_[QV](?:_shared)?)?(?:\.(?!bias$).*)?"
    r"|\.w_lora_[AB]|(?<=\.w[qkvo])_lora_[AB](?:\.weight)?|(?<=_lora|lora\d)\.(?:up|down)\.weight"
    r"|\.lora(?:_linear_layer)?\.(?:up|down)\.weight|:(?:up|down)|\.(?:hada|lokr)_\w+|\.diff"
    r"|(?<![^.])w_[ab]_\d+)",
    re.DOTALL,
)
Names = Callable[[Target], tuple[str, str]]  # target -> the keys of its down and its up factor
Widths = Mapping[Target, int]  # target -> the units that it is stored with
Scales = Mapping[Target, float]  # target -> the scale of its factors, where that is not 1


@dataclass(frozen=True, eq=False, repr=False)
class Header:
    """What the files of an adapter say before a number is read.

    Args:
        file: its tensors by name, and the metadata of the header.
        name: how messages call the source.
        config: the JSON object of the config in its folder; None for a bare file.
        files: every file behind it, for provenance.
        alpha: what the user says of a source that does not say its own.   optional: it may go unused.
        base: the model that it was trained on, if that is given.
        gate: module -> how much each of its outputs counts for a fixed prompt, if that is given.
    """

    file: File
    name: str
    config: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()
    alpha: Alpha | None = None
    optional: bool = True
    base: Base | None = None
    gate: Mapping[str, Array] | None = None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self.file.tensors

    @cached_property
    def lines(self) -> str:
        """All keys, each on a line of its own, with an empty line before and after."""
        return "\n".join(["", *self.tensors, ""])

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.file.metadata

    def unused_alpha(self) -> list[str]:
        """What to say about an alpha for a source that says its own in every module.

        Raises:
            UsageError: the alpha was meant for this source.
        """
        if self.alpha is None:
            return []
        if not self.optional:
            raise already_known(self.name)
        return ["it says its own alpha, so the one given is not used for it"]

    def adapter(
        self,
        dialect: Dialect,
        slots: Mapping[Target, Slot],
        *,
        extras: Mapping[str, Tensor] | None = None,
        biases: Mapping[Target, Scaled] | None = None,
        oddities: Iterable[str] = (),
        said_alpha: bool = True,
        placed: Placed | None = None,
        full: tuple[str, ...] = (),
    ) -> Adapter:
        """The adapter that was read. `said_alpha`: the scale is in the files, not the user's word.

        `placed`: what is known of the model that it is for.   full: its forms of full rank, by their words.

        Raises:
            SourceError: a module has no name.   IncompatibleError: a factor is left over.
        """
        check_names(slots, self.name)
        _check_rest(self, extras or {}, dialect)
        return Adapter(
            self.name,
            slots,
            extras=extras or {},
            biases=biases or {},
            config=self.config or {},
            provenance=Provenance(
                Path(self.name).name or self.name,
                files=self.files or (self.file.path,),
                alpha=None if said_alpha else self.alpha,
            ),
            dialect=dialect.name,
            bare=self.config is None,
            oddities=tuple(oddities),
            metadata=self.metadata,
            families=placed.families if placed else (),
            spelling=placed.spelling if placed else None,
            full=full,
        )


def _check_rest(header: Header, extras: Collection[str], dialect: Dialect) -> None:
    """What is left is no factor in the names of another tool, or part of a module that is read."""
    if not extras:
        return
    factors = [found for key in header.tensors if key not in extras and (found := FACTOR.fullmatch(key))]
    modules = {found["module"] for found in factors}
    for key in extras:
        if FACTOR.fullmatch(key) and not key.endswith(".diff"):  # that of a norm is a vector
            raise IncompatibleError(
                f"{printable(header.name)} mixes names of {dialect.tool} with others ({printable(key, 80)}): "
                "save each adapter by itself."
            )
    refuse_inside(extras, modules, header.name)
    refuse_odd(extras, modules, header.name)


class Dialect:
    """One dialect, with the same verbs as every other: detects, read; and to write, adopt, keys, lay, ….

    name: what --format calls it.   words: what messages and `inspect` call it.
    tools: the programs that write it.   spelling: how a module is called.   strength: the scale of a module.
        These three are words for the documents.
    writes: whether it is written, not only read.   kinds: the kinds of layers that it has names for.
    weights: the name of the weights in a folder; None where it is one file only.
    single: it may be written as one file without a folder.
    sidecar: a config beside the weights says how strong they are; elsewhere placing is only a file name.
    keeps_alpha: every module has an alpha of its own, so that scales are stored beside the factors and each
        module keeps its own rank; otherwise scales are folded into `up`.
    unread: dtypes that its tools cannot load.   one_rank: they give all modules one rank.
    zero_is_rank: an alpha of 0 means the rank, not no strength.
    kept: metadata that stays true of a merge, beside what is said of the base model.
    differences: its tools read a full ΔW of a module too, as `.diff`.
    hashed: its tools keep hashes of the tensors in the header.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    tools: ClassVar[str]
    spelling: ClassVar[str]
    strength: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]] = ("linear", "conv")
    writes: ClassVar[bool] = False
    weights: ClassVar[str | None] = None
    single: ClassVar[bool] = True
    sidecar: ClassVar[bool] = False
    keeps_alpha: bool = False
    zero_is_rank: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()
    unread: ClassVar[tuple[str, ...]] = ()
    one_rank: ClassVar[bool] = False
    differences: ClassVar[bool] = False
    hashed: ClassVar[bool] = False
    asked: str = ""  # the program by whose name it was asked for

    @property
    def tool(self) -> str:
        """Whose format it is, without what `words` has around it."""
        return self.words.partition(" ")[2].rpartition(" ")[0]

    def detects(self, header: Header) -> bool:
        """Whether these files are of this dialect; looks at names, shapes, metadata and config only."""
        raise NotImplementedError

    def read(self, header: Header) -> Adapter:
        """The adapter, lazily: factors as tensors that are read when asked for.

        Raises:
            SourceError: malformed.   IncompatibleError: no sum of low-rank updates.
        """
        raise NotImplementedError

    def bound(self, adapters: Sequence[Adapter]) -> Dialect:
        """This dialect, knowing what it will write: how the sources spell their model."""
        return self

    def adopt(self, adapter: Adapter) -> Adapter:
        """An adapter of any dialect under the targets that `read` would give them, had it been written so.

        Raises:
            IncompatibleError: one of its modules has no name here.
        """
        return adapter if adapter.dialect == self.name else self._renamed(adapter, self.home)

    def home(self, target: Target) -> Target:
        """The target under which `read` finds what is written for this one. Errors as for `adopt`."""
        raise NotImplementedError

    def keys(self, targets: Iterable[Target]) -> Names:
        """The names of the down and up factors of these targets."""
        raise NotImplementedError

    def shapes(self, target: Target, size: tuple[int, int], width: int) -> tuple[Shape, Shape]:
        """The stored shapes of down and up, for an update (out, in) of so many units."""
        return shapes(target, size, width)

    def lay(self, target: Target, up: Array, down: Array) -> tuple[Array, Array]:
        """Down and up as they are stored, from up (out, width) and down (width, in)."""
        return laid(target, up, down)

    # PEFT keeps the up factors of experts interleaved, mlx-lm one behind the other
    def within(self, target: Target, down: Array, up: Array) -> tuple[Array, Array]:
        """Where a target lies in factors that it shares with others: views (width, in) and (out, width)."""
        return within(target, down, up)

    def beside(self, widths: Widths, scales: Scales) -> Mapping[str, Tensor]:
        """Tensors that go with the factors, such as alphas; a target without a scale has scale 1."""
        return {}

    def scales(self, widths: Widths) -> Scales:
        """The scales that the factors of a merge are stored without."""
        return {}

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        """The header's metadata. `kept`: what all sources say.   bare: it is one file without a folder."""
        return {"format": "pt"}

    def labels(self, extras: Iterable[str]) -> dict[str, str]:
        """What the metadata says of tensors that are no factors, given their keys."""
        return {}

    def sidecars(self, widths: Widths, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Name -> JSON object of the files beside the weights. `config`: PEFT's adapter_config.json."""
        return {}

    def _renamed(self, adapter: Adapter, home: Callable[[Target], Target]) -> Adapter:
        """The adapter with other targets.

        Raises:
            IncompatibleError: two modules would have one name.
        """
        slots: dict[Target, Slot] = {}
        for target, slot in adapter.slots.items():
            if (there := home(target)) in slots:
                raise IncompatibleError(
                    f"{printable(adapter.name)} has two modules that {self.words} would call "
                    f"{printable(there)}: convert its parts one by one, with {say('only')}."
                )
            slots[there] = slot
        biases = {home(target): bias for target, bias in adapter.biases.items()}
        return replace(adapter, slots=slots, biases=biases)


def check_dtype(dialect: Dialect, kind: str) -> None:
    """Raises IncompatibleError: the tools of this dialect cannot load such tensors."""
    if kind in dialect.unread:
        raise IncompatibleError(f"{dialect.words} cannot hold {kind} tensors: add {say('dtype', 'float32')}.")


def check_ranks(dialect: Dialect, profile: str) -> None:
    """Raises UsageError: the tools of this dialect have no rank for each module."""
    if dialect.one_rank and profile == "compact":
        raise UsageError(
            f"{say('profile', profile)} gives modules ranks of their own, and {dialect.words} has one."
        )


def check_place(dialect: Dialect, bare: bool, out: Path) -> None:
    """Raises UsageError: this dialect is not written to such a place."""
    if bare and not dialect.single:
        raise UsageError(f"{dialect.words} is a folder: name one instead of {printable(out)}.")
    if not bare and dialect.weights is None:
        raise UsageError(f"{dialect.words} is one file: name it {printable(out)}.safetensors.")
