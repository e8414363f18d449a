"""The table of families, and which of them a file can be of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from loramerge.adapters.table import Table
from loramerge.formats.models.family import Family, Sizes

FAMILIES: Table[Family] = Table(
    "loramerge.formats.models",
    {
        "flux.1": "flux.FLUX",
        "flux.2": "flux_2.FLUX_2",
        "chroma": "chroma.CHROMA",
        "sd3": "sd3.SD3",
        "wan": "wan.WAN",
        "wan-vace": "wan_vace.WAN_VACE",
        "wan-animate": "wan_animate.WAN_ANIMATE",
        "qwen-image": "qwen_image.QWEN_IMAGE",
        "z-image": "z_image.Z_IMAGE",
        "hunyuan-video": "hunyuan_video.HUNYUAN_VIDEO",
        "hunyuan-video-1.5": "hunyuan_video_15.HUNYUAN_VIDEO_15",
        "ltx-video": "ltx.LTX",
        "ltx-2": "ltx.LTX_2",
        "hidream": "hidream.HIDREAM",
        "lumina-2": "lumina_2.LUMINA_2",
        "auraflow": "auraflow.AURAFLOW",
        "cosmos": "cosmos.COSMOS",
        "cogvideox": "cogvideox.COGVIDEOX",
        "mochi": "mochi.MOCHI",
        "pixart": "pixart.PIXART",
        "sana": "sana.SANA",
        "ace-step-1": "ace_step.ACE_STEP_1",
        "ace-step-1.5": "ace_step.ACE_STEP",
    },
)

LANGUAGE = "model."  # begins the names of language models, and none of these


def possible(names: Sizes, said: str = "") -> tuple[Family, ...]:
    """The families that have all these modules, in these sizes; of them those that metadata names, if any.

    Args:
        names: module -> (outs, ins), dotted or flat, in any naming.   said: what metadata calls the model.

    >>> [family.name for family in possible({"blocks.0.self_attn.q": (8, 8)})]
    ['wan']
    """
    if not names or any(name.startswith(LANGUAGE) for name in names):
        return ()
    found = _all_of(tuple(names.items()))
    return tuple(family for family in found if said and family.means(said)) or found


@lru_cache(maxsize=64)
def _all_of(names: tuple[tuple[str, tuple[int, int]], ...]) -> tuple[Family, ...]:
    """The families that have all these modules. One merge asks it of every source, several times."""
    sizes = dict(names)
    return tuple(family for family in FAMILIES.values() if _has(family, sizes))


def having(names: Iterable[str]) -> tuple[Family, ...]:
    """The families that have modules of all these names, of whatever size."""
    listed = list(names)
    return tuple(f for f in FAMILIES.values() if all(map(f.find, listed)) and f.told(listed))


def likely(found: Iterable[Family], names: Sizes, naming: str = "") -> tuple[Family, ...]:
    """The families that fit best: tools call them so, and they have models of this width and depth."""
    kept = tuple(found)
    for holds in (lambda f: _called(f, names, naming), lambda f: _wide(f, names), lambda f: _whole(f, names)):
        kept = tuple(filter(holds, kept)) or kept
    if not any(_wide(family, names) for family in kept):
        kept = tuple(family for family in kept if not family.seldom) or kept
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


def listed(path: str) -> bool:
    """Whether a family has a module of just this name, which may have no dots of its own.

    >>> listed("patch_embedding"), listed("time_in_in_layer")
    (True, False)
    """
    namings = (naming for family in FAMILIES.values() for naming in family.namings.values())
    return any(rule.theirs == path for naming in namings for rule in naming.rules)


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
