"""PEFT as the oracle: what we read, and what it loads of what we wrote, is the update it computes itself."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import loramerge
from tests.helpers.tiny_models import (
    FLIPPED,
    QUIET,
    base,
    deltas,
    distance,
    gpt2,
    llama,
    load_adapters,
    load_file,
    logits,
    logits_by_hand,
    noting,
    peft,
    save_adapter,
    torch,
    with_state,
)

pytestmark = QUIET

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
RSLORA = PLAIN | {"lora_alpha": 4, "use_rslora": True}
PATTERNS = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": [*ATTENTION, "down_proj"],
    "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6, "down_proj": 1},
    "alpha_pattern": {"q_proj": 3, "^model.layers.0.self_attn.o_proj": 5},
}
RANKS_ONLY = PLAIN | {"rank_pattern": {"q_proj": 2, "layers.1.*v_proj": 7}}
CONV1D = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
CONV1D_B = CONV1D | {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_fc"]}
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FALSE = {"fan_in_fan_out": False}


@dataclass(frozen=True)
class Case:
    """Two adapters of one base; `wild` overwrites fields of both config files after PEFT saved them."""

    a: dict
    b: dict
    make: object = llama
    dtypes: tuple = (F32, F32)
    wild: dict | None = None

    def save(self, folder):
        sources = zip("ab", (self.a, self.b), self.dtypes, strict=True)
        return [
            save_adapter(folder / name, self.make, seed, config, dtype, **self.wild or {})
            for seed, (name, config, dtype) in enumerate(sources, 1)
        ]


CASES = {
    "alpha over r": Case(PLAIN, PLAIN),
    "alpha is not r": Case(PLAIN | {"lora_alpha": 1}, PLAIN | {"lora_alpha": 0.7}),
    "other ranks": Case(PLAIN, PLAIN | {"r": 7}),
    "other modules": Case(PLAIN, PLAIN | {"target_modules": ["v_proj", "up_proj", "down_proj"]}),
    "no common module": Case(PLAIN, PLAIN | {"target_modules": ["gate_proj"]}),
    "other layers": Case(PLAIN | {"layers_to_transform": [0]}, PLAIN | {"layers_to_transform": [1]}),
    "some layers and modules by a regex": Case(
        PLAIN | {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
        PLAIN | {"target_modules": r".*\.1\..*_proj"},
    ),
    "rsLoRA on the first": Case(RSLORA, PLAIN | {"r": 3}),
    "rsLoRA on the second": Case(PLAIN | {"r": 3}, RSLORA),
    "rsLoRA on both": Case(RSLORA, RSLORA | {"r": 9}),
    "both patterns": Case(PATTERNS, PLAIN),
    "rank_pattern only": Case(RANKS_ONLY, PLAIN),
    "patterns and rsLoRA on both": Case(PATTERNS | {"use_rslora": True}, RANKS_ONLY | {"use_rslora": True}),
    "bfloat16 and float32": Case(PLAIN, RSLORA, dtypes=(BF16, F32)),
    "bfloat16 and float16": Case(PATTERNS, PLAIN, dtypes=(BF16, F16)),
    "Conv1D": Case(CONV1D, CONV1D_B, gpt2),
    "Conv1D that says false": Case(CONV1D, CONV1D_B, gpt2, wild=FALSE),
}
MARKS = {"Conv1D that says false": FLIPPED}
METHODS = ("linear", "cat", "svd", "lego")
WEIGHTS = {"both active": None, "0.7 and -0.3": (0.7, -0.3)}


@dataclass(frozen=True)
class Pair:
    """A case on the disk, with the logits that a merge must give for each of WEIGHTS, and the base's own."""

    case: Case
    sources: list
    expected: dict
    unadapted: object


@pytest.fixture(scope="module", params=[pytest.param(n, marks=MARKS.get(n, ())) for n in CASES], ids=CASES)
def pair(request, tmp_path_factory):
    case = CASES[request.param]
    sources = case.save(tmp_path_factory.mktemp("pair"))
    model = load_adapters(case.make, sources)
    both = logits(model)
    by_hand = logits_by_hand(model, WEIGHTS["0.7 and -0.3"])
    return Pair(case, sources, {None: both, (0.7, -0.3): by_hand}, logits(base(case.make)))


def full(method, sources):
    """Options at which a method keeps everything: the sum of the ranks where it would truncate."""
    return {"rank": sum(loramerge.load(s).rank for s in sources)} if method in ("svd", "lego") else {}


def load_merge(make, folder):
    """The merged folder as a user loads it: PEFT finds every tensor, no other, and warns of nothing."""
    with noting() as results:
        model = load_adapters(make, [folder])
    (result,) = results
    assert not result.missing_keys
    assert not result.unexpected_keys
    return model


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_merged_folder_does_what_the_adapters_do_together(pair, method, weights, tmp_path):
    options = full(method, pair.sources)
    loramerge.combine(pair.sources, method, weights=weights, out=tmp_path / "merged", **options)
    found = logits(load_merge(pair.case.make, tmp_path / "merged"))
    assert distance(found, pair.expected[weights]) < 1e-5


def test_the_adapters_matter(pair):
    both, by_hand = pair.expected.values()
    assert distance(both, pair.unadapted) > 0.1
    assert distance(by_hand, pair.unadapted) > 0.1
    assert distance(by_hand, both) > 0.1


def test_one_merged_file_holds_all_that_peft_needs(pair, tmp_path):
    path = tmp_path / "merged.safetensors"
    loramerge.combine(pair.sources, "linear", out=path)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["loramerge"])["config"]
    model = with_state(pair.case.make, config, load_file(path))
    assert distance(logits(model), pair.expected[None]) < 1e-5


def test_a_merge_of_some_modules_adapts_only_those(tmp_path):
    """`q_proj` alone would name those of all layers, and PEFT would miss tensors."""
    sources = Case(PLAIN, RSLORA).save(tmp_path)
    loramerge.combine(sources, "linear", only=r"layers\.0\.", out=tmp_path / "merged")
    found = deltas(load_merge(llama, tmp_path / "merged"), "0")
    total, _ = expected_sum(load_adapters(llama, sources), (1, 1))
    assert sorted(found) == sorted(path for path in total if "layers.0." in path)
    for path, delta in found.items():
        np.testing.assert_allclose(delta, total[path], rtol=1e-5, atol=1e-5)


READ = {
    "alpha over r": (llama, PLAIN),
    "an alpha below 1": (llama, PLAIN | {"lora_alpha": 0.25}),
    "a negative alpha": (llama, PLAIN | {"lora_alpha": -4}),
    "rsLoRA": (llama, RSLORA),
    "rsLoRA with patterns": (llama, PATTERNS | {"use_rslora": True}),
    "both patterns": (llama, PATTERNS),
    "rank_pattern only": (llama, RANKS_ONLY),
    "alpha_pattern only": (llama, PLAIN | {"alpha_pattern": {"layers.0.self_attn.q_proj": 3, "v_proj": 16}}),
    "the first of two patterns": (llama, PLAIN | {"alpha_pattern": {"layers.1.*": 2, "q_proj": 5}}),
    "all linear layers": (llama, PLAIN | {"target_modules": "all-linear"}),
    "modules by a regex": (llama, PLAIN | {"target_modules": r".*\.1\..*(up|down)_proj"}),
    "some layers": (llama, PLAIN | {"layers_to_transform": [1]}),
    "without some modules": (llama, PLAIN | {"exclude_modules": ["model.layers.0.self_attn.q_proj"]}),
    "Conv1D": (gpt2, CONV1D),
    "Conv1D with patterns": (gpt2, CONV1D | {"rank_pattern": {"attn.c_proj": 2}, "use_rslora": True}),
}


@pytest.mark.parametrize(("make", "config"), READ.values(), ids=READ)
def test_every_module_is_read_as_peft_computes_it(make, config, tmp_path):
    folder = save_adapter(tmp_path / "a", make, 1, config, torch.float64)
    expected = deltas(load_adapters(make, [folder], torch.float64), "0")
    adapter = loramerge.load(folder)
    assert sorted(str(target) for target in adapter) == sorted(expected)
    for target, update in adapter.items():
        np.testing.assert_allclose(update.dense(), expected[target.path], rtol=1e-12, atol=1e-12)


@FLIPPED
def test_a_conv1d_that_says_false_is_read_as_one_that_says_true(tmp_path):
    true = loramerge.load(save_adapter(tmp_path / "true", gpt2, 1, CONV1D))
    folder = save_adapter(tmp_path / "false", gpt2, 1, CONV1D, **FALSE)
    false, expected = loramerge.load(folder), deltas(load_adapters(gpt2, [folder]), "0")
    assert set(true) == set(false)
    for target, update in false.items():
        np.testing.assert_array_equal(update.dense(), true[target].dense())
        np.testing.assert_allclose(update.dense(), expected[target.path], rtol=1e-5, atol=1e-6)


def random_config(draw, make):
    """Any plain LoRA; the keys of rank_pattern do not overlap, since PEFT sorts them when it saves."""
    names = (
        ["c_attn", "c_proj", "c_fc"] if make is gpt2 else [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
    )
    targets = draw.sample(names, draw.randint(1, len(names)))
    layer = "h" if make is gpt2 else "layers"
    ranked = draw.sample(names, draw.randint(0, 2))
    strong = draw.sample([*names, rf"{layer}\.1\..*", f"{layer}.0.*", "nothing"], draw.randint(0, 3))
    return {
        "r": draw.randint(1, 9),
        "lora_alpha": draw.choice([1, 2, 8, 16, 0.5, 3.7]),
        "use_rslora": draw.random() < 0.5,
        "target_modules": targets,
        "rank_pattern": {name: draw.randint(1, 12) for name in ranked},
        "alpha_pattern": {name: draw.randint(1, 32) for name in strong},
        "fan_in_fan_out": make is gpt2,
    }


def expected_sum(model, weights):
    """Module path -> Σ w ΔW, and the sum of its terms' lengths."""
    total, length = {}, {}
    for name, weight in enumerate(weights):
        for path, delta in deltas(model, str(name)).items():
            total[path] = total.get(path, 0) + weight * delta
            length[path] = length.get(path, 0) + abs(weight) * np.linalg.norm(delta)
    return total, length


# Random patterns may name modules that a random adapter lacks; PEFT says so since 0.21.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("seed", range(30))
def test_random_merges_are_the_weighted_sum_of_what_peft_computes(seed, tmp_path):
    draw = random.Random(seed)
    make = draw.choice([llama, llama, gpt2])
    weights = [round(draw.uniform(-2, 2), 2) for _ in range(draw.choice([2, 2, 3]))]
    folders = [
        save_adapter(tmp_path / str(i), make, 100 * seed + i, random_config(draw, make), torch.float64)
        for i in range(len(weights))
    ]
    total, length = expected_sum(load_adapters(make, folders, torch.float64), weights)
    method = draw.choice(METHODS)
    merge = loramerge.combine(folders, method, weights=weights, **full(method, folders)).adapter
    assert sorted(str(target) for target in merge) == sorted(total)
    for target, update in merge.items():
        assert np.linalg.norm(update.dense() - total[target.path]) < 1e-7 * length[target.path]


# Where PEFT itself is wrong: measured with PEFT 0.21.2. Each test says when a later one is right.
FIXED = (
    f"PEFT {peft.__version__} has mended `add_weighted_adapter(combination_type='{{}}')`: "
    "drop this test and what the documentation says of it."
)


def merged_by_peft(sources, method):
    """Module path -> (what PEFT's own merge gives, the exact sum)."""
    model = load_adapters(llama, sources)
    model.base_model.add_weighted_adapter(["0", "1"], [1.0, 1.0], "peft", combination_type=method)
    exact, _ = expected_sum(model, (1, 1))
    return {path: (delta, exact[path]) for path, delta in deltas(model, "peft").items()}


def assert_ours_is_exact(sources, both):
    merge = loramerge.combine(sources, "cat").adapter
    for target, update in merge.items():
        exact = both[target.path][1]
        assert np.linalg.norm(update.dense() - exact) < 1e-6 * np.linalg.norm(exact)


def test_peft_cat_is_too_strong_when_the_first_adapter_is_rslora_and_ours_is_not(tmp_path):
    """The result keeps `use_rslora` of the first, with alpha = r: √r too strong (peft#3449)."""
    rank = 4 + 5
    sources = Case(RSLORA, PLAIN | {"r": 5}).save(tmp_path)
    both = merged_by_peft(sources, "cat")
    for found, exact in both.values():
        ratio = np.linalg.norm(found) / np.linalg.norm(exact)
        assert ratio != pytest.approx(1, rel=1e-4), FIXED.format("cat")
        np.testing.assert_allclose(found, exact * rank**0.5, rtol=1e-4, atol=1e-5)
    assert_ours_is_exact(sources, both)


def test_peft_linear_adds_cross_terms_and_ours_does_not(tmp_path):
    """It sums A and B apart: (B₁ + B₂)(A₁ + A₂) has B₁A₂ and B₂A₁ too, here as large as the sum itself."""
    sources = Case(PLAIN, PLAIN).save(tmp_path)
    both = merged_by_peft(sources, "linear")
    for found, exact in both.values():
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error > 1e-4, FIXED.format("linear")
        assert error == pytest.approx(1, abs=0.5)
    assert_ours_is_exact(sources, both)


def test_peft_linear_error_is_the_cross_terms(tmp_path):
    """What the last test calls cross terms is just that: with equal scales s, s (B₁A₂ + B₂A₁)."""
    sources = Case(PLAIN, PLAIN).save(tmp_path)
    a, b = (load_file(Path(source) / "adapter_model.safetensors") for source in sources)
    for path, (found, exact) in merged_by_peft(sources, "linear").items():
        down, up = (f"base_model.model.{path}.lora_{side}.weight" for side in "AB")
        cross = 2.0 * (a[up] @ b[down] + b[up] @ a[down])
        np.testing.assert_allclose(found - exact, cross.numpy(), rtol=1e-3, atol=1e-4)


def test_peft_drops_an_adapter_whose_weight_is_forgotten_and_ours_asks(tmp_path):
    """With fewer weights than adapters it leaves the last adapter out without a word."""
    sources = Case(PLAIN, PLAIN).save(tmp_path)
    model = load_adapters(llama, sources)
    model.base_model.add_weighted_adapter(["0", "1"], [1.0], "peft", combination_type="cat")
    alone = deltas(model, "0")
    for path, delta in deltas(model, "peft").items():
        message = FIXED.format("cat with too few weights")
        np.testing.assert_allclose(delta, alone[path], rtol=1e-4, atol=1e-5, err_msg=message)
    with pytest.raises(loramerge.UsageError, match="1 weights for 2 adapters"):
        loramerge.combine(sources, "cat", weights=[1.0])


def test_peft_loses_the_rank_pattern_of_its_linear_merge_and_ours_loads_again(tmp_path):
    """Its config says one rank while the tensors of a module have another (peft#3737)."""
    config = PLAIN | {"rank_pattern": {"q_proj": 2}}
    sources = Case(config, config).save(tmp_path)
    model = load_adapters(llama, sources)
    model.base_model.add_weighted_adapter(["0", "1"], [1.0, 1.0], "peft", combination_type="linear")
    said = model.peft_config["peft"]
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert (said.r, said.rank_pattern) == (4, {}), FIXED.format("linear with a rank_pattern")
    assert layer.lora_A["peft"].weight.shape[0] == 2, FIXED.format("linear with a rank_pattern")
    loramerge.combine(sources, "svd", out=tmp_path / "ours")
    load_adapters(llama, [tmp_path / "ours"])
