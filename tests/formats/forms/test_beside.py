"""What lies beside the pairs of a PEFT adapter may be a head or a bias; what nobody knows is no extra."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError
from tests.helpers.files import Cli, bare, folder, tensors

P = "base_model.model."
Q = f"{P}layers.0.q"
UNKNOWN = [f"{Q}.{end}" for end in ("gate", "scaling", "magnitude", "m", "mask", "vector_z", "adapter_scale")]
UNKNOWN += [f"{Q}.{end}" for end in ("gate.weight", "router.weight", "scale_weight", "base_layer.mask")]
UNKNOWN += [f"{P}layers.0.gates", f"{P}layers.0.moe_gate.weight", f"{P}layers.0.router.weight", f"{P}scaling"]
UNKNOWN += [f"{P}hyper.mask", f"{P}router.weight", f"{P}vision.gates", f"{P}model.expert_gate.bias"]
UNKNOWN += [f"{P}hyper.weight", f"{P}hyper.bias", f"{P}layers.0.mixer.weight", f"{P}task_codes.weight"]
UNKNOWN += [f"{P}model.routing_table.weight", f"{P}mixer.weight", f"{P}.weight"]
WHOLE = """
score layers.0.norm model.layers.0.input_layernorm transformer.h.0.ln_1 model.norm lm_head model.embed_tokens
classifier.dense classifier.out_proj bert.pooler.dense cls.predictions.decoder qa_outputs v_head.summary
transformer.wte gpt_neox.embed_in embed_out transformer.output_layer vocab_projector visual_projection
model.multi_modal_projector.linear_1 model.visual.merger.mlp.0 deberta.embeddings.word_embeddings proj_out
model.shared lm_head.decoder classification_head.dense
"""
KNOWN = [f"{Q}.weight", f"{Q}.bias", f"{Q}.base_layer.weight", f"{Q}.base_layer.bias"]
KNOWN += [f"{P}{path}.weight" for path in WHOLE.split()]
KNOWN += [f"{P}layers.0.norm.bias", f"{P}layers.0.mlp.fc.bias", f"{P}classifier.bias"]


def made(tmp_path, key, bare_file, **changes):
    values = tensors() | {key: np.ones(3, "f4")}
    if bare_file:
        return bare(tmp_path / "a.safetensors", values)
    return folder(tmp_path / "a", values, **changes)


# A kind from the wild: B1, tensors inside a module.
@pytest.mark.parametrize("extras", ["first", "average", "drop"])
@pytest.mark.parametrize("bare_file", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize("key", UNKNOWN)
def test_no_policy_takes_an_unknown_tensor_for_an_extra(key, bare_file, extras, tmp_path):
    source = made(tmp_path, key, bare_file)
    with pytest.raises(IncompatibleError, match="not known") as refusal:
        lm.combine([source], extras=extras, alpha=4 if bare_file else None, out=tmp_path / "m")
    assert key in str(refusal.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("key", ["mlp.gate_net.weight", "hyper.weight", "attn.mixing.weight"])
def test_a_matrix_in_a_layer_that_no_config_lists_may_choose_what_counts(key, tmp_path):
    shapes = {f"layers.0.{home}.q": (3, 4) for home in ("mlp", "attn")} | {"layers.0.q": (3, 4)}
    values = tensors(shapes=shapes) | {f"{P}layers.0.{key}": np.ones((2, 4), "f4")}
    with pytest.raises(IncompatibleError, match="no modules_to_save lists it"):
        lm.load(folder(tmp_path / "a", values))
    lm.load(folder(tmp_path / "b", values, modules_to_save=[key.split(".")[-2]]))


@pytest.mark.parametrize("key", KNOWN)
def test_what_is_the_bases_own_is_an_extra(key, tmp_path):
    assert list(lm.load(made(tmp_path, key, False)).extras) == [key]


def test_what_the_config_lists_is_a_part_of_a_head(tmp_path):
    source = made(tmp_path, f"{P}layers.0.router.weight", False, modules_to_save=["router"])
    assert list(lm.load(source).extras) == [f"{P}layers.0.router.weight"]
    other = folder(
        tmp_path / "b", tensors() | {f"{P}layers.sinks": np.ones(3, "f4")}, modules_to_save=["layers"]
    )
    assert list(lm.load(other).extras) == [f"{P}layers.sinks"]


def test_a_bias_that_no_config_lists_is_one_where_biases_are_trained(tmp_path):
    key = f"{P}hidden.bias"
    assert list(lm.load(made(tmp_path, key, False, bias="all")).extras) == [key]


# A kind from the wild: B3, rsLoRA of a bare file.
@pytest.mark.parametrize("alpha", ["rslora:8", "rslora:8.0"])
def test_an_alpha_of_rslora_is_divided_by_the_root_of_the_rank(alpha, tmp_path, capsys):
    source = bare(tmp_path / "a.safetensors", tensors(rank=4))
    assert {update.scale for update in lm.load(source, alpha=alpha).values()} == {4.0}
    Cli(capsys)("combine", str(source), "--alpha", alpha, "-o", str(tmp_path / "m.safetensors"))
    want, got = (lm.load(p, alpha=a) for p, a in ((source, 16), (tmp_path / "m.safetensors", None)))
    for target, update in want.items():
        np.testing.assert_allclose(got[target].dense(), update.dense(), rtol=1e-5)
    lm.replay(tmp_path / "m.safetensors")


@pytest.mark.parametrize("alpha", ["rslora:", "rslora:x", "rslora:0", "rslora:-1", "rslora:nan", "rslora"])
def test_an_alpha_of_rslora_must_be_a_number_above_0(alpha, tmp_path):
    with pytest.raises(lm.UsageError, match="rslora:A"):
        lm.load(bare(tmp_path / "a.safetensors"), alpha=alpha)
