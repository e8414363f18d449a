"""The table of families, and which of them a file can be of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loramerge.formats.models.ace_step import ACE_STEP, ACE_STEP_1
from loramerge.formats.models.auraflow import AURAFLOW
from loramerge.formats.models.chroma import CHROMA
from loramerge.formats.models.cogvideox import COGVIDEOX
from loramerge.formats.models.cosmos import COSMOS
from loramerge.formats.models.family import Family, Sizes
from loramerge.formats.models.flux import FLUX
from loramerge.formats.models.flux_2 import FLUX_2
from loramerge.formats.models.hidream import HIDREAM
from loramerge.formats.models.hunyuan_video import HUNYUAN_VIDEO
from loramerge.formats.models.ltx import LTX, LTX_2
from loramerge.formats.models.lumina_2 import LUMINA_2
from loramerge.formats.models.mochi import MOCHI
from loramerge.formats.models.pixart import PIXART
from loramerge.formats.models.qwen_image import QWEN_IMAGE
from loramerge.formats.models.sana import SANA
from loramerge.formats.models.sd3 import SD3
from loramerge.formats.models.wan import WAN
from loramerge.formats.models.z_image import Z_IMAGE

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        FLUX, FLUX_2, CHROMA, SD3, WAN, QWEN_IMAGE, Z_IMAGE, HUNYUAN_VIDEO, LTX, LTX_2, HIDREAM, LUMINA_2,
        AURAFLOW, COSMOS, COGVIDEOX, MOCHI, PIXART, SANA, ACE_STEP_1, ACE_STEP,
    )
}  # fmt: skip


def possible(names: Sizes, said: str = "") -> tuple[Family, ...]:
    """The families that have all these modules, in these sizes; of them those that metadata names, if any.

    Args:
        names: module -> (outs, ins), dotted or flat, in any naming.   said: what metadata calls the model.

    >>> [family.name for family in possible({"blocks.0.self_attn.q": (8, 8)})]
    ['wan']
    """
    found = tuple(family for family in FAMILIES.values() if names and _has(family, names))
    return tuple(family for family in found if said and family.means(said)) or found


def having(names: Iterable[str]) -> tuple[Family, ...]:
    """The families that have modules of all these names, of whatever size."""
    listed = list(names)
    return tuple(f for f in FAMILIES.values() if all(map(f.find, listed)) and f.told(listed))


def likely(found: Iterable[Family], names: Sizes, naming: str = "") -> tuple[Family, ...]:
    """Of possible families those that tools call so, that have models of this width, and so many blocks."""
    kept = tuple(found)
    for holds in (lambda f: _called(f, names, naming), lambda f: _wide(f, names), lambda f: _whole(f, names)):
        kept = tuple(filter(holds, kept)) or kept
    return kept


def ours(found: Iterable[Family], names: Iterable[str]) -> dict[str, str] | None:
    """Name -> our name, if all of these families call the modules alike; else None.

    >>> ours([FAMILIES["z-image"]], ["layers_0_attention_out"])
    {'layers_0_attention_out': 'layers.0.attention.to_out.0'}
    """
    whole, listed = tuple(found), list(names)
    tables = [{name: path for name in listed if (path := family.find(name))} for family in whole]
    alike = bool(tables) and len(tables[0]) == len(listed) and all(table == tables[0] for table in tables)
    return tables[0] if alike else None


def naming(family: Family, names: Iterable[str]) -> str:
    """The naming in which a family has all these names; the first of them that fits.

    >>> naming(FAMILIES["wan"], ["blocks.0.self_attn.q"])
    'first'
    """
    listed = list(names)
    return next((own for own in family.namings if all(family.find(n, own) for n in listed)), "")


def _has(family: Family, names: Sizes) -> bool:
    return all(family.fits(name, *size) for name, size in names.items()) and family.told(names)


def _called(family: Family, names: Sizes, naming: str) -> bool:
    return not naming or all(family.find(name, naming) for name in names)


def _wide(family: Family, names: Sizes) -> bool:
    return bool(family.sizes(names))


def _whole(family: Family, names: Sizes) -> bool:
    return family.whole(names)
