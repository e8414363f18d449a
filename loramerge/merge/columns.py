"""The numbers of adapters and of their merge as plain tables, for charts and for pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from loramerge.charts.table import MODULE, SOURCE, Column, Table, numbers, texts
from loramerge.errors import printable
from loramerge.merge.report import Module, Report
from loramerge.request.schedule import LAYER
from loramerge.sources.expand import natural
from loramerge.sources.modules import ModuleFacts

BLOCK = re.compile(r"(?:^|\.)(?:\w*blocks?|layers?|h|resnets|attentions)\.\d{1,9}(?=\.)")  # one of a list
LATER = ("single_transformer", "decoder")  # lists that come after others, whatever the alphabet says
LINES = 1000  # of a chart; of more nobody can follow one
SPECTRA = (*texts(MODULE, SOURCE, "out×in"), *numbers("rank", "scale", "norm", "effective rank"),
           Column("σ", "numbers"))  # fmt: skip

Measured = Mapping[str, Sequence[ModuleFacts]]  # source -> its modules


def numbered(names: Iterable[str]) -> list[str]:
    """Names of sources for tables and charts, each with its number."""
    return [f"{i} {printable(name, 60)}" for i, name in enumerate(names, 1)]


def places(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """Module -> its layer, and what it is in its layer.

    The layer is the number in the name, if all layers are in one list. Where there are several lists (the
    blocks of a UNet, encoder and decoder), they are counted through, from the input on.

    >>> places(["model.layers.3.mlp.up_proj", "lm_head"])
    {'model.layers.3.mlp.up_proj': (3, 'mlp.up_proj'), 'lm_head': (None, 'lm_head')}
    >>> list(places(["up_blocks.1.attentions.0.to_q", "down_blocks.0.attentions.2.to_q"]).values())
    [(1, 'to_q'), (0, 'to_q')]
    """
    found = {name: _block(name) for name in names}
    blocks = {match[: match.rfind(".")] for match in found.values() if match}
    depth = {block: i for i, block in enumerate(sorted(set(filter(None, found.values())), key=_deeper))}
    if len(blocks) == 1:
        depth = {block: int(block.rpartition(".")[2]) for block in depth}
    return {
        name: (depth.get(block), printable(name[len(block) :].removeprefix(".") or name, 60))
        for name, block in found.items()
    }


def _block(name: str) -> str:
    """The path of the layer that a module is in; "" if it is in none."""
    *_, last = [None, *BLOCK.finditer(name)]
    found = last or LAYER.search(name)
    return name[: found.end()] if found else ""


def _deeper(block: str) -> tuple[bool, list[tuple[int, str]]]:
    """A key that sorts the layers in the order of computation, as far as names tell it."""
    return any(word in block for word in LATER), natural(block)


def spectra(measured: Measured, limit: int = LINES) -> Table:
    """A row for each module of each source, with its singular values; of many, the strongest."""
    share = max(limit // max(len(measured), 1), 1)
    rows = []
    for source, modules in measured.items():
        known = [module for module in modules if module.sigma is not None]
        kept = {module.name for module in sorted(known, key=lambda m: -(m.norm or 0.0))[:share]}
        rows += [_spectrum(source, module) for module in known if module.name in kept]
    return Table(SPECTRA, rows)


def _spectrum(source: str, module: ModuleFacts) -> tuple[object, ...]:
    assert module.sigma is not None
    size, sigma = "×".join(map(str, module.shape)), tuple(module.sigma.tolist())
    facts = (module.rank, module.scale, module.norm, module.effective_rank)
    return module.name, source, size, *facts, sigma


def depths(measured: Measured, limit: int = LINES) -> Table:
    """Effective rank of each module by layer; of many sources, the median of all."""
    columns = (*texts(MODULE, SOURCE), *numbers("layer"), *texts("kind"), *numbers("rank", "effective rank"))
    where = places(module.name for modules in measured.values() for module in modules)
    found = [(source, m) for source, modules in measured.items() for m in modules if m.sigma is not None]
    if len(found) <= limit:
        return Table(
            columns, [(m.name, source, *where[m.name], m.rank, m.effective_rank) for source, m in found]
        )
    by_name: dict[str, list[ModuleFacts]] = {}
    for _, module in found:
        by_name.setdefault(module.name, []).append(module)
    whose = f"median of {len(measured)} sources"
    return Table(columns, [(name, whose, *where[name], *_medians(each)) for name, each in by_name.items()])


def _medians(modules: Sequence[ModuleFacts]) -> tuple[float, float]:
    rank, effective = np.median([(m.rank, m.effective_rank) for m in modules], axis=0).tolist()
    return rank, effective


def overlaps(report: Report) -> Table:
    """Cosine of each source with each other, over all modules; no rows for more sources than are compared."""
    names = numbered(report.sources)
    columns = (*texts(SOURCE), *numbers(*(str(i) for i in range(1, len(names) + 1))))
    return Table(columns, [(name, *row) for name, row in zip(names, report.pairwise, strict=False)])


def layers(report: Report) -> Table:
    """In each module, the two sources whose updates have the largest cosine, with or against each other."""
    columns = (*texts(MODULE), *numbers("layer"), *texts("kind", "pair"), *numbers("cosine"))
    where = places(module.name for module in report.modules)
    found = ((module.name, *where[module.name], *_worst_pair(module)) for module in report.modules)
    return Table(columns, [row for row in found if row[-1] is not None])


def _worst_pair(module: Module) -> tuple[str, float | None]:
    """The numbers of the two, and their cosine; None where no two sources have the module."""
    if module.inners.ndim != 2:
        return "", None
    norms = np.sqrt(np.maximum(module.squares, 0.0))
    scale = np.outer(norms, norms)
    cosines = np.divide(module.inners, scale, out=np.zeros_like(scale), where=scale > 0)
    above = np.triu((scale > 0), 1)
    if not above.any():
        return "", None
    first, second = np.unravel_index(np.argmax(np.where(above, np.abs(cosines), -1.0)), scale.shape)
    return f"{first + 1} and {second + 1}", float(cosines[first, second])


def losses(report: Report) -> Table:
    """What each module lost, and its cosine with each source."""
    cosines = [f"cos({i})" for i in range(1, len(report.sources) + 1)] if len(report.sources) <= 8 else []
    columns = (*texts(MODULE), *numbers("layer"), *texts("kind"),
               *numbers("rank", "norm", "energy lost", "rounding error", *cosines))  # fmt: skip
    where = places(module.name for module in report.modules)
    return Table(columns, [_loss(m, where[m.name], len(cosines)) for m in report.modules])


def _loss(module: Module, where: tuple[int | None, str], many: int) -> tuple[object, ...]:
    facts = (sum(module.ranks), module.merged**0.5, module.energy_lost, module.rounding_error)
    return module.name, *where, *facts, *module.cosines[:many]
