"""Which files of a repository are the adapter that is named."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from loramerge.adapters.whole import no_adapter
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.hub.client import Listing
from loramerge.hub.escape import shell
from loramerge.hub.names import FILES, HubName

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# hub/ may not import the formats, so their names stand here again; a test holds the two together.
FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapters.safetensors")  # of diffusers and of mlx-lm
INDEX, SHARD = f"{WEIGHTS}.index.json", re.compile(r"adapter_model-\d{5}-of-\d{5}\.safetensors")
MODEL = "config.json"  # of the model that was trained, which names its labels
KNOWN = (WEIGHTS, *reversed(FOLDER_FILES))  # beside a config: PEFT's first, then mlx-lm's, which has one too
OLD = "pytorch_lora_weights.bin"  # of diffusers, before it wrote safetensors
BUNDLE = frozenset({"router.safetensors", f"task_0/{CONFIG}"})  # of `route`
CHECKPOINT = re.compile(r"(\d+_)?adapters\.safetensors")  # of mlx-lm: the config in its folder means it
WHOLE_MODELS = ("model", "pytorch_model", "diffusion_pytorch_model", "consolidated", "tf_model")


class BundleThere(IncompatibleError):
    """What is named is a routed bundle, with the files that its repository holds."""

    def __init__(self, message: str, listing: Listing) -> None:
        super().__init__(message)
        self.listing = listing


@dataclass(frozen=True)
class Choice:
    """What is needed of a repository.

    Args:
        place: what is the adapter, a folder or a file.   weights: the file of its tensors.
        beside: small files that say what they are.
    """

    place: str
    weights: str
    beside: tuple[str, ...] = ()


def chosen(name: HubName, listing: Listing, allow_pickle: bool = False) -> Choice:
    """Which files of a repository are the adapter that is named.

    Raises:
        SourceError: none are, or several could be; the message names them.
        IncompatibleError: its weights are a pickle, and these are not allowed.
    """
    if name.is_file and not name.path.endswith(".safetensors") and not allow_pickle:
        raise _unsafe(name, name.path)
    if name.is_file:
        return _one_file(name, name.path, listing)
    base, inside = name.path, _inside(name.path, listing.files)
    if not inside:
        raise SourceError(f"{name.repo} has no folder {printable(base)}{_others(name, listing)}.")
    if CONFIG in inside:
        beside = [below(base, file) for file in (CONFIG, MODEL) if file in inside]
        shards = sorted(below(base, file) for file in inside if SHARD.fullmatch(file))
        if (INDEX in inside or shards) and not {WEIGHTS, PICKLED} & inside:
            told = INDEX if INDEX in inside else CONFIG  # without an index their own names tell
            return Choice(base, below(base, told), (*beside, *shards))
        return Choice(base, below(base, _weights(name, inside, allow_pickle)), tuple(beside))
    if BUNDLE <= inside:
        raise _bundle(name, listing)
    if known := next((file for file in FOLDER_FILES if file in inside), None):
        return Choice(base, below(base, known))
    if OLD in inside and not any(f.endswith(".safetensors") and "/" not in f for f in inside):
        if not allow_pickle:
            raise _unsafe(name, OLD)
        return _one_file(name, below(base, OLD), listing)
    files = sorted(f for f in inside if f.endswith(".safetensors") and "/" not in f)
    if not files or "config.json" in inside or files[0].split("-")[0].split(".")[0] in WHOLE_MODELS:
        raise _no_adapter(name, listing, inside)
    if len(files) > 1:
        raise _several(name, files)
    return _one_file(name, below(base, files[0]), listing)


def _bundle(name: HubName, listing: Listing) -> BundleThere:
    one, words = replace(name, path=below(name.path, "task_0")), ["hf", "download", name.repo]
    words += [f"--revision={name.revision}"] if name.revision else []
    words += [f"--include={name.path}/*"] if name.path else []
    fetch = " ".join(map(shell, [*words, "--local-dir", "there"]))
    return BundleThere(
        f"{printable(name)} is a routed bundle, and no single adapter: name one in it, such as "
        f"{printable(one)}. `loramerge check` judges all of it, `lm.load_bundle` reads it in Python, and "
        f"`{fetch}` fetches it, into {printable(f'there/{name.path}'.rstrip('/'))}.",
        listing,
    )


def _one_file(name: HubName, path: str, listing: Listing) -> Choice:
    """One file of weights, and what may tell its alpha."""
    if path not in listing.files:
        raise SourceError(f"{name.repo} has no file {printable(path)}{_others(name, listing)}.")
    folder, stem = os.path.dirname(path), os.path.splitext(path)[0]
    rivals = [f for f in listing.files if os.path.dirname(f) == folder and f.endswith(FILES)]
    own = os.path.basename(path) == WEIGHTS or CHECKPOINT.fullmatch(os.path.basename(path))
    shared = rivals == [path] or own  # else a config there may mean another file
    beside = (f"{stem}.json", *([below(folder, CONFIG)] if shared else []))
    return Choice(path, path, tuple(file for file in beside if file in listing.files))


def _weights(name: HubName, inside: set[str], allow_pickle: bool) -> str:
    if known := next((file for file in KNOWN if file in inside), None):
        return known
    others = [file for file in inside if file.endswith(".safetensors") and "/" not in file]
    if len(others) == 1:  # other tools call it otherwise, and their reader knows what it is
        return others[0]
    if others and PICKLED not in inside:
        raise _several(name, others)
    if PICKLED not in inside:
        raise SourceError(f"{name} has an {CONFIG} but no {WEIGHTS}: its upload is incomplete.")
    if not allow_pickle:
        raise _unsafe(name, PICKLED)
    return PICKLED


def _several(name: HubName, files: list[str]) -> SourceError:
    return SourceError(
        f"{name} has {len(files)} files of weights ({_some(sorted(files))}), none by the name that an "
        f"adapter's has: name one, such as {printable(replace(name, path=below(name.path, min(files))))}"
    )


def _unsafe(name: HubName, file: str) -> IncompatibleError:
    return IncompatibleError(
        f"{name} has its weights in a pickle only ({printable(file)}), which could run code when it is read. "
        f"{say('allow_pickle', True)} reads its tensors without running anything."
    )


def _no_adapter(name: HubName, listing: Listing, inside: set[str]) -> SourceError:
    nested = sorted(os.path.dirname(file) for file in inside if file.endswith(f"/{CONFIG}"))
    if nested:
        first = replace(name, path=below(name.path, nested[0]))
        return SourceError(
            f"{name} holds adapters in folders ({_some(nested)}): name one, such as {printable(first)}"
        )
    if "config.json" in inside or any(f.endswith(FILES) and "/" not in f for f in inside):
        return SourceError(no_adapter(str(name), f"has no {CONFIG}: it is a model, not an adapter"))
    return SourceError(
        f"{name} has no {CONFIG} and no .safetensors: it is not an adapter{_others(name, listing)}."
    )


def _others(name: HubName, listing: Listing) -> str:
    """What else could be named in this repository."""
    files = sorted(f for f in listing.files if f.endswith((f"/{CONFIG}", ".safetensors")))
    places = list(dict.fromkeys(f.removesuffix(f"/{CONFIG}") for f in files if f.removesuffix(CONFIG)))
    places = [place for place in places if place != name.path]
    return f"; it has {_some(places)}" if places else ""


def _inside(base: str, files: frozenset[str]) -> set[str]:
    """The files below a folder, named from there."""
    return {
        file[len(base) + 1 :] if base else file for file in files if not base or file.startswith(f"{base}/")
    }


def below(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _some(names: list[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(printable(name, 80) for name in names[:count]) + more
