"""Whatever such a file holds: each tensor is a factor or an extra, or a sentence says why not."""

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import loramerge
from tests.helpers.files import bare

PAIRS = {
    "mlx": [(f"{path}.lora_a", f"{path}.lora_b") for path in ("a", "model.layers.0.q", "model.embed_tokens")],
    "cloneofsimo": [(f"unet:{n}:down", f"unet:{n}:up") for n in range(3)],
    "loralib": [(f"{path}.lora_A", f"{path}.lora_B") for path in ("a", "h.0.q", "wte")],
}
ODD = [
    "a.bias",
    "<s1>",
    "a.m",
    "x.lora_a",
    "unet:00:up",
    "text_encoder:0:up",
    "conv.lora_A",
    "lora_A",
    "module.a",
]
SIZES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
DTYPES = st.sampled_from(["f4", "f4", "f4", "f2", "i1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**40) | st.floats() | st.text(max_size=3),
    lambda each: (
        st.lists(each, max_size=2)
        | st.dictionaries(st.sampled_from(["rank", "scale", "r"]), each, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = ["fine_tune_type", "lora_parameters", "num_layers", "model", "enable_lora", "r", "lora_alpha"]


@st.composite
def files(draw):
    """(tensors, metadata, the JSON beside them): pairs that fit in part of them."""
    dialect = draw(st.sampled_from(sorted(PAIRS)))
    pairs = draw(st.lists(st.sampled_from(PAIRS[dialect]), min_size=1, unique=True))
    rank, values = draw(st.integers(1, 3)), {}
    down, up = ((2, rank), (rank, 3)) if dialect == "mlx" else ((rank, 2), (3, rank))
    for pair in pairs:
        values |= {pair[0]: np.ones(down, "f4"), pair[1]: np.ones(up, "f4")}
    for name in draw(st.lists(st.sampled_from(ODD), max_size=1)):
        values[name] = np.ones(3, "f4")
    for name in draw(st.lists(st.sampled_from(sorted(values)), max_size=1)):
        values[name] = np.ones(draw(SIZES), draw(DTYPES))
    said = draw(
        st.dictionaries(st.sampled_from(["unet", "unet:0:rank", "<s1>"]), st.text(max_size=4), max_size=2)
    )
    config = draw(st.none() | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
    return values, said, config


def opened(path):
    """The adapter, or what the refusal says."""
    try:
        return loramerge.load(path, alpha=2, optional=True), ""
    except loramerge.LoramergeError as error:
        return None, str(error)


@settings(deadline=None)
@given(files())
def test_a_file_is_read_whole_or_refused(made):
    values, said, config = made
    with tempfile.TemporaryDirectory() as where:
        path = bare(Path(where) / "adapters.safetensors", values, said)
        if config is not None:
            for name in ("adapter_config.json", "adapters.json"):
                (path.parent / name).write_text(json.dumps(config))
        adapter, said = opened(path)
        if adapter is None:
            assert said.isprintable()
            return
        modules = {(target.component, target.path) for target in adapter}
        assert len(values) == 2 * len(modules) + len(adapter.extras)
        for update in adapter.values():
            assert np.isfinite(update.dense()).all()
