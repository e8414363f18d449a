"""The blocks of an adapter's model with what they hold of its energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.errors import printable
from loramerge.formats.dialects.blocks import blocks_of
from loramerge.verbs.inspect import Inspection


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """One block: how many modules it has, ‖ΔW‖_F over them, and its share of ‖ΔW‖² of the adapter.

    Where only a header on the Hub was read there is no `norm` and no `share`.
    """

    name: str
    modules: int
    norm: float | None
    share: float | None

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "modules": self.modules, "norm": self.norm, "share": self.share}


def blocks(found: Inspection) -> list[BlockFacts]:
    """The blocks that an adapter changes, by name."""
    names = _names(found.adapter)
    groups: dict[str, list[float | None]] = {}
    for module in found.modules:
        groups.setdefault(names[module.name], []).append(module.norm)
    whole = found.norm
    return [_block(name, norms, whole) for name, norms in sorted(groups.items())]


def _names(adapter: Adapter) -> dict[str, str]:
    return {str(target): name for target, name in blocks_of(adapter).items()}


def _block(name: str, norms: list[float | None], whole: float | None) -> BlockFacts:
    known = [norm for norm in norms if norm is not None]
    if whole is None or len(known) < len(norms):
        return BlockFacts(name, len(norms), None, None)
    energy = sum(norm**2 for norm in known)
    return BlockFacts(name, len(norms), energy**0.5, energy / whole**2 if whole else 0.0)


def table(found: list[BlockFacts]) -> list[list[str]]:
    """Rows of the blocks, the header first."""
    rows = [
        [
            printable(each.name, 60),
            str(each.modules),
            "–" if each.norm is None else f"{each.norm:.4g}",
            "–" if each.share is None else f"{100 * each.share:.1f} %",
        ]
        for each in found
    ]
    return [["block", "modules", "norm", "energy"], *rows]
