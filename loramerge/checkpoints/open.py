"""From what a user names to a model: a folder, a file, or a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from loramerge.checkpoints.checkpoint import Checkpoint, opened
from loramerge.hub.names import hub_name


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A model: a folder as transformers or diffusers writes it, a single .safetensors, or a name on the Hub.

    Raises:
        SourceError: absent, cut short, or no model; on the Hub missing, gated, not to be reached.
        IncompatibleError: pickles only, or an adapter in the place of a model.
    """
    named = hub_name(source)
    if named is None:
        return opened(Path(source), str(source))
    from loramerge.checkpoints.remote import fetched  # the Hub is for those who name it

    return fetched(named)


def open_headers(source: str | Path) -> Checkpoint:
    """The same model without a download: the Hub gives the headers now, and a tensor when it is read.

    Errors as for `open_checkpoint`.
    """
    named = hub_name(source)
    if named is None:
        return opened(Path(source), str(source))
    from loramerge.checkpoints.remote import peeked

    return peeked(named)
