"""Whether adapters were trained on one base model: what the names say, and what the modules say."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence, Set
from itertools import combinations

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.late import late
from loramerge.errors import IncompatibleError, printable, say

ABSOLUTE = late(r"/|~|[A-Za-z]:[\\/]")  # also a Windows path, whatever this machine is

QUANTISED = late(
    r"(-(unsloth|bnb|gptq|awq|aqlm|eetq|exl2|hqq|gguf|mlx|marlin|quip#?|fp8(-dynamic)?|nf4|fp4|mxfp4|nvfp4"
    r"|q?int[2348]|[2348]-?bits?|[2348]\.?\d*bpw|w[48]a(8|16)(-g\d+)?|quantized(\.w\w+)?|dynamic))+$",
    re.IGNORECASE,
)
LAYER = late(r"(?P<stack>.*?)\.(?P<number>\d+)\.(?:.*\.)?(?P<last>[^.]+)", re.DOTALL)
VERSIONS = ("ss_base_model_version", "modelspec.architecture")  # in the headers of image adapters
NOISE = late(r"(high|low)[-_ ]?noise", re.IGNORECASE)
LONGEST = 200  # letters of a name of the Hub, which allows fewer: a pattern takes the square of them
FEW = 32  # names of bases that are all compared with each other; more only with the first
NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")


def check_depths(adapters: Sequence[Adapter]) -> None:
    """Raises IncompatibleError: the modules of two show that their models have other numbers of layers."""
    for first, second in combinations(_built_differently(adapters), 2):
        _check_depth(first, second)


def compare_bases(adapters: Sequence[Adapter], allow_mismatch: bool, cut: bool = False) -> list[str]:
    """Sentences about bases whose names leave a doubt.

    Args:
        cut: blocks were left out, so that what is there tells no depth.

    Raises:
        IncompatibleError: the Hub names differ and that is not allowed, or the modules themselves show
            that the models differ.
    """
    if not cut:
        check_depths(adapters)
    _check_versions(adapters, allow_mismatch)
    by_name = {a.base.name: a for a in reversed(adapters) if a.base.name}  # the first of each name
    firsts = sorted(by_name.values(), key=adapters.index) if len(by_name) <= FEW else list(by_name.values())
    pairs = combinations(firsts, 2) if len(firsts) <= FEW else ((firsts[0], other) for other in firsts[1:])
    notes = [_compared(first, other, allow_mismatch) for first, other in pairs]
    unnamed = [a.name for a in adapters if not a.base.name]
    if unnamed and len(adapters) > 1 and any(a.config for a in adapters):
        verb = "does" if len(unnamed) == 1 else "do"
        listed = printable(", ".join(unnamed))
        notes.append(f"{listed} {verb} not name a base model: that it is the same one is taken on trust")
    return notes


def _check_versions(adapters: Sequence[Adapter], allow_mismatch: bool) -> None:
    """Image adapters name no model, but some a family of models, such as `sdxl_base_v1-0`."""
    for key in VERSIONS:
        said = [(a.name, a.metadata[key].partition("/")[0]) for a in adapters if key in a.metadata]
        _check_said(said, allow_mismatch)
    _check_noise(adapters, allow_mismatch)


def _check_said(said: Sequence[tuple[str, str]], allow_mismatch: bool) -> None:
    for name, version in said[1:]:
        if version != said[0][1] and not allow_mismatch:
            raise IncompatibleError(
                f"{printable(said[0][0])} was trained on {printable(said[0][1])} but {printable(name)} on "
                f"{printable(version)}. If these are the same weights, add "
                f"{say('allow_base_mismatch', True)}."
            )


def _check_noise(adapters: Sequence[Adapter], allow_mismatch: bool) -> None:
    """Wan 2.2 and its like have two models with modules of the same names."""
    kinds = [(adapter.name, kind) for adapter in adapters if (kind := _noise(adapter))]
    for name, kind in kinds[1:]:
        if kind != kinds[0][1] and not allow_mismatch:
            raise IncompatibleError(
                f"{printable(kinds[0][0])} is for the model of {kinds[0][1]} noise and {printable(name)} for "
                f"that of {kind} noise, by their names: merge those of each model apart, or add "
                f"{say('allow_base_mismatch', True)}."
            )


def _noise(adapter: Adapter) -> str:
    """Which of the two models of a pipeline an adapter is for, by its name or title; "" if they say none."""
    said = f"{adapter.name} {adapter.metadata.get('modelspec.title', '')} {adapter.base.name or ''}"
    if "noise" not in said.lower():
        return ""
    found = {match[1].lower() for match in NOISE.finditer(said)}
    return found.pop() if len(found) == 1 else ""


def _compared(first: Adapter, other: Adapter, allow_mismatch: bool) -> str:
    one, two = str(first.base.name), str(other.base.name)
    names = f"{printable(one)} of {printable(first.name)} and {printable(two)} of {printable(other.name)}"
    if is_local(one) or is_local(two):
        return f"{names}: a local folder says nothing of its model; that they are the same is taken on trust"
    if twins(one, two):
        return f"{names} are taken as one model: the names differ by a quantisation or an owner"
    if not allow_mismatch:
        raise IncompatibleError(
            f"{printable(first.name)} was trained on {printable(one)} but {printable(other.name)} on "
            f"{printable(two)}. If these are the same weights, or one was trained on top of the other and "
            f"their sum is meant, add {say('allow_base_mismatch', True)}."
        )
    return f"{names} differ, and are merged because you allowed it"


def is_local(name: str) -> bool:
    """Whether a base is named by a place on somebody's disk.

    >>> is_local("/data/llama"), is_local("C:\\\\models\\\\llama"), is_local("meta-llama/Llama-3.1-8B")
    (True, True, False)
    """
    return bool(ABSOLUTE.match(name)) or name.startswith(".") or "\\" in name or name.count("/") > 1


def without_folders(name: str | None) -> str | None:
    """A base model named by an absolute path keeps its last part: the folders are nobody's business."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if name and ABSOLUTE.match(name) else name


def twins(one: str, two: str) -> bool:
    """Whether two Hub names mean one model: a quantised twin, or an old name without an owner.

    >>> twins("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B")
    True
    >>> twins("gpt2", "openai-community/gpt2"), twins("a/Llama-3.2-1B", "b/Llama-3.2-1B")
    (True, False)
    """
    bare = [name.rpartition("/")[2].lower() for name in (one, two)]
    plain = list(map(_unquantised, bare))
    return plain[0] == plain[1] and (plain != bare or "/" not in one or "/" not in two)


def common_base(adapters: Sequence[Adapter]) -> str | None:
    """The name for their merge: of a Hub model before a local folder, of the model before its quantised twin.

    None where they name two models.
    """
    names = sorted({a.base.name for a in adapters if a.base.name})
    names = [name for name in names if not is_local(name)] or names
    if len(names) > 1:
        names.sort(key=lambda name: (_unquantised(name) != name, "/" not in name))
    return names[0] if names and all(twins(names[0], other) for other in names[1:]) else None


def _unquantised(name: str) -> str:
    return QUANTISED.sub("", name) if len(name) <= LONGEST else name


def _built_differently(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The first of each set of modules and settings: the others agree about depth with it."""
    found: dict[object, Adapter] = {}
    for adapter in adapters:
        names = frozenset(_unnarrowed(adapter))
        layers = _layers(adapter, names) if names else {}
        found.setdefault((names, frozenset((s, frozenset(n)) for s, n in layers.items())), adapter)
    return list(found.values())


def _check_depth(first: Adapter, other: Adapter) -> None:
    """A name that both list, and nothing narrows, means all such modules of the base: so both have all.

    Only whole stacks contradict each other. One with gaps lacks layers, which count as zero like any module;
    so does one that is cut short, where both name one base.
    """
    if first.base.name and first.base.name == other.base.name and not is_local(first.base.name):
        return
    names = _unnarrowed(first) & _unnarrowed(other)
    ours, theirs = _layers(first, names), _layers(other, names)
    for stack in sorted(ours.keys() & theirs.keys()):
        if ours[stack] != theirs[stack] and _whole(ours[stack]) and _whole(theirs[stack]):
            raise IncompatibleError(
                f"{printable(first.name)} has {len(ours[stack])} layers of {printable(stack)} and "
                f"{printable(other.name)} has {len(theirs[stack])}: their base models are of different depth "
                "and cannot be merged. If one only lacks layers, say which by layers_to_transform in its "
                "adapter_config.json."
            )


def _whole(numbers: Collection[str]) -> bool:
    """Whether these are all the layers from the first on."""
    return set(map(int, numbers)) == set(range(len(numbers)))


def _unnarrowed(adapter: Adapter) -> set[str]:
    listed = adapter.config.get("target_modules")
    if not isinstance(listed, list) or any(adapter.config.get(key) for key in NARROWING):
        return set()
    return {name for name in listed if isinstance(name, str)}


def _layers(adapter: Adapter, names: Set[str]) -> Mapping[str, set[str]]:
    """What stands before a layer number -> the numbers, over modules of these names."""
    found: dict[str, set[str]] = {}
    for target in adapter:
        layer = LAYER.match(target.path)
        if layer and layer["last"] in names:
            found.setdefault(layer["stack"], set()).add(layer["number"])
    return found
