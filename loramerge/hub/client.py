"""The one place where the client of the Hub is made, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loramerge import __version__
from loramerge.hub.failures import explained
from loramerge.hub.names import REPOSITORY, HubName

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT = 20.0  # seconds for an answer about a repository


def api() -> HfApi:
    """The client; token, endpoint and cache are those of the user's environment."""
    from huggingface_hub import HfApi

    return HfApi(library_name="loramerge", library_version=__version__)


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: the names of its files, and what its card says.

    Args:
        licence: as its card names it.   tags: the Hub's own.   private: whether it is; None if not said.
        base: the one base model that its card names.   pipeline: its task, as the Hub calls it.
    """

    commit: str
    files: frozenset[str]
    licence: str | None = None
    tags: tuple[str, ...] = ()
    private: bool | None = None
    base: str | None = None
    pipeline: str | None = None


def ask(name: HubName) -> Listing:
    """What a repository holds now.

    Raises:
        SourceError: missing, gated, without that revision, or the Hub cannot be reached.
    """
    with explained(name):
        info = api().model_info(name.repo, revision=name.revision, timeout=TIMEOUT)
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    said = info.card_data
    return Listing(
        str(info.sha),
        files,
        licence_of(said),
        tuple(info.tags or ()),
        info.private,
        base_of(said),
        info.pipeline_tag,
    )


def licence_of(card: Any) -> str | None:
    """The licence in the metadata of a card: its short name, or `other (name)`; None if it says none."""
    said = card.to_dict() if card is not None else {}
    found = said.get("license")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(found, str) or not found:
        return None
    named = said.get("license_name")
    return f"other ({named})" if found == "other" and isinstance(named, str) and named else found


def base_of(card: Any) -> str | None:
    """The base model in the metadata of a card, if it names one repository; None otherwise."""
    found = (card.to_dict() if card is not None else {}).get("base_model")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    return found if isinstance(found, str) and REPOSITORY.fullmatch(found) else None
