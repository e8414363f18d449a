"""cloneofsimo's files: layers are numbers, and get names only where a whole model fits them."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import loramerge
from loramerge import Target
from loramerge.formats.models.walk import named
from tests.helpers.files import bare, read

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
    cli("combine", *sources, "-o", tmp_path / "m.safetensors").refused(3, "numbered.2")


# A kind from the wild: B2, numbered pairs.
def test_numbers_of_files_of_two_lengths_may_mean_other_layers(tmp_path):
    shapes = {"sam": (4, 3), "other": (4, 4)}
    rng, files = np.random.default_rng(0), {}
    for name, counts in shapes.items():
        for n, count in enumerate(counts):
            values = {
                f"w_{side}_{i:03}": rng.standard_normal((2, 5) if side == "a" else (6, 2)).astype("f4")
                for i in range(count)
                for side in "ab"
            }
            files[name, n] = bare(tmp_path / f"{name}{n}.safetensors", values)
    whole = loramerge.combine([files["other", 0], files["other", 1]], weights=[1, -2]).adapter
    one, two = (loramerge.load(files["other", n]) for n in (0, 1))
    for target, update in whole.items():
        np.testing.assert_allclose(update.dense(), one[target].dense() - 2 * two[target].dense(), atol=1e-5)
    mixed = [files["sam", 0], files["sam", 1]]
    with pytest.raises(loramerge.IncompatibleError, match=r"4 numbered modules and sam1.* 3"):
        loramerge.combine(mixed)
    assert len(loramerge.combine(mixed, allow_disjoint=True).adapter) == 4


def word_file(path, seed=0, word="<s1>"):
    values = factors(seed=seed)
    said = metadata(values, **{word: "<embed>"})
    return bare(path, values | {word: np.arange(3, dtype="f4") + seed}, said)


def test_embeddings_of_new_words_are_never_lost_in_silence(cli, tmp_path):
    source, out = word_file(tmp_path / "x.safetensors"), tmp_path / "m.safetensors"
    assert list(loramerge.load(source).extras) == ["<s1>"]
    cli("combine", source, source, "-o", out).refused(3, "<s1>", "--extras")
    assert cli("combine", source, source, "--extras", "first", "-o", out).code == 0
    with safe_open(out, framework="numpy") as file:
        assert file.metadata()["<s1>"] == "<embed>"  # else the library takes it for a layer
        assert file.get_tensor("<s1>").tolist() == [0, 1, 2]


def test_every_source_keeps_the_words_that_the_others_lack(tmp_path):
    sources = [word_file(tmp_path / "0.safetensors"), word_file(tmp_path / "1.safetensors", 1, "<krk>")]
    merge = loramerge.combine(sources, extras="first", out=tmp_path / "m.safetensors")
    assert {name: value.read().tolist() for name, value in merge.adapter.extras.items()} == {
        "<s1>": [0, 1, 2],
        "<krk>": [1, 2, 3],
    }


def library_reads(path):
    """What the library makes of a file: component -> (up and down by number), ranks, classes."""
    found = {}
    with safe_open(path, framework="numpy") as file:
        said = file.metadata()
        for key in file.keys():
            component, number, side = key.split(":")
            layers = found.setdefault(component, {"classes": json.loads(said[component])})
            layers[int(number), side] = file.get_tensor(key)
            layers[int(number), "rank"] = int(said[f"{component}:{number}:rank"])
    return found


@pytest.mark.parametrize("shapes", [SHAPES, [(4, 3, 3, 3), (5, 4)], unet()], ids=["numbers", "conv", "names"])
def test_what_is_written_is_what_the_library_reads(tmp_path, shapes):
    values = factors(shapes, rank=1) | factors([(8, 8)] * 2, "text_encoder", rank=1)
    source = bare(tmp_path / "x.safetensors", values, metadata(values))
    loramerge.combine([source], weights=[0.5], out=tmp_path / "m.safetensors")
    found = library_reads(tmp_path / "m.safetensors")
    assert set(found) == {"unet", "text_encoder"}
    assert tuple(found["unet"]["classes"]) == DEFAULT
    assert len(found["unet"]) == 3 * len(shapes) + 1
    for number in range(min(len(shapes), 9)):  # the first attention is as good as all, and small
        up, down = (found["unet"][number, side] for side in ("up", "down"))
        assert found["unet"][number, "rank"] == len(down)
        wanted = 0.5 * factors_product(values, number)
        np.testing.assert_allclose(up.reshape(len(up), -1) @ down.reshape(len(down), -1), wanted, rtol=1e-5)


def factors_product(values, number):
    up, down = (values[f"unet:{number}:{side}"].astype("f8") for side in ("up", "down"))
    return up.reshape(len(up), -1) @ down.reshape(len(down), -1)


def test_a_file_in_its_own_format_is_copied(cli, tmp_path):
    source, out = word_file(tmp_path / "x.safetensors"), tmp_path / "y.safetensors"
    assert cli("convert", source, out, "--to", "cloneofsimo").code == 0
    before, after = (read(path) for path in (source, out))
    assert {key: value.tobytes() for key, value in before.items()} == {
        key: value.tobytes() for key, value in after.items()
    }
    with safe_open(source, framework="numpy") as one, safe_open(out, framework="numpy") as two:
        assert one.metadata() == two.metadata()


def test_some_layers_of_a_model_cannot_be_numbered(cli, tmp_path):
    values = factors(unet(), rank=1, dtype="f2")
    source = bare(tmp_path / "x.safetensors", values, metadata(values))
    out = tmp_path / "m.safetensors"
    cli("combine", source, "--only", "attn1", "-o", out).refused(3, "numbers all layers", "--format")


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
    assert "the one given is not used" in cli("inspect", source, "--alpha", 4).out
    with pytest.raises(loramerge.UsageError, match="says its own alpha"):
        loramerge.load(source, alpha=4)


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
    cli("combine", source).refused(3, "pickle")
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
