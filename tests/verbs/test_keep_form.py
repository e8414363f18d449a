"""What `--keep-form` writes is loaded by PEFT as the weighted sum of what PEFT makes of the sources."""

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm
from loramerge.errors import IncompatibleError
from loramerge.formats.coefficients import place_of
from loramerge.formats.forms.form import numberless
from loramerge.formats.forms.table import FORMS
from loramerge.verbs import keep_form
from tests.formats.forms.make import HERE, LAYERS, TYPES, folder_of, nest
from tests.helpers.files import Cli, folder, tensors
from tests.helpers.models import save_model
from tests.helpers.systems import n

FEW = {"VERA", "RANDLORA", "TINYLORA", "IA3", "LORA"}  # one of each kind; the others are slow
LORA = {"LORA": ("LoraConfig", {"r": 3}), "LORA, biased": ("LoraConfig", {"r": 3, "lora_bias": True})}
WEIGHTS = (0.25, 1.5)


def saved(root, name):
    """A folder of this type, as PEFT saves it."""
    if name in TYPES:
        return HERE / "saved" / folder_of(name)
    import peft
    import torch

    torch.manual_seed(3)
    kind, settings = LORA[name]
    layers = nest(torch, {path: torch.nn.Linear(ins, outs) for path, (ins, outs) in LAYERS.items()})
    model = peft.get_peft_model(
        layers, getattr(peft, kind)(target_modules=["q_proj", "v_proj", "up_proj"], **settings)
    )
    with torch.no_grad(), warnings.catch_warnings():
        for value in model.parameters():
            if value.requires_grad:
                value.copy_(torch.randn_like(value))
        warnings.filterwarnings("ignore", ".*invalid shape")  # PEFT takes a bias for a shard of a factor
        model.save_pretrained(root / folder_of(name))
    return root / folder_of(name)


def groups(name, folder):
    """The groups of parts in which the ΔW of such a folder is linear."""
    kind = json.loads((folder / "adapter_config.json").read_text())
    parts = {numberless(place_of(key)[1]) for key in load_file(folder / "adapter_model.safetensors")}
    forms = [form for form in FORMS.values() if kind["peft_type"] in form.types and form.fits(kind)]
    forms = [form for form in forms if {*form.must} - {*form.shared} <= parts]
    if any(form.setting for form in forms):  # PEFT's DoRA and KaSA are LORA too
        forms = [form for form in forms if form.setting]
    return [group for form in forms for group in form.linear if set(group) & parts]


def other(where, folder, group):
    """The same adapter with other numbers in a group of parts."""
    rng, tensors = np.random.default_rng(11), load_file(folder / "adapter_model.safetensors")
    for key, value in tensors.items():
        if numberless(place_of(key)[1]) in group:
            tensors[key] = (value + rng.standard_normal(value.shape)).astype(value.dtype)
    where.mkdir()
    (where / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    save_file(tensors, where / "adapter_model.safetensors", {"format": "pt"})
    return where


def outputs(folder):
    """Module -> what an adapter adds to random inputs, in PEFT."""
    import peft
    import torch

    rng, weights = np.random.default_rng(3), load_file(HERE / "base" / "model.safetensors")
    base = nest(torch, {path: torch.nn.Linear(ins, outs) for path, (ins, outs) in LAYERS.items()})
    base.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    inputs = {path: torch.from_numpy(n(rng, 5, ins)) for path, (ins, _) in LAYERS.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*missing")
        plain = {path: base.get_submodule(path)(inputs[path]) for path in LAYERS}
        model = peft.PeftModel.from_pretrained(base, folder).eval().base_model.model
        found = {path: model.get_submodule(path)(inputs[path]) for path in LAYERS}
    return {path: (found[path] - plain[path]).double().numpy() for path in LAYERS}


def same(found, wanted, words=""):
    for path in LAYERS:
        most = 1e-5 * np.abs(wanted[path]).max()
        np.testing.assert_allclose(found[path], wanted[path], rtol=0, atol=most, err_msg=f"{words} {path}")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in (*TYPES, *LORA)
])  # fmt: skip
def test_what_is_kept_is_in_peft_the_weighted_sum_of_its_sources(name, tmp_path):
    for package in ("torch", "peft"):
        pytest.importorskip(package)
    source, base = saved(tmp_path, name), HERE / "base"
    ways = groups(name, source)
    for i, group in enumerate(ways):
        pair = [source, other(tmp_path / f"other{i}", source, group)]
        lm.combine(pair, weights=WEIGHTS, base=base, keep_form=True, out=tmp_path / f"m{i}")
        one, two, found = (outputs(each) for each in (*pair, tmp_path / f"m{i}"))
        same(found, {path: WEIGHTS[0] * one[path] + WEIGHTS[1] * two[path] for path in LAYERS}, group)
    if ways:  # also where the sources differ nowhere, and their weights do not add up to 1
        lm.combine([source, source], base=base, keep_form=True, out=tmp_path / "twice")
        same(outputs(tmp_path / "twice"), {path: 2 * value for path, value in outputs(source).items()})
        return
    with pytest.raises(IncompatibleError, match="not linear"):
        lm.combine([source, source], base=base, keep_form=True, out=tmp_path / "m")
    lm.combine([source, source], "average", base=base, keep_form=True, out=tmp_path / "m")


@pytest.mark.parametrize(("side", "size"), [("B", (6, 2)), ("A", (2, 8))])
def test_a_part_that_is_alike_is_multiplied_where_weights_do_not_add_up_to_1(side, size, tmp_path):
    """Of two modules one differs; of a pair and its bias one. All must come out at the sum of the weights."""
    rng, stem = np.random.default_rng(4), "base_model.model.layers.{}.q_proj.lora_{}"
    values = {stem.format(i, "A.weight"): n(rng, 2, 8) for i in (0, 1)}
    values |= {stem.format(i, "B.weight"): n(rng, 6, 2) for i in (0, 1)}
    values |= {stem.format(i, "B.bias"): n(rng, 6) for i in (0, 1)}
    paths = [folder(tmp_path / "a", values, r=2, lora_alpha=2, lora_bias=True)]
    values = {**values, stem.format(0, f"{side}.weight"): n(rng, *size)}
    paths.append(folder(tmp_path / "b", values, r=2, lora_alpha=2, lora_bias=True))
    lm.combine(paths, keep_form=True, out=tmp_path / "m")
    one, two, found = (load_file(path / "adapter_model.safetensors") for path in (*paths, tmp_path / "m"))
    for key, value in found.items():
        kept = f"lora_{'A' if '.1.' in key else 'AB'.replace(side, '')}.weight" in key
        wanted = one[key] if kept else one[key] + two[key]
        np.testing.assert_allclose(value, wanted, rtol=1e-6, err_msg=key)


def nola(path, rng, **changed):
    """A file of NOLA for blocks of 8 inputs, with the numbers that prove its draw at rank 2."""
    from loramerge.formats.dialects.nola import SEED, SLOPE
    from loramerge.formats.forms.draws import Draws, bound

    kept = Draws(SEED).uniform((8, 2), bound(16, SLOPE))[:, 0].copy()
    keys = {f"{which}_{what}_000": n(rng, 5) for which in ("fc1", "fc2") for what in ("alpha", "beta")}
    save_file({**keys, "fc1_A_000": kept, **changed}, path)
    return {**keys, **changed}


def test_row_17_nola_of_one_draw_is_merged_in_its_coefficients_and_stays_nola(tmp_path, capsys, monkeypatch):
    rng, base = np.random.default_rng(17), tmp_path / "base"
    monkeypatch.chdir(tmp_path)
    sizes = {"blocks.0.mlp.fc1.weight": (20, 8), "blocks.0.mlp.fc2.weight": (8, 20)}
    save_model(base, {path: n(rng, *size) for path, size in sizes.items()})
    head = {"fc_8in_3out": n(rng, 3, 8)}
    one = nola(tmp_path / "a.safetensors", rng, **head)
    same = {key: value for key, value in one.items() if "beta" in key}
    two = nola(tmp_path / "b.safetensors", rng, **same, **head)
    pair = ["a.safetensors", "b.safetensors"]
    run = Cli(capsys)
    asked = ("--weights", "0.25,0.5", "--base", base, "--extras", "first", "--keep-form")
    done = run("combine", *pair, *asked, "-o", "m.safetensors")
    assert done.code == 0, done.err
    found = load_file("m.safetensors")
    assert found.keys() == {*one, "fc1_A_000"}
    for key in ("fc1_alpha_000", "fc2_alpha_000"):
        np.testing.assert_allclose(found[key], 0.25 * one[key] + 0.5 * two[key], rtol=1e-6)
    merge = lm.load("m.safetensors", base=base)
    for target, update in merge.items():
        a, b = (lm.load(path, base=base)[target].dense() for path in pair)
        np.testing.assert_allclose(update.dense(), 0.25 * a + 0.5 * b, atol=1e-6)
    assert run("replay", "m.safetensors", "--base", base, "-o", "again.safetensors").code == 0
    again = load_file("again.safetensors")
    assert all(np.array_equal(again[key], value) for key, value in found.items())
    nola(tmp_path / "c.safetensors", rng, **head)
    apart = run("combine", pair[0], "c.safetensors", *asked, "-o", "n.safetensors")
    assert (apart.code, "not linear in alpha, beta" in apart.err) == (3, True)
    place = run("combine", *pair, *asked, "-o", "n")
    assert (place.code, "NAME.safetensors" in place.err) == (2, True)


SETTINGS = {
    "only": "q_proj", "exclude": "q_proj", "rename": {"model": "h"},
    "renormalise": True, "drop_below": 0.1, "rules": [lm.Rule("q_proj", rank=2)],
    "total_rank": 4, "dtype": "float16", "consumer": "peft",
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_the_form_decides_is_refused_by_its_name(name, tmp_path):
    pair = [HERE / "saved" / "c3a"] * 2
    with pytest.raises(lm.UsageError, match=f"{name}.* is not for keep_form|needs one weight|without a rank"):
        lm.combine(pair, keep_form=True, out=tmp_path / "m", **{name: SETTINGS[name]})
    assert not (tmp_path / "m").exists()


def test_a_dry_run_says_and_refuses_what_the_real_one_does(tmp_path, capsys):
    run, out = Cli(capsys), tmp_path / "m"
    pair = [HERE / "saved" / "c3a"] * 2
    said = [
        run("combine", *pair, "--keep-form", "-o", out, "--json", *more).json()
        for more in (["--dry-run"], [])
    ]
    assert said[0]["bytes"] == said[1]["bytes"] < (out / "adapter_model.safetensors").stat().st_size
    assert said[0].keys() == said[1].keys()
    dry = run("combine", *pair, "--keep-form", "-o", tmp_path / "n", "--dry-run")
    assert "as C3A like its sources" in dry.out
    odd = [HERE / "saved" / "vblora"] * 2
    done = [run("combine", *odd, "--keep-form", "-o", tmp_path / "n", *more) for more in ([], ["--dry-run"])]
    assert {each.code for each in done} == {3}
    assert not (tmp_path / "n").exists()
    with pytest.raises(lm.UsageError, match="combine again"):
        lm.combine(pair, keep_form=True, out=tmp_path / "k").save(tmp_path / "n")


def test_heads_follow_the_policy_of_extras(tmp_path):
    rng, key = np.random.default_rng(6), "base_model.model.score.weight"
    shared, paths = {}, []
    for side, shape in (("A", (2, 8)), ("B", (6, 2))):
        shared[f"base_model.model.layers.0.q.lora_{side}.weight"] = n(rng, *shape)
    heads = [n(rng, 3, 8) for _ in range(2)]
    for i, head in enumerate(heads):
        values = {**shared, "base_model.model.layers.0.q.lora_B.weight": n(rng, 6, 2), key: head}
        paths.append(folder(tmp_path / f"{i}", values, r=2, lora_alpha=2, modules_to_save=["score"]))
    with pytest.raises(IncompatibleError, match="score"):
        lm.combine(paths, keep_form=True, out=tmp_path / "m")
    for policy, wanted in (("first", heads[0]), ("average", (heads[0] + heads[1]) / 2), ("drop", None)):
        lm.combine(paths, keep_form=True, extras=policy, out=tmp_path / policy)
        found = load_file(tmp_path / policy / "adapter_model.safetensors")
        config = json.loads((tmp_path / policy / "adapter_config.json").read_text())
        assert config["modules_to_save"] == (None if wanted is None else ["score"])
        assert (key in found) == (wanted is not None)
        if wanted is not None:
            np.testing.assert_allclose(found[key], wanted, rtol=1e-6)


def test_a_source_that_changes_at_the_last_moment_leaves_nothing(tmp_path, monkeypatch):
    """It was read and checked; before the output appears it is saved over."""
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, tensors(seed))
    weights = tmp_path / "b" / "adapter_model.safetensors"

    def diff(*pair):
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        with weights.open("r+b") as file:
            file.write(raw)
        return real(*pair)

    real = keep_form.diff
    monkeypatch.setattr(keep_form, "diff", diff)
    asked = {"keep_form": True, "out": tmp_path / "m"}
    base = load_file(tmp_path / "a" / "adapter_model.safetensors")
    values = {key: base[key] if "lora_A" in key else each for key, each in load_file(weights).items()}
    save_file(values, weights)
    with pytest.raises(lm.SourceError, match="changed"):
        lm.combine([tmp_path / "a", tmp_path / "b"], **asked)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]
