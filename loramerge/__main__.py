"""`python -m loramerge`, and the script `loramerge`."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; whenever an interrupt comes, it is told, and the exit code is 130."""
    try:
        from loramerge.cli import main as run

        run()
    except KeyboardInterrupt:  # before it could do anything
        _leave("Interrupted: no output was changed.\n")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave()
        raise


def _leave(words: str = "") -> None:
    """End at once. Python would wait for the threads of others, and die by the signal instead of a code."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        print(words, end="", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # also where a stream is closed
        os._exit(INTERRUPTED)


if __name__ == "__main__":  # who only looks at the package imports this too
    main()
