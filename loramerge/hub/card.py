"""The card of a merge: what a reader asks, below the front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.adapters.limits import STRONG
from loramerge.hub.commits import OURS
from loramerge.hub.escape import code, markdown, shell
from loramerge.hub.front_matter import CardSource, Facts, agreed, matter
from loramerge.hub.names import COMMIT, REPOSITORY
from loramerge.hub.usage import address, loading

MARK = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a commit, or a SHA-256


def write(facts: Facts) -> str:
    """The whole README.md."""
    parts = [matter(facts), OURS, _title(facts), _sources(facts), _method(facts), _figures(facts)]
    parts += [loading(facts), _masks(facts), _again(facts), _licences(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(facts: Facts) -> str:
    base = f" of {_linked(facts.hub_base) or markdown(facts.base)}" if facts.base else ""
    made = "merged from others" if facts.sources else "put here"
    count = f"{facts.modules} module{'' if facts.modules == 1 else 's'}"
    return (
        f"# {facts.repo.partition('/')[2]}\n\nA LoRA adapter{base}, {made} by loramerge: "
        f"{count}, rank {facts.rank}, {markdown(facts.dtype)}."
    )


def _linked(name: str | None) -> str | None:
    """A name with a link, where it is one of the Hub for certain."""
    if not name or not REPOSITORY.fullmatch(name):
        return None
    return f"[{markdown(name)}](https://huggingface.co/{name})"


def _sources(facts: Facts) -> str:
    if not facts.sources:
        return ""
    rows = ["| source | weight | commit or SHA-256 |", "|---|---|---|"]
    rows += [f"| {_source(each)} | {markdown(each.weight)} | {_mark(each)} |" for each in facts.sources]
    return "\n".join(["## Sources", "", *rows])


def _source(each: CardSource) -> str:
    repo = "/".join((each.hub or "").split("/")[:2])
    if each.hub and REPOSITORY.fullmatch(repo) and COMMIT.fullmatch(each.commit or ""):
        return f"[{markdown(each.hub)}](https://huggingface.co/{repo}/tree/{each.commit})"
    return markdown(each.hub or each.name)


def _mark(each: CardSource) -> str:
    mark = each.commit if each.hub else each.sha256
    return code(mark) if mark and MARK.fullmatch(mark) else "–"


def _method(facts: Facts) -> str:
    if not facts.method:
        return ""
    rows = [f"* {markdown(name)}: {code(_plain(value))}" for name, value in _said(facts.options).items()]
    rows += [f"* {markdown(name)}: {code(_plain(value))}" for name, value in _said(facts.settings).items()]
    usual = ", the default" if facts.default else ""
    return "\n".join(
        ["## Method", "", f"{code(facts.method)}{usual}, with", "", *(rows or ["* no option set"])]
    )


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, without what is long: ranks by module are in the record."""
    return {k: v for k, v in values.items() if v not in (None, False, [], {}) and k != "ranks"}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(facts: Facts) -> str:
    said = facts.report
    lines = []
    cut, lost = number(said.get("cut_by_rank")), number(said.get("energy_lost"))
    if cut is not None:  # the method wants something else than the weighted sum, and the rank cuts that
        lines.append(f"* cut by the rank, of what the method makes: {_percent(cut)}")
    if lost is not None:
        what = "energy lost, of" if cut is None else "away from"
        lines.append(f"* {what} the weighted sum of the updates: {_percent(lost)}")
    if (rounding := number(said.get("rounding_error"))) is not None:
        lines.append(f"* rounding error: {rounding:.1e}")
    if (strength := number(said.get("strength"))) is not None:
        lines.append(f"* strength, of the mean of its sources: {strength:.3g}")
        if strength > STRONG:
            lines[-1] += f". That is much: it is as strong as they are if it is loaded at {1 / strength:.2g}"
    sources = [each for each in _list(said.get("sources")) if isinstance(each, dict)]
    rows = [
        f"| {markdown(each.get('name'))} | {_three(each.get('cosine'))} | {_three(each.get('norm_ratio'))} |"
        for each in sources
    ]
    if rows:
        lines += ["", "| source | cosine with the merge | ‖merge‖ / ‖source‖ |", "|---|---|---|", *rows]
    return "\n".join(["## What it kept", "", *lines]) if lines else ""


def number(value: Any) -> float | None:
    """A number, if it is one."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _three(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.3f}"


def _percent(share: float) -> str:
    return "< 1e-9 %" if 0 < share < 1e-11 else f"{100 * share:.3g} %"


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _masks(facts: Facts) -> str:
    if not facts.masks:
        return ""
    shown = ", ".join(code(task) for task in facts.masks)
    return (
        f"## One task back\n\nIts masks say what each source wants of it: {shown}. This fits one of them "
        "again:\n\n"
        f"```bash\nloramerge restore {shell(address(facts))} --task NAME -o task\n```"
    )


def _again(facts: Facts) -> str:
    if not facts.sources:
        return ""
    again = "again.safetensors" if facts.place else "again"
    local = [each for each in facts.sources if not each.hub]
    hint = ""
    if local:
        hint = (
            "\n\nThe sources without a commit were files on a disk: `--source NAME=PATH` says where they "
            "lie, and their SHA-256 is checked."
        )
    version = facts.versions.get("loramerge")
    made = f" with loramerge {markdown(version)}" if version else ""
    return (
        f"## How to make it again\n\nIt was merged{made}; weights, method and the SHA-256 of every source "
        f"are recorded in it.\n\n```bash\nloramerge replay {shell(address(facts))} -o {again}\n```{hint}"
    )


def _licences(facts: Facts) -> str:
    if not facts.sources:
        return ""
    rows = [f"* {markdown(each.hub or each.name)}: {_licence(each.licence)}" for each in facts.sources]
    if facts.base:
        rows.append(f"* {markdown(facts.base)} (base): {_licence(facts.base_licence)}")
    head = "All that is known here has one licence." if agreed(facts) else "The terms of all of these apply."
    return "\n".join(["## Licences", "", head, "", *rows])


def _licence(licence: str | None) -> str:
    return markdown(licence) if licence else "not said"
