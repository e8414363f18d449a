"""What is not a plain LoRA on linear layers is refused by name, never read as one and never dropped."""

import json

import numpy as np
import pytest

from tests.helpers.files import CONFIG, bare, folder, key, raw, tensors

ONE = {"layers.0.q": (6, 5)}


def like(*names, shape=(2, 3)):
    return {name: np.ones(shape, np.float32) for name in names}


SETTINGS = {
    "IA3": ({"peft_type": "IA3"}, "IA3"),
    "LoHa, with the pairs of a LoRA": ({"peft_type": "LOHA", "alpha": 2}, "LOHA"),
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
    "a type that is no text": ({"peft_type": ["LORA"]}, "LORA"),
    "DoRA": ({"use_dora": True}, "DoRA"),
    "QALoRA": ({"use_qalora": True}, "use_qalora"),
    "block-diagonal": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "Arrow": ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    "KaSA": ({"kasa_config": {}}, None),
    **{
        f"initialised by {init}": ({"init_lora_weights": init}, init)
        for init in ("pissa", "pissa_niter_16", "PiSSA", "olora", "OLoRA", "corda", "loftq")
    },
}


@pytest.mark.parametrize(("config", "word"), SETTINGS.values(), ids=SETTINGS)
def test_settings_under_which_the_pair_is_not_the_update_are_refused_by_name(cli, tmp_path, config, word):
    source = folder(tmp_path / "a", **config)
    if word is None:  # empty, so not in use
        assert cli("inspect", source).code == 0
        return
    cli("combine", source).refused(3, "a ", word)
    metadata = {"lora_adapter_metadata": json.dumps({**CONFIG, **config})}
    cli("combine", bare(tmp_path / "b.safetensors", metadata=metadata)).refused(3, word)


HARMLESS = {
    "initialised by EVA": {"init_lora_weights": "eva"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "settings of no use": {"use_dora": False, "layer_replication": None, "target_parameters": None},
    "settings of tomorrow": {"some_new_setting": {"a": 1}},
    "a training-only setting": {"velora_config": {"rank": 2}},
}


@pytest.mark.parametrize("config", HARMLESS.values(), ids=HARMLESS)
def test_settings_that_do_not_change_the_update_are_read(cli, tmp_path, config):
    assert cli("inspect", folder(tmp_path / "a", **config)).code == 0


FLAT = "lora_unet_down_blocks_0_attentions_0_proj_in"
MIXED = {  # names of other tools, which are read, beside a pair of PEFT's
    "kohya": like(f"{FLAT}.lora_down.weight", f"{FLAT}.lora_up.weight"),
    "a LyCORIS of SimpleTuner": like("lycoris_x.lokr_w1", "lycoris_x.lokr_w2"),
    "diffusers": like("unet.x.lora_A.weight", "unet.x.lora_B.weight"),
    "old diffusers": like(
        "mid_block.attn1.processor.to_q_lora.down.weight", "mid_block.attn1.processor.to_q_lora.up.weight"
    ),
    "diffusers transformer": like("transformer.x.lora_A.weight", "transformer.x.lora_B.weight"),
    "ComfyUI": like("diffusion_model.x.lora_A.weight", "diffusion_model.x.lora_B.weight"),
    "cloneofsimo": like("unet:0:down", "unet:0:up"),
    "loralib": like("h.q.lora_A", "h.q.lora_B"),
    "mlx-lm": like("model.layers.0.q_proj.lora_a", "model.layers.0.q_proj.lora_b"),
}


@pytest.mark.parametrize("values", MIXED.values(), ids=MIXED)
def test_names_of_two_tools_in_one_file_are_refused(cli, tmp_path, values):
    source = bare(tmp_path / "x.safetensors", {**values, **tensors(shapes=ONE)})
    cli("combine", source).refused(3, "x.safetensors", "mixes names", "base_model.model.")


STYLES = {
    "a DoRA magnitude": (like("base_model.model.q.lora_magnitude_vector", shape=(6,)), "DoRA"),
    "AdaLoRA": (like("base_model.model.q.lora_E"), "AdaLoRA"),
    "no layout at all": (like("base_model.model.q.lora_C.weight"), "unknown layout"),
}


@pytest.mark.parametrize("with_a_pair", [False, True], ids=["alone", "beside a pair"])
@pytest.mark.parametrize(("values", "word"), STYLES.values(), ids=STYLES)
def test_other_layouts_are_refused_by_name(cli, tmp_path, values, word, with_a_pair):
    values = {**values, **(tensors(shapes=ONE) if with_a_pair else {})}
    source = bare(tmp_path / "x.safetensors", values, {"lora_adapter_metadata": json.dumps(CONFIG)})
    cli("combine", source).refused(3, "x.safetensors", word)
    cli("combine", folder(tmp_path / "a", values)).refused(3, word)


def pair(up, down):
    return {key("q", "B"): up, key("q", "A"): down}


PAIRS = {
    "6 dimensions": (pair(np.ones((6, 2, *[1] * 4)), np.ones((2, 5, *[3] * 4))), 1, "do not share a rank"),
    "a 1-d factor": (pair(np.ones(6), np.ones((2, 5))), 1, "do not share a rank"),
    "two ranks": (pair(np.ones((6, 3)), np.ones((2, 5))), 1, "[6, 3]"),
    "no up": ({key("q", "A"): np.ones((2, 5))}, 1, "lora_B of q"),
    "no down": ({key("q", "B"): np.ones((6, 2))}, 1, "lora_A of q"),
    "rank 0": (pair(np.ones((6, 0)), np.ones((0, 5))), 1, "empty"),
    "no outputs": (pair(np.ones((0, 2)), np.ones((2, 5))), 1, "empty"),
    "integers": (pair(np.ones((6, 2), np.int8), np.ones((2, 5), np.int8)), 3, "I8"),
    "no pair": (like("base_model.model.classifier.weight"), 3, "no LoRA pair"),
    "no tensors": ({}, 3, "no LoRA pair"),
}


@pytest.mark.parametrize(("values", "code", "word"), PAIRS.values(), ids=PAIRS)
def test_what_is_no_pair_of_matrices_is_refused(cli, tmp_path, values, code, word):
    cli("combine", folder(tmp_path / "a", values)).refused(code, word)
    cli("combine", bare(tmp_path / "x.safetensors", values), "--alpha", 4).refused(code, word)


@pytest.mark.parametrize("kind", ["F8_E8M0", "F8_E4M3FNUZ"])
def test_factors_in_8_bits_are_refused_by_name(cli, tmp_path, kind):
    entries = {
        key("q", side): {"dtype": kind, "shape": [2, 2], "data_offsets": [at, at + 4]}
        for side, at in (("A", 0), ("B", 4))
    }
    source = raw(tmp_path / "x.safetensors", entries, bytes(8))
    cli("combine", source, "--alpha", 4).refused(3, kind, "save it as float32")


@pytest.mark.parametrize("end", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_a_pickle_is_never_opened(cli, tmp_path, end):
    trap = tmp_path / f"x{end}"
    trap.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    cli("combine", trap).refused(3, "pickle", "safetensors")
    where = folder(tmp_path / "a")
    (where / "adapter_model.safetensors").rename(where / "adapter_model.bin")
    cli("combine", where).refused(3, "pickle")
    assert not (tmp_path / "ran").exists()


def test_a_module_of_peft_may_be_called_processor(cli, tmp_path):
    place = folder(tmp_path / "a", tensors(shapes={"image.processor.q": (4, 3)}))
    assert cli("inspect", place).code == 0
