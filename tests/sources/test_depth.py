"""A layer that the model of a source does not have, by the config.json beside it, is a contradiction."""

from dataclasses import replace

import pytest

from loramerge.errors import IncompatibleError
from tests.sources.test_identity import LLAMA, adapter, united

CONFIGS = {
    "its own word": {"num_hidden_layers": 4},
    "GPT-2's word": {"n_layer": 4},
    "in the part of the text": {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 32}},
    "with layers that guess ahead": {"num_hidden_layers": 3, "num_nextn_predict_layers": 1},
}


# A kind from the wild: E, a layer that the other's stack cannot have.
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_layer_beyond_those_of_the_model_is_refused(config):
    first = replace(adapter(LLAMA, layers=(0, 1)), model=config)
    with pytest.raises(IncompatibleError, match=r"layers\.4\..* has 4 layers by its config\.json"):
        united(first, adapter(LLAMA, layers=(0, 4), seed=1))
    united(first, adapter(LLAMA, layers=(0, 3), seed=1))
    united(first, adapter(LLAMA, layers=(0, 4), seed=1), allow_base_mismatch=True)


def test_other_stacks_and_repeated_layers_are_no_matter():
    first = replace(adapter(LLAMA, layers=(0, 1)), model={"num_hidden_layers": 2})
    united(first, adapter({"attn.qkv": (36, 12)}, "model.visual.blocks", layers=(0, 5), seed=1))
    twice = {"layer_replication": [[0, 2], [0, 2]]}
    united(replace(first, config=twice), replace(adapter(LLAMA, layers=(0, 3), seed=1), config=twice))
