"""Where a request comes in and where it is kept, and what each of these doors does not take, with the reason.

A door takes every field of `Request` but those named here, by themselves or by their part. A law in the tests
holds each door against this page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

LIMITS = ("max_error", "max_lost", "min_cosine")  # of what is written
MERGING = ("combine", "plan", "session")  # functions that take a method with its options, or none
HERE = ""  # a field that a door takes although it does not take the rest of that part

_ALLOWED = ("allow_base_mismatch", "allow_disjoint")
_ONE = "one adapter has no others to be compared with"
_LATER = "give it to `combine` of what was opened"
_EARLIER = "sources are chosen when they are opened: give it to `loramerge.open`"
_SAVE = "nothing is written yet: give it to `save` of the merge"
_NO_PLACE = "it says what is merged, not where that is written"
_NO_EFFECT = "the result does not depend on it"
_STRANGER = "it may be a stranger's, and you decide what is read on your machine: say it beside it"
_STRANGER_WORK = "it may be a stranger's, and you decide what your machine does: say it beside it"
_SETTLED = "the record says it"
_BY_OUT = "the name of the output says it"
_RESTORED = "the merge has settled it"
_OWN = "what you say yourself is done: it is for what a file asks"
_MODELS = "whole models are read, not adapters"
_ON_HOST = "its work is reading and writing, which a GPU does not help"
_YOURS = "it lies where you have it: say it again when you replay"
_ARGUMENT = "the base model is an argument of its own"
_LOOK = "nothing is merged for it but to compare methods: use combine, and `lm.report` of what it gives"
_READ = "one adapter is read and nothing is merged: give it to `combine`"
_COMPARED = "nothing is merged for it: combine first, and compare the merge"
_WHOLE = "both adapters are compared as a whole"
_MERGED = "a row of a bundle is a merge of its adapters: combine it first"
_CONVERTED = "a conversion changes no number: use combine with this one source"


class Told(NamedTuple):
    """What help says of a field at a door where it means less than in a merge.

    Args:
        shown: the default in words.   words: those of its choices that fit; empty: all do.
    """

    help: str
    shown: str | None = None
    words: tuple[str, ...] = ()


TOLD: Mapping[tuple[str, str], Told] = {
    ("resize", "max_lost"): Told("Fail (exit 4) if it lacks more than this share of the energy of SOURCE."),
    ("resize", "min_cosine"): Told("Fail (exit 4) if its cosine with SOURCE is below this."),
    ("report", "out"): Told("The page to write."),
    ("report", "format"): Told("Compare sources in the modules that this format has."),
    ("route", "out"): Told("The folder to write."),
    ("extract", "format"): Told(
        "How the adapter is written: a format, the program that will read it, or a spelling from "
        "docs/formats.md.",
        "that of such models: peft, diffusers or kohya",
    ),
    ("extract", "extras"): Told(
        "What becomes of tensors that differ and have no low rank (heads, norms, biases, new token rows): "
        "keep them whole (first), or drop them.",
        words=("refuse", "first", "drop"),
    ),
    ("extract", "dtype"): Told("Number type of the output.", "the widest of TUNED"),
    ("extract", "max_lost"): Told(
        "Fail (exit 4) if the adapter lacks more than this share of the energy of the difference."
    ),
    ("extract", "min_cosine"): Told(
        "Fail (exit 4) if the cosine of the adapter with the difference is below this."
    ),
    ("fuse", "scale"): Told("Strength of the adapter: a number that multiplies its update."),
    ("restore", "max_lost"): Told(
        "Fail (exit 4) if the result lacks more than this share of the energy of the task."
    ),
    ("restore", "min_cosine"): Told("Fail (exit 4) if the cosine of the result with the task is below this."),
}

DOORS: Mapping[str, Mapping[str, str]] = {
    "command": {
        "rules": "a recipe says it, under `modules`: --recipe FILE",
        "bare": _BY_OUT,
        "progress": "the command line shows it by itself",
    },
    "load": {
        **dict.fromkeys(("sources", "strength", "size", "output", "effort"), _READ),
        **dict.fromkeys(("alpha", "allow_pickle", "initial", "base", "prompt_gate", "names"), HERE),
    },
    "diff": {
        "sources": _WHOLE,
        **dict.fromkeys(("strength", "size", "output"), _COMPARED),
        **dict.fromkeys(("alpha", "rename", "initial", "base", "prompt_gate", "names", "allow_pickle"), HERE),
        **dict.fromkeys(("memory", "device"), "its work is reading, which a GPU does not help"),
        "allow_work": _OWN,
    },
    "combine": {"bare": _BY_OUT, "allow_work": _OWN},
    "plan": {**dict.fromkeys(("out", "overwrite", "keep_form", *LIMITS), _SAVE), "allow_work": _OWN},
    "open": {
        **dict.fromkeys(("weights", "rules", "descriptions", "embedding"), _LATER),
        **dict.fromkeys(("strength", "size", "output"), _LATER),
        "format": HERE,
        "renormalise": "what is opened is kept as the sources have it: use loramerge.combine",
        "allow_work": _OWN,
    },
    "session": {
        "sources": _EARLIER,
        **dict.fromkeys(("weights", "descriptions", "embedding"), HERE),
        "rules": "here all modules are merged alike: use loramerge.combine",
        "format": _EARLIER,
        **dict.fromkeys(("out", "overwrite", "keep_form", *LIMITS, "bare"), _SAVE),
        "effort": _EARLIER,
    },
    "resize": {
        "row": _MERGED,
        **dict.fromkeys(("weights", "renormalise", *_ALLOWED, "descriptions", "embedding"), _ONE),
        "rules": "use combine with this one source",
        "strength": "a resized adapter is as strong as it was: combine with `scale` changes that",
        "keep_form": "fewer units are a plain LoRA",
        "bare": _BY_OUT,
        "allow_work": _OWN,
    },
    "report": {
        "row": _MERGED,
        **dict.fromkeys(("rules", "strength", "size", "output", "descriptions", "embedding"), _LOOK),
        **dict.fromkeys(("format", "out", "overwrite"), HERE),
        "allow_work": _OWN,
    },
    "convert": {
        "row": _MERGED,
        **dict.fromkeys(("weights", "renormalise", *_ALLOWED, "descriptions", "embedding"), _ONE),
        **dict.fromkeys(("rules", "initial", "strength", "size"), _CONVERTED),
        **dict.fromkeys(
            ("consumer", "max_rank", "allow_unknown"), "`check` says which programs load the result"
        ),
        **dict.fromkeys(("project_out", "drop_below", "blocks"), _CONVERTED),
        "format": "`to` says it",
        "keep_form": "`to` says the form",
        **dict.fromkeys(LIMITS, "every module is compared anyway"),
        **dict.fromkeys(("out", "bare"), "OUT is an argument of its own"),
        "effort": "the work is that of a copy",
        "progress": HERE,
    },
    "extract": {
        **dict.fromkeys(("sources", "strength"), _MODELS),
        "base": _ARGUMENT,
        **dict.fromkeys(("only", "exclude", "extras"), HERE),
        **dict.fromkeys(
            ("consumer", "max_rank", "allow_unknown"), "`check` says which programs load the result"
        ),
        "energy_per_module": "give `energy`, or resize what was extracted",
        "allow_work": _OWN,
        "keep_form": "there is no form to keep",
        "bare": _BY_OUT,
        "device": _ON_HOST,
    },
    "fuse": {
        "row": _MERGED,
        **dict.fromkeys(("weights", "renormalise", "allow_base_mismatch", "descriptions", "embedding"), _ONE),
        **dict.fromkeys(
            ("rules", "project_out", "drop_below", "blocks"), "use combine first, and fuse the merge"
        ),
        "base": _ARGUMENT,
        "extras": "all that the adapter holds is applied",
        "heads_as_lora": "all that the adapter holds is applied as it is",
        **dict.fromkeys(("size", "output"), "the model keeps its files, names and types"),
        **dict.fromkeys(("out", "overwrite"), HERE),
        "allow_disjoint": _ONE,
        "allow_work": _OWN,
        "device": _ON_HOST,
    },
    "restore": {
        **dict.fromkeys(("sources", "strength", "size", "output"), _RESTORED),
        **dict.fromkeys(("out", "overwrite", "dtype", *LIMITS), HERE),
        "device": _ON_HOST,
        "allow_work": _OWN,
    },
    "route": {
        "row": "name the row when the bundle runs, or is merged by `combine`",
        "rules": "the gate decides how much of each takes part, in every module",
        **dict.fromkeys(("renormalise", "strength"), "the gate decides how much of each takes part"),
        **dict.fromkeys(("descriptions", "embedding"), "sources are not chosen here: name those you want"),
        "size": "adapters are kept as they are: `resize` them first",
        **dict.fromkeys(("format", "profile", "bare"), "a bundle is a folder of PEFT adapters of one rank"),
        **dict.fromkeys(("consumer", "max_rank", "allow_unknown"), "`check` tells who loads the bundle"),
        **dict.fromkeys(LIMITS, "nothing is merged, so that nothing is lost"),
        "keep_form": "a FlyLoRA is kept with its gate anyway",
        "allow_work": _OWN,
    },
    "recipe": {
        "allow_pickle": _STRANGER,
        **dict.fromkeys(("out", "overwrite", "bare"), _NO_PLACE),
        "effort": _NO_EFFECT,
        "allow_work": _STRANGER_WORK,
    },
    "record": {
        "allow_pickle": _STRANGER,
        "row": "the adapters of the bundle are recorded, with the weights of that row",
        "descriptions": "similarities to them are recorded in their place",
        "base": _YOURS,
        "prompt_gate": _YOURS,
        "names": _YOURS,
        "project_out": _YOURS,
        "size": "the ranks that it came to are recorded in its place",
        **dict.fromkeys(LIMITS, "it decides whether a merge is written, not what is in it"),
        **dict.fromkeys(("out", "overwrite", "bare"), _NO_PLACE),
        "effort": _NO_EFFECT,
        "allow_work": _STRANGER_WORK,
    },
    "replay": {
        **dict.fromkeys(("sources", "strength", "size", "output"), _SETTLED),
        **dict.fromkeys(("initial", "heads_as_lora", "base", "prompt_gate", "names", "project_out"), HERE),
        **dict.fromkeys(("allow_pickle", "out", "overwrite", *LIMITS), HERE),
    },
}


def why_not(door: str, field: str, part: str) -> str | None:
    """Why a door does not take a field; None if it does."""
    absent = DOORS[door]
    return absent.get(field, absent.get(part)) or None
