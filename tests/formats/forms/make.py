"""Make the committed fixtures of the forms: what PEFT saves and merges, and what authors' formulas come to.

    python -m tests.formats.forms.make        # about a minute; rewrites tests/formats/forms/fixtures

saved/TYPE     an adapter as PEFT saves it, and `wanted`: the weights after its merge less those before
forms/FORM     the tensors of one module of each kind, its layer, and `wanted` by the oracle in its header
systems/NAME   a file as a published system writes it, and `wanted` by its forward pass
base           the model of all that is in `saved`
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.formats.forms.sample import Sample, n
from tests.formats.forms.samples import SAMPLES

HERE = Path(__file__).parent / "fixtures"
SEED = 7
LAYERS = {
    "model.layers.0.q_proj": (24, 16),
    "model.layers.0.v_proj": (16, 16),
    "model.layers.0.up_proj": (16, 24),
}
BANK = {"r": 2, "num_vectors": 8, "vector_length": 8}
TYPES: Mapping[str, tuple[str, dict[str, Any]]] = {  # type -> class of its config, its settings
    "VERA": ("VeraConfig", {"r": 4}),
    "VERA, drawn": ("VeraConfig", {"r": 4, "save_projection": False}),
    "PVERA": ("PveraConfig", {"r": 4}),
    "PVERA, drawn": ("PveraConfig", {"r": 4, "save_projection": False}),
    "RANDLORA": ("RandLoraConfig", {"r": 4}),
    "VBLORA": ("VBLoRAConfig", BANK),
    "VBLORA, best": ("VBLoRAConfig", {**BANK, "save_only_topk_weights": True}),
    "TINYLORA": ("TinyLoraConfig", {"r": 2, "weight_tying": 1.0}),
    "UNILORA": ("UniLoraConfig", {"r": 2, "theta_d_length": 32, "save_indices": True}),
    "C3A": ("C3AConfig", {"block_size": 8}),
    "MISS": ("MissConfig", {"r": 5}),
    "MISS, mini": ("MissConfig", {"r": 4, "mini_r": 8, "init_weights": "mini"}),
    "MISS, bat": ("MissConfig", {"r": 4, "init_weights": "bat"}),
    "DELORA": ("DeloraConfig", {"r": 3}),
    "GRALORA": ("GraloraConfig", {"r": 4, "gralora_k": 2, "hybrid_r": 2}),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 5}),
    "WAVEFT": ("WaveFTConfig", {"n_frequency": 9}),
    "SHIRA": ("ShiraConfig", {"r": 2}),
    "LOHA": ("LoHaConfig", {"r": 2}),
    "LOKR": ("LoKrConfig", {"r": 2}),
    "DoRA": ("LoraConfig", {"r": 3, "use_dora": True}),
    "DoRA, rsLoRA": ("LoraConfig", {"r": 3, "use_dora": True, "use_rslora": True}),
    "KASA": ("LoraConfig", {"r": 3, "kasa_config": "KasaConfig"}),
    "HRA": ("HRAConfig", {"r": 4}),
    "HIRA": ("HiraConfig", {"r": 4}),
    "IA3": ("IA3Config", {"feedforward_modules": ["up_proj"]}),
    "OFT": ("OFTConfig", {"oft_block_size": 4}),
    "PSOFT": ("PsoftConfig", {"r": 4}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
}


def folder_of(name: str) -> str:
    """A name as it is in a path."""
    return name.replace(", ", "-").replace(" ", "-").lower()


def save_peft(root: Path, name: str) -> None:
    """An adapter of this type with random weights, as PEFT saves it, and what PEFT's merge makes of it."""
    import peft
    import torch

    torch.manual_seed(1)
    config, settings = TYPES[name]
    if settings.get("kasa_config"):
        settings = {**settings, "kasa_config": peft.tuners.lora.KasaConfig()}
    base = nest(torch, {path: torch.nn.Linear(ins, outs) for path, (ins, outs) in LAYERS.items()})
    before = {key: value.clone() for key, value in base.state_dict().items()}
    settings = {"target_modules": [path.rpartition(".")[2] for path in LAYERS], **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, getattr(peft, config)(**settings))
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.copy_(value + 0.3 * torch.randn_like(value))
        where = root / "saved" / folder_of(name)
        model.save_pretrained(where)
        (where / "README.md").unlink(missing_ok=True)
        again = nest(torch, {path: torch.nn.Linear(ins, outs) for path, (ins, outs) in LAYERS.items()})
        again.load_state_dict(before)
        after = peft.PeftModel.from_pretrained(again, where).eval().merge_and_unload().state_dict()
    change = {p: after[f"{p}.weight"].double() - before[f"{p}.weight"].double() for p in LAYERS}
    save_file({path: value.float().numpy() for path, value in change.items()}, where / "wanted.safetensors")
    (root / "base").mkdir(exist_ok=True)
    whole = {key: np.ascontiguousarray(value.numpy()) for key, value in before.items()}
    save_file(whole, root / "base" / "model.safetensors")


def nest(torch: Any, layers: Mapping[str, Any]) -> Any:
    """A model whose modules have these dotted names."""
    top = torch.nn.Module()
    for path, layer in layers.items():
        *parents, last = path.split(".")
        here = top
        for name in parents:
            if not hasattr(here, name):
                here.add_module(name, torch.nn.Module())
            here = getattr(here, name)
        here.add_module(last, layer)
    return top


def cases(form: str) -> Iterator[tuple[str, Sample]]:
    """(word, module) of a form, with numbers that float32 holds."""
    for word, make in SAMPLES[form].items():
        yield word or "plain", make(np.random.default_rng(SEED))


def oracle(it: Sample) -> str:
    """Whose code says what a module comes to."""
    if it.theirs is None:
        return "its definition"
    return it.theirs.__qualname__.partition(".")[0].replace("peft_merged", "peft: merge_and_unload")


def save_form(root: Path, form: str) -> None:
    """Every module of a form in one file, and what its oracle makes of it."""
    tensors, said = dict[str, np.ndarray](), {}
    for word, it in cases(form):
        tensors |= {f"{word}/{key}": value for key, value in module_of(it).items()}
        wanted = it.wanted if it.theirs is None else it.theirs(it.parts)
        tensors[f"{word}/wanted"] = np.ascontiguousarray(wanted, np.float64)
        said[word] = {"oracle": oracle(it), "naming": it.naming, "config": dict(it.config), "rank": it.rank,
            "scale": it.scale, "size": it.size, "kernel": it.kernel}  # fmt: skip
    (root / "forms").mkdir(exist_ok=True)
    save_file(tensors, root / "forms" / f"{form}.safetensors", {"cases": json.dumps(said, sort_keys=True)})


def module_of(it: Sample) -> dict[str, np.ndarray]:
    """The tensors of a module, of what it shares, and of its layer."""
    layer = {"weight": it.weight, "bias": it.bias}
    found = {f"part/{key}": value for key, value in it.parts.items()}
    found |= {f"shared/{key}": value for key, value in it.shared.items()}
    found |= {f"layer/{key}": value for key, value in layer.items() if value is not None}
    return {key: np.ascontiguousarray(value) for key, value in found.items()}


System = tuple[dict[str, np.ndarray], dict[str, str], dict[str, np.ndarray]]  # tensors, metadata, wanted


def sora(rng: np.random.Generator) -> System:
    """y = ((x Aᵀ) ∘ gate) Bᵀ, at alpha 4."""
    a, b, gate = n(rng, 4, 6), n(rng, 5, 4), np.array([[0.5, 0, -2, 0]])
    keys = {
        f"layer.0.query.lora.{name}": value
        for name, value in zip(("lora_A", "lora_B", "gate"), (a, b, gate), strict=True)
    }
    return keys, {}, {"layer.0.query": ((np.eye(6) @ a.T * gate[0]) @ b.T).T * 4 / 4}


def wavllm(rng: np.random.Generator) -> System:
    """y = x A B, at alpha 4."""
    a, b, stem = n(rng, 6, 2), n(rng, 2, 8), "layers.0.attention.wq"
    return {f"{stem}_lora_A": a, f"{stem}_lora_B": b}, {}, {stem: (np.eye(6) @ a @ b).T * 4 / 2}


def omni(rng: np.random.Generator) -> System:
    """y = ALPHA / RANK · up(down(x)) of the task and of what all share, RANK 8 of width 64, at alpha 4."""
    stem, ends = "model.layers.0.self_attn.lora_{}_Q{}.weight", ("", "_shared")
    pairs = {end: (n(rng, 16, 8), n(rng, 8, 64)) for end in ends}
    keys = {stem.format(side, end): pairs[end][i] for end in ends for i, side in enumerate(("up", "down"))}
    wanted = sum((np.eye(64) @ down.T) @ up.T for up, down in pairs.values()).T * 4 / 8
    return keys, {}, {"model.layers.0.self_attn.q_proj": wanted}


def clip_lora(rng: np.random.Generator) -> System:
    """y = alpha / r · B A x, by its metadata."""
    a, b = n(rng, 2, 6), n(rng, 4, 2)
    said = {"r": 2, "alpha": 1, "encoder": "text", "params": ["q"], "position": "top1"}
    keys = {"layer_0.q_proj.w_lora_A": a, "layer_0.q_proj.w_lora_B": b}
    wanted = {"transformer.resblocks.11.attn.q_proj": (np.eye(6) @ a.T @ b.T).T / 2}
    return keys, {"metadata": json.dumps(said)}, wanted


def gs_lora(rng: np.random.Generator) -> System:
    """loralib's y = alpha / r · B A x in the feed-forward layers of a ViT, at alpha 4."""
    stem, a, b = "transformer.layers.0.1.fn.fn.net.0", n(rng, 2, 6), n(rng, 5, 2)
    return {f"{stem}.lora_A": a, f"{stem}.lora_B": b}, {}, {stem: (np.eye(6) @ a.T @ b.T).T * 4 / 2}


SYSTEMS: Mapping[str, Callable[[np.random.Generator], System]] = {
    each.__name__: each for each in (sora, wavllm, omni, clip_lora, gs_lora)
}


def save_system(root: Path, name: str) -> None:
    """A file as its authors write it, and what their forward pass adds to unit vectors."""
    tensors, metadata, wanted = SYSTEMS[name](np.random.default_rng(SEED))
    where = root / "systems" / name
    where.mkdir(parents=True, exist_ok=True)
    single = {key: np.ascontiguousarray(value, np.float64) for key, value in tensors.items()}
    save_file(single, where / "adapter.safetensors", metadata)
    save_file(
        {key: np.ascontiguousarray(value) for key, value in wanted.items()}, where / "wanted.safetensors"
    )


def main(root: Path = HERE) -> None:
    """Rewrite all of them."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in TYPES:
        save_peft(root, name)
    for form in SAMPLES:
        save_form(root, form)
    for name in SYSTEMS:
        save_system(root, name)


if __name__ == "__main__":
    main()
