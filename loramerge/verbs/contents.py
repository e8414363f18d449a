"""What is in the files of an adapter that is not read: tensors by kind, settings, and why it is refused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.charts.facts import as_frame
from loramerge.errors import ChangedError, LoramergeError, printable
from loramerge.formats.bundles import folders, record_of
from loramerge.formats.dialects import named
from loramerge.formats.files.destination import ROUTER
from loramerge.formats.files.safetensors import open_file
from loramerge.formats.peft.names import UNKNOWN, WEIGHTS
from loramerge.formats.raw import Raw, look
from loramerge.hub.names import hub_name
from loramerge.merge.tables import as_html, fitted, wrapped

TELLING = re.compile(r"peft_type|base_model_name_or_path|r|lora_alpha|alpha|use_\w+|init_lora_weights|bias")


@dataclass(frozen=True, eq=False)
class Contents:
    """What `inspect` returns of files that cannot be merged.

    Args:
        name: as the user named it.   kind: the format, in words.
        tensors: key -> tensor, of the header.   settings: what its config says of its kind.
        refusal: why a merge would refuse it.
    """

    name: str
    kind: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    refusal: str

    def table(self) -> list[list[str]]:
        """Rows by what ends a key, the header first."""
        groups: dict[str, list[Tensor]] = defaultdict(list)
        for key, tensor in self.tensors.items():
            groups[_end(key)].append(tensor)
        rows = [[printable(end, 40), str(len(found)), _shapes(found), _types(found)] for end, found in
                sorted(groups.items())]  # fmt: skip
        return [["tensor", "count", "shape", "type"], *rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        held = {key: {"shape": list(t.shape), "dtype": t.dtype} for key, t in sorted(self.tensors.items())}
        return {
            "name": self.name,
            "format": self.kind,
            "base_model": self.settings.get("base_model_name_or_path"),
            "settings": dict(self.settings),
            "tensors": held,
            "refusal": self.refusal,
        }

    def __str__(self) -> str:
        return "\n".join([*wrapped([self._head()]), *fitted(self.table()), *wrapped([self._why()])])

    def _head(self) -> str:
        said = ", ".join(f"{key} {printable(value, 60)}" for key, value in self.settings.items())
        count = len(self.tensors)
        head = f"{printable(self.name)}: {self.kind}, {count} tensor{'s' if count != 1 else ''}"
        return head + (f" ({said})" if said else "")

    def _why(self) -> str:
        return f"cannot be merged: {self.refusal}"

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each tensor; pandas must be installed."""
        held = sorted(self.tensors.items())
        return as_frame([{"name": key, "shape": t.shape, "dtype": t.dtype} for key, t in held])

    def _repr_html_(self) -> str:
        return as_html(self.table(), [self._head(), self._why()])

    def __repr__(self) -> str:
        return f"<Contents of {self._head()}>"


def contents(source: str | Path, why: LoramergeError, allow_pickle: bool = False) -> Contents:
    """What is in the files of a source. Only headers are read.

    Args:
        source, allow_pickle: as for `load`.   why: it was not read.

    Raises:
        LoramergeError: `why`, where the files cannot be opened at all.
    """
    if (record := record_of(source)) is not None:
        return _bundle(str(source), record, why)
    try:
        raw = _looked(source, allow_pickle)
    except ChangedError:
        raise
    except LoramergeError:
        raise why from None
    settings = {key: value for key, value in raw.config.items() if TELLING.fullmatch(key) and value}
    kind = "of no format that is known here" if raw.dialect == UNKNOWN else named(raw.dialect).words
    return Contents(str(source), kind, raw.tensors, settings, str(why))


def _bundle(place: str, record: Mapping[str, Any], why: LoramergeError) -> Contents:
    """What is in a routed bundle: its gate, its adapters, and all tensors."""
    held: dict[str, Tensor] = {}
    for part in (place, *folders(place, record)):
        file = Path(part, ROUTER if part == place else WEIGHTS)
        try:
            found = open_file(file, str(file)).tensors
        except ChangedError:
            raise
        except LoramergeError:
            raise why from None
        held |= {f"{file.parent.name}/{key}": tensor for key, tensor in found.items()}
    return Contents(
        place, f"routed bundle of {len(folders(place, record))} adapters", held, _gate(record), str(why)
    )


def _gate(record: Mapping[str, Any]) -> dict[str, Any]:
    """Its name and its options, without long ones."""
    said = record.get("gate")
    if not isinstance(said, dict) or record.get("gates"):
        return {"gate": "one for each module"}
    options = said.get("options")
    short = options.items() if isinstance(options, dict) else ()
    return {"gate": said.get("name"), **{key: v for key, v in short if isinstance(v, int | float)}}


def _looked(source: str | Path, allow_pickle: bool) -> Raw:
    if (found := hub_name(source)) is None:
        return look(Path(source), str(source), allow_pickle)
    from loramerge.formats.remote import look_hub  # for those who name it

    return look_hub(str(source), found, allow_pickle)


def _end(key: str) -> str:
    """What ends a key, without the module.

    >>> _end("h.0.q.lora_A.weight"), _end("h.0.q.oft_blocks"), _end("h.0.q.lora_magnitude_vector")
    ('lora_A.weight', 'oft_blocks', 'lora_magnitude_vector')
    """
    before, _, last = key.rpartition(".")
    return f"{before.rpartition('.')[2]}.{last}" if last in ("weight", "bias") and before else last


def _shapes(tensors: list[Tensor]) -> str:
    listed = sorted({"×".join(map(str, tensor.shape)) or "1" for tensor in tensors})
    return listed[0] if len(listed) == 1 else f"{listed[0]} and {len(listed) - 1} more"


def _types(tensors: list[Tensor]) -> str:
    return ", ".join(sorted({_word(tensor.dtype) for tensor in tensors}))


def _word(dtype: str) -> str:
    return dtypes.word(dtype) if dtype in dtypes.FLOATS else dtype
