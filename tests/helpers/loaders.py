"""What diffusers' own loaders make of a file: the modules of its pipeline's class, and their updates."""

from __future__ import annotations

import re
import warnings

import numpy as np

from tests.helpers.families import layers

MIXINS = {  # family -> the loader of its pipelines
    "flux.1": "Flux", "flux.2": "Flux2", "chroma": "Flux", "sd3": "SD3", "wan": "Wan",
    "wan-vace": "Wan", "wan-animate": "Wan",
    "qwen-image": "QwenImage", "z-image": "ZImage", "hunyuan-video": "HunyuanVideo",
    "ltx-video": "LTXVideo", "ltx-2": "LTX2", "hidream": "HiDreamImage", "lumina-2": "Lumina2",
    "auraflow": "AuraFlow", "cosmos": "Anima", "cogvideox": "CogVideoX", "mochi": "Mochi1", "sana": "Sana",
    "ace-step-1.5": "AceStep",
}  # fmt: skip


def loaded(family, tensors: dict[str, np.ndarray]) -> dict[str, tuple] | None:
    """diffusers' name of a module -> (up, down) that its loader makes of them; None if it refuses them.

    Keys of no module of the class are left out, as PEFT leaves them out.
    """
    import torch
    from diffusers.loaders import lora_pipeline
    from diffusers.utils import convert_unet_state_dict_to_peft

    mixin = getattr(lora_pipeline, f"{MIXINS[family.name]}LoraLoaderMixin")
    more = {"return_alphas": True} if MIXINS[family.name] == "Flux" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = mixin.lora_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, **more)
    except (ValueError, KeyError, RuntimeError, IndexError, AttributeError, TypeError, AssertionError):
        return None
    found, alphas = found if isinstance(found, tuple) else (found, {})
    parts = {k.partition(".")[2]: v for k, v in found.items() if k.startswith("transformer.")}
    parts = convert_unet_state_dict_to_peft(parts) if parts else {}
    parts |= {key: value for key, value in found.items() if key.partition(".")[0] in family.beside}
    own, made = layers(family.model), {}
    own |= {f"{part}.{path}": size for part, c in family.beside.items() for path, size in layers(c).items()}
    for key, down in parts.items():
        if ".lora_A." in key and (module := key.partition(".lora_A.")[0]) in own:
            up = parts[key.replace("lora_A", "lora_B")]
            alpha = (alphas or {}).get(f"transformer.{module}.alpha", len(down))
            made[module] = float(alpha) / len(down) * up.double().numpy(), down.double().numpy()
    return made


def share(met, width: int, without: str = "", around: bool = False, only: str = "") -> tuple[str, list[str]]:
    """How much of a file in a spelling diffusers loads as it is meant, and what it does not.

    Args:
        without: leave out the modules whose names have this pattern.   around: with those in no block.
        only: beside the blocks without these, leave out all but the modules of this pattern.
    """
    from tests.helpers.spelled import factors, tensors

    values = tensors(met, 0, width, around)
    blocks = tensors(met, 0, width) if only else values
    values = {k: v for k, v in values.items() if k in blocks or re.search(only, k)}
    values = {k: v for k, v in values.items() if not (without and re.search(without, k))}
    wanted, found = factors(met, values, width, around), loaded(met.family, values)
    if found is None:
        return "refused", sorted(wanted)
    lost = [name for name in wanted if not _same(wanted[name], found.get(name))]
    return "all" if not lost else "nothing" if len(lost) == len(wanted) else "part", lost


def _same(one, other) -> bool:
    """Whether two updates are the same on a random input."""
    if other is None or one[0].shape[0] != other[0].shape[0] or one[1].shape[1] != other[1].shape[1]:
        return False
    x = np.random.default_rng(0).standard_normal(one[1].shape[1])
    mine, theirs = (up @ (down @ x) for up, down in (one, other))
    return bool(np.linalg.norm(mine - theirs) <= 1e-4 * np.linalg.norm(mine))
