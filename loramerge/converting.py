"""An adapter in another format, with the same ΔW in every module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge import dtypes
from loramerge.adapter import Adapter
from loramerge.difference import Difference, diff
from loramerge.errors import UsageError, VerificationError, printable
from loramerge.formats import load, saving
from loramerge.formats.alpha import DIFFUSERS, OURS
from loramerge.formats.dialects import Dialect, named
from loramerge.formats.output import is_bare
from loramerge.selection import Alphas, Source, open_one, select


@dataclass(frozen=True, eq=False)
class Conversion:
    """What `convert` returns: the adapter as it was read back, and how far it is from the source.

    Args:
        source, adapter: before and after.   out: where it was written.
        copied: source and result are of one format, and every tensor was copied as it is.
        difference: module by module.
    """

    source: Adapter
    adapter: Adapter
    out: Path
    copied: bool
    difference: Difference

    @property
    def error(self) -> float:
        """‖ΔW − written‖ / ‖ΔW‖ of the worst module."""
        return self.difference.largest

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": str(self.out),
            "from": self.source.dialect,
            "to": self.adapter.dialect,
            "copied": self.copied,
            "modules": len(self.adapter),
            "largest_error": self.error,
            "notes": list(self.source.oddities),
        }

    def __str__(self) -> str:
        words = named(self.source.dialect).words, named(self.adapter.dialect).words
        how = "copied tensor by tensor" if self.copied else f"largest error of a module {self.error:.1e}"
        return f"{words[0]} → {words[1]}: {len(self.adapter)} modules, {how}"


def convert(
    source: Source,
    out: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    alpha: Alphas = None,
    allow_pickle: bool = False,
    only: str | None = None,
    exclude: str | None = None,
    extras: str = "refuse",
    overwrite: bool = False,
) -> Conversion:
    """Write an adapter in another format; its ΔW is compared module by module before `out` appears.

    Where source and result are of one format and no `dtype` is asked for, every tensor is copied as it is.

    Args:
        source: as for `load`.
        out: one file if it ends in .safetensors, else a folder, as the format wants it.
        to: ``peft``, ``kohya``, …
        only, exclude: regular expressions searched in module names.
        dtype: of the result; by default the widest of the source.
        extras: tensors that are no low-rank pair, which few formats have a place for: ``"refuse"``,
            ``"first"`` (keep them), ``"drop"``.

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: a module was read back with another ΔW than rounding explains.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = convert("fixtures/a.safetensors", f"{folder}/a", "peft")
    >>> len(done.adapter), done.copied, done.error < 1e-6
    (12, False, True)
    """
    if extras not in ("refuse", "first", "drop"):
        raise UsageError(f"extras={extras!r} is not one of refuse, first, drop.")
    adapter, where = open_one(source, alpha, allow_pickle), Path(out)
    dialect = saving.written([adapter], to)
    if dtype is None and only is exclude is None and _copies(adapter, dialect, where):
        saving.copy(adapter, where, overwrite)
        made = load(where)
        return Conversion(adapter, made, where, True, diff(adapter, made))
    whole = dialect.adopt(select([adapter], only, exclude)[0])
    if extras == "drop":
        whole = replace(whole, extras={})
    kind = whole.dtype if dtype is None else dtypes.parse(dtype)
    seen: list[Difference] = []

    def check(made: Adapter) -> None:
        seen.append(diff(whole, replace(made, extras=made.extras if whole.extras else {})))
        _check(seen[0], kind)

    saving.write(whole, saving.outlined(whole, dialect, kind, extras), where, overwrite, check)
    return Conversion(adapter, load(where), where, False, seen[0])


def _check(found: Difference, kind: str) -> None:
    """Raises VerificationError: a module is further off than rounding to its type explains."""
    worst = found.worst(1)[0]
    if not worst.error <= max(4 * dtypes.epsilon(kind), 1e-6):
        raise VerificationError(
            f"{printable(worst.name)} would be off by {worst.error:.1e} of its norm in {dtypes.word(kind)}, "
            "more than rounding explains: its values are too small for the type. Use --dtype float32."
        )


def _copies(adapter: Adapter, dialect: Dialect, out: Path) -> bool:
    """Whether the files can be copied: nothing that is known of them lies outside of them."""
    files = adapter.provenance.files
    if named(adapter.dialect) is not dialect or not files or adapter.provenance.alpha is not None:
        return False
    if files[0].suffix != ".safetensors":
        return False
    if is_bare(out) != adapter.bare:
        return not dialect.sidecar  # else the config beside would be lost, or is missing
    return dialect.name != "peft" or not adapter.bare or bool({OURS, DIFFUSERS} & adapter.metadata.keys())
