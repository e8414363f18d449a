"""Text of others, shown as it is: it means nothing to YAML, Markdown, HTML or a shell."""

from __future__ import annotations

import json
import re

from loramerge.adapters.late import late
from loramerge.errors import printable, word

HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
MARKED = late(r"[\\`*_{}\[\]()#+!|~$^=:@\"']")
LINKED = late(r"(?i)\bwww\.")  # some readers link it without being asked


def markdown(text: object, limit: int = 120) -> str:
    """Text for a paragraph or a cell of a table, on one line.

    >>> markdown("a|b](http://x) <img>")
    'a\\\\|b\\\\]\\\\(http\\\\://x\\\\) &lt;img&gt;'
    """
    safe = MARKED.sub(r"\\\g<0>", printable(text, limit))
    safe = "".join(HTML.get(char, char) for char in safe)
    return LINKED.sub(lambda match: match[0].replace(".", r"\."), safe)


def quoted(text: object, limit: int = 200) -> str:
    """Text as a value in YAML, or as a string in Python: in double quotes.

    >>> quoted('x"\\nlicense: mit')
    '"x\\\\"\\\\\\\\nlicense: mit"'
    """
    return json.dumps(printable(text, limit), ensure_ascii=False)


def code(text: object, limit: int = 200) -> str:
    """Text in a code span: between more backticks than it has. No cell of a table: a bar would end it.

    >>> code("a`b")
    '`` a`b ``'
    """
    safe = printable(text, limit)
    longest = max((len(run) for run in re.findall("`+", safe)), default=0)
    ticks = "`" * (longest + 1)
    return f"{ticks} {safe} {ticks}" if longest else f"`{safe}`"


def shell(text: object, limit: int = 1000) -> str:
    r"""Text as one word of a command that is shown to be pasted.

    >>> print(shell("a; rm b"), shell("a\x1b[31m"))
    'a; rm b' $'a\x1b[31m'
    """
    return word(text, limit)
