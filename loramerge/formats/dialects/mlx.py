"""mlx-lm: both factors stored transposed, one rank for all modules, and a scale that is used as it is.

    adapters.safetensors   <module>.lora_a (in, r), <module>.lora_b (r, out)
                           of a mixture of experts (SwitchLinear): (E, r, in) and (E, out, r)
    adapter_config.json    fine_tune_type, num_layers, lora_parameters {rank, scale, dropout, keys}

ΔW = scale · lora_bᵀ @ lora_aᵀ: no alpha, no division by the rank (mlx-lm 0.32, tuner/lora.py). Modules are
called as in transformers, so that such an adapter merges with one of PEFT. DoRA (fine_tune_type dora) has
<module>.m beside them: a length for each output, or token of an embedding (tuner/dora.py). It is only read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, BaseModel, Slot, Tensor
from loramerge.adapters.target import Kind, Layout, Target
from loramerge.arrays.backend import Array
from loramerge.errors import EmptyError, IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects import mlx_config
from loramerge.formats.dialects.dialect import Dialect, Header, Widths
from loramerge.formats.files.views import Reshaped, rows, transposed, widened
from loramerge.formats.forms.checks import check_blocks, check_float, check_full, missing
from loramerge.formats.forms.dora import DORA, stretched
from loramerge.formats.forms.table import NEEDS, counted, whole
from loramerge.formats.peft.beside import EMBEDDINGS
from loramerge.formats.peft.keys import Shape
from loramerge.formats.peft.names import parse

FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<side>[ab])", re.DOTALL)
EMBEDDED = {*EMBEDDINGS, "tok_embeddings", "embedding", "embeddings"} - {"lm_head"}
IN_LAYER = re.compile(r"(?:[^.]+\.)*?\d+\.(?P<key>.+)")  # behind the first number is the name within a layer


class Mlx(Dialect):
    """The folders of mlx-lm's trainer, and the checkpoints in them."""

    name = "mlx"
    words = "an mlx-lm adapter"
    tools = "mlx-lm"
    spelling = "`<module>.lora_a`, `<module>.lora_b`, both transposed"
    strength = "`scale` of `lora_parameters`, not divided by the rank"
    kinds = ("linear", "embedding", "expert")
    writes = True
    weights = "adapters.safetensors"
    single = False
    sidecar = True
    unread = ("F64",)
    one_rank = True

    def detects(self, header: Header) -> bool:
        if header.config is not None and mlx_config.is_mlx(header.config):
            return True
        return any(FACTOR.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        header = mlx_config.with_config(header)
        pairs, extras = _pairs(header)
        scale_of, oddities = mlx_config.scale_rule(header)
        slots: dict[Target, Slot] = {}
        for path, (down, up) in pairs.items():
            slots |= _slots(path, down, up, scale_of, header.name)
        lengths = {path: extras.pop(f"{path}.m") for path in pairs if f"{path}.m" in extras}
        slots, config = _stretched(slots, lengths, header), header.config or {}
        forms = {(DORA.name, True): len(lengths)}
        adapter = header.adapter(
            self,
            slots,
            extras=extras,
            oddities=[*oddities, *counted(forms)],
            said_alpha=bool(config),
            full=whole(forms),
        )
        return replace(adapter, base=BaseModel(mlx_config.base_model(config)))

    def home(self, target: Target) -> Target:
        if target.component != "model" or target.kind not in self.kinds or target.parameter != "weight":
            raise IncompatibleError(
                f"mlx-lm has no name for {printable(target)}: it adapts linear layers, embeddings and the "
                f"experts of its own switch layers in language models. Leave it out with {say('exclude')}."
            )
        layout = Layout(blocks=target.layout.blocks)
        kind = "expert" if target.kind == "expert" else _kind(target.path)
        return replace(target, kind=kind, layout=layout)

    def keys(self, targets: Iterable[Target]) -> Callable[[Target], tuple[str, str]]:
        return lambda target: (f"{target.path}.lora_a", f"{target.path}.lora_b")

    def shapes(self, target: Target, size: tuple[int, int], width: int) -> tuple[Shape, Shape]:
        (outs, ins), experts = size, target.layout.blocks
        if target.kind == "expert":
            return (experts, width, ins), (experts, outs, width)
        return (ins, width), (width, outs)

    def lay(self, target: Target, up: Array, down: Array) -> tuple[Array, Array]:
        if target.kind == "expert":
            return down[None], up[None]
        return np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)

    def within(self, target: Target, down: Array, up: Array) -> tuple[Array, Array]:
        return down[target.index], up[target.index]

    def sidecars(self, widths: Widths, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        keys = sorted({within_layer(target.path) for target in widths})
        rank = max(widths.values(), default=1)
        return {mlx_config.CONFIG: mlx_config.written(keys, rank, config.get("base_model_name_or_path"))}


MLX = Mlx()


def within_layer(path: str) -> str:
    """How `lora_parameters.keys` calls a module: by its name within a layer, or its full one outside of all.

    >>> within_layer("model.layers.3.self_attn.q_proj"), within_layer("model.embed_tokens")
    ('self_attn.q_proj', 'model.embed_tokens')
    """
    found = IN_LAYER.fullmatch(path)
    return found["key"] if found else path


def _kind(path: str) -> Kind:
    """Embeddings have the keys and shapes of linear layers; only their names tell them apart."""
    return "embedding" if path.rpartition(".")[2] in EMBEDDED else "linear"


def _pairs(header: Header) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Module path -> its lora_a and lora_b; and the tensors that are neither."""
    sides: dict[str, dict[str, Tensor]] = {}
    extras: dict[str, Tensor] = {}
    for key, tensor in sorted(header.tensors.items()):
        if found := FACTOR.fullmatch(key):
            sides.setdefault(found["path"], {})[found["side"]] = tensor
        else:
            extras[key] = tensor
    for key in extras:
        _check_extra(key, sides, header.name)
    if not sides:
        raise EmptyError(f"{printable(header.name)} holds no lora_a and lora_b: it is no mlx-lm LoRA.")
    return {path: _both(path, found, header.name) for path, found in sides.items()}, extras


def _check_extra(key: str, modules: Mapping[str, Any], name: str) -> None:
    path, _, last = key.rpartition(".")
    if last == "m" and path in modules:
        return
    if parse(key) is not None:
        raise IncompatibleError(
            f"{printable(name)} mixes names of mlx-lm with those of PEFT ({printable(key, 80)}): save each "
            "adapter by itself."
        )
    if ".lora_" in key:
        raise IncompatibleError(
            f"{printable(name)} holds {printable(key, 80)}, which is not a factor of a layer that mlx-lm "
            "adapts as usual: it is not read. Train without this layer, or fuse the adapter into its model."
        )


def _both(path: str, sides: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    for side in "ab":
        if side not in sides:
            raise SourceError(
                f"{printable(path)}.lora_{side} is missing in {printable(name)}: the file was cut or badly "
                "saved."
            )
        check_float(sides[side], f"lora_{side} of {printable(path)} in {printable(name)}")
    where = f"{printable(path)} in {printable(name)}"
    check_full(where, sides["a"], sides["b"])
    return widened(sides["a"]), widened(sides["b"])


def _slots(
    path: str, down: Tensor, up: Tensor, scale_of: Callable[[int], float], name: str
) -> Iterator[tuple[Target, Slot]]:
    """The updates in a pair: one, or one for each expert."""
    if len(up.shape) == 3:
        yield from _experts(path, down, up, scale_of, name)
        return
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[1] != up.shape[0]:
        raise _unlike(path, down, up, name)
    slot = Slot(transposed(up), transposed(down), scale_of(down.shape[1]))
    yield Target(path, kind=_kind(path)), slot


def _stretched(
    slots: Mapping[Target, Slot], lengths: Mapping[str, Tensor], header: Header
) -> dict[Target, Slot]:
    """The updates, with the lengths that DoRA gives the weights of some.

    Raises:
        IncompatibleError: the base model is not given, or has no such layer.
        SourceError: a length is missing, or does not fit.
    """
    dora = (header.config or {}).get("fine_tune_type") == "dora"
    known = header.base.layers(lengths) if header.base and lengths else {}
    made = dict(slots)
    for target, slot in slots.items():
        where = f"{printable(target.path)} in {printable(header.name)}"
        if dora and target.path not in lengths:
            raise missing(f"The lengths ({printable(target.path)}.m)", where)
        if target.path not in lengths:
            continue
        if header.base is None:
            raise IncompatibleError(
                f"{where} is stored as {DORA.words}, which needs {NEEDS['base']} to become an update: name "
                f"that model by {say('base', 'BASE')}, a path or a name on the Hub."
            )
        if target.path not in known:
            raise IncompatibleError(
                f"{printable(header.base.name, 1000)} has no linear layer for {where}: it was trained on "
                "another model."
            )
        made[target] = _turned(target, slot, lengths[target.path], known[target.path].weight, where)
    return made


def _turned(target: Target, slot: Slot, lengths: Tensor, weight: Tensor, where: str) -> Slot:
    """One of them: an embedding, whose table is (tokens, dim), has a length for each token."""
    check_float(lengths, f"m of {where}")
    inputs = slot.shape[1] if target.kind == "embedding" else 0
    weight = transposed(weight) if inputs else weight
    if target.kind == "expert" or lengths.shape != (inputs or slot.shape[0],) or weight.shape != slot.shape:
        raise SourceError(
            f"m {list(lengths.shape)} of {where} and its layer {list(weight.shape)} in the base model do not "
            f"fit an update of {list(slot.shape)}."
        )
    return stretched(slot, widened(lengths), weight, inputs)


def _experts(
    path: str, down: Tensor, up: Tensor, scale_of: Callable[[int], float], name: str
) -> Iterator[tuple[Target, Slot]]:
    """The experts of a SwitchLinear; older versions keep lora_a as one matrix (E·r, in), expert by expert."""
    experts, outs, rank = up.shape
    ins = down.shape[-1]
    if tuple(down.shape) not in ((experts, rank, ins), (experts * rank, ins)):
        raise _unlike(path, down, up, name)
    check_blocks(experts, f"{printable(path)} in {printable(name)}")
    downs, ups = Reshaped(down, (experts * rank, ins)), Reshaped(up, (experts * outs, rank))
    layout, scale = Layout(blocks=experts), scale_of(rank)
    for index in range(experts):
        target = Target(path, kind="expert", index=index, layout=layout)
        yield target, Slot(rows(ups, index, experts), rows(downs, index, experts), scale)


def _unlike(path: str, down: Tensor, up: Tensor, name: str) -> SourceError:
    return SourceError(
        f"lora_a {list(down.shape)} and lora_b {list(up.shape)} of {printable(path)} in {printable(name)} do "
        "not share a rank."
    )
