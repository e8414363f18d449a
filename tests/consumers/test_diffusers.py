"""diffusers' own code on tiny pipelines: the strength of what we write, whoever says its scale."""

import json
from functools import cache

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.alphas import misnamed
from loramerge.consumers.check import facts_of
from loramerge.consumers.facts import Module
from loramerge.formats import models
from tests.consumers.pipelines import MODELS, applied, shapes
from tests.helpers.dialects import pairs, saved
from tests.helpers.files import read, save_file
from tests.helpers.tiny_models import QUIET, LoraLayer, base, peft, save_adapter

DIFFUSERS = CONSUMERS["diffusers"]
pytestmark = QUIET

ENDS = ("to_q", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.2", "q_proj", "out_proj", "fc1")
TARGETS = {"unet": ["to_q", "to_v", "conv1"], "transformer": ["to_q", "to_v", "proj_mlp"]}
INPUTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "mixed ranks": {"rank_pattern": {"to_q": 2}},
    "patterns": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_v": 3}, "use_rslora": True},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A PEFT folder for a part of a pipeline, which is made once and only read."""
    place = tmp_path_factory.mktemp("sources")

    @cache
    def made(part, seed, name):
        config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[part]} | INPUTS[name]
        return save_adapter(place / f"{part} {name} {seed}", MODELS[part], seed, config)

    return made


def names_of_kohya(found):
    """Modules of diffusers' names -> kohya's, of which SDXL's are Stability's."""
    made, xl = {}, any("up_blocks.0.attentions" in name for name in found)
    first = models.first_names("unet") if xl else {}
    for name, shape in found.items():
        part, _, path = name.partition(".")
        prefix = "lora_unet" if part == "unet" else "lora_te1" if xl else "lora_te"
        made[f"{prefix}_{models.flat(first.get(path, path))}"] = shape
    return made


def in_kohya(file, model, seed, ranks, alphas):
    """A kohya file whose modules have these ranks and alphas in turn."""
    state = {}
    for number, (module, shape) in enumerate(names_of_kohya(shapes(model, ENDS)).items()):
        rank, alpha = ranks[number % len(ranks)], alphas[number % len(alphas)]
        state |= pairs({module: shape}, rank=rank, alpha=alpha, seed=100 * seed + number)
    return saved(file, state)


def in_diffusers(file, model, seed, rank):
    return saved(file, pairs(shapes(model, ENDS), ("lora_A", "lora_B"), rank=rank, seed=seed))


def same(found, adapter, factors=None):
    """diffusers applies our ΔW to every module, times a factor where one is given."""
    assert set(found) == {str(target) for target in adapter}
    for target, update in adapter.items():
        wanted = (factors or {}).get(str(target), 1.0) * update.dense()
        np.testing.assert_allclose(found[str(target)], wanted, rtol=1e-4, atol=1e-5, err_msg=str(target))


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_a_merge_of_peft_adapters_acts_as_it_is_meant(source, part, name, profile, tmp_path):
    places, weights = [source(part, seed, name) for seed in (0, 1)], [0.7, -0.3]
    out = tmp_path / "m.safetensors"
    merge = lm.combine(places, weights=weights, profile=profile, format="diffusers", out=out)
    assert not lm.check(out, "diffusers")
    same(applied(part, out), merge.adapter)
    loaded = [lm.load(place) for place in places]
    for target, update in merge.adapter.items():
        parts = [
            adapter[lm.Target(target.path, kind=target.kind, layout=target.layout)] for adapter in loaded
        ]
        wanted = sum(w * part.dense() for w, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(update.dense(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["unet", "unet_xl"])
def test_a_merge_of_several_dialects_ranks_and_alphas_acts_as_it_is_meant(model, tmp_path):
    sources = [
        in_kohya(tmp_path / "a.safetensors", model, 1, (4, 2, 3), (2.0, 1.0, 5.0)),
        in_kohya(tmp_path / "b.safetensors", model, 2, (3,), (1.5,)),
        in_diffusers(tmp_path / "c.safetensors", model, 3, 5),
    ]
    weights, out = [0.7, -0.3, 0.5], tmp_path / "m.safetensors"
    merge = lm.combine(sources, weights=weights, format="diffusers", out=out)
    found = applied(model, out)
    same(found, merge.adapter)
    loaded = [lm.load(source) for source in sources]
    for target in merge.adapter:
        wanted = sum(w * adapter[target].dense() for w, adapter in zip(weights, loaded, strict=True))
        np.testing.assert_allclose(found[str(target)], wanted, rtol=1e-3, atol=1e-4)


def test_a_merge_of_flux_in_several_dialects_acts_as_it_is_meant(tmp_path):
    found = shapes("transformer", (*ENDS, "to_k", "add_q_proj", "add_k_proj", "add_v_proj", "proj_out"))
    found.pop("transformer.proj_out")
    dotted = saved(tmp_path / "a.safetensors", pairs(found, ("lora_A", "lora_B"), rank=3))
    whole = {name: shape for name, shape in found.items() if "single" not in name or "proj_out" in name}
    other = saved(tmp_path / "b.safetensors", pairs(whole, ("lora_A", "lora_B"), rank=2, seed=1))
    fused = tmp_path / "k.safetensors"
    lm.convert(other, fused, "kohya")
    merge = lm.combine([dotted, fused], format="diffusers", out=tmp_path / "m.safetensors")
    same(applied("transformer", tmp_path / "m.safetensors"), merge.adapter)
    assert not lm.check(fused, "diffusers")
    same(applied("transformer", fused), lm.load(other))


ALPHAS = {  # ranks and alphas of the modules, in turn
    "one rank": ((4,), (4.0,)),
    "another alpha": ((4,), (2.0,)),
    "two ranks, one alpha": ((4, 2), (2.0,)),
    "two of each": ((4, 2, 3), (2.0, 1.0, 2.0)),
}


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")  # what we warn of
@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("model", ["unet", "unet_xl"])
def test_under_kohyas_names_it_scales_as_check_says(model, name, tmp_path):
    ranks, alphas = ALPHAS[name]
    places = [in_kohya(tmp_path / f"{n}.safetensors", model, i, ranks, alphas) for i, n in enumerate("ab")]
    merge = lm.combine(places, weights=[0.7, -0.3], format="kohya", out=tmp_path / "m.safetensors")
    for file, adapter in [(places[0], lm.load(places[0])), (tmp_path / "m.safetensors", merge.adapter)]:
        stems = dict(zip(names_of_kohya(shapes(model, ENDS)), shapes(model, ENDS), strict=True))
        said = {stems[stem]: f for stem, f in misnamed(facts_of(file)).items()}
        same(applied(model, file), adapter, said)
        assert len(lm.check(file, "diffusers")) == any(factor != 1 for factor in said.values())
    assert len(lm.check(places[0], "diffusers")) == (name == "two of each")
    assert not lm.check(tmp_path / "m.safetensors", "diffusers")


@pytest.mark.parametrize("name", ALPHAS)
def test_for_diffusers_a_merge_gets_its_names_and_acts_as_it_is_meant(name, tmp_path):
    """Whatever ranks and alphas its sources of kohya have."""
    file = in_kohya(tmp_path / "a.safetensors", "unet", 1, *ALPHAS[name])
    merge = lm.combine([file], consumer="diffusers", out=tmp_path / "m.safetensors")
    same(applied("unet", tmp_path / "m.safetensors"), merge.adapter)
    same(applied("unet", tmp_path / "m.safetensors"), lm.load(file))


@pytest.mark.parametrize("ranks", [(4,), (4, 2)])
def test_for_diffusers_kohyas_names_are_written_if_they_are_asked_for(ranks, tmp_path):
    file, out = in_kohya(tmp_path / "a.safetensors", "unet", 1, ranks, (1.0,)), tmp_path / "m.safetensors"
    merge = lm.combine([file], consumer="diffusers", format="kohya", out=out)
    same(applied("unet", out), merge.adapter)
    same(applied("unet", out), lm.load(file))


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("way", [("diffusers",), ("kohya", "diffusers"), ("comfy", "kohya", "diffusers")])
def test_a_conversion_acts_as_its_source(way, profile, tmp_path):
    source = made = in_kohya(tmp_path / "a.safetensors", "unet", 1, (4, 2, 3), (2.0, 1.0, 5.0))
    for number, format in enumerate(way):
        here, made = made, tmp_path / f"{number}.safetensors"
        options = {"profile": profile} if format == "diffusers" else {}
        lm.convert(here, made, format, **options)
    same(applied("unet", made), lm.load(source))


def as_diffusers(place, out, part, metadata=None):
    """The factors of a PEFT folder under diffusers' names, with the scale left to others."""
    values = read(place / "adapter_model.safetensors")
    renamed = {name.replace("base_model.model", part, 1): value for name, value in values.items()}
    save_file(renamed, out, metadata)
    return out


def loaded(part, file, **options):
    model = base(MODELS[part])
    model.load_lora_adapter(str(file.parent), weight_name=file.name, prefix=part, **options)
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def scaling(layer):
    (scale,) = layer.scaling.values()
    return scale


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_with_the_config_in_the_header_it_scales_as_peft_does(source, part, name, tmp_path):
    place = source(part, 1, name)
    said = peft.LoraConfig.from_pretrained(place).to_dict()
    kept = {f"{part}.{field}": sorted(v) if isinstance(v, set) else v for field, v in said.items()}
    kept = {field: value for field, value in kept.items() if field.split(".", 1)[1] not in DERIVED}
    file = as_diffusers(place, tmp_path / "d.safetensors", part, {"lora_adapter_metadata": json.dumps(kept)})
    config = facts_of(file).config
    found = loaded(part, file)
    for module in facts_of(place).modules:
        own = scaling(found[module.place])
        assert own == pytest.approx(DIFFUSERS.scale(config, module), rel=1e-12)
        assert own == pytest.approx(module.scale, rel=1e-12)


DERIVED = ("peft_type", "auto_mapping")  # set by PEFT itself


def test_an_alpha_of_a_module_is_divided_by_its_rank(source, tmp_path):
    place = source("unet", 1, "mixed ranks")
    file = as_diffusers(place, tmp_path / "d.safetensors", "unet")
    modules = facts_of(place).modules
    alphas = {f"unet.{m.place}.alpha": 3.0 + i for i, m in enumerate(modules)}
    found = loaded("unet", file, network_alphas=alphas)
    for module in modules:
        alpha = alphas[f"unet.{module.place}.alpha"]
        wanted = DIFFUSERS.scale({}, Module(module.place, module.rank, alpha))
        assert scaling(found[module.place]) == pytest.approx(wanted) == alpha / module.rank


@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_a_peft_folder_is_nothing_to_it_as_we_say(source, part):
    place = source(part, 1, "plain")
    (finding,) = lm.check(place, "diffusers")
    assert finding.effect == "rejects"
    assert "finds nothing to load" in finding.sentence
    assert not loaded(part, place / "adapter_model.safetensors")
