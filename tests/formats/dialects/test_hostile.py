"""Headers made to harm, in the names of every dialect: one sentence, never a traceback, never gigabytes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.errors import LoramergeError
from loramerge.formats.dialects.table import DIALECTS, ROWS
from loramerge.formats.raw import look
from tests.helpers.dialects import saved

MODULES = (
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "lora_te3_x",
    "lycoris_y",
    "lycoris_down_blocks_0_resnets_0_conv1",
    "lora_te_layers_0_mlp",
    "lora_prior_unet_z",
    "transformer_2.blocks.0.q",
    "connectors.x.y",
    "unet.conv_in",
    "unet.mid_block.attentions.0.proj_in",
    "transformer.single_transformer_blocks.0.attn.to_q",
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "diffusion_model.final_layer.adaLN_modulation.1",
    "transformer.double_blocks.0.img_attn.qkv.7",
    "text_encoders.clip_l.transformer.x\x1b",
    "double_blocks.0.processor",
    "..",
)
ENDS = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "alpha",
    "lora_down.0.weight", "lora_up.0.weight", "lora_up.1.weight", "hada_w1_a", "hada_w1_b", "hada_w2_a",
    "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a",
    "lokr_w2_b", "lokr_t2", "diff", "diff_b", "dora_scale", "qkv_lora1.down.weight", "qkv_lora1.up.weight",
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)
FILES = st.dictionaries(
    st.tuples(st.sampled_from(MODULES), st.sampled_from(ENDS)).map(".".join),
    st.tuples(SHAPES, st.sampled_from(["f4", "f2", "i4"])),
    min_size=1,
    max_size=9,
)
METADATA = st.none() | st.fixed_dictionaries(
    {
        "lora_adapter_metadata": st.sampled_from(
            ["", "[]", "{}", '{"unet.r": 1e9}', '{"r": 2, "lora_alpha": 1}']
        )
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, METADATA)
def test_any_header_is_read_or_refused_in_a_sentence(tmp_path, files, metadata):
    tensors = {key: np.ones(shape, kind) for key, (shape, kind) in files.items()}
    path = saved(tmp_path / "a.safetensors", tensors, metadata)
    header = look(path, path.name).header
    assert all(ROWS[name].may(header) for name, dialect in DIALECTS.items() if dialect.detects(header))
    adapter = told(lambda: lm.load(path))
    for to in ("kohya", "diffusers", "comfy", "peft") if adapter else ():
        out = tmp_path / ("out" if to == "peft" else "out.safetensors")
        done = told(lambda to=to, out=out: lm.convert(adapter, out, to, extras="drop", overwrite=True))
        assert done is None or done.error < 1e-2


def told(act):
    """What it gives; None if it is refused in a sentence that a terminal can show."""
    try:
        return act()
    except LoramergeError as error:
        sentence = str(error)
    assert sentence.isprintable()
    return None


def test_a_small_file_cannot_ask_for_a_large_matrix(tmp_path):
    big = np.ones((3000, 3000), np.float16)
    parts = {"lycoris_x.lokr_w1": big, "lycoris_x.lokr_w2": big}
    path = saved(tmp_path / "a.safetensors", parts)
    with pytest.raises(lm.IncompatibleError, match="9000000 units"):
        lm.combine([path])
    with pytest.raises(lm.IncompatibleError, match="9000000 units"):
        lm.convert(path, tmp_path / "b.safetensors", "kohya", dtype="float32")
