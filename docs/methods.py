"""docs/methods.md, from the docstrings, declarations and options of the methods."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from loramerge.algorithms import METHODS
from loramerge.algorithms.names import ALIASES, OTHERWISE, PARAMETERS
from loramerge.cli.combine import combine
from loramerge.cli.options import options_of

sys.path.insert(0, str(Path(__file__).parent))
from cells import code, table

HEAD = """# Methods

`loramerge methods` prints this list, and `loramerge methods NAME` explains one method. This page is written
by `python docs/generate.py`, from the docstrings and options of the methods. If you name none, several
adapters are merged by `level`, and with weights by `linear`: [combine.md](combine.md#weights-and-strength).

**N copies** says what N copies of one adapter become, each at weight 1. *Add up*: the same as one copy at
weight N. *Count once*: the same as one copy. *Neither*: something else.

Below, each method has a formula, its source, its limits, and a line of facts:

* **weights**: *additive* if copies add up, *consensus* if they count once, else *none*.
* **gauge**: *invariant* if only ΔW matters. *Raw* if the factors A and B matter as they are stored, so that
  the same update in other factors gives another merge.
* *exact without a rank*: if you give no rank, the merge is the weighted sum itself, or the mean. Other
  methods are *truncating*: they take a rank of their own then.
"""


TWICE = {
    "times": "twice all weights make it twice as large",
    "same": "twice all weights change nothing",
    "neither": "twice all weights make another merge",
}


def methods_table() -> str:
    """One row a method."""
    rows = ["| method | family | N copies | what it does |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        traits, summary = method().traits, method.description().partition("\n")[0]
        copies = {"additive": "add up", "consensus": "count once", "none": "neither"}[traits.weights]
        rows.append(f"| `{name}` | {traits.family} | {copies} | {summary} |")
    return "\n".join(rows)


def devices_table() -> str:
    """Where each method is computed if a GPU is asked for."""
    rows = []
    for name in METHODS:
        method = METHODS[name]()
        cored = "space" in method.names()
        where = "GPU" if method.batched else "host; GPU with `--space core`" if cored else "host"
        rows.append([code(name), where])
    return table(["method", "with `--device cuda`"], rows)


def names_page() -> str:
    """What others call methods and settings, and how that reads here."""
    rows = [[", ".join(map(code, others)), code(own)] for own, others in ALIASES.items()]
    differ = [[code(name), f"{told}."] for name, told in OTHERWISE.items()]
    words = [
        [code(name), whose, f"{code(here) if here else ''}{', ' if here and more else ''}{more}"]
        for name, (whose, here, more) in PARAMETERS.items()
    ]
    return "\n".join(
        [
            "## Other names\n",
            "Case, dashes and underscores do not matter. Papers, PEFT and mergekit may say it so:\n",
            table(["elsewhere", "here"], rows),
            "\nThese are something else here, and the answer to them says what:\n",
            table(["elsewhere", "here"], differ),
            "\nSo are these words of PEFT's `add_weighted_adapter` and of mergekit's recipes:\n",
            table(["word", "of", "here"], words),
            "",
        ]
    )


def methods_page() -> str:
    """docs/methods.md: the table, then docstring, declarations and options of every method."""
    return "\n".join([HEAD, methods_table(), "", names_page(), *(section(name) for name in METHODS)])


def section(name: str) -> str:
    method = METHODS[name]
    traits = method().traits
    context = click.Context(combine)
    records = [option.get_help_record(context) for option in options_of(name)]
    options = [f"* `{flag}`: {help}" for flag, help in filter(None, records)]
    facts = (
        f"Family {traits.family}; weights {traits.weights}; {TWICE[traits.common]}; gauge {traits.gauge}; "
        f"one adapter at weight 1 {'is' if traits.identity else 'is not'} returned as it is; "
        f"{'exact without a rank' if traits.exact else 'truncating'}."
    )
    parts = [f"## {name}\n", method.description(), "", f"*{facts}*", ""]
    return "\n".join([*parts, *(["Options:", "", *options, ""] if options else [])])
