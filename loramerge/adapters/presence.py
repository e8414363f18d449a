"""Whether a file or a folder is there. One that may not be looked at is not absent: it is told of by name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from loramerge.errors import SourceError, printable

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there; a link counts as what it leads to.

    Raises:
        SourceError: the system does not say, as in a folder without the right to search it.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there. Links and errors as for `is_file`."""
    return stat.S_ISDIR(_mode(path))


def names_in(folder: str | Path, name: str) -> list[str]:
    """What lies in a folder, sorted.   `name`: for messages.

    Raises:
        SourceError: it may not be listed, or is not there any more.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable(name, error) from error


def _mode(path: str | Path) -> int:
    """Of what is there; 0 if nothing is."""
    try:
        return os.stat(path).st_mode
    except ValueError:  # a zero byte, or half a character: no file has such a name
        return 0
    except OSError as error:
        if error.errno in ABSENT:
            return 0
        # a file need not be readable to have a status: it is its folder that may not be searched
        place = os.path.dirname(path) if error.errno == errno.EACCES else ""
        raise unreadable(place or os.fspath(path), error) from error


def unreadable(name: str, error: Exception) -> SourceError:
    """What is there cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return SourceError(
        f"{printable(name, limit=1000)} cannot be read: {reason}. Check the path and its rights."
    )
