"""Whatever a config and a header say, every consumer's rules answer in sentences."""

import hypothesis.strategies as st
from hypothesis import given, settings

from loramerge.consumers import CONSUMERS, meant
from loramerge.consumers.facts import SPECIAL, Facts
from loramerge.formats.dialects import DIALECTS
from loramerge.formats.peft.names import UNKNOWN

FIELDS = (*SPECIAL, "peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern",
    "alpha_pattern", "use_rslora", "lora_parameters", "num_layers")  # fmt: skip
TEXT = st.sampled_from(["LORA", "IA3", "pissa", "all-linear", "q_proj", "\x1b[2J", "", "score"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
STEMS = st.sampled_from(
    ["base_model.model.model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lora_unet_a",
     "unet.mid_block.to_q", "diffusion_model.x", "w", "base_model.model.h.0.c_attn", "\x1b[31m"]
)  # fmt: skip
ENDS = st.sampled_from(
    ["lora_A.weight", "lora_B.weight", "lora_A.default.weight", "lora_embedding_A", "lora_B.bias", "lora_a",
     "lora_b", "lora_down.weight", "alpha", "weight", "base_layer.bias", "lora_magnitude_vector"]
)  # fmt: skip
KEYS = st.builds("{}.{}".format, STEMS, ENDS)
SHAPES = st.lists(st.integers(0, 20), max_size=4).map(tuple)


@given(
    config=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6),
    tensors=st.dictionaries(KEYS, SHAPES, max_size=6),
    folder=st.booleans(),
    dialect=st.sampled_from([UNKNOWN, *DIALECTS]),
    components=st.lists(st.sampled_from(["", "unet", "transformer", "text_encoder"]), max_size=2),
    max_rank=st.none() | st.integers(1, 32),
)
@settings(deadline=None)
def test_rules_never_stumble_over_what_a_file_says(config, tensors, folder, dialect, components, max_rank):
    parts = dict.fromkeys(components, config)
    facts = Facts("some where/a", folder, config, tensors, dialect, parts)
    assert meant(facts)
    for consumer in CONSUMERS.values():
        for finding in consumer.findings(facts, max_rank):
            assert finding.sentence.isprintable()
            assert finding.command == "" or finding.command.startswith(
                ("loramerge combine 'some where/a' --for", "loramerge convert --to")
            )
