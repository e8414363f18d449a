"""PEFT and mergekit on the same files in the same run."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.speed.measure import call, loramerge, process
from benchmarks.speed.sections import Row, sources
from benchmarks.speed.shapes import LAYER_7B, Shapes, llama, write
from loramerge import load

SMALL = llama(256, 704, 4)


def peft(where: Path, svd: bool = True) -> Iterator[Row]:
    """`add_weighted_adapter`, cat and svd, one layer of 7B shapes, beside ours from the same two folders."""
    import torch

    torch.set_num_threads(1)
    folders = sources(where / "peft", 2, LAYER_7B)
    model = _peft_model(LAYER_7B, folders)
    for method in ("cat", "svd") if svd else ("cat",):

        def theirs(method: str = method) -> None:
            model.add_weighted_adapter(
                ["a", "b"], [1.0, 1.0], method, combination_type=method, **_options(method)
            )

        cost = call(theirs, 1)
        yield Row(f"PEFT {method}, 7B layer, in memory", cost)
        out = where / "peft-out"
        ours = loramerge(
            "combine", *folders, "--method", method, "-o", out, "--overwrite", "-q", "--threads", "1"
        )
        _same(model, method, out)
        yield Row(f"ours {method}, files to files", ours, "PEFT, CPU", cost.cpu / ours.cpu)


def _options(method: str) -> dict[str, object]:
    return {"svd_rank": 16, "svd_full_matrices": False} if method == "svd" else {}


def _peft_model(shapes: Shapes, folders: list[Path]):  # type: ignore[no-untyped-def]
    """A bare model with these linear layers and both adapters on it."""
    import torch
    from peft import PeftModel

    base = torch.nn.Module()
    for path, (outs, ins) in shapes.items():
        *parents, name = path.split(".")
        node = base
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, torch.nn.Module())
            node = getattr(node, parent)
        node.add_module(name, torch.nn.Linear(ins, outs, bias=False, device="meta").to_empty(device="cpu"))
    base.config = {"model_type": "custom"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, folders[0], adapter_name="a")
        model.load_adapter(folders[1], adapter_name="b")
    return model.base_model


def _same(model, name: str, out: Path) -> None:  # type: ignore[no-untyped-def]
    """Both results are one ΔW, on random inputs (PEFT computes in float32, ours is stored in bfloat16)."""
    import torch

    merged = load(out)
    layers = dict(model.model.named_modules())
    for target, update in merged.items():
        layer = layers[target.path]
        x = torch.randn(layer.in_features, 4, generator=torch.Generator().manual_seed(0))
        factors = layer.lora_B[name].weight.float(), layer.lora_A[name].weight.float()
        theirs = (factors[0] @ (factors[1] @ x) * layer.scaling[name]).detach().numpy()
        ours = update.scale * (update.up.astype(np.float32) @ (update.down.astype(np.float32) @ x.numpy()))
        assert np.linalg.norm(theirs - ours) < 0.02 * np.linalg.norm(theirs), f"{target} differs from PEFT"


def mergekit(where: Path, python: str) -> Iterator[Row]:
    """A linear merge of base+lora in mergekit (a full model comes out), beside ours from the same adapters.

    Args:
        python: the interpreter of an environment with mergekit 0.1.5.
    """
    here = where / "mergekit"
    adapters = [write(here / f"adapter{seed}", SMALL, seed) for seed in range(2)]
    process(sys.executable, "-c", BASE, here / "base", repeats=1)
    for adapter in adapters:
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(here / "base")
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    models = [{"model": f"{here}/base+{adapter}", "parameters": {"weight": 1.0}} for adapter in adapters]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    (here / "recipe.yml").write_text(json.dumps(recipe | {"dtype": "bfloat16"}))
    script = "from mergekit.scripts.run_yaml import main; main()"
    arguments = ("--lora-merge-cache", here / "cache", "--allow-crimes")
    theirs = process(python, "-c", script, here / "recipe.yml", here / "merged", *arguments, repeats=1)
    assert (here / "merged" / "config.json").exists()
    ours = loramerge("combine", *adapters, "--method", "linear", "-o", where / "mk-out", "--overwrite", "-q")
    yield Row("mergekit base+lora, 4 layers of width 256", theirs)
    yield Row("ours linear, the same adapters", ours, "mergekit, CPU", theirs.cpu / ours.cpu)


BASE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=1000, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
                     num_attention_heads=4, num_key_value_heads=4)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""
