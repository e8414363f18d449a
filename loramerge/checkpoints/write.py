"""A model written with changes: the same files; every tensor that does not change is copied."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from loramerge.adapters.original import open_original
from loramerge.arrays.backend import Array
from loramerge.checkpoints.apply import Fused, applied
from loramerge.checkpoints.changes import Changes
from loramerge.checkpoints.checkpoint import CONFIG, INDEX, PICKLES, Checkpoint, Key, Model
from loramerge.checkpoints.copy import Copy, nbytes
from loramerge.checkpoints.quantisation import scale_of
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.files.atomic import check_output, new_file, new_folder, writing
from loramerge.formats.files.destination import real_path
from loramerge.formats.files.json import read_object
from loramerge.formats.output import is_bare

OTHER_WEIGHTS = (
    *PICKLES,
    ".safetensors",
    ".gguf",
    ".onnx",
    ".h5",
    ".msgpack",
    ".ot",
    ".tflite",
    ".pkl",
    ".npz",
)
LEFT = ("README.md", "loramerge.json", ".gitattributes", "training_args.bin")  # said of another model
Run = Callable[..., Iterable[Any]]


def check_place(checkpoint: Checkpoint, out: Path, overwrite: bool) -> None:
    """Refuse an OUT that is a file where the model is a folder, or the reverse, or that holds something else.

    Raises:
        UsageError, OutputError: a sentence each.
    """
    if is_bare(out) != checkpoint.bare:
        wanted = (
            f"one file: give {say('out')} a name that ends in .safetensors" if checkpoint.bare else "a folder"
        )
        raise UsageError(f"{printable(checkpoint.name, 1000)} is {wanted}; {printable(out, 1000)} is not.")
    check_outside(checkpoint, out)
    check_output(out, overwrite, not checkpoint.bare, files(checkpoint))


def check_outside(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse an OUT that is a model that is read, holds it, or lies in its folder; through links too.

    Raises:
        UsageError: it does.
    """
    try:
        real, root = real_path(out), real_path(checkpoint.root)
    except ValueError:  # `check_output` says so
        return
    name, shown = printable(out, 1000), printable(checkpoint.name, 1000)
    same = os.path.exists(real) and os.path.exists(root) and os.path.samefile(real, root)
    if same or real == root:
        raise UsageError(f"{name} is the model {shown}, which is read: choose another {say('out')}.")
    if root in real.parents or real in root.parents:
        how = "lies in" if root in real.parents else "holds"
        raise UsageError(f"{name} {how} the model {shown}, which is read: choose another {say('out')}.")


def files(checkpoint: Checkpoint) -> list[str]:
    """All that a copy of a model consists of, by paths below it."""
    if checkpoint.bare:
        return []
    return [*_weights(checkpoint), *_small(checkpoint)]


def _weights(checkpoint: Checkpoint) -> list[str]:
    return [_below(model, name) for model in checkpoint.models.values() for name in model.shards]


def _below(model: Model, name: str) -> str:
    return f"{model.folder}/{name}" if model.folder else name


def _small(checkpoint: Checkpoint) -> list[str]:
    """Configs, tokenizers, licences: what lies beside the weights, but for other forms of these."""
    indices = {_below(model, model.index) for model in checkpoint.models.values() if model.index}
    found = []
    for folder, inner, names in os.walk(checkpoint.root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if len(checkpoint.models) == 1 and "model" in checkpoint.models:
            inner.clear()  # below one model lie only other forms of it
        for name in sorted(names):
            path = str((Path(folder) / name).relative_to(checkpoint.root))
            foreign = name.endswith(INDEX) or ("index.json" in name and name != "model_index.json")
            if path in indices or not (foreign or name.endswith(OTHER_WEIGHTS) or name in LEFT):
                found.append(path)
    return found


def write(todo: Changes, out: Path, overwrite: bool, run: Run) -> list[Fused]:
    """Write the model; OUT appears whole, or not at all.

    Args:
        run: a `map`, maybe over threads.

    Raises:
        SourceError: a file of the model or of the adapter changed meanwhile.
        OutputError, IncompatibleError, VerificationError: a sentence each.
    """
    base = todo.checkpoint
    if base.bare:
        with new_file(out, overwrite) as where:
            done = _model(todo, base.models["file"], "file", where, True, run)
            _confirm(todo)
            return done
    with new_folder(out, overwrite, own=files(base)) as where:
        for path in _small(base):
            _carry(todo, path, where)
        done = [
            fused
            for part, model in base.models.items()
            for fused in _model(todo, model, part, where / model.folder, False, run)
        ]
        with writing(out):
            for model in base.models.values():
                _flush(where / model.folder)
        _confirm(todo)
    return done


def _confirm(todo: Changes) -> None:
    """Weights were read as they were opened; configs and indices are copied from their places."""
    todo.checkpoint.confirm()
    for file in todo.checkpoint.originals.values():
        if file.path.suffix == ".json":
            file.confirm_place()
    todo.adapter.provenance.confirm()


def _carry(todo: Changes, path: str, where: Path) -> None:
    """A small file as it is; a config with settings that change; an index with tensors that are new."""
    source, out = todo.checkpoint.root / path, where / path
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    folder, name = os.path.split(path)
    part = next((part for part, model in todo.checkpoint.models.items() if model.folder == folder), None)
    if part is not None and name == CONFIG and todo.configs.get(part):
        return _write_json(out, _configured(read_object(source, path), todo.configs[part]))
    if part is not None and name == todo.checkpoint.models[part].index and _grown(todo, part):
        return _write_json(out, _indexed(todo, part, read_object(source, path)))
    whole = open_original(source, f"{path} of {todo.checkpoint.name}")
    with writing(out), out.open("xb") as made:
        for piece in whole.pieces():
            made.write(piece)
        made.flush()
        os.fsync(made.fileno())
    whole.confirm()
    return None


def _configured(config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other settings; those that it keeps for its language model are set there."""
    found = dict(config)
    for name, value in said.items():
        inner = found.get("text_config")
        if isinstance(inner, dict) and name in inner:
            found["text_config"] = {**inner, name: value}
        if not isinstance(inner, dict) or name in found or name == "tie_word_embeddings":
            found[name] = value
    return found


def _grown(todo: Changes, part: str) -> bool:
    return any(key[0] == part and _is_other(todo, key) for key in todo.tensors)


def _is_other(todo: Changes, key: Key) -> bool:
    """Whether a tensor is new, or of another size."""
    change = todo.tensors[key]
    return change.fresh or change.shape != todo.checkpoint.tensors[key].shape


def _indexed(todo: Changes, part: str, index: Mapping[str, Any]) -> dict[str, Any]:
    """An index that also names what is new, in the last of its files."""
    model = todo.checkpoint.models[part]
    last, table = list(model.shards)[-1], dict(index["weight_map"])
    table |= {key: last for where, key in todo.tensors if where == part and key not in table}
    metadata = {
        name: value for name, value in (index.get("metadata") or {}).items() if name != "total_parameters"
    }
    if "total_size" in metadata:
        old = [t for key, t in model.tensors()]
        new = [c for key, c in todo.tensors.items() if key[0] == part and _is_other(todo, key)]
        replaced = {key for key, c in todo.tensors.items() if not c.fresh and _is_other(todo, key)}
        gone = [todo.checkpoint.tensors[key] for key in replaced if key[0] == part]
        metadata["total_size"] = sum(map(_nbytes, old)) + sum(map(_nbytes, new)) - sum(map(_nbytes, gone))
    return {**index, "metadata": metadata, "weight_map": dict(sorted(table.items()))}


def _nbytes(tensor: Any) -> int:
    return nbytes(tensor.dtype, tensor.shape)


def _model(todo: Changes, model: Model, part: str, place: Path, bare: bool, run: Run) -> list[Fused]:
    done: list[Fused] = []
    shards = list(model.shards.items())
    for number, (name, file) in enumerate(shards):
        mine = {
            key
            for where, key in todo.tensors
            if where == part
            and (key in file.tensors or (number == len(shards) - 1 and _is_new(todo, part, key)))
        }
        changed = {key: (todo.tensors[part, key].dtype, todo.tensors[part, key].shape) for key in mine}

        def make(key: str) -> Mapping[str, Array]:
            arrays, fused = applied(todo.tensors[part, key], todo.adapter, todo.checkpoint.tensors)
            done.append(fused)
            return {name: array for (_, name), array in arrays.items()}

        order = {key: changed[key] for key in [*file.tensors, *sorted(mine)] if key in changed}
        scales = _scales(todo, part, order)
        if scattered := sorted(set(scales) - file.tensors.keys()):
            raise IncompatibleError(
                f"{printable(scattered[0])} of {printable(todo.checkpoint.name)} lies in another file than "
                "its weight: save the model again, in one piece."
            )
        copy = Copy(file, place if bare else place / name, order, scales)
        copy.fill(make, run)
        copy.check()
    return done


def _is_new(todo: Changes, part: str, key: str) -> bool:
    return todo.tensors[part, key].fresh


def _scales(todo: Changes, part: str, changed: Iterable[str]) -> list[str]:
    """The scales that are written with changed weights."""
    tensors = todo.checkpoint.tensors
    found = [scale_of(tensors, (part, key)) for key in changed if (part, key) in tensors]
    return [key[1] for key in found if key is not None]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with writing(path):
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
