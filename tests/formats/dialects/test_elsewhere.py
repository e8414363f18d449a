"""Formats that keep factors in an order of their own: refused, with the export that can be read."""

import struct

import numpy as np
import pytest

from tests.helpers.files import bare

KEYS = {
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "torchtune"),
    "Megatron": ("decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight", "AutoBridge"),
    "NeMo, parts apart": (
        "decoder.layers.0.self_attention.linear_qkv.adapter.adapter_q.linear_in.weight",
        "NeMo",
    ),
}


@pytest.mark.parametrize(("key", "word"), KEYS.values(), ids=KEYS)
def test_their_keys_lead_to_their_peft_export(cli, tmp_path, key, word):
    source = bare(tmp_path / "x.safetensors", {key: np.ones((2, 3), "f4")})
    cli("combine", source, "--alpha", 4, "-o", tmp_path / "m").refused(3, "x.safetensors", word, "PEFT")


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors"])
def test_a_gguf_file_is_known_by_how_it_begins(cli, tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    cli("combine", tmp_path / name).refused(3, name, "GGUF", "convert_lora_to_gguf.py")
