"""Two copies of one model, although a library has renamed it in between, or saves other buffers now."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from loramerge.adapters.adapter import Tensor
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.checkpoints.names import RENAMED_HEADS, inside, newer
from loramerge.checkpoints.single import is_image, parts
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.models import of_clip
from loramerge.formats.models.stems import core, layered, parted

# What is computed, not trained: older versions of transformers saved it, and newer ones do not.
BUFFER = re.compile(
    r"(.+\.)?(position_ids|token_type_ids|inv_freq|(attn|attention)\.(?P<mask>masked_bias|bias))"
)
HEADS = set(
    "lm_head embed_out score classifier v_head cls qa_outputs "
    "pre_classifier vocab_transform vocab_layer_norm vocab_projector".split()
)
RENAMED = set("vit dinov2 swin segformer detr llava llava_next qwen2_vl".split())  # by transformers 5


def is_buffer(key: Key, tensor: Tensor) -> bool:
    """Whether a tensor of this name holds no weights: positions, or the mask that GPT-2 calls a bias."""
    found = BUFFER.fullmatch(key[1])
    return found is not None and (found["mask"] != "bias" or len(tensor.shape) == 4)


def trained(checkpoint: Checkpoint) -> set[Key]:
    """Its tensors without buffers, and of an image model in one file those of modules that adapters have."""
    image = is_image(key for _, key in checkpoint.tensors)
    return {
        key
        for key, tensor in checkpoint.tensors.items()
        if not is_buffer(key, tensor) and (not image or parts(key[1], tensor.shape))
    }


def aligned(tuned: Checkpoint, base: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both under the same names, the fuller ones: `transformer.h.0` for `h.0`, which is GPT-2's on the Hub.

    They stay as they are if that does not bring together all that the base has.
    """
    tuned, base = (_with_clip(_newer(each)) for each in (tuned, base))
    for part in tuned.models.keys() & base.models.keys():
        ours = {key for where, key in tuned.tensors if where == part}
        theirs = {key for where, key in base.tensors if where == part}
        missing = {key for where, key in trained(base) if where == part and not is_head(key)} - ours
        starts = _starts(missing, ours)
        if len(starts) > 1 and any(layered(key) for key in missing):
            raise _several(tuned, base, starts)
        if starts:
            base = _renamed(base, part, partial(_begun, starts[0], ours))
        elif (start := _start_of_base(missing, ours)) is not None:
            tuned = _renamed(tuned, part, partial(_begun, start, theirs))
        elif missing:
            names = _by_tower(missing, ours)
            base = _renamed(base, part, partial(_moved, names))
    before = of_class(base)
    if before is None:
        before = of_class(tuned)
    if before and "model" in tuned.models:
        tuned, base = (_renamed(each, "model", partial(_within, before)) for each in (tuned, base))
    return tuned, base


def of_class(checkpoint: Checkpoint) -> str | None:
    """What the class of a model puts before all names that it has on the disk; None where that is unknown."""
    if "model" not in checkpoint.models:
        return ""
    return inside(checkpoint.config("model"), (key for part, key in checkpoint.tensors if part == "model"))


def doubts(base: Checkpoint) -> Iterator[str]:
    """What cannot be told of the names of modules: whether a program that loads the model has the same."""
    if of_class(base) is None:
        yield (
            f"config.json of {printable(base.name)} names no class, so the modules are named as in a "
            "model without a head; for one with a head, add its beginning with loramerge convert --rename"
        )
    if str(base.config("model").get("model_type")) in RENAMED:
        yield (
            "transformers 5 calls modules of such a model otherwise than its files do, and PEFT there may "
            "leave them out; loramerge fuse finds them by either name"
        )


def _within(start: str, key: str) -> str:
    return key if is_head(key) or key.startswith(start) else start + key


def _newer(checkpoint: Checkpoint) -> Checkpoint:
    """Under the names that the newest transformers gives its parameters."""
    for part in checkpoint.models:
        own = {key for where, key in checkpoint.tensors if where == part}
        before, after = RENAMED_HEADS.get(str(checkpoint.config(part).get("model_type")), ("", ""))
        if before in own and after not in own:
            checkpoint = _renamed(checkpoint, part, partial(_moved, {before: after}))
        if any(newer(key) not in own for key in own):
            checkpoint = _renamed(checkpoint, part, partial(_unless_there, own))
    return checkpoint


def _unless_there(own: set[str], key: str) -> str:
    """The newer name of a tensor, unless the model has another of that name."""
    return key if newer(key) in own else newer(key)


def is_head(key: str) -> bool:
    """Whether a tensor is of a head, which a model that was tuned for another task lacks."""
    return key.partition(".")[0] in HEADS


def _starts(missing: set[str], ours: set[str]) -> list[str]:
    """What the tuned model puts before the names that the base has, the shortest first."""
    first = max(missing, key=len, default="")
    longer = sorted((key.removesuffix(first) for key in ours if key.endswith(f".{first}")), key=len)
    return [start for start in longer if all(start + key in ours for key in missing)]


def _several(tuned: Checkpoint, base: Checkpoint, starts: Sequence[str]) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(tuned.name)} has all that {printable(base.name)} has more than once (under "
        f"{' and '.join(map(printable, starts[:2]))}), and which of them is the tuned one cannot be told: "
        "save the one that you mean as a model of its own."
    )


def _start_of_base(missing: set[str], ours: set[str]) -> str | None:
    """What the base puts before the names that the tuned model has."""
    first = max(missing, key=len, default="")
    longer = sorted((first.removesuffix(key) for key in ours if first.endswith(f".{key}")), key=len)

    def explains(start: str) -> bool:
        return all(key.startswith(start) and key.removeprefix(start) in ours for key in missing)

    return next(filter(explains, longer), None)


def _by_tower(missing: set[str], ours: set[str]) -> dict[str, str]:
    """Name in the base -> in the tuned model, where towers moved: `model.visual` for `visual`; or none."""
    known: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for key in ours:
        known[_in_tower(key)].append(key)
    found = {key: known.get(_in_tower(key), []) for key in missing}
    if any(len(names) != 1 for names in found.values()):
        return {}
    moved = {key: names[0] for key, names in found.items()}
    return moved if len(set(moved.values())) == len(moved) else {}


def _moved(names: Mapping[str, str], key: str) -> str:
    return names.get(key, key)


def _in_tower(key: str) -> tuple[tuple[str, ...], str]:
    path, _, parameter = key.rpartition(".")
    stem, rest = parted(path)
    return core(stem), f"{rest}.{parameter}"


def _begun(start: str, there: set[str], key: str) -> str:
    """A name with its start, if the other model has it so."""
    return start + key if key not in there and start + key in there else key


def _with_clip(checkpoint: Checkpoint) -> Checkpoint:
    """The text encoders of a pipeline under the names that adapters have, whatever version wrote them."""

    def full(key: str) -> str:
        path, dot, parameter = key.rpartition(".")
        return f"{of_clip(path)}{dot}{parameter}"

    for part in checkpoint.models:
        if part.startswith("text_encoder"):
            checkpoint = _renamed(checkpoint, part, full)
    return checkpoint


def _renamed(checkpoint: Checkpoint, part: str, name: Callable[[str], str]) -> Checkpoint:
    """The checkpoint with the tensors of one model under other names, to be read only."""
    model = checkpoint.models[part]

    shards = {
        file: replace(shard, tensors={name(key): tensor for key, tensor in shard.tensors.items()})
        for file, shard in model.shards.items()
    }
    return replace(checkpoint, models={**checkpoint.models, part: replace(model, shards=shards)})
