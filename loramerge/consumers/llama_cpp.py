"""llama.cpp: `convert_lora_to_gguf.py`, then `--lora`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.consumers.consumer import LANGUAGE, Consumer
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.consumers.models import candidates
from loramerge.consumers.support import LLAMA_CPP as MODELS
from loramerge.errors import printable
from loramerge.formats.dialects import Dialect
from loramerge.formats.dialects.peft import Peft
from loramerge.formats.peft.exchange import KIND, is_turned, turned_names

TURNS = {  # the classes whose converter turns layers, and how their names end
    "GPT2LMHeadModel": frozenset({"c_attn", "c_proj", "c_fc"}),
}
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")


def scale(config: Mapping[str, Any], module: Module) -> float:
    """lora_alpha of the config over the rank of the tensors; 1 if it is 0."""
    alpha = float(config["lora_alpha"])
    return alpha / module.rank if alpha else 1.0


def rules(facts: Facts) -> Iterator[Finding]:
    """What its converter stops at."""
    yield from LLAMA_CPP.unadapted(facts)
    yield from _turned(facts)
    if strange := [key for key in facts.tensors if not _taken(key)]:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        why = f"its converter stops at {printable(strange[0])}{more}"
        yield LLAMA_CPP.rejecting(why)


def _turned(facts: Facts) -> Iterator[Finding]:
    """What it says of layers that its converter turns and the file does not, or the other way round."""
    names = _turning(facts.classes, [facts.config])
    own = turned_names(facts.config, {})
    for path in facts.ranks if names is not None else ():
        if is_turned(path, names or ()) and not is_turned(path, own):
            yield LLAMA_CPP.rejecting(
                "its converter turns Conv1D layers of an adapter like those of a base, so their updates come "
                f"out transposed ({printable(path)})"
            )
            return
        if is_turned(path, own) and not is_turned(path, names or ()):
            yield LLAMA_CPP.rejecting(
                f"{printable(path)} is stored turned, and its converter turns it not back"
            )
            return


def _turning(classes: Collection[str], configs: Iterable[Mapping[str, Any]]) -> frozenset[str] | None:
    """How the names of the layers end that its converter turns for these classes; None if nobody can tell."""
    found = {TURNS.get(MODELS.named(name), frozenset()) for name in classes}
    if len(found) > 1 and any(config.get("fan_in_fan_out") is True for config in configs):
        found -= {frozenset()}  # PEFT says so of a Conv1D
    return next(iter(found), frozenset()) if len(found) < 2 else None


def _lays(dialect: Dialect, adapters: Sequence[Adapter]) -> Dialect:
    """With the factors exchanged of the layers that its converter turns."""
    found = [_classes(adapter) for adapter in adapters]
    names = _turning({name for each in found for name in each}, [adapter.config for adapter in adapters])
    return dialect.turning(names) if names and isinstance(dialect, Peft) else dialect


def _classes(adapter: Adapter) -> tuple[str, ...]:
    said = adapter.model.get("architectures")
    paths = [target.path for target in adapter.slots]
    return candidates(adapter.config, said if isinstance(said, list) else (), paths)


def _untold(facts: Facts) -> str:
    """What only the model tells: which layers are turned, and whether it has a head of its own.

    Its converter drops a head that is tied to the embedding, and then stops at its adapter.
    """
    if _turning(facts.classes, [facts.config]) is None:
        some = printable(" or ".join(facts.classes), 80)
        return f"it is for {some}, and its converter turns the layers of one of them"
    if heads := [path for path in facts.ranks if path.endswith("lm_head")]:
        return f"its converter stops at {printable(heads[0])} if the model ties its embeddings"
    return ""


def _taken(key: str) -> bool:
    return any(part in key for part in FACTORS) or LLAMA_CPP.keeps(key)


LLAMA_CPP = Consumer(
    "llama.cpp",
    "llama.cpp",
    "of llama-cpp-python 0.3.36",
    ("peft",),
    True,
    scale,
    rules,
    formats=("peft",),
    asked=LANGUAGE,
    rejects=frozenset({"use_dora", "lora_bias", "enable_lora"}),
    needs=("lora_alpha",),
    heeds=frozenset({"alora_invocation_tokens"}),
    beside={"norms": r".*(_layernorm|\.norm).*", "a `base_layer`": r".*\.base_layer\.weight.*"},
    lacks=("conv", "expert"),
    types=frozenset({"LORA", KIND}),
    models=MODELS,
    untold=_untold,
    lays=_lays,
    remarks="its converter stops at other tensors, and at keys with an adapter's name",
)
