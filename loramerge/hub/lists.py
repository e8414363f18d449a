"""Many adapters of the Hub by one name: a collection, or all that fit a filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from loramerge.errors import LoramergeError, SourceError, UsageError, printable
from loramerge.hub.choice import CONFIG, FOLDER_FILES
from loramerge.hub.client import api, ask
from loramerge.hub.failures import Missing, explained
from loramerge.hub.names import REPOSITORY, SCHEME, HubName

KEYS = ("base_model", "author", "tag", "search", "limit")
LIMIT = 20  # adapters that a filter finds, unless it says another
MOST = 1000
HOW = "such as base_model=org/base, author=me, tag=math, search=text or limit=50"


@dataclass(frozen=True)
class Members:
    """The members of a list, and sentences about it."""

    members: tuple[HubName, ...]
    notes: tuple[str, ...] = ()


def members(text: str) -> Members:
    """The adapters that `hf://collections/owner/slug` or `hf://?base_model=org/base` stands for.

    Raises:
        SourceError: it is missing, holds no adapter, or the Hub cannot be reached.
        UsageError: a filter that there is not.
    """
    rest = SCHEME.sub("", text, count=1)
    if rest.startswith("?"):
        return _filtered(_asked(rest[1:], text))
    return _collected(rest.removeprefix("collections/").rstrip("/"))


def filter_source(pairs: Sequence[str]) -> str:
    """`--hub-filter KEY=VALUE`, repeated, as one source.

    Raises:
        UsageError: no pair of that form, or a key that there is not.

    >>> filter_source(["base_model=org/base", "limit=5"])
    'hf://?base_model=org%2Fbase&limit=5'
    """
    # A list on the Hub is a source of its own, so recipes, @list files and the library have it too.
    split = [pair.partition("=") for pair in pairs]
    for pair, (key, _, value) in zip(pairs, split, strict=True):
        if key not in KEYS or not value:
            raise UsageError(f"--hub-filter {printable(pair)} is not a filter: give KEY=VALUE, {HOW}.")
    text = f"hf://?{urlencode([(key, value) for key, _, value in split])}"
    _asked(text.partition("?")[2], text)
    return text


def _asked(query: str, text: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    found = dict(pairs)
    if not found or len(found) != len(pairs) or not found.keys() <= set(KEYS) or not all(found.values()):
        raise UsageError(f"{printable(text)} is not a filter: give each KEY=VALUE once, {HOW}.")
    if found.keys() == {"limit"}:
        raise UsageError("A limit alone would list the whole Hub: say base_model, author, tag or search too.")
    if "limit" in found and not (found["limit"].isdecimal() and 1 <= int(found["limit"]) <= MOST):
        raise UsageError(f"limit={printable(found['limit'], 40)} is not a whole number from 1 to {MOST}.")
    return found


def _filtered(asked: Mapping[str, str]) -> Members:
    base, limit = asked.get("base_model"), int(asked.get("limit", LIMIT))
    tags = [f"base_model:adapter:{base}" if base else "peft", *([asked["tag"]] if "tag" in asked else [])]
    with explained(HubName(base if base and REPOSITORY.fullmatch(base) else "the list of adapters")):
        found = list(
            api().list_models(
                filter=tags,
                author=asked.get("author"),
                search=asked.get("search"),
                sort="downloads",
                limit=limit + 1,
            )
        )
    words = ", ".join(f"{key}={printable(value)}" for key, value in asked.items())
    if not found:
        raise SourceError(f"The Hub has no adapter with {words}.")
    names = tuple(HubName(model.id) for model in found[:limit] if REPOSITORY.fullmatch(model.id))
    more = f", the {limit} most downloaded; add limit=N for more" if len(found) > limit else ""
    return Members(names, (f"{len(names)} adapters of the Hub with {words}{more}: {_listed(names)}",))


def _collected(slug: str) -> Members:
    where = HubName(f"collections/{printable(slug)}")
    if slug.count("/") != 1 or not all(slug.split("/")) or not slug.isprintable() or " " in slug:
        raise SourceError(f"{printable(slug)} is not a collection: write hf://collections/OWNER/SLUG.")
    try:
        with explained(where):
            collection = api().get_collection(slug)
        models = [str(item.item_id) for item in collection.items if item.item_type == "model"]
    except Missing:
        raise SourceError(f"The Hub has no collection {printable(slug)}, or it is private.") from None
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise SourceError(
            f"What the Hub says of the collection {printable(slug)} cannot be read: name its adapters."
        ) from error
    names = [HubName(model) for model in models if REPOSITORY.fullmatch(model)]
    with ThreadPoolExecutor(8) as pool:
        adapters = tuple(name for name, fits in zip(names, pool.map(_is_adapter, names), strict=True) if fits)
    aside = len(collection.items) - len(adapters)
    if not adapters:
        raise SourceError(f"The collection {printable(slug)} holds no adapter, only {aside} other things.")
    note = f"the collection {printable(slug)} also holds {aside} things that are not adapters"
    return Members(adapters, (note,) if aside else ())


def _is_adapter(name: HubName) -> bool:
    """Whether a member of a collection is one; what cannot be looked at counts, and fails by its own name."""
    try:
        listing = ask(name)
    except LoramergeError:
        return True
    files = {file.rpartition("/")[2] for file in listing.files}
    return "lora" in listing.tags or not files.isdisjoint({CONFIG, *FOLDER_FILES})


def _listed(names: Sequence[HubName], some: int = 20) -> str:
    more = f" and {len(names) - some} more" if len(names) > some else ""
    return ", ".join(name.repo for name in names[:some]) + more
