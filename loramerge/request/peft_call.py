"""A call of PEFT's `add_weighted_adapter`, told in the words of the caller: a command, or a call of ours."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any

from loramerge.algorithms import find, name_of_class
from loramerge.algorithms.names import PARAMETERS
from loramerge.errors import UsageError, printable, spoken
from loramerge.hub.escape import shell

CALL = "add_weighted_adapter("
ORDER = (  # of its arguments, as PEFT 0.21 has them
    "adapters", "weights", "adapter_name", "combination_type", "svd_rank", "svd_clamp", "svd_full_matrices",
    "svd_driver", "density", "majority_sign_method",
)  # fmt: skip
USUAL = "svd"  # the combination_type that PEFT takes where none is given
ELECTIONS = {"total": "raw", "frequency": "count"}
ELECTING, EXACT = ("ties_svd", "dare_ties_svd"), ("svd", "cat")
APART = "PEFT does it to A and to B apart, which multiplies factors of different adapters; here ΔW is merged"


def refuse_call(text: str) -> None:
    """Raises UsageError, with how it reads here: a source, or a recipe, is a call of PEFT."""
    if CALL in text:
        raise UsageError(f"That is a call of PEFT. {translated(text)}")


def translated(text: str) -> str:
    """How a call reads here, and what to know.

    >>> print(translated('model.add_weighted_adapter(["a", "b"], [1.0, .5], "ab", "cat")'))
    It reads here:
    <BLANKLINE>
    lm.combine(['a', 'b'], 'cat', weights=[1.0, 0.5], out='ab')
    <BLANKLINE>
    Names of adapters inside the model are paths, or names on the Hub, here.
    """
    said = _arguments(text)
    theirs = str(said.get("combination_type", USUAL))
    name, own, told = _method(theirs)
    sources = said.get("adapters", ["PATH", "PATH"])
    sources = [str(each) for each in sources] if isinstance(sources, list | tuple) else [str(sources)]
    here = {
        "weights": said.get("weights"),
        "rank": said.get("svd_rank"),
        **_options(said, own, find(name).names()),
    }
    here["out"] = said.get("adapter_name")
    here = {setting: value for setting, value in here.items() if value is not None}
    notes = ["Names of adapters inside the model are paths, or names on the Hub, here.", *told]
    notes += [f"{n}: {PARAMETERS[n][2]}." for n in said if n in PARAMETERS and not PARAMETERS[n][1]]
    line = _command(sources, name, here) if spoken() == "shell" else _python(sources, name, here)
    return "\n".join(["It reads here:", "", line, "", *notes])


def _arguments(text: str) -> dict[str, Any]:
    """Its arguments by name, as values where they are literals, else as they are written."""
    start = text.index(CALL)
    for end in (i + 1 for i, letter in enumerate(text) if letter == ")" and i > start):
        try:
            call = ast.parse(text[start:end], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # this parenthesis ends another one
        assert isinstance(call, ast.Call)
        given = dict(zip(ORDER, call.args, strict=False))
        given |= {each.arg: each.value for each in call.keywords if each.arg is not None}
        return {name: _value(node) for name, node in given.items()}
    return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each) for each in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, RecursionError, MemoryError):
        return printable(ast.unparse(node), 60)


def _method(theirs: str) -> tuple[str, dict[str, str], list[str]]:
    """Our method for a combination_type, the options that make it theirs, and a remark about the rest."""
    whole = theirs.removesuffix("_svd")
    if theirs in ELECTING:
        return whole, {"election": ELECTIONS["total"], "divisor": "count"}, []
    told = [] if (theirs == whole and theirs in EXACT) or theirs != whole else [f"{theirs}: {APART}."]
    try:
        return name_of_class(find(theirs)), {}, told
    except UsageError as error:
        plain = {"magnitude_prune": "magnitude", "dare_linear": "dare"}.get(whole)
        return (plain, {}, told) if plain else ("linear", {}, [str(error)])


def _options(said: Mapping[str, Any], own: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    """Density and election, as far as the method has them."""
    found: dict[str, Any] = {"density": said.get("density"), **own}
    if "majority_sign_method" in said:
        found["election"] = ELECTIONS.get(str(said["majority_sign_method"]))
    return {name: value for name, value in found.items() if name in known}


def _python(sources: list[str], name: str, here: Mapping[str, Any]) -> str:
    more = "".join(f", {setting}={value!r}" for setting, value in here.items())
    return f"lm.combine({sources!r}, {name!r}{more})"


def _command(sources: list[str], name: str, here: Mapping[str, Any]) -> str:
    words = ["loramerge combine", *map(shell, sources), "--method", name]
    for setting, value in here.items():
        option = {"out": "-o"}.get(setting, f"--{setting}")
        many = isinstance(value, list | tuple)
        words += [option, ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
                  if many else shell(str(value))]  # fmt: skip
    return " ".join(words)
