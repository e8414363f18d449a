"""Adapters that other people trained and other tools wrote: told truly, or refused in one sentence.

They are not in the repository. LORAMERGE_REAL_ADAPTERS names the folder that holds them.
"""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from loramerge.sources.expand import expand
from tests.helpers.files import Cli, bare, dense, read, tensors

PLACE = os.environ.get("LORAMERGE_REAL_ADAPTERS")
if not PLACE:
    pytest.skip("LORAMERGE_REAL_ADAPTERS is not set", allow_module_level=True)
ROOT = Path(PLACE).resolve()

STEP_460 = "examples_monteclora_finetuning_monteclora-roberta-mrpc_checkpoint-460"
LORA = "reads"
DIFFUSERS = "reads diffusers"
MLX = "reads mlx-lm"
NUMBERED = "reads cloneofsimo"
SAM = "SAM"
BIN = (3, "adapter_model.bin is a pickle")
FOREIGN = (1, "is not a PEFT folder. To read its file alone, name it")
PICKLED = (1, "it is not a PEFT adapter")
FOLDERS = {
    "A-gpt2/abrhaleyarefaine1997-4441abb6": LORA,
    "A-gpt2/abrhaleyarefaine1997-d81069af": LORA,
    "A-gpt2/deepbiolab-a617d7d8": LORA,
    "B-bloom560m/wujindou-227b7ea2": BIN,
    "E-roberta-base/huggingface-0fb0767f": LORA,
    f"E-roberta-base/huggingface-0fb0767f-{STEP_460}": LORA,
    "F-opt/huggingface-28fe1f1e": BIN,
    "F-opt/huggingface-28fe1f1e-tests_regression_lora_opt-350m_bnb_4bit_0.6.1": BIN,
    "F-opt/huggingface-3db9c681": BIN,
    "G-sd15-attn/catundchat-f8871a36": DIFFUSERS,
    "G-sd15-attn/huggingface-086ac9d8": DIFFUSERS,
    "H-sd15-cloneofsimo/cloneofsimo-70372bdb": FOREIGN,
    "H-sd15-cloneofsimo/cloneofsimo-90f972e1": FOREIGN,
    "H-sd15-cloneofsimo/cloneofsimo-c23803d3": FOREIGN,
    "I-cloneofsimo-pt/cloneofsimo-9d6e0b4b": PICKLED,
    "I-cloneofsimo-pt/cloneofsimo-be51b8f7": PICKLED,
    "K-sam-vit-b/MathieuNlp-69127970": FOREIGN,
    "K-sam-vit-b/MathieuNlp-75b957c1": FOREIGN,
    "M-mlx-qwen2.5-0.5b/ml-explore-d8f27a27": MLX,
    "M-mlx-qwen2.5-0.5b/wyek1n-8ad1c6c8": (1, "it holds checkpoints only"),
    "T-textual-inversion/huggingface-2913dedd": PICKLED,
    "T-textual-inversion/huggingface-4f3f2196": PICKLED,
    "T-textual-inversion/huggingface-5c3dec58": PICKLED,
    "X-adalora/huggingface-28fe1f1e": BIN,
    "X-ia3/huggingface-28fe1f1e": BIN,
    "X-ia3/huggingface-28fe1f1e-tests_regression_ia3_mlp_0.6.1": BIN,
    "X-ia3/huggingface-28fe1f1e-tests_regression_ia3_no_ff_mlp_0.6.1": BIN,
    "X-other-peft/huggingface-3ccc225e": (3, "Uni-LoRA without its indices"),
    "X-other-peft/huggingface-7738fecf": (3, "type FINEGATES"),
    "X-other-peft/huggingface-7738fecf-outputs_peft_mrpc_40_rerun_checkpoint-2300": (3, "type FINEGATES"),
    "X-peft-tiny-fixtures/huggingface-28fe1f1e": BIN,
    "X-peft-tiny-fixtures/huggingface-28fe1f1e-tests_regression_lora_emb_conv1d_0.6.1": BIN,
    "X-peft-tiny-fixtures/huggingface-28fe1f1e-tests_regression_lora_mlp_0.6.1": BIN,
    "X-peft-tiny-fixtures/huggingface-28fe1f1e-tests_regression_lora_mlp_modules_to_save_0.6.1": BIN,
}  # fmt: skip
FILES = {  # by their set; every .safetensors in it
    "A-gpt2": LORA,
    "E-roberta-base": LORA,
    "G-sd15-attn": DIFFUSERS,
    "H-sd15-cloneofsimo": NUMBERED,
    "K-sam-vit-b": SAM,
    "M-mlx-qwen2.5-0.5b": MLX,
    "X-other-peft": (3, "LoRA"),
}


def found(pattern, keep):
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if keep(path))


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def test_the_table_names_every_folder():
    assert found("[A-Z]-*/*", Path.is_dir) == sorted(FOLDERS)


@pytest.mark.parametrize("name", found("[A-Z]-*/*", Path.is_dir))
def test_a_folder_is_told_truly_or_refused(cli, name):
    cli("inspect", ROOT / name, "--json")
    hold(cli, ROOT / name / "adapter_model.safetensors", FOLDERS[name])


@pytest.mark.parametrize("name", found("[A-Z]-*/**/*.safetensors", Path.is_file))
def test_a_file_is_told_truly_or_refused(cli, name):
    cli("inspect", ROOT / name, "--json")
    hold(cli, ROOT / name, FILES[name.split("/")[0]])


@pytest.mark.parametrize("name", found("[A-Z]-*", Path.is_dir))
def test_a_folder_of_folders_stands_for_its_adapters_or_is_refused(cli, name):
    members = [path for path, _ in expand(str(ROOT / name))]
    if members == [str(ROOT / name)]:
        return cli("inspect", *members).refused(
            1, "it is not a PEFT adapter" if name[0] in "IT" else "such as "
        )
    cli("inspect", ROOT / name, "--json")
    assert len(members) == len(cli.json()["adapters"]) + len(cli.err.splitlines())
    return None


@pytest.mark.parametrize("name", found("[A-Z]-*/**/*.*", lambda p: p.suffix in (".bin", ".pt")))
def test_a_pickle_is_not_opened(cli, name):
    cli("combine", ROOT / name).refused(3, "pickle", "--allow-pickle")


PICKLED = {  # what --allow-pickle reads: (modules, rank of each, tensors beside the pairs)
    "B-bloom560m/wujindou-227b7ea2": (24, 16, 0),
    "F-opt/huggingface-28fe1f1e": (48, 8, 0),
    "F-opt/huggingface-28fe1f1e-tests_regression_lora_opt-350m_bnb_4bit_0.6.1": (48, 8, 0),
    "F-opt/huggingface-3db9c681": (24, 8, 0),
    "X-adalora/huggingface-28fe1f1e": (1, 12, 0),
    "X-peft-tiny-fixtures/huggingface-28fe1f1e": (1, 8, 0),
    "X-peft-tiny-fixtures/huggingface-28fe1f1e-tests_regression_lora_emb_conv1d_0.6.1": (2, 8, 0),
    "X-peft-tiny-fixtures/huggingface-28fe1f1e-tests_regression_lora_mlp_0.6.1": (1, 8, 0),
    "X-peft-tiny-fixtures/huggingface-28fe1f1e-tests_regression_lora_mlp_modules_to_save_0.6.1": (1, 8, 2),
}


def test_the_table_names_every_folder_with_a_pickle():
    alone = [name for name in FOLDERS if not name.startswith("X-ia3")]  # which needs its base too
    assert sorted(PICKLED) == sorted(name for name in alone if FOLDERS[name] == BIN)


@pytest.mark.parametrize("name", PICKLED)
def test_a_folder_with_a_pickle_is_read_when_allowed(cli, name):
    modules, rank, extras = PICKLED[name]
    assert cli("inspect", ROOT / name, "--allow-pickle", "--json").code == 0
    (told,) = cli.json()["adapters"]
    assert (len(told["modules"]), len(told["extras"])) == (modules, extras)
    assert {module["rank"] for module in told["modules"]} == {rank}
    assert all(0.1 < module["norm"] < 1000 for module in told["modules"])


def hold(cli, path, expected):
    """What was printed must be this refusal, or agree with an independent reading of the file."""
    if expected == DIFFUSERS:
        assert cli.code == 0
        (told,) = cli.json()["adapters"]
        assert told["format"] == "a diffusers LoRA"
        assert {(m["rank"], m["scale"]) for m in told["modules"]} == {(4, 1.0)}
        return hold_diffusers(told, path.parent / "pytorch_lora_weights.safetensors")
    if expected in (MLX, NUMBERED):
        assert cli.code == 0
        (told,) = cli.json()["adapters"]
        return hold_mlx(told, path) if expected == MLX else hold_numbered(told, path)
    if cli.code == 0 and isinstance(expected, tuple):  # what is in it is told, and why it is not merged
        assert expected[1] in cli.json()["adapters"][0]["refusal"]
        return cli("combine", path.parent if expected[1].startswith("type") else path).refused(expected[0])
    if expected == SAM:
        (told,) = cli.json()["adapters"]
        assert {(len(told["modules"]), module["scale"]) for module in told["modules"]} == {(24, 1.0)}
        values = read(path)
        for module in told["modules"]:
            number = int(module["name"].rpartition(".")[2])
            a, b = (values[f"w_{side}_{number:03}"].astype(float) for side in "ab")
            assert module["norm"] == pytest.approx(np.linalg.norm(b @ a), rel=1e-4, abs=1e-12)
        return None
    if expected != LORA:
        words = cli.err.splitlines()
        assert (cli.code, len(words)) == (expected[0], 1)
        assert words[0].startswith("Error: ")
        assert expected[1] in words[0]
        return None
    assert cli.code == 0
    (told,) = cli.json()["adapters"]
    config = json.loads((path.parent / "adapter_config.json").read_text())
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    root = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    values = read(path)
    pairs = {name: value for name, value in values.items() if ".lora_" in name}
    updates = dense(pairs, config["lora_alpha"] / root)
    assert [module["name"] for module in told["modules"]] == sorted(updates)
    assert told["extras"] == sorted(values.keys() - pairs.keys())
    assert told["base_model"] == config["base_model_name_or_path"]
    for module in told["modules"]:
        update = updates[module["name"]]
        assert (module["rank"], module["scale"]) == (config["r"], config["lora_alpha"] / root)
        assert module["shape"] == list(update.shape)
        assert module["norm"] == pytest.approx(np.linalg.norm(update), rel=1e-6)


def hold_mlx(told, path):
    """Against lora_bᵀ @ lora_aᵀ times the scale of the config. A folder's file has mlx-lm's own name."""
    path = path if path.is_file() else path.parent / "adapters.safetensors"
    config = json.loads((path.parent / "adapter_config.json").read_text())
    parameters, values = config["lora_parameters"], read(path)
    assert (told["format"], told["base_model"], told["extras"]) == ("an mlx-lm adapter", config["model"], [])
    assert len(told["modules"]) == len(values) // 2
    for module in told["modules"]:
        update = (
            parameters["scale"] * (values[f"{module['name']}.lora_a"] @ values[f"{module['name']}.lora_b"]).T
        )
        assert (module["rank"], module["scale"]) == (parameters["rank"], parameters["scale"])
        assert module["shape"] == list(update.shape)
        assert module["norm"] == pytest.approx(np.linalg.norm(update), rel=1e-4)


def hold_numbered(told, path):
    """Against up @ down of every number; the second attention of a block reads the text, 768 wide."""
    values = read(path)
    numbers = {key.rpartition(":")[0] for key in values if key.endswith(":up")}
    assert told["format"] == "a cloneofsimo LoRA"
    assert told["extras"] == sorted(key for key in values if key.startswith("<"))
    norms = sorted(np.linalg.norm(values[f"{n}:up"].astype("f4") @ values[f"{n}:down"]) for n in numbers)
    assert sorted(module["norm"] for module in told["modules"]) == pytest.approx(norms, rel=1e-3)
    wide = {m["name"] for m in told["modules"] if m["name"].startswith("unet") and m["shape"][1] == 768}
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in wide)
    assert (len(wide), len(told["modules"])) == (32, 192)


CONFIGS = found("configs/*.json", lambda p: p.name != "index.json")


def test_there_are_configs():
    assert len(CONFIGS) > 100


@pytest.mark.parametrize("name", CONFIGS)
def test_a_real_config_beside_small_tensors_is_handled_or_refused(cli, tmp_path, name):
    config = json.loads((ROOT / name).read_text())
    rank = config.get("r") if isinstance(config.get("r"), int) else 2
    folder = tmp_path / "a"
    folder.mkdir()
    shutil.copy(ROOT / name, folder / "adapter_config.json")
    bare(folder / "adapter_model.safetensors", tensors(rank=max(1, rank)))
    plain = config.get("peft_type") == "LORA" and not any(map(config.get, ODD))
    cli("inspect", folder, "--json")
    refused = cli.code == 0 and "refusal" in cli.json()["adapters"][0]
    if refused:
        cli("combine", folder, "-o", "m")
    if cli.code == 0:
        assert plain
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        assert {module["scale"] for module in cli.json()["adapters"][0]["modules"]} == {
            config["lora_alpha"] / root
        }
        assert cli("combine", folder, folder, "-o", "m").code == 0
    else:
        assert cli.code in (1, 3)
        assert cli.err.startswith("Error: ")
        assert not plain or isinstance(config.get("init_lora_weights"), str) or config.get("rank_pattern"), (
            cli.err
        )


ODD = ("use_dora", "use_qalora", "enable_lora", "target_parameters",
       "alora_invocation_tokens", "arrow_config", "use_bdlora", "kasa_config")  # fmt: skip


GPT2 = [ROOT / "A-gpt2" / name for name in ("abrhaleyarefaine1997-d81069af", "abrhaleyarefaine1997-4441abb6")]


@pytest.fixture(scope="module")
def gpt2():
    """The dense updates of both, by an independent reading."""
    made = []
    for source in GPT2:
        config = json.loads((source / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
        made.append(dense(read(source / "adapter_model.safetensors"), scale))
    return made


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        (["--method", "linear"], 16),
        (["--method", "linear", "--weights", "0.7,-0.3"], 16),
        (["--method", "svd"], 8),
        (["--method", "svd", "--rank", "16"], 16),
        (["--method", "lego", "--rank", "8"], 8),
        (["--method", "lego", "--rank", "16"], 16),
    ],
    ids=str,
)
def test_the_gpt2_adapters_merge(cli, tmp_path, gpt2, options, rank):
    assert cli("combine", *GPT2, *options, "-o", "m", "--json").code == 0
    report = cli.json()
    weights = [0.7, -0.3] if "--weights" in options else [1.0, 1.0]
    total = {path: weights[0] * gpt2[0][path] + weights[1] * gpt2[1][path] for path in gpt2[0]}
    made = json.loads((tmp_path / "m/adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"], made["base_model_name_or_path"]) == (rank, rank, "gpt2")
    with safe_open(tmp_path / "m/adapter_model.safetensors", framework="numpy") as file:
        assert len(file.keys()) == 2 * len(total) == 72
    merged = dense(read(tmp_path / "m/adapter_model.safetensors"))
    apart = sum(np.linalg.norm(merged[path] - total[path]) ** 2 for path in total)
    whole = sum(np.linalg.norm(total[path]) ** 2 for path in total)
    if rank == 16:
        assert math.sqrt(apart / whole) < 1e-6, "all units: the sum itself, as float32 holds it"
    assert report["energy_lost"] == pytest.approx(apart / whole, rel=1e-4, abs=1e-12)
    if options == ["--method", "svd"]:
        best = sum((np.linalg.svd(update, compute_uv=False)[8:] ** 2).sum() for update in total.values())
        assert apart == pytest.approx(best, rel=1e-5)


def test_the_heads_of_the_roberta_checkpoints_are_averaged_when_told(cli, tmp_path):
    both = sorted((ROOT / "E-roberta-base").iterdir())
    cli("combine", *both).refused(3, "classifier", "would be lost", "--extras")
    assert cli("combine", *both, "--method", "average", "--extras", "average", "-o", "m").code == 0
    first, second, merged = (read(p / "adapter_model.safetensors") for p in (*both, tmp_path / "m"))
    heads = sorted(key for key in first if "classifier" in key)
    assert heads == sorted(key for key in merged if "lora" not in key)
    for key in heads:
        np.testing.assert_allclose(merged[key], (first[key] + second[key]) / 2, rtol=1e-6, atol=1e-9)
    assert json.loads((tmp_path / "m/adapter_config.json").read_text())["modules_to_save"] == ["classifier"]


def hold_diffusers(told, path):
    """‖up @ down‖ of every module, paired by sorting the two lists of keys."""
    values = read(path)
    sides = [[values[name] for name in sorted(values) if f".{side}." in name] for side in ("up", "down")]
    norms = sorted(float(np.linalg.norm(up @ down)) for up, down in zip(*sides, strict=True))
    assert sorted(m["norm"] for m in told["modules"]) == pytest.approx(norms, rel=1e-5, abs=1e-12)


def test_the_mlx_adapters_merge_although_they_adapt_other_layers(cli, tmp_path):
    places = [ROOT / "M-mlx-qwen2.5-0.5b" / name for name in (
        "ml-explore-d8f27a27/adapters.safetensors", "wyek1n-8ad1c6c8/0000200_adapters.safetensors"
    )]  # fmt: skip
    assert cli("combine", *places, "--method", "cat", "--weights", "0.5,2", "-o", "m").code == 0
    merged, total = read(tmp_path / "m/adapters.safetensors"), {}
    for path, weight in zip(places, (0.5, 2), strict=True):
        scale = json.loads((path.parent / "adapter_config.json").read_text())["lora_parameters"]["scale"]
        values = read(path)
        for module in {key.rpartition(".")[0] for key in values}:
            update = weight * scale * values[f"{module}.lora_a"] @ values[f"{module}.lora_b"]
            total[module] = total.get(module, 0) + update
    assert {key.rpartition(".")[0] for key in merged} == set(total)
    for module, update in total.items():
        made = merged[f"{module}.lora_a"] @ merged[f"{module}.lora_b"]
        np.testing.assert_allclose(made, update, rtol=1e-3, atol=1e-6)


def test_numbered_adapters_merge_number_by_number(cli, tmp_path):
    places = sorted((ROOT / "H-sd15-cloneofsimo").glob("*/*.safetensors"))
    out = tmp_path / "m.safetensors"
    assert cli("combine", *places, "--method", "cat", "--extras", "first", "-o", out).code == 0
    merged, sources = read(out), [read(path) for path in places]
    for number in (0, 4, 6, 143):
        wide = [
            {side: each[f"unet:{number}:{side}"].astype("f8") for side in ("up", "down")} for each in sources
        ]
        made = merged[f"unet:{number}:up"] @ merged[f"unet:{number}:down"]
        np.testing.assert_allclose(
            made, sum(each["up"] @ each["down"] for each in wide), rtol=1e-3, atol=1e-6
        )
    assert {"<s1>", "<s2>"} <= set(merged)


def test_adapters_of_one_script_merge_by_their_numbers(cli, tmp_path):
    files = [str(ROOT / name) for name in found("K-sam-vit-b/*/*.safetensors", Path.is_file)]
    assert cli("combine", *files, "--weights", "2,-1", "-o", tmp_path / "m.safetensors").code == 0, cli.err
    made, (first, second) = read(tmp_path / "m.safetensors"), map(read, files)
    assert made.keys() == first.keys()
    for number in range(24):
        product, *own = (v[f"w_b_{number:03}"] @ v[f"w_a_{number:03}"] for v in (made, first, second))
        np.testing.assert_allclose(product, 2 * own[0] - own[1], atol=1e-5)
