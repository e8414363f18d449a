"""Everything the Hub can answer but the file: each its own sentence, never with a token in it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from loramerge.errors import LoramergeError, OutputError, SourceError, printable
from loramerge.hub.names import HubName

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
SECRET = re.compile(r"hf_\w+|(?i:bearer)\s+\S+")


class Missing(SourceError):
    """The Hub knows no such repository, or does not say so to us."""


class Unreachable(SourceError):
    """The Hub does not answer, so that only the cache can help."""


@contextmanager
def explained(name: HubName, what: str = "", writing: bool = False) -> Iterator[None]:
    """Turn what the client of the Hub raises into a sentence about this name.

    Args:
        what: the file in question.   writing: something is sent, not read.

    Raises:
        SourceError: it cannot be read (`Missing`, `Unreachable`).   OutputError: it cannot be written.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]

    kind = OutputError if writing else SourceError
    try:
        yield
    except LoramergeError:
        raise
    except HfHubHTTPError as error:
        raise _answered(error, name, what, writing) from None
    except HFValidationError:
        raise kind(f"{name.repo} is not a name that the Hub allows.") from None
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError is what hf_xet raises
        answer = next((each for each in _causes(error) if isinstance(each, HfHubHTTPError)), None)
        if answer is not None:  # the client has looked into its cache after it, and found nothing
            raise _answered(answer, name, what, writing) from None
        raise _unanswered(error, name, what, kind) from None


def _answered(error: BaseException, name: HubName, what: str, writing: bool) -> LoramergeError:
    """The sentence for an HTTP status."""
    from huggingface_hub import errors

    kind, repo = (OutputError if writing else SourceError), name.repo
    status = int(getattr(getattr(error, "response", None), "status_code", 0))
    if isinstance(error, errors.GatedRepoError):
        return kind(f"{repo} is gated: accept its terms on its page at huggingface.co, and {LOGIN}.")
    if isinstance(error, errors.DisabledRepoError):
        return kind(f"{repo} has been disabled by the Hub: nobody can read it.")
    if isinstance(error, errors.RevisionNotFoundError):
        revision = printable(name.revision or "main")
        return kind(f"{repo} has no revision {revision}: name a branch, a tag or a commit that it has.")
    if isinstance(error, errors.EntryNotFoundError):
        return kind(f"{repo} has no file {printable(what or name.path)}.")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return _missing(name, writing)
    if status == 401:
        return kind(f"The Hub refuses your token for {repo}: it is wrong or has expired. Please {LOGIN}.")
    if status == 403:
        verb = "write to" if writing else "read"
        return kind(f"Your login may not {verb} {repo}: use a token that may.")
    if status == 412:
        return OutputError(
            f"{repo} got another commit while this one was prepared, so nothing was changed. Run it again."
        )
    if status == 429:
        return kind(f"The Hub had too many requests for {repo} (HTTP 429): wait, and run it again.")
    # The client's own messages hold URLs: a server is quoted only where its answer is not understood.
    said = printable(without_secrets(str(getattr(error, "server_message", None) or "")), 300)
    sentence = f"The Hub answers HTTP {status} for {repo}{f': {said}' if said else ''}"
    if status >= 500 and not writing:
        return Unreachable(f"{sentence}. Try again later.")
    return kind(f"{sentence}.")


def _missing(name: HubName, writing: bool) -> LoramergeError:
    if writing:
        return OutputError(f"The Hub has no {name.repo} that you may write to: check its name, and {LOGIN}.")
    where = f" (asked for {printable(name.path)})" if name.path else ""
    return Missing(
        f"{name.repo} is not a repository on the Hub{where}, or it is private: check the spelling; if it is "
        f"private, {LOGIN}."
    )


def _unanswered(error: Exception, name: HubName, what: str, kind: type[LoramergeError]) -> LoramergeError:
    """The sentence for a request without an answer."""
    from huggingface_hub import errors

    chain = [error, *_causes(error)]
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        if kind is OutputError:
            return OutputError(f"{name.repo} cannot be written to: HF_HUB_OFFLINE is set. Unset it to push.")
        return Unreachable(
            f"{name} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or download it first."
        )
    full = next(
        (e for e in chain if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)), None
    )
    if full is not None:
        return kind(f"There is no space left in the cache for {name.repo}: free some, or set HF_HUB_CACHE.")
    refused = next((e for e in chain if isinstance(e, PermissionError)), None)
    if refused is not None:
        return kind(
            f"The cache of the Hub cannot be used for {name.repo}: {refused.strerror}. Set HF_HUB_CACHE."
        )
    if "onsistency check" in str(error) or "complete message" in str(error):
        part = f"{printable(what)} of " if what else ""
        return kind(f"{part}{name.repo} did not arrive whole: the connection broke off. Run it again.")
    sentence = (
        f"The Hub cannot be reached for {name.repo}: check the network (and HF_ENDPOINT, if it is set)."
    )
    return Unreachable(sentence) if kind is SourceError else kind(sentence)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def without_secrets(text: str) -> str:
    """What a server says, without anything that looks like a token.

    >>> without_secrets("bad token hf_abc in Bearer xyz")
    'bad token *** in ***'
    """
    return SECRET.sub("***", text)
