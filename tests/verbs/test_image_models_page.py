"""Every command and the recipe of docs/image-models.md work."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.cli import main
from tests.helpers.dialects import pairs, saved

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "image-models.md").read_text(encoding="utf-8")
AB = ("lora_A", "lora_B")
FLUX = {f"double_blocks_{n}_img_attn_qkv": (24, 8) for n in (0, 18)}
FLUX |= {f"single_blocks_{n}_linear1": (56, 8) for n in (0, 7, 20, 37)}
WAN = {
    f"blocks.{n}.{block}.{x}": (8, 8) for n in (0, 1) for block in ("self_attn", "cross_attn") for x in "qkvo"
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What the page speaks of."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ink", "oil")):
        shapes = {f"lora_unet_{module}": size for module, size in FLUX.items()}
        saved(Path(f"{name}.safetensors"), pairs(shapes, alpha=1.0, seed=seed))
    qwen = {"transformer_blocks.0.img_mlp.net.0.proj": (32, 8), "transformer_blocks.0.attn.to_q": (8, 8)}
    saved(Path("lightning.safetensors"), pairs(qwen, alpha=2.0))
    saved(Path("style.safetensors"), pairs({f"diffusion_model.{m}": size for m, size in qwen.items()}, AB))
    flat = {f"lora_unet_{name.replace('.', '_')}": size for name, size in WAN.items()}
    saved(Path("musubi.safetensors"), pairs(flat, alpha=1.0, seed=1))
    saved(Path("toolkit.safetensors"), pairs({f"diffusion_model.{n}": s for n, s in WAN.items()}, AB, seed=2))
    theirs = {
        "self_attn": "attn1",
        "cross_attn": "attn2",
        ".q": ".to_q",
        ".k": ".to_k",
        ".v": ".to_v",
        ".o": ".to_out.0",
    }
    names = []
    for name in WAN:
        for old, new in theirs.items():
            name = (
                name.replace(old, new)
                if old in ("self_attn", "cross_attn")
                else re.sub(rf"\{old}$", new, name)
            )
        names.append(f"transformer.{name}")
    saved(Path("trained.safetensors"), pairs(dict.fromkeys(names, (8, 8)), AB, seed=3))
    Path("blocks.yaml").write_text(blocks("yaml")[0], encoding="utf-8")


def run(line):
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line)[1:])
    return ended.value.code


def test_every_command_works(place, capsys):
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert (len(lines), PAGE.count("\n## ")) == (18, 10)  # the page promises ten things
    for line in lines:
        assert run(line) == 0, f"{line}\n{capsys.readouterr().err}"
    wanted, found = lm.load("toolkit.safetensors"), lm.load("for-comfyui.safetensors")
    assert lm.diff(wanted, found).largest < 1e-6
    faces, same = lm.load("faces.safetensors"), lm.load("same.safetensors")
    assert {t.path.split(".")[1] for t in faces} == {"7", "20"}
    assert lm.diff(faces, same).largest < 1e-6
    ink, oil, mixed, calm = (lm.load(f"{name}.safetensors") for name in ("ink", "oil", "mixed", "calm"))
    for target in ink:  # all of them, whether --blocks has left something of both sources there or not
        single, number = target.path.startswith("single"), int(target.path.split(".")[1])
        one, two = (20 <= number if single else number < 10), 0.5 if single else 1.0
        wanted = {"mixed": one * ink[target].dense() + two * oil[target].dense()}
        wanted["calm"] = ink[target].dense() + (0.8 if single else 0.0) * oil[target].dense()
        np.testing.assert_allclose(mixed[target].dense(), wanted["mixed"], atol=1e-5)
        np.testing.assert_allclose(calm[target].dense(), wanted["calm"], atol=1e-5)
    assert lm.diff(lm.load("trained.safetensors"), lm.load("for-musubi.safetensors")).largest < 1e-6


def test_the_recipe_weighs_blocks_as_it_says(place, capsys):
    assert run("loramerge combine --recipe blocks.yaml -o m.safetensors") == 0, capsys.readouterr().err
    ink, oil, made = (lm.load(f"{name}.safetensors") for name in ("ink", "oil", "m"))
    for target, update in made.items():
        number = int(target.path.split(".")[1])
        first = target.path.startswith("single") and number < 20
        one, two = (1.0, 0.0) if first else (0.3, 0.8) if target.path.startswith("double") else (0.7, 0.5)
        np.testing.assert_allclose(
            update.dense(), one * ink[target].dense() + two * oil[target].dense(), atol=1e-5
        )
