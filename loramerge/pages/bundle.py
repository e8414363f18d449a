"""The page's script with the libraries that it needs, as one text: an open page fetches nothing."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from loramerge.errors import UsageError

HERE = Path(__file__).parent


def check_installed() -> None:
    """Raises UsageError: what a page needs is not installed. Said before anything is read."""
    if lacking := [name for name in ("altair", "vl_convert") if find_spec(name) is None]:
        raise UsageError(f'A page needs {" and ".join(lacking)}: pip install "loramerge[report]".')


@cache  # some seconds
def script() -> str:
    """The script with Vega inside. Raises UsageError: vl-convert is not installed."""
    check_installed()
    import vl_convert

    text = str(vl_convert.javascript_bundle((HERE / "script.js").read_text(encoding="utf-8")))
    # What would end or hide a script in HTML cannot stand in one; both stay the same text in JavaScript.
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def style() -> str:
    """The style sheet."""
    return (HERE / "style.css").read_text(encoding="utf-8")
