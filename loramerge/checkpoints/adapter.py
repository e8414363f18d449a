"""The adapter that is made of the differences of two models, with what PEFT needs to know of its base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loramerge.adapters.adapter import Adapter, BaseModel, Held, Provenance, Slot, Tensor
from loramerge.adapters.base_models import without_folders
from loramerge.adapters.original import unchanged
from loramerge.adapters.target import Target
from loramerge.arrays.workers import workers
from loramerge.checkpoints import quantisation
from loramerge.checkpoints.checkpoint import PIPELINE, Checkpoint
from loramerge.checkpoints.deltas import deltas, without_place
from loramerge.checkpoints.difference import Beside, Module, Pair, name_of, paired
from loramerge.checkpoints.open import open_checkpoint
from loramerge.checkpoints.single import is_image
from loramerge.checkpoints.tie import copies, embedding
from loramerge.checkpoints.tuned import Tuned
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.dialects.kohya import KOHYA
from loramerge.formats.models.architectures import architectures
from loramerge.formats.peft.names import PREFIX

TASKS = {  # how the class of a model ends -> PEFT's name of its task; those of heads make PEFT look for one
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
SHARED = "shared.weight"  # the embedding of models that read one text and write another


def extracted(model: Tuned, threads: int, whole: bool) -> Adapter:
    """The adapter of a tuned model, in memory. Errors as for `extract`.

    Args:
        whole: tensors that differ, but of which no update is made, are in its extras.
    """
    pair = paired(open_checkpoint(model.tuned), open_checkpoint(model.base))
    with unchanged(pair.tuned.originals, pair.base.originals):
        beside = [each for each in pair.beside(lambda _: True) if not each.rounded] if whole else []
        with workers(threads) as run:
            modules = list(run(lambda each: pair.module(each, model.rank, None), pair.weights))
        found = adapter(pair, modules, beside, str(model))
    apart = (pair.tuned.name, pair.base.name, model.rank)
    return replace(found, provenance=replace(found.provenance, apart=apart))


def home(checkpoint: Checkpoint) -> str:
    """The format of adapters of such a model, unless the user names another."""
    if "model" in checkpoint.models or not _is_image(checkpoint):
        return "peft"
    return "kohya" if checkpoint.bare else "diffusers"


def _is_image(checkpoint: Checkpoint) -> bool:
    in_parts = checkpoint.models.keys().isdisjoint(("model", "file"))
    return (
        in_parts or (checkpoint.root / PIPELINE).is_file() or is_image(key for _, key in checkpoint.tensors)
    )


def adapter(pair: Pair, modules: Iterable[Module], beside: Sequence[Beside], name: str) -> Adapter:
    """The adapter: a pair of factors for each module that differs, and whole tensors beside them.

    Raises:
        IncompatibleError: a tensor beside them has no place in an adapter.
    """
    slots = {m.target: Slot(Held(m.up), Held(m.down), 1.0) for m in modules if len(m.squares)}
    if not slots:
        raise IncompatibleError(
            f"{printable(pair.tuned.name)} and {printable(pair.base.name)} do not differ in any module by "
            "more than rounding: there is no adapter to write."
        )
    dialect = home(pair.base)
    if beside and dialect != "peft":
        dialect, extras, settings = KOHYA.name, deltas(pair, slots, beside), dict[str, Any]()
    else:
        extras, settings = _beside(pair, slots, beside)
    config = {**settings, "task_type": _task(pair.base)}
    base = BaseModel(pair.base.hub or without_folders(pair.base.name), pair.base.commit)
    originals = {**pair.base.originals, **pair.tuned.originals}
    provenance = Provenance(name, files=(*pair.tuned.files, *pair.base.files), originals=originals)
    return Adapter(name, slots, base, extras, config, provenance, dialect=dialect, bare=pair.base.bare)


def _task(base: Checkpoint) -> str | None:
    first = next(iter(architectures(base.config("model"))), "")
    if first.endswith("ForConditionalGeneration") and not any(
        key.endswith(SHARED) for _, key in base.tensors
    ):
        return None  # it sees or hears: PEFT's class for texts would give it what it does not take
    return next((task for end, task in TASKS.items() if first.endswith(end)), None)


def _beside(
    pair: Pair, slots: Mapping[Target, Slot], beside: Sequence[Beside]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors under PEFT's names, and the settings under which it loads them."""
    adapted = {target.path for target in slots}
    extras, heads, biased, homeless = dict[str, Tensor](), set[str](), False, list[str]()
    for each in beside:
        name = each.key[1]
        path, _, parameter = name.rpartition(".")
        if each.key[0] not in ("model", "file") or quantisation.scale_of(pair.tuned.tensors, each.key):
            homeless.append(name_of(each.key))
        elif parameter == "bias" and path in adapted:
            extras[f"{PREFIX}{path}.base_layer.bias"] = pair.tuned.tensors[each.key]
            biased = True
        elif not path or path in adapted or any(other.startswith(f"{path}.") for other in adapted):
            homeless.append(name)
        else:
            extras |= _module(pair, each.key[0], path)
            heads.add(path)
    if homeless:
        raise without_place(pair, homeless)
    source = embedding(pair.base)
    if source is not None and PREFIX + source[1] in extras:
        for name in set(copies(pair.base)) & set(copies(pair.tuned)):  # PEFT gives it to one of them alone
            extras[PREFIX + name] = pair.tuned.tensors[source]
            heads.add(name.removesuffix(".weight"))
    config = {"modules_to_save": sorted(heads)} if heads else {}
    return extras, {**config, **({"bias": "all"} if biased else {})}


def _module(pair: Pair, part: str, path: str) -> dict[str, Tensor]:
    """All tensors of a module that is kept whole: PEFT looks for each of them."""
    return {
        PREFIX + key: tensor
        for (where, key), tensor in pair.tuned.tensors.items()
        if where == part and key.rpartition(".")[0] == path
    }
