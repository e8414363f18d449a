"""A folder without one file of weights is told what it holds instead, and what helps."""

import pytest

import loramerge as lm
from tests.helpers.files import folder

HOLDS = {
    "adapter_model-00001-of-00002.safetensors": "shard of several",
    "pytorch_model_fsdp_0": "checkpoint of FSDP",
    "__0_0.distcp": "checkpoint of FSDP",
    "global_step100": "checkpoint of DeepSpeed",
    "zero_to_fp32.py": "checkpoint of DeepSpeed",
    "adapter.gguf": "file of llama.cpp",
    "adapters.npz": "early mlx-lm",
    "adapter_0.pt": "checkpoint of torchtune",
    "README.md": "the download is incomplete",
}


@pytest.mark.parametrize("name", HOLDS)
def test_the_sentence_says_what_is_there_instead(name, tmp_path):
    source = folder(tmp_path / "a")
    (source / "adapter_model.safetensors").unlink()
    (source / name).write_bytes(b"x")
    with pytest.raises(lm.SourceError, match=HOLDS[name]):
        lm.load(source)
