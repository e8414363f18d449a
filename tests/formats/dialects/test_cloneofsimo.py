"""cloneofsimo's files: layers are numbers, and get names only where a whole model fits them."""

import json

import numpy as np
import pytest

import loramerge
from loramerge import Target
from loramerge.formats.models.walk import named
from tests.files import bare

SHAPES = [(6, 5), (4, 5), (3, 7)]
TEXT = [(768, 768)] * 48
DEFAULT = ("CrossAttention", "Attention", "GEGLU")


def factors(shapes=SHAPES, component="unet", seed=0, rank=2, dtype="f4"):
    rng, made = np.random.default_rng(seed), {}
    for number, (outs, ins, *kernel) in enumerate(shapes):
        made[f"{component}:{number}:up"] = rng.standard_normal((outs, rank, *(1 for _ in kernel))).astype(
            dtype
        )
        made[f"{component}:{number}:down"] = rng.standard_normal((rank, ins, *kernel)).astype(dtype)
    return made


def metadata(values, classes=DEFAULT, **more):
    """What the library writes into the header."""
    found = {}
    for key, value in values.items():
        component, number, side = key.split(":")
        found[component] = json.dumps(list(classes))
        if side == "down":
            found[f"{component}:{number}:rank"] = str(len(value))
    return found | more


def forward(x, up, down):
    """What LoraInjectedLinear adds to its output for one input, number by number; its scale is 1."""
    inner = [sum(row[i] * x[i] for i in range(len(x))) for row in down]
    return [sum(row[k] * inner[k] for k in range(len(inner))) for row in up]


def unet(context=768, late=False):
    """The shapes of all layers that the library meets in a U-Net of Stable Diffusion, by its default."""
    shapes = []
    for width, times in [(320, 2), (640, 2), (1280, 2), (1280, 3), (640, 3), (320, 3), (1280, 1)]:
        first = [(width, width)] * 4
        second = [(width, width), (width, context), (width, context), (width, width)]
        gate = [(8 * width, width)]
        shapes += (first + (second + gate if late else gate + second)) * times
    return shapes


def test_an_update_is_what_the_layer_of_the_library_adds(tmp_path):
    values = factors()
    adapter = loramerge.load(bare(tmp_path / "x.safetensors", values, metadata(values)))
    assert adapter.dialect == "cloneofsimo"
    for number, (_, ins) in enumerate(SHAPES):
        x = np.random.default_rng(1).standard_normal(ins)
        up, down = (values[f"unet:{number}:{side}"].astype("f8").tolist() for side in ("up", "down"))
        update = adapter[Target(f"numbered.{number}", component="unet")]
        np.testing.assert_allclose(update.dense() @ x, forward(x.tolist(), up, down), rtol=1e-12)


def test_a_convolution_is_the_product_of_its_flattened_factors(tmp_path):
    values = factors([(4, 3, 2, 2)])
    (target,) = adapter = loramerge.load(bare(tmp_path / "x.safetensors", values))
    assert (target.kind, target.layout.kernel) == ("conv", (2, 2))
    up, down = values["unet:0:up"].reshape(4, 2), values["unet:0:down"].reshape(2, -1)
    np.testing.assert_allclose(adapter[target].dense(), up.astype("f8") @ down.astype("f8"), rtol=1e-12)


WALKS = {  # number of a layer -> its name, as the library meets them
    "before the feed-forward layer moved": (
        unet(),
        {
            0: "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            3: "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
            4: "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
            6: "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
            54: "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            143: "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        },
    ),
    "after it": (
        unet(late=True),
        {
            4: "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
            8: "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
        },
    ),
    "Stable Diffusion 2": (
        unet(1024),
        {141: "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"},
    ),
}


@pytest.mark.parametrize(("shapes", "names"), WALKS.values(), ids=WALKS)
def test_a_whole_unet_is_named(tmp_path, shapes, names):
    values = factors(shapes, rank=1, dtype="f2")
    adapter = loramerge.load(bare(tmp_path / "x.safetensors", values, metadata(values)))
    assert len(adapter) == 144
    for number, name in names.items():
        down = adapter[Target(name, component="unet")].down
        np.testing.assert_array_equal(down, values[f"unet:{number}:down"])
    assert any("named by their order" in each for each in adapter.oddities)


def test_the_text_encoder_is_named_in_the_order_of_transformers():
    assert [name.rpartition(".")[2] for name in named("text_encoder", TEXT)[:4]] == [
        "k_proj",
        "v_proj",
        "q_proj",
        "out_proj",
    ]


NAMELESS = {
    "one layer less": (factors(unet()[:-1], rank=1, dtype="f2"), DEFAULT),
    "one shape off": (factors([*unet()[:-1], (1280, 1281)], rank=1, dtype="f2"), DEFAULT),
    "other classes": (factors(unet(), rank=1, dtype="f2"), ("Linear",)),
    "another component": (factors(unet(), "prior", rank=1, dtype="f2"), DEFAULT),
}


@pytest.mark.parametrize(("values", "classes"), NAMELESS.values(), ids=NAMELESS)
def test_what_fits_no_known_model_keeps_its_numbers(tmp_path, values, classes):
    adapter = loramerge.load(bare(tmp_path / "x.safetensors", values, metadata(values, classes)))
    assert {target.path.partition(".")[0] for target in adapter} == {"numbered"}
    assert any("matched by position" in each for each in adapter.oddities)


def test_files_that_are_numbered_alike_merge(tmp_path):
    sources = []
    for seed, rank in enumerate((1, 3)):
        values = factors(seed=seed, rank=rank)
        sources.append(bare(tmp_path / f"{seed}.safetensors", values, metadata(values)))
    merged = loramerge.combine(
        sources, method="cat", weights=[0.5, 2], out=tmp_path / "m.safetensors"
    ).adapter
    one, two = map(loramerge.load, sources)
    for target, update in merged.items():
        np.testing.assert_allclose(
            update.dense(), 0.5 * one[target].dense() + 2 * two[target].dense(), rtol=1e-5
        )


def test_files_of_other_shapes_do_not(cli, tmp_path):
    sources = [bare(tmp_path / f"{n}.safetensors", factors([*SHAPES[:2], (3, n)])) for n in (7, 8)]
    cli("combine", *sources, "-o", tmp_path / "m").refused(3, "numbered.2")


def test_embeddings_of_new_words_are_never_lost_in_silence(cli, tmp_path):
    word = np.arange(3, dtype="f4")
    source = bare(
        tmp_path / "x.safetensors", factors() | {"<s1>": word}, metadata(factors()) | {"<s1>": "<embed>"}
    )
    assert list(loramerge.load(source).extras) == ["<s1>"]
    cli("combine", source, source, "-o", tmp_path / "m.safetensors").refused(3, "<s1>", "--extras")


REFUSED = {
    "a missing up": ({"unet:1:up"}, {}, "unet:1:up is missing"),
    "a missing down": ({"unet:1:down"}, {}, "unet:1:down is missing"),
    "a missing layer": ({"unet:0:up", "unet:0:down"}, {}, "unet:0:up is missing"),
    "a huge number": (set(), {"unet:999999:up": np.ones((2, 2), "f4")}, "unet:3:up is missing"),
    "one number twice": (set(), {"unet:00:up": np.ones((6, 2), "f4")}, "twice"),
    "two ranks": (set(), {"unet:0:up": np.ones((6, 3), "f4")}, "do not share a rank"),
    "three dimensions": (set(), {"unet:0:up": np.ones((6, 2, 1), "f4")}, "do not share a rank"),
    "no columns": (set(), {"unet:0:down": np.ones((2, 0), "f4")}, "empty"),
}


@pytest.mark.parametrize(("without", "added", "word"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_whole_is_refused_by_the_key(cli, tmp_path, without, added, word):
    values = {key: value for key, value in factors().items() if key not in without} | added
    cli("inspect", bare(tmp_path / "x.safetensors", values)).refused(1, "x.safetensors", word)


def test_an_alpha_for_it_is_refused_since_its_scale_is_always_1(cli, tmp_path):
    source = bare(tmp_path / "x.safetensors", factors())
    cli("inspect", source, "--alpha", 4).refused(2, "says its own alpha")


@pytest.mark.parametrize(
    "classes", ["{", "[" * 9999, '"GEGLU"', "[1]"], ids=["cut", "deep", "text", "numbers"]
)
def test_classes_that_are_no_list_of_names_are_no_reason_to_fail(tmp_path, classes):
    adapter = loramerge.load(bare(tmp_path / "x.safetensors", factors(), {"unet": classes}))
    assert len(adapter) == len(SHAPES)


def test_wrong_ranks_in_the_metadata_are_told(cli, tmp_path):
    source = bare(tmp_path / "x.safetensors", factors(), metadata(factors()) | {"unet:1:rank": "7"})
    assert "1 layers of unet another rank" in cli("inspect", source).out


def torch_list(path, values):
    torch = pytest.importorskip("torch", reason="torch.save is the oracle: it comes with the extra `test`")
    torch.save([torch.from_numpy(value) for value in values.values()], path)
    return path


def test_a_list_is_the_same_adapter(cli, tmp_path):
    values = factors(unet(), rank=1)
    source = torch_list(tmp_path / "lora.pt", values)
    cli("inspect", source).refused(3, "pickle")
    listed = loramerge.load(source, allow_pickle=True)
    plain = loramerge.load(bare(tmp_path / "x.safetensors", values))
    assert set(listed) == set(plain)
    for target, update in listed.items():
        np.testing.assert_array_equal(update.up, plain[target].up)


def test_a_list_of_the_text_encoder_is_known_by_its_name(tmp_path):
    values = factors([(8, 8)], "text_encoder")
    adapter = loramerge.load(torch_list(tmp_path / "lora.text_encoder.pt", values), allow_pickle=True)
    assert list(adapter) == [Target("numbered.0", component="text_encoder")]


def test_a_list_without_its_last_tensor_is_refused(cli, tmp_path):
    values = dict(list(factors().items())[:-1])
    cli("inspect", torch_list(tmp_path / "x.pt", values), "--allow-pickle").refused(1, "Tensor 5 is missing")


def test_the_walk_is_that_of_the_library_through_the_real_model():
    diffusers = pytest.importorskip("diffusers", reason="its U-Net is the oracle")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    names = {id(module): name for name, module in model.named_modules()}
    for classes in (DEFAULT, (*DEFAULT, "ResnetBlock2D")):
        met = [
            layer
            for ancestor in model.modules()
            if type(ancestor).__name__ in classes
            for layer in ancestor.modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        ]
        assert named("unet", [tuple(layer.weight.shape) for layer in met]) == [
            names[id(each)] for each in met
        ]
