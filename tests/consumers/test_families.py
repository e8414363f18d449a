"""Verdicts on every family in every spelling: those on diffusers are what its own loaders do."""

import re
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm
from loramerge.consumers.families import LOADERLESS, LOADERS, WITHOUT, oracle, reads, trips
from tests.helpers.files import Cli, bare
from tests.helpers.loaders import MIXINS, loaded, share
from tests.helpers.spelled import ROWS, factors, tensors

SOME = [*ROWS][::4]  # in the default run; all of them behind the marker `slow`


def some(rows):
    """The rows, most of them only in the slow run."""
    return [row if row in SOME else pytest.param(row, marks=pytest.mark.slow) for row in rows]


READ = [row for row, met in ROWS.items() if met.family.name in MIXINS and reads("diffusers", met)]


def tripping(met):
    """A pattern for the names of modules that diffusers does not read in a row; dots and `_` are alike."""
    return "|".join(keys.replace("[.]", "") for _, keys in trips(met))


def plain(met):
    """A file without what trips diffusers, or is not known of ComfyUI."""
    odd = re.compile("|".join(filter(None, [tripping(met), "distilled_guidance|individual_token_refiner"])))
    return {key: value for key, value in tensors(met, 0).items() if not odd.search(key)}


def file(tmp_path, row):
    values = plain(ROWS[row])
    return bare(tmp_path / "a.safetensors", values, {"modelspec.architecture": ROWS[row].family.name}), values


@pytest.mark.parametrize("row", some(row for row, met in ROWS.items() if met.family.name in MIXINS))
def test_diffusers_itself_reads_what_the_table_says(row):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    found, _ = share(ROWS[row], next(iter(ROWS[row].family.widths)), tripping(ROWS[row]))
    assert (found == "all") is reads("diffusers", ROWS[row])


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in READ if "flux.1" not in row])
def test_diffusers_reads_what_is_around_the_blocks_but_what_trips_it(row):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    met, width = ROWS[row], next(iter(ROWS[row].family.widths))
    assert share(met, width, tripping(met), around=True)[0] == "all"
    for _, keys in trips(met):
        assert share(met, width, "", around=True, only=keys)[0] != "all"


@pytest.mark.parametrize("consumer", ["diffusers", "comfyui"])
@pytest.mark.parametrize("row", some([row for row, met in ROWS.items() if met.dialect != "peft"]))
def test_check_says_what_the_table_says(consumer, row, tmp_path):
    """A bare file of PEFT's names does not say its alpha, so that no program can be told about it."""
    path, _ = file(tmp_path, row)
    effects = {finding.effect for finding in lm.check(path, consumer)}
    wanted = reads(consumer, ROWS[row])
    assert effects == (set() if wanted else {"unknown"}) if wanted in (True, None) else effects - {"unknown"}


@pytest.mark.parametrize("row", [r for r, met in ROWS.items() if trips(met) and met.dialect != "peft"])
def test_check_names_what_trips_diffusers(row, tmp_path):
    """A bare file of PEFT's names does not say its alpha, so that no program can be told about it."""
    met = ROWS[row]
    values = tensors(met, 0, around=True)
    path = bare(tmp_path / "a.safetensors", values, {"modelspec.architecture": met.family.name})
    found = " ".join(finding.sentence for finding in lm.check(path, "diffusers"))
    assert all(any(re.search(keys, key) and key[:60] in found for key in values) for _, keys in trips(met))


def test_no_pipeline_loads_adapters_of_families_without_a_loader():
    pipeline = pytest.importorskip("diffusers.loaders.lora_pipeline")
    assert not {name for name in vars(pipeline) if re.match(r"(?i)pixart|acestep1?lora(?!loadermixin)", name)}


@pytest.mark.parametrize("row", ["flux.2 transformer. diffusers", "hunyuan-video diffusion_model. first"])
def test_what_nothing_public_shows_of_comfyui_is_not_told(row, tmp_path):
    met = ROWS[row]
    path = bare(tmp_path / "a.safetensors", tensors(met, 0, around=True))
    assert {finding.effect for finding in lm.check(path, "comfyui")} == {"unknown"}


def test_every_row_has_a_verdict_with_its_oracle():
    said = {c: [reads(c, met) for met in ROWS.values()] for c in ("diffusers", "comfyui")}
    assert None not in said["diffusers"]
    assert {oracle("diffusers", met) for met in ROWS.values()} == {LOADERS, LOADERLESS}
    assert WITHOUT == {met.family.name for met in ROWS.values()} - MIXINS.keys()
    assert all((oracle("comfyui", m) == "unverified") is (reads("comfyui", m) is None) for m in ROWS.values())
    assert said["comfyui"].count(None) * 10 <= len(ROWS)


@pytest.mark.parametrize("consumer", ["diffusers", "comfyui"])
@pytest.mark.parametrize(
    "key", ["diffusion_model.foo.0.bar.q", "transformer.foo.0.q", "blocks.0.self_attn.q"]
)
def test_of_a_model_that_nobody_knows_nothing_can_be_told(consumer, key, tmp_path):
    """Also where the names are those of a model, as Wan's, but not the sizes."""
    pair = {f"{key}.lora_A.weight": np.ones((4, 32)), f"{key}.lora_B.weight": np.ones((96, 4))}
    save_file(pair | {f"{key}.alpha": np.array(4.0)} if key[0] != "t" else pair, tmp_path / "a.safetensors")

    (finding,) = lm.check(tmp_path / "a.safetensors", consumer)

    assert finding.effect == "unknown"
    assert "no image model that is known here" in finding.sentence


UNREAD = [
    (consumer, row)
    for consumer in ("diffusers", "comfyui")
    for row, met in ROWS.items()
    if met.dialect != "peft" and reads(consumer, met) is False and met.family.name in MIXINS
]


@pytest.mark.parametrize(
    ("consumer", "row"),
    [case if i % 6 == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(UNREAD)],
)
def test_what_is_offered_is_loaded_as_it_is_meant(consumer, row, tmp_path, capsys):
    """The command of the finding is run on the file; diffusers' own loader takes what it makes."""
    pytest.importorskip("diffusers")
    path, values = file(tmp_path, row)
    commands = {finding.command for finding in lm.check(path, consumer)}
    (command,) = commands
    _, *words = shlex.split(command)
    assert Cli(capsys)(*words).code == 0, command
    assert not [f for f in lm.check(words[-1], consumer) if f.effect != "unknown"]
    if consumer == "diffusers":
        wanted = factors(ROWS[row], values)
        found = loaded(ROWS[row].family, load_file(words[-1]))
        assert found.keys() == wanted.keys()
        for name, (up, down) in wanted.items():
            np.testing.assert_allclose(found[name][0] @ found[name][1], up @ down, atol=1e-4)


@pytest.mark.parametrize(
    ("stem", "effects"),
    [
        ("lora_te_layers_0_self_attn_q_proj", {"unknown"}),
        ("text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj", set()),
    ],
)
def test_comfyui_reads_a_language_model_that_encodes_text_by_the_names_of_its_tensors(
    stem, effects, tmp_path
):
    kohya = stem.startswith("lora_")
    met = next(m for m in ROWS.values() if m.family.name == "cosmos" and (m.dialect == "kohya") is kohya)
    ends = zip(met.ends, ((2, 12), (12, 2)), strict=True)
    text = {f"{stem}{end}": np.ones(shape, "f4") for end, shape in ends}
    text |= {f"{stem}.alpha": np.array(1.0, "f4")} if kohya else {}
    path = bare(tmp_path / "a.safetensors", plain(met) | text, {"modelspec.architecture": "anima"})
    assert {finding.effect for finding in lm.check(path, "comfyui")} == effects


TEXTS = {  # family -> keys of text encoders beside its model, and which of them diffusers takes
    "cosmos": ("text_encoder.layers.0.self_attn.q_proj",),
    "lumina-2": ("text_encoder.layers.0.self_attn.q_proj",),
    "sd3": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders_load_where_diffusers_loader_has_a_place_for_them(name, tmp_path):
    pipeline = pytest.importorskip("diffusers.loaders.lora_pipeline")
    loadable = getattr(pipeline, f"{MIXINS[name]}LoraLoaderMixin")._lora_loadable_modules
    row = next(row for row, met in ROWS.items() if met.family.name == name and met.spelling == "transformer.")
    for stem in TEXTS[name]:
        ends = zip(("A", "B"), ((2, 12), (12, 2)), strict=True)
        text = {f"{stem}.lora_{end}.weight": np.ones(shape, "f4") for end, shape in ends}
        path = bare(tmp_path / "a.safetensors", plain(ROWS[row]) | text, {"modelspec.architecture": name})
        ignored = [found for found in lm.check(path, "diffusers") if stem in found.sentence]
        assert bool(ignored) is (stem.partition(".")[0] not in loadable)
