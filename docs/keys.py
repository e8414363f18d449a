"""The keys of what `--json` prints. docs/json.md is written from them, and tests hold the commands to them.

A list in a table holds tables of these keys; a key that ends in `?` is there only where it means something.
"""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]  # key -> what it means, or the keys of the tables in its list, under ""

SOURCE: Keys = {
    "": "the sources in their order",
    "name": "as the report calls it",
    "weight": "as the method used it",
    "cosine": "with the merge; null where one of the two is zero",
    "norm_ratio": "‖merge‖ / ‖source‖",
    "similarity?": "to what was described",
}
MODULE: Keys = {
    "": "the modules by name",
    "name": "the module",
    "ranks": "of each source there; 0 where it lacks the module",
    "norm": "‖merge‖",
    "energy_lost": "the share of ‖weighted sum‖² that the merge does not have",
    "rounding_error": "‖merge − written‖ / ‖merge‖",
    "cosines": "of the merge with each source there; null above 64 sources",
    "cut_by_rank": "the share of ‖·‖² that the rank cuts off; null where nothing is cut",
    "scale": "the factor of `--scale norm`, `fade` or `cosine`; null without one",
    "facts?": "what the method says of the module, by name",
    "spread?": "how far the sources of a mixture are apart",
}
MERGE: Keys = {
    "out": "the path",
    "method": "its `name`, its `options`, and `default`: true if nobody named it",
    "rank": "the largest of any module",
    "ranks": "of modules that have another one",
    "dtype": "of the tensors",
    "format": "as `--format` calls it",
    "bytes": "of the tensors",
    "weights": "of the sources",
    "dry_run": "true if nothing was written; what is not known yet is null then",
    "sha256": "of the files that were written, by name",
    "energy_lost": "the share of ‖weighted sum‖² that the merge does not have",
    "cut_by_rank": "the share of ‖what the method makes‖² that the rank cuts off; null where nothing is cut",
    "rounding_error": "‖merge − written‖ / ‖merge‖",
    "strength": "‖merge‖ over the mean norm of the sources that have a weight",
    "sources": SOURCE,
    "spread?": "the share of energy in which the sources of a mixture differ",
    "left_out?": "sources that were not chosen: `name`, `weight` 0, `similarity`",
    "pairwise_cosines": "a table of the sources with each other; empty above 64",
    "modules": MODULE,
    "notes": "sentences that you should read",
    "curve": {
        "": "other sizes, in a dry run",
        "total_rank": "of all modules",
        "rank": "the largest",
        "bytes": "of the file",
        "energy_lost": "at best",
    },
    "pushed?": "the address on the Hub",
}
DIFFERENCE: Keys = {
    "sources": "the names of A and B",
    "error": "‖A − B‖ / ‖A‖; null if infinite",
    "largest_error": "that of the worst module",
    "cosine": "over all modules",
    "missing": "modules that only one of the two has",
    "modules": {
        "": "the modules of either",
        "name": "the module",
        "error": "‖A − B‖ / ‖A‖",
        "cosine": "of A and B",
        "norm_ratio": "‖B‖ / ‖A‖",
        "missing": "`A` or `B`, where only the other has it",
    },
}
KEYS: dict[str, Keys] = {
    "combine": MERGE,
    "resize": MERGE,
    "restore": MERGE,
    "replay": {
        **MERGE,
        "difference": "from the recorded adapter, with the keys of `diff`; null if it is not here",
    },
    "diff": DIFFERENCE,
    "inspect": {
        "adapters": {
            "": "each source that could be read",
            "name": "as you named it",
            "format": "in words",
            "base_model": "as its config names it",
            "hub?": "the place on the Hub",
            "revision?": "the commit",
            "dtype?": "of the factors",
            "norm?": "‖ΔW‖; null where only a header was read",
            "scales?": "where they are taken from, if the file was not read in full",
            "modules?": "each with shape, rank, scale, type, norm, effective rank and σ",
            "extras?": "keys of tensors that are no low-rank pair",
            "loads?": "program: whether it loads the adapter as it is meant",
            "oddities?": "sentences",
            "settings?": "of what cannot be merged: what its config says",
            "tensors?": "of what cannot be merged: key: `shape` and `dtype`",
            "refusal?": "of what cannot be merged: why",
        }
    },
    "check": {
        "adapters": {
            "": "each source that could be read",
            "source": "as you named it",
            "tensor_names": "the format that its names are of",
            "consumers": "`consumer`, `version`, `loads` (null: it cannot be told), `findings`",
        }
    },
    "convert": {
        "out": "the path",
        "from": "the format of the source",
        "to": "the format that was written",
        "copied": "true if every tensor was copied as it is",
        "modules": "how many",
        "largest_error": "of a module",
        "notes": "sentences that you should read",
    },
    "extract": {
        "out": "the path",
        "tuned": "the tuned model",
        "base": "its base",
        "energy_lost": "the share of ‖difference‖² that the adapter does not have",
        "rounding": "that of the written numbers",
        "modules": "each with its rank and its shares",
        "beside": "tensors that are no module: `name` and `norm`",
        "kept": "those of them that were kept",
        "notes": "sentences that you should read",
    },
    "fuse": {
        "out": "the path",
        "rounding": "what rounding cost, as a share of the update",
        "tensors": "`name`, `norm` and `rounding` of each that changed",
        "notes": "sentences that you should read",
    },
    "route": {
        "out": "the path",
        "bundle": "what was recorded of it: experts, gate, base",
        "notes": "sentences that you should read",
    },
    "report": {
        "out": "the path",
        "sections": "`name`, `title`, `rows` (the table under the chart, by column) and `notes` of each",
    },
    "push": {
        "repo": "the repository",
        "commit": "the commit",
        "url": "its address",
        "changed": "false if it was there already",
    },
    "methods": {
        "methods": {
            "": "each method",
            "name": "the method",
            "summary": "one line",
            "description": "formula, source, limits",
            "options": "`name`, `type`, `default`, `help`, `choices`, `low`, `high` of each",
        }
    },
}
HEAD = """# JSON

Every command has `--json`. It prints one object on stdout. Notes and errors go to stderr, and the exit code
tells how it went. This page is written by `python docs/generate.py`.

Each object begins with `schema`, the number {schema}, and `loramerge`, the version. A new key does not change
the number. A key that goes, or means something else, does.

A key with a `?` is there only where it means something. Shares are numbers from 0 to 1.
"""


def page() -> str:
    """docs/json.md."""
    from loramerge.cli.show import SCHEMA

    return "\n".join([HEAD.format(schema=SCHEMA), *(_section(command) for command in KEYS)])


def _section(command: str) -> str:
    if command in ("resize", "restore"):
        return f"## {command}\n\nThe keys are those of [combine](#combine).\n"
    if command == "replay":
        told = KEYS[command]["difference"]
        return f"## {command}\n\nThe keys are those of [combine](#combine), and `difference`: {told}.\n"
    return "\n".join([f"## {command}\n", "| key | meaning |", "|---|---|", *_rows(KEYS[command], ""), ""])


def _rows(keys: Keys, before: str) -> list[str]:
    rows = []
    for key, told in keys.items():
        if key == "":
            continue
        name = f"`{before}{key.rstrip('?')}`{' ?' if key.endswith('?') else ''}"
        rows.append(f"| {name} | {told[''] if isinstance(told, dict) else told} |")
        if isinstance(told, dict):
            rows += _rows(told, f"{before}{key}[].")
    return rows


def odd(value: Keys, keys: Keys, where: str = "") -> list[str]:
    """What a printed object has too much or too little."""
    named = {key.rstrip("?") for key in keys if key}
    found = [f"{where}{key} is not told" for key in value.keys() - named]
    found += [
        f"{where}{key} is missing" for key in keys if key and not key.endswith("?") and key not in value
    ]
    for key, told in keys.items():
        for each in (value.get(key.rstrip("?")) or []) if isinstance(told, dict) else []:
            found += odd(each, told, f"{where}{key}[].")
    return found
