"""What training leaves in names: compilers, FSDP, DDP and DeepSpeed wrap modules, and so their keys.

Such a segment is not part of the path of a module: programs that load adapters do not look for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.late import late
from loramerge.errors import SourceError, printable
from loramerge.formats.files.safetensors import File
from loramerge.formats.models.stems import unnumbered
from loramerge.formats.peft.names import PREFIX

# `_orig_mod`, `_fsdp_wrapped_module`, `_wrapped_model`, …: each ends so, and begins with `_`; and DDP's own.
_SEGMENT = late(r"(?:^|(?<=\.))(?P<name>_[a-z_]*mod(?:ule|el)?_?|_hf_hook|module)\\?\.")
_FLAT = late(r"^(?P<start>lora_[a-z0-9]+_)_orig_mod_|(?<=_)_orig_mod_")  # kohya writes `_` for dots
_LORA = late(r"\.lora_(?:up|down)\.weight$|\.alpha$")
DOUBLED = late(  # prefixes that some tools write twice, or with the name of their part
    r"^(?P<once>base_model[.]model[.]|lora_[a-z0-9]+_|lycoris_|(?:unet|text_encoder(?:_\d)?)[.])(?P=once)+"
    r"|^(?P<own>lora_unet_)(?:unet_)+"
)
BEGUN = (2 * PREFIX, "lora_", "lycoris_", "unet.", "text_encoder")  # one of these is in any of them
_PART = late(
    r"^(?:unet|transformer|prior|text_encoder(?:_\d)?)$"
)  # of a pipeline: each is a model of its own
_HOLDER = late(  # what holds an image model while it is trained
    r"(?:(?:base_model|model|module|pipe(?:line)?|diffusion_model|dit|net|denoiser|backbone|generator|student"
    r"|trainable_modules?|inner_model|wrapped_model|ema_model|transformer(?:_2)?)\.)+"
)
USUAL = ("diffusion_model.", "transformer.", "transformer_2.", PREFIX)  # that tools write and read
_MARKS = ("module", "._", "_mod.", "_mod_", "_mod\\", "_wrapped_")  # one of these is in any of both
_OWN = late(r"(?:^|\.)levit\.")  # whose layers really have a `module`
LISTS = ("target_modules", "modules_to_save", "target_parameters", "exclude_modules")
TABLES = ("rank_pattern", "alpha_pattern")


def plain(key: str) -> str:
    """A key or a module path without wrappers, and with PEFT's prefix at most once.

    >>> plain("module.base_model.model._orig_mod.layers.0._fsdp_wrapped_module.q.lora_A.weight")
    'base_model.model.layers.0.q.lora_A.weight'
    >>> plain("unet.base_model.model.mid_block.q.lora_A.weight")
    'unet.mid_block.q.lora_A.weight'
    >>> plain("lycoris_lycoris_layers_0_mlp.alpha"), plain("lora_unet_unet_conv_in.alpha")
    ('lycoris_layers_0_mlp.alpha', 'lora_unet_conv_in.alpha')
    """
    if any(mark in key for mark in _MARKS) and not _OWN.search(key):
        key = _FLAT.sub(r"\g<start>", _SEGMENT.sub("", key))
    if key.startswith("model.diffusion_model.") and _LORA.search(key):  # AnyRefill's
        key = key.removeprefix("model.")
    if key.startswith(BEGUN):
        key = DOUBLED.sub(lambda found: found["once"] or found["own"], key)
    start = _before(key)
    part = key[: max(start - 1, 0)]
    return f"{part}.{key[start:].removeprefix(PREFIX)}" if _PART.search(part) else key[start:]


def _before(key: str) -> int:
    """How much stands before PEFT's prefix: what holds the whole model (Lightning's `model.`, TRL's
    `pretrained_model.`) is no part of it.

    >>> _before("pretrained_model.base_model.model.layers.0.q.lora_A.weight")
    17
    """
    found = key.rfind(f".{PREFIX}")
    return found + 1


def plainly(keys: Iterable[str], folder: bool = False) -> dict[str, str]:
    """Key -> the same without wrappers, among them what holds a known image model.

    Args:
        folder: a config stands beside them, whose patterns are of whole names: there the model may be the
            user's own, with a part of that name.

    >>> plainly(["dit.blocks.0.self_attn.q.lora_A.weight"])
    {'dit.blocks.0.self_attn.q.lora_A.weight': 'blocks.0.self_attn.q.lora_A.weight'}
    """
    made = {key: plain(key) for key in keys}
    holders: dict[str, list[str]] = {}
    for key in () if folder else made.values():
        if (found := _HOLDER.match(key)) and found[0] not in USUAL:
            holders.setdefault(found[0], []).append(key)
    for holder, own in holders.items():
        if _of_image(holder, own):
            last = holder.split(".")[-2]
            new = f"{last}." if f"{last}." in USUAL else PREFIX * holder.startswith(PREFIX)
            made |= {
                key: new + name.removeprefix(holder) for key, name in made.items() if name.startswith(holder)
            }
    return made


def _of_image(holder: str, keys: Sequence[str]) -> bool:
    """Whether what is held has the names of an image model, and not those of a language model."""
    from loramerge.formats.models.layers import known

    usual = {unnumbered(key.removeprefix(holder).partition(".lora_")[0]) for key in keys}
    if set(known(usual)) - {"Stable Diffusion"}:
        return False
    from loramerge.formats.forms.parts import taken_apart  # few files have other names
    from loramerge.formats.models.families import having

    kinds = {unnumbered(key): key for key in keys}.values()  # of layers and experts, one of each
    found = [apart[0].removeprefix(holder) for key in kinds if (apart := taken_apart(key))]
    others = set(known(map(unnumbered, found))) - {"Stable Diffusion"}
    return bool(found) and not others and bool(having(found))


def wrapped(keys: Iterable[str], folder: bool = False) -> list[str]:
    """The names of the wrappers in these keys."""
    found = plainly(keys, folder).items()
    return sorted({each for key, name in found if name != key for each in _names(key, name)})


def _names(key: str, name: str) -> list[str]:
    found = [match["name"] for match in _SEGMENT.finditer(key)]
    found += ["_orig_mod"] * bool(_FLAT.search(key))
    found += ["model"] * key.startswith("model.diffusion_model.")
    if (before := key[: _before(key)].rstrip(".")) and not found:
        found = [PREFIX.rstrip(".") if _PART.search(before) else before]
    found = found or [twice[0] for twice in DOUBLED.finditer(key)]
    return found or [key[: len(key) - len(name)].rstrip(".") or key.partition(".")[0]]


def unwrapped(
    tensors: Mapping[str, Tensor], name: str, folder: bool = False
) -> tuple[Mapping[str, Tensor], list[str]]:
    """The tensors under plain names, and a sentence about what was left out.

    Raises:
        SourceError: two of them would have one name.
    """
    short = plainly(tensors, folder)
    if all(key == each for key, each in short.items()):
        return tensors, []
    found = wrapped(tensors, folder)
    made: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if short[key] in made:
            raise SourceError(f"{printable(name)} holds {printable(short[key])} twice, once in a wrapper.")
        made[short[key]] = tensor
    listed = printable(", ".join(found))
    return made, [f"its keys hold what training wraps around modules ({listed}), which is left out"]


def unwrapped_file(file: File, folder: bool = False) -> tuple[File, list[str]]:
    """The same of a file. Raises SourceError: as `unwrapped`."""
    tensors, notes = unwrapped(file.tensors, file.name, folder)
    return (replace(file, tensors=tensors) if notes else file), notes


def unwrapped_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose names of modules have no wrappers."""
    made = dict(config)
    for key in LISTS:
        if isinstance(config.get(key), list):
            made[key] = [plain(each) if isinstance(each, str) else each for each in config[key]]
    for key in TABLES:
        if isinstance(config.get(key), dict):
            made[key] = {plain(name): value for name, value in config[key].items()}
    return made
