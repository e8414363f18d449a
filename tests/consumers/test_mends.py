"""What `check` offers is run on the very file; the program's own loader takes the result as it is meant."""

import shlex
import warnings

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Adapter
from loramerge.consumers import CONSUMERS
from tests.consumers.hostile import HOSTILE
from tests.consumers.pipelines import diffusers
from tests.helpers.files import Cli
from tests.helpers.tiny_models import QUIET, LoraLayer, peft, torch, transformers

pytestmark = QUIET
FOLDERS = [name for name, consumer in CONSUMERS.items() if consumer.folder and name != "mlx"]


def mended(place, consumer, capsys):
    """Where the command that is printed has written, and the alpha it took; None if none is."""
    commands = {finding.command for finding in lm.check(place, consumer)} - {""}
    if not commands:
        return None
    (command,) = commands
    _, *words = shlex.split(command.replace("--alpha A", "--alpha 8"))
    assert Cli(capsys)(*words).code == 0, command
    return words[-1], 8 if "--alpha" in words else None


def at(place):
    return place if place.exists() else place.with_suffix(".safetensors")


def meant(place, alpha):
    """Module -> ΔW, of the file as it came."""
    found = lm.load(place, alpha=alpha)
    return {target.path: found[target].dense() for target in found}


def without_part(deltas):
    """Without the part of a pipeline, which PEFT has as a module of the model."""
    return {path.removeprefix("unet.").removeprefix("transformer."): delta for path, delta in deltas.items()}


def layer(target, slot, kernel):
    outs, ins = slot.shape
    if target.kind == "embedding":
        return torch.nn.Embedding(ins, outs)
    if kernel:
        return torch.nn.Conv2d(ins // int(np.prod(kernel)), outs, kernel, bias=False)
    return torch.nn.Linear(ins, outs)


def model_of(adapter: Adapter):
    """A model with all the modules that an adapter names, and no others."""
    root = torch.nn.Module()
    made = {t.path: layer(t, slot, t.layout.kernel) for t, slot in adapter.slots.items()}
    for key, tensor in adapter.extras.items():
        path, _, last = key.removeprefix("base_model.model.").rpartition(".")
        if last == "weight" and path.removesuffix(".base_layer") not in made:
            made[path] = torch.nn.Linear(*tensor.shape[::-1], bias=False)
    for path, module in made.items():
        *parents, last = path.split(".")
        home = root
        for name in parents:
            if not hasattr(home, name):
                home.add_module(name, torch.nn.Module())
            home = getattr(home, name)
        home.add_module(last, module)
    return root


def in_peft(root, place):
    return peft.PeftModel.from_pretrained(root, place).base_model.model


def in_transformers(root, place):
    """The same modules as a model of transformers, whose own `load_adapter` finds them."""
    model = transformers.PreTrainedModel(transformers.PretrainedConfig())
    for name, module in root.named_children():
        model.add_module(name, module)
    model.load_adapter(place)
    return model


@pytest.mark.parametrize("consumer", FOLDERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_peft_or_transformers_loads_what_the_command_makes_as_it_is_meant(
    name, consumer, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    place = at(HOSTILE[name](tmp_path / "a"))
    if (done := mended(place, consumer, capsys)) is None:
        return
    out, alpha = done
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it does not find
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
        warnings.filterwarnings("ignore", ".*has no attribute|.*get_input_embeddings|.*save_embedding")
        load = in_transformers if consumer == "transformers" else in_peft
        model = load(model_of(lm.load(out)), out)
    wanted = meant(place, alpha)
    found = {
        path: layer.get_delta_weight("default").detach().double().numpy()
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    found, wanted = (without_part(each) for each in (found, wanted))
    assert found.keys() == wanted.keys()
    for path, delta in found.items():
        turned = delta.T if delta.shape != wanted[path].shape and delta.ndim == 2 else delta
        np.testing.assert_allclose(turned.reshape(wanted[path].shape), wanted[path], atol=1e-4)


@pytest.mark.parametrize("consumer", ["diffusers", "comfyui"])
@pytest.mark.parametrize("name", HOSTILE)
def test_diffusers_reads_what_the_command_makes_as_it_is_meant(name, consumer, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = at(HOSTILE[name](tmp_path / "a"))
    if (done := mended(place, consumer, capsys)) is None:
        return
    out, alpha = done
    if lm.load(out).dialect not in CONSUMERS["diffusers"].formats:
        return
    pipeline = diffusers.FluxPipeline if "flux" in name else diffusers.StableDiffusionPipeline
    state, alphas, *more = pipeline.lora_state_dict(".", weight_name=out, return_lora_metadata=True)
    said = more[0] if more else {}
    wanted = sorted(np.linalg.norm(delta) for delta in meant(place, alpha).values())
    found = []
    for key, down in state.items():
        if key.endswith(".lora_A.weight"):
            up = state[key.replace("lora_A", "lora_B")].flatten(1)
            alpha = (alphas or {}).get(
                key.replace(".lora_A.weight", ".alpha"), (said or {}).get("unet.lora_alpha")
            )
            scale = 1 if alpha is None else alpha / len(down)
            found.append(float(torch.linalg.norm(scale * up @ down.flatten(1))))
    np.testing.assert_allclose(sorted(found), wanted, rtol=1e-4)
