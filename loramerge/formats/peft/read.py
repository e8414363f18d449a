"""PEFT adapters: a folder with adapter_config.json, or one bare .safetensors with PEFT's tensor names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter, BaseModel, Provenance, Scaled, Slot
from loramerge.adapters.base_models import is_local
from loramerge.adapters.presence import is_file
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.cards.licences import licence_in
from loramerge.formats.files.json import read_object
from loramerge.formats.files.safetensors import File, open_file
from loramerge.formats.files.shards import check_alone, open_shards
from loramerge.formats.forms.form import NO_AID, Aid, Base
from loramerge.formats.peft.alpha import (
    Alpha,
    ScaleOf,
    already_known,
    check_ranks,
    check_tensors,
    given,
    of_bare_file,
)
from loramerge.formats.peft.beside import label_map
from loramerge.formats.peft.config import check_mergeable, scales
from loramerge.formats.peft.exchange import HEADER, KIND, returned
from loramerge.formats.peft.names import PICKLED, WEIGHTS, check_names
from loramerge.formats.peft.pairs import Pairs, sort_tensors
from loramerge.formats.peft.updates import understood
from loramerge.formats.routers import marked
from loramerge.formats.wrappers import unwrapped_config, unwrapped_file
from loramerge.hub.escape import shell

CONFIG = "adapter_config.json"
MODEL = "config.json"  # of the model that was trained; some trainers write it beside
ELSEWHERE = (  # what a folder may hold in place of one file of weights -> what helps
    (r".*-\d+-of-\d+\.bin", "one pickled shard of several: save them as safetensors first"),
    (r"pytorch_model_fsdp(_\d+|\.bin)|__\d+_\d+\.distcp|\.metadata", "a checkpoint of FSDP: merge its "
     "shards with `accelerate merge-weights`, or save with a full state dict"),
    (r"global_step\d+|zero_to_fp32\.py|(mp|zero_pp)_rank_.*\.pt", "a checkpoint of DeepSpeed: join it "
     "with its zero_to_fp32.py, or save with stage3_gather_16bit_weights_on_model_save"),
    (r".*\.gguf", "a file of llama.cpp, which is not read: use the adapter that it was converted from"),
    (r"model(-\d+-of-\d+)?\.safetensors", "weights under the name of a model: if they are the adapter's, put "
     "adapter_ before the names of the files; if not, PEFT's save_pretrained writes the adapter alone"),
    (r".*\.safetensors", "another file of weights: name that file, or call it adapter_model.safetensors"),
    (r"(model|optim)_world_size_\d+_rank_\d+\.pt", "a checkpoint of verl: join it with verl's merger"),
    (r"latest_checkpointed_iteration\.txt|iter_\d+|.*\.nemo", "a checkpoint of Megatron or NeMo: export it "
     "in the layout of Hugging Face"),
    (r".*\.(h5|keras|msgpack|onnx|tflite)", "weights of another framework, which are not read"),
    (r".*\.(zip|tar|tgz|gz|bz2|xz|7z|rar|zst)", "an archive: unpack it, and name what is in it"),
    (r"adapter_\d+\.pt", "a checkpoint of torchtune: use the PEFT adapter that its checkpointer writes"),
    (r".*\.npz", "an archive of NumPy: name that file"),
    (r"(?!optimizer|scheduler|scaler|rng_state|training_args).*\.(bin|pt|pth|ckpt|pkl)", "another pickle: if "
     "the adapter is in it, save it as adapter_model.safetensors"),
)  # fmt: skip
TOPK = re.compile(r".+\.lora_topk_bias(?:\.\w+)?", re.DOTALL)  # FlyLoRA's
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def load_folder(
    folder: Path,
    name: str,
    alpha: Alpha | None = None,
    optional: bool = True,
    allow_pickle: bool = False,
    known_start: bool = False,
    file: File | None = None,
    aid: Aid = NO_AID,
) -> Adapter:
    """An adapter as PEFT saves it. Only headers are read. `file` is that of its weights, if it is elsewhere.

    Raises:
        SourceError: a file is missing or malformed.   IncompatibleError: it is no plain LoRA.
        UsageError: an `alpha` is given for it although its config has one, and it is not `optional`.
    """
    if not is_file(folder / CONFIG):
        raise _no_config(folder, name)
    config = read_object(folder / CONFIG, f"{CONFIG} of {name}")
    _refuse_mlx(folder, config, name)
    if aid.kept and is_fly(config):
        return _fly(folder, name, config, open_weights(folder / WEIGHTS, name, allow_pickle))
    even: Sequence[str] = ()
    if config.get("peft_type") == KIND:
        config, file, even = returned(config, file or _weights(folder, name, allow_pickle), name)
    if marked(config):
        from loramerge.formats.peft.open_gates import evened  # few adapters have a gate

        config, file, even = evened(config, file or _weights(folder, name, allow_pickle))
    check_mergeable(config, name, known_start)
    unused = _unused(alpha, optional, name)
    file, wrapped = unwrapped_file(file or _weights(folder, name, allow_pickle), folder=True)
    config = unwrapped_config(config) if wrapped else config
    stored = sort_tensors(file.tensors, name, aid.base)
    rule = scales(config, name)
    pairs = understood(stored, config, rule, name)
    check_ranks(rule, pairs, f"{CONFIG} of {name}")
    check_tensors(rule.scale, pairs, name)
    found = _adapter(file, pairs, rule.scale, config, name, unused, config_path=folder / CONFIG)
    beside = _model(folder)
    named = found.base.name
    model = beside or (_model(Path(named)) if named and is_local(named) else {})
    return noted(replace(found, labels=label_map(beside), model=model), [*wrapped, *even])


def is_fly(config: Mapping[str, Any]) -> bool:
    """Whether it is of FlyLoRA, whose gate chooses among the units of one frozen lora_A."""
    return bool(config.get("bias_u")) and config.get("peft_type") == "LORA"


def _fly(folder: Path, name: str, config: Mapping[str, Any], file: File) -> Adapter:
    """The pairs of a FlyLoRA without its gate: what is made of them is FlyLoRA again, with the mean gate."""
    tensors = {key: tensor for key, tensor in file.tensors.items() if not TOPK.fullmatch(key)}
    plain = {key: value for key, value in config.items() if key != "bias_u"}
    check_mergeable(plain, name)
    stored, rule = sort_tensors(tensors, name), scales(plain, name)
    pairs = understood(stored, plain, rule, name)
    check_ranks(rule, pairs, f"{CONFIG} of {name}")
    check_tensors(rule.scale, pairs, name)
    return _adapter(file, pairs, rule.scale, config, name, [], config_path=folder / CONFIG)


def _model(folder: Path) -> dict[str, Any]:
    """The config of a model in a folder, if there is one that can be read."""
    try:
        return read_object(folder / MODEL, MODEL) if os.path.isfile(folder / MODEL) else {}
    except (SourceError, OSError, ValueError):  # it is no part of the adapter, and only helps to know it
        return {}


def noted(adapter: Adapter, notes: Sequence[str]) -> Adapter:
    """The adapter with what is said of its names, which are then not those of its files."""
    return replace(adapter, oddities=(*adapter.oddities, *notes), renamed=True) if notes else adapter


def read_file(
    file: File, name: str, alpha: Alpha | None = None, optional: bool = True, base: Base | None = None
) -> Adapter:
    """A bare file with PEFT's tensor names. Only its header is read.

    Raises:
        SourceError, IncompatibleError: as `of_bare_file` and `given` say.
        UsageError: an `alpha` is given for a file that says its own, and it is not `optional`.
    """
    notes: Sequence[str] = ()
    if HEADER in file.metadata:
        _, file, notes = returned({}, file, name)
    stored = sort_tensors(file.tensors, name, base)
    said = of_bare_file(file, stored)
    unused = _unused(alpha, optional, name) if said else []
    pairs, scale_of, config = said or given(file, stored, alpha)
    check_tensors(scale_of, pairs, name)
    adapter = noted(_adapter(file, pairs, scale_of, config, name, unused), notes)
    return adapter if said else replace(adapter, provenance=replace(adapter.provenance, alpha=alpha))


def _unused(alpha: Alpha | None, optional: bool, name: str) -> list[str]:
    """What to say about an alpha for a source that says its own."""
    if alpha is None:
        return []
    if not optional:
        raise already_known(name)
    return ["it says its own alpha, so the one given is not used for it"]


def _adapter(
    file: File,
    pairs: Pairs,
    scale_of: ScaleOf,
    config: Mapping[str, Any],
    name: str,
    oddities: list[str],
    config_path: Path | None = None,
) -> Adapter:
    slots, biases = updates(pairs, scale_of, config)
    check_names(slots, name)
    base = BaseModel(_text(config, "base_model_name_or_path"), _text(config, "revision"))
    files = [file.path, *file.others, *([] if config_path is None else [config_path])]
    return Adapter(
        name=name,
        slots=slots,
        metadata=file.metadata,
        biases=biases,
        base=base,
        extras=pairs.extras,
        config=config,
        provenance=Provenance(Path(name).name or name, files=tuple(files), licence=_licence(config_path)),
        bare=config_path is None,
        oddities=(*oddities, *pairs.oddities, *_oddities(config, pairs)),
        full=pairs.full,
    )


def _licence(config_path: Path | None) -> str | None:
    return None if config_path is None else licence_in(config_path.with_name("README.md"))


def updates(
    pairs: Pairs, scale_of: ScaleOf, config: Mapping[str, Any]
) -> tuple[dict[Target, Slot], dict[Target, Scaled]]:
    """What the pairs come to, and what the biases of ``lora_B`` do."""
    flipped = config.get("fan_in_fan_out") is True
    slots = {
        target: slot
        for path, pair in pairs.factors.items()
        for target, slot in pair.slots(scale_of(path), flipped)
    }
    biases = {
        Target(path, "bias"): Scaled(tensor, scale_of(path) if pairs.factors[path].scaled else 1.0)
        for path, tensor in pairs.biases.items()
    }
    return slots, biases


def _text(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) and value else None


def _oddities(config: Mapping[str, Any], pairs: Pairs) -> list[str]:
    found = []
    heads = config.get("modules_to_save") or []
    if isinstance(heads, list) and heads and not pairs.extras:
        found.append(
            f"modules_to_save lists {printable(', '.join(map(str, heads)))}, but holds no such tensor"
        )
    if pairs.extras and not heads:
        found.append(f"{len(pairs.extras)} tensors beside the pairs, although modules_to_save is empty")
    if config.get("bias", "none") != "none" and not any(k.endswith(".bias") for k in pairs.extras):
        found.append(f"bias is {printable(config['bias'])}, but there is no bias tensor")
    return found


def open_weights(path: Path, name: str, allow_pickle: bool) -> File:
    """The tensors of a file, by its ending.

    Raises:
        IncompatibleError: a pickle, and these are not allowed.   SourceError: it cannot be read.
    """
    if path.suffix == ".npz":
        from loramerge.formats.files.npz import open_npz  # few adapters are archives of NumPy

        return open_npz(path, name)
    if path.suffix not in PICKLES:
        check_alone(path, name)
        return open_file(path, name)
    if not allow_pickle:
        raise IncompatibleError(
            f"{printable(name)} is a pickle, which could run code when it is read. "
            f"{say('allow_pickle', True)} reads its tensors without running anything; safer still is to save "
            "it as safetensors."
        )
    from loramerge.formats.files.pickles import open_pickle  # few adapters are pickles

    return open_pickle(path, name)


def _weights(folder: Path, name: str, allow_pickle: bool) -> File:
    for weights in (WEIGHTS, PICKLED):
        if is_file(folder / weights):
            return open_weights(folder / weights, f"{name}/{weights}", allow_pickle)
    if (found := open_shards(folder, name)) is not None:
        return found
    what = instead(folder) or "the download is incomplete"
    raise SourceError(f"{printable(name)} has an {CONFIG} but no {WEIGHTS}: {what}.")


def instead(folder: Path) -> str:
    """What a folder holds in place of one file of weights, and what makes one of it; "" if nothing known."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    found = ((name, help) for pattern, help in ELSEWHERE for name in names if re.fullmatch(pattern, name))
    return next((f"it has {printable(name, 60)}, {help}" for name, help in found), "")


def _refuse_mlx(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """mlx-lm's folders are read by their own dialect, unless its weights are not there."""
    if "peft_type" in config or not ("lora_parameters" in config or "fine_tune_type" in config):
        return
    found = sorted(path.name for path in folder.glob("*_adapters.safetensors"))
    raise SourceError(
        f"{printable(name)} is a folder of mlx-lm without adapters.safetensors"
        + (
            f": it holds checkpoints only. Name one, such as {shell(f'{name}/{found[-1]}')}"
            if found
            else ": the download is incomplete."
        )
    )


def _no_config(folder: Path, name: str) -> SourceError:
    from loramerge.adapters.whole import is_whole, no_adapter  # an adapter is none

    try:
        with os.scandir(folder) as entries:
            files = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        return SourceError(f"{printable(name)} cannot be read: {error.strerror}. Check its rights.")
    if is_whole(files):
        return SourceError(no_adapter(name))
    weights = [f for f in files if f.endswith(".safetensors")]
    if weights:
        return SourceError(
            f"{printable(name)} has no {CONFIG}, so it is not a PEFT folder. To read its file alone, "
            f"name it: {shell(f'{name}/{weights[0]}')}"
        )
    if nested := sorted(p.parent.name for end in (CONFIG, "*.safetensors") for p in folder.glob(f"*/{end}")):
        return SourceError(
            f"{printable(name)} holds folders, not an adapter: name one, such as "
            f"{shell(f'{name}/{nested[0]}')}"
        )
    if what := instead(folder):
        return SourceError(f"{printable(name)} has no {CONFIG}, so it is not a PEFT adapter: {what}.")
    if deeper := sorted(p.parent for end in ("*/*", "*/*/*") for p in folder.glob(f"{end}/{CONFIG}")):
        down = "/".join("*" for _ in deeper[0].relative_to(folder).parts)
        return SourceError(
            f"{printable(name)} holds no adapter, but {shell(deeper[0])} is one: name it, or all of them by "
            f"'{printable(name)}/{down}'."
        )
    what = ", ".join(printable(f, 40) for f in files[:3]) or "it holds no files"
    return SourceError(f"{printable(name)} has no {CONFIG} ({what}): it is not a PEFT adapter.")
