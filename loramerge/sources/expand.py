"""Many adapters named at once: a folder of adapters, a glob, or a file that lists them."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.original import noted, read_text
from loramerge.adapters.presence import is_file, is_folder
from loramerge.checkpoints.tuned import Tuned
from loramerge.errors import SourceError, UsageError, printable, spoken
from loramerge.formats.bundles import folders, record_of
from loramerge.formats.dialects import FOLDER_FILES
from loramerge.formats.files.atomic import put_back, put_back_members
from loramerge.formats.peft.read import CONFIG
from loramerge.hub.names import is_collection as is_list
from loramerge.hub.names import is_hub, pinned
from loramerge.request.peft_call import refuse_call
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.sources.bundles import check_row, members

LIMIT = 2**20  # of a list
RECIPES = (".yaml", ".yml")
DESCRIPTIONS = "descriptions.json"  # may lie among the adapters of a folder
Member = tuple[str, float | None]  # a path, and the weight that a list gives it


def expanded(recipe: Recipe) -> Recipe:
    """The recipe with the members of folders, lists and globs in their place; its own weights come first.

    Raises:
        SourceError: a list cannot be read, or a glob finds nothing.
    """
    row = recipe.request.row
    with noted() as read:
        records = [_record(source) for source in recipe.sources]
    check_row(row, recipe.request.weights, records)
    both = zip(recipe.sources, records, strict=True)
    found = tuple(
        each if record is None else replace(each, told=read)
        for source, record in both
        for each in _members_of(source, record, row)
    )
    return replace(recipe, sources=found, request=replace(recipe.request, row=None))


def _record(source: Ingredient) -> dict[str, Any] | None:
    """The record of a bundle."""
    return None if isinstance(source.source, Adapter | Tuned) else record_of(str(source.source))


def _members_of(source: Ingredient, record: Mapping[str, Any] | None, row: str | None) -> list[Ingredient]:
    if isinstance(source.source, Adapter | Tuned):
        return [source]
    name = str(source.source)
    if record is not None:
        return _experts(source, record, row)
    return [
        replace(source, source=member, weight=weight if source.weight is None else source.weight)
        for member, weight in expand(pinned(name, source.revision) if source.revision else name)
    ]


def _experts(source: Ingredient, record: Mapping[str, Any], row: str | None) -> list[Ingredient]:
    """The adapters of a routed bundle with the weights of its gate, where every token gets the same.

    Raises:
        IncompatibleError: its gate goes by the input.   UsageError: it goes by a row, and none fits.
    """
    factor = 1.0 if source.weight is None else source.weight
    if not isinstance(factor, float | int):
        raise UsageError(f"{printable(source.source)} is a bundle, whose weights are numbers: no ramp.")
    found = members(str(source.source), record, row)
    if row is not None:  # a task is its adapter alone, without the others at weight 0
        found = [each for each in found if each[1]] or found
    return [replace(source, source=place, weight=factor * weight) for place, weight in found]


def expand(name: str) -> list[Member]:
    """The adapters that a source stands for, sorted: itself, if it is no collection.

    `hf://collections/owner/slug` and `hf://?base_model=org/name` are lists on the Hub.
    `@list.txt` is a file with a source on each line, and maybe its weight after it. A text with `*`, `?` or
    `[` is a glob. A folder without a config of its own stands for the adapters in it, a bundle for its own.
    """
    refuse_call(name)
    if (record := record_of(name)) is not None:
        return [(path, None) for path in folders(name, record)]
    if name.endswith(RECIPES) and os.path.isfile(name):
        told(Path(name))
    if name.startswith("@") and not os.path.exists(name):
        return list(_listed(Path(name[1:])))
    return [(path, None) for path in _found(name)]


def told(path: Path) -> None:
    """Raises UsageError: a file is a recipe; of mergekit's, how it reads here."""
    from loramerge.request.recipe_text import read  # for those who have one

    read(path)
    where = "" if spoken() == "shell" else " in a shell"
    raise UsageError(
        f"{printable(path)} is a recipe, not an adapter: loramerge combine takes it by --recipe{where}."
    )


def left_aside(name: str) -> list[str]:
    """What a folder of adapters holds besides adapters and their descriptions."""
    found = _visible(name) if _is_collection(name) and record_of(name) is None else []
    return sorted(path.name for path in found if not _is_adapter(path) and path.name != DESCRIPTIONS)


def _found(name: str) -> list[str]:
    if is_hub(name):
        return _members(name) if is_list(name) else [name]
    put_back(Path(name))
    if os.path.isdir(name):
        put_back_members(Path(name))
    if _is_collection(name):
        return sorted((str(path) for path in _visible(name) if _is_adapter(path)), key=natural)
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    found = sorted((path for path in glob.glob(name) if _is_adapter(Path(path))), key=natural)
    if not found:
        raise SourceError(f"{printable(name)} finds no adapter: no folder with {CONFIG}, no .safetensors.")
    return found


def natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: checkpoint-9 comes before checkpoint-10.

    >>> sorted(["c-1000", "c-200", "c-600"], key=natural)
    ['c-200', 'c-600', 'c-1000']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]


def as_a_shell_sorts(names: Sequence[str], weights: Sequence[object] | None) -> list[str]:
    """What to say of weights that numbered names got in the order of a shell's glob.

    >>> as_a_shell_sorts(["c-1000", "c-200"], [0.1, 0.9])[0][:29]
    'c-1000 stands before c-200, a'
    """
    counted = sorted(names, key=natural)
    if (
        weights is None
        or len({*map(repr, weights)}) < 2
        or list(names) != sorted(names)
        or counted == [*names]
    ):
        return []
    first = next(i for i, name in enumerate(names) if name != counted[i])
    one, other = printable(names[first]), printable(counted[first])
    return [f"{one} stands before {other}, as a shell sorts them, and the weights were taken in that order"]


def _members(name: str) -> list[str]:
    """The adapters of a list on the Hub."""
    from loramerge.hub.lists import members  # for those who have one

    return [str(member) for member in members(name).members]


def _is_collection(name: str) -> bool:
    """A folder without a config, with an adapter in a folder of its own or with several files."""
    if not os.path.isdir(name) or _is_one(Path(name)):
        return False
    inside = [path for path in _visible(name) if _is_adapter(path)]
    return len(inside) > 1 or any(map(is_folder, inside))


def _is_adapter(path: Path) -> bool:
    return _is_folder(path) or (path.suffix == ".safetensors" and is_file(path))


def _is_folder(path: Path) -> bool:
    """Whether a folder holds one adapter, by the names that its files have."""
    return any(is_file(path / name) for name in (CONFIG, *FOLDER_FILES))


def _is_one(path: Path) -> bool:
    """Whether a folder is one adapter, or a model in the place of one, rather than many adapters."""
    if _is_folder(path):
        return True
    from loramerge.adapters.whole import is_model_folder  # an adapter is none

    return is_model_folder(path)


def _visible(folder: str) -> list[Path]:
    try:
        return [Path(folder, name) for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise SourceError(
            f"{printable(folder)} cannot be read: {error.strerror}. Check its rights."
        ) from error


def _listed(path: Path) -> Iterator[Member]:
    for line in _lines(path):
        name, weight = _split(line)
        if name.startswith("@"):
            raise SourceError(
                f"{printable(path)} lists another list, {printable(name)}: name both on the command line."
            )
        for member in _found(name):
            yield member, weight


def _lines(path: Path) -> list[str]:
    """The lines that are neither empty nor begin with #."""
    raw = read_text(path, f"The list {path}", LIMIT)
    if len(raw) > LIMIT or b"\0" in raw:
        raise SourceError(
            f"{printable(path)} is not a list of sources: it must be a text file, one source to a line."
        )
    lines = [line.strip() for line in os.fsdecode(raw).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise SourceError(f"The list {printable(path)} names no source.")
    return lines


def _split(line: str) -> tuple[str, float | None]:
    """A path, and a number after it; a file of the whole name comes first.

    >>> _split("adapters/a 0.5"), _split("adapters/a b"), _split("b.safetensors")
    (('adapters/a', 0.5), ('adapters/a b', None), ('b.safetensors', None))
    """
    name, _, last = line.rpartition(" ") if " " in line else line.rpartition("\t")
    if not name or os.path.lexists(line):
        return line, None
    try:
        weight = float(last)
    except ValueError:
        return line, None
    return (name.rstrip(), weight) if math.isfinite(weight) else (line, None)
