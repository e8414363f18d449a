"""How to load an adapter, as its card tells it: lines to paste for each program that does so."""

from __future__ import annotations

from loramerge.hub.escape import markdown, quoted, shell
from loramerge.hub.front_matter import Facts

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def loading(facts: Facts) -> str:
    """How to load it, in the programs that do so as it is meant."""
    parts = [lines(facts) for name, lines in LOADERS.items() if name in facts.loaders]
    if facts.library is None:
        parts.append(_converting(facts))
    if facts.library == "peft" and facts.place:
        parts.append(_bare(facts))
    if not parts:
        parts.append("`loramerge check` says what the programs make of it that load such adapters.")
    return "\n\n".join(["## How to load it", *parts])


def _bare(facts: Facts) -> str:
    return (
        "It is one file without a config of its own. This makes a PEFT folder of it:\n\n"
        f"```bash\nloramerge combine {shell(address(facts))} -o adapter\n```"
    )


def address(facts: Facts) -> str:
    return f"hf://{facts.repo}{f'/{facts.place}' if facts.place else ''}"


def _model(facts: Facts) -> str:
    """The Python that loads the base model."""
    base, name = (
        quoted(facts.hub_base or "PATH OF THE BASE MODEL"),
        CLASSES.get(facts.task or "", "AutoModel"),
    )
    return f"from transformers import {name}\n\nmodel = {name}.from_pretrained({base})"


def _peft(facts: Facts) -> str:
    return (
        f"PEFT:\n\n```python\nfrom peft import PeftModel\n{_model(facts)}\n"
        f'model = PeftModel.from_pretrained(model, "{facts.repo}")\n```'
    )


def _transformers(facts: Facts) -> str:
    return f'transformers:\n\n```python\n{_model(facts)}\nmodel.load_adapter("{facts.repo}")\n```'


def _vllm(facts: Facts) -> str:
    base, name = shell(facts.hub_base or "PATH_OF_THE_BASE"), facts.repo.partition("/")[2]
    return (
        f"vLLM:\n\n```bash\nvllm serve {base} --enable-lora --max-lora-rank {vllm_rank(facts.rank)} "
        f"--lora-modules {name}={facts.repo}\n```"
    )


def vllm_rank(rank: int) -> int | None:
    """The least `--max-lora-rank` that lets such an adapter in, if any does."""
    return next((size for size in VLLM_RANKS if size >= rank), None)


def _diffusers(facts: Facts) -> str:
    base = quoted(facts.hub_base or "PATH OF THE BASE MODEL")
    named = f", weight_name={quoted(facts.place)}" if facts.place else ""
    return (
        "diffusers:\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        f"pipeline = DiffusionPipeline.from_pretrained({base})\n"
        f'pipeline.load_lora_weights("{facts.repo}"{named})\n```'
    )


def _comfyui(facts: Facts) -> str:
    file = shell(facts.place or "pytorch_lora_weights.safetensors")
    return (
        "ComfyUI, with the node Load LoRA:\n\n"
        f"```bash\nhf download {facts.repo} {file} --local-dir ComfyUI/models/loras\n```"
    )


def _mlx(facts: Facts) -> str:
    """mlx-lm takes an adapter from a folder on the disk."""
    base = shell(facts.hub_base or "PATH_OF_THE_BASE")
    return (
        f"mlx-lm:\n\n```bash\nhf download {facts.repo} --local-dir adapter\n"
        f"mlx_lm.generate --model {base} --adapter-path adapter --prompt TEXT\n```"
    )


LOADERS = {
    "peft": _peft,
    "transformers": _transformers,
    "vllm": _vllm,
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "mlx": _mlx,
}


def _converting(facts: Facts) -> str:
    """What to do with a format that neither PEFT nor diffusers nor mlx-lm loads as it is."""
    return (
        f"It is {markdown(facts.words)}. This makes one for other tools of it:\n\n"
        f"```bash\nloramerge convert {shell(address(facts))} adapter.safetensors --to diffusers\n```"
    )
