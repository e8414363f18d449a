"""The card of a merge: what a reader asks, below the front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.hub.commits import OURS
from loramerge.hub.escaping import code, markdown, quoted
from loramerge.hub.matter import CardSource, Facts, agreed, matter
from loramerge.hub.names import COMMIT, REPOSITORY

MARK = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a commit, or a SHA-256
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def write(facts: Facts) -> str:
    """The whole README.md."""
    parts = [matter(facts), OURS, _title(facts), _sources(facts), _method(facts), _figures(facts)]
    parts += [_loading(facts), _again(facts), _licences(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(facts: Facts) -> str:
    base = f" of {_linked(facts.hub_base) or markdown(facts.base)}" if facts.base else ""
    made = "merged from others" if facts.sources else "put here"
    return (
        f"# {facts.repo.partition('/')[2]}\n\nA LoRA adapter{base}, {made} by loramerge: "
        f"{facts.modules} modules, rank {facts.rank}, {markdown(facts.dtype)}."
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
    return "\n".join(["## Method", "", f"{code(facts.method)}, with", "", *(rows or ["* no option set"])])


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, without what is long: ranks by module are in the record."""
    return {k: v for k, v in values.items() if v not in (None, False, [], {}) and k != "ranks"}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(facts: Facts) -> str:
    said = facts.report
    lines = []
    if (lost := number(said.get("energy_lost"))) is not None:
        lines.append(f"* energy lost, of the weighted sum of the updates: {100 * lost:.3g} %")
    if (rounding := number(said.get("rounding_error"))) is not None:
        lines.append(f"* rounding error: {rounding:.1e}")
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


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _loading(facts: Facts) -> str:
    if facts.library != "peft":
        return {"diffusers": _image_loading, "mlx": _mlx_loading}.get(facts.library or "", _converting)(facts)
    if facts.place:
        source = f"hf://{facts.repo}/{facts.place}"
        return (
            "## How to load it\n\nIt is one file without a config of its own. This makes a PEFT folder of it:"
            "\n\n"
            f"```bash\nloramerge combine {_shell(source)} -o adapter\n```"
        )
    base, name = (
        quoted(facts.hub_base or "PATH OF THE BASE MODEL"),
        CLASSES.get(facts.task or "", "AutoModel"),
    )
    head = f"from transformers import {name}\n\nmodel = {name}.from_pretrained({base})"
    wide = next((size for size in VLLM_RANKS if size >= facts.rank), None)
    parts = [
        "## How to load it",
        f"PEFT:\n\n```python\nfrom peft import PeftModel\n{head}\n"
        f'model = PeftModel.from_pretrained(model, "{facts.repo}")\n```',
        f'transformers:\n\n```python\n{head}\nmodel.load_adapter("{facts.repo}")\n```',
    ]
    if wide is not None and facts.task in ("CAUSAL_LM", None):
        parts.append(
            f"vLLM:\n\n```bash\nvllm serve {_shell(facts.hub_base or 'PATH_OF_THE_BASE')} --enable-lora "
            f"--max-lora-rank {wide} --lora-modules {facts.repo.partition('/')[2]}={facts.repo}\n```"
        )
    return "\n\n".join(parts)


def _image_loading(facts: Facts) -> str:
    base = quoted(facts.hub_base or "PATH OF THE BASE MODEL")
    named = f", weight_name={quoted(facts.place)}" if facts.place else ""
    return (
        "## How to load it\n\ndiffusers:\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        f"pipeline = DiffusionPipeline.from_pretrained({base})\n"
        f'pipeline.load_lora_weights("{facts.repo}"{named})\n```'
    )


def _mlx_loading(facts: Facts) -> str:
    """mlx-lm takes an adapter from a folder on the disk."""
    base = _shell(facts.hub_base or "PATH_OF_THE_BASE")
    return (
        f"## How to load it\n\nmlx-lm:\n\n```bash\nhf download {facts.repo} --local-dir adapter\n"
        f"mlx_lm.generate --model {base} --adapter-path adapter --prompt TEXT\n```"
    )


def _converting(facts: Facts) -> str:
    """What to do with a format that neither PEFT nor diffusers nor mlx-lm loads as it is."""
    source = _shell(f"hf://{facts.repo}{f'/{facts.place}' if facts.place else ''}")
    return (
        f"## How to load it\n\nIt is {markdown(facts.words)}. ComfyUI loads its own format from "
        "`models/loras`. This makes one for other tools of it:\n\n"
        f"```bash\nloramerge convert {source} adapter.safetensors --to diffusers\n```"
    )


def _shell(text: str) -> str:
    """A name in a line for a shell; those with other signs than these have never got here."""
    return text if re.fullmatch(r"[\w./:@%+-]+", text) else "'" + text.replace("'", "") + "'"


def _again(facts: Facts) -> str:
    if not facts.sources:
        return ""
    place = f"hf://{facts.repo}{f'/{facts.place}' if facts.place else ''}"
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
        f"are recorded in it.\n\n```bash\nloramerge replay {_shell(place)} -o {again}\n```{hint}"
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
