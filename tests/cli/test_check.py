"""`loramerge check`, and `--for` of combine and resize, as a user types them."""

import pytest

from tests.consumers.hostile import HOSTILE
from tests.consumers.inputs import SCALINGS, write
from tests.helpers.files import bare, content


def test_an_adapter_that_all_load_is_said_to_be_fine(cli, tmp_path):
    cli("check", write(tmp_path / "a"))
    assert cli.code == 0
    names = ["peft", "transformers", "vllm", "sglang", "llama.cpp"]
    assert [line.split()[0] for line in cli.out.splitlines()[1:]] == names
    assert cli.out.count("loads it as it is meant") == len(names)


def test_what_is_wrong_is_one_sentence_and_one_command_to_paste(cli, tmp_path):
    write(tmp_path / "a", 0, SCALINGS["rslora"])
    cli("check", "a", "--for", "sglang", "--for", "vllm")
    assert cli.code == 3
    assert "SGLang ignores use_rslora: the adapter would act 2 times too weak." in cli.out
    (command,) = [line for line in cli.out.splitlines() if "mend: " in line]
    words = command.split("mend: ")[1].split()
    assert words == ["loramerge", "combine", "a", "--for", "sglang", "-o", "a-sglang"]
    assert cli(*words[1:]).code == 0
    assert cli("check", "a-sglang").code == 0


def test_without_for_the_tensor_names_say_who_is_asked(cli, tmp_path):
    HOSTILE["sd15"](tmp_path / "d")
    HOSTILE["mlx"](tmp_path / "m")
    assert cli("check", "d.safetensors").code == 0
    assert cli.out.startswith("d.safetensors: a diffusers LoRA in one file, 2 tensors\n")
    assert [line.split()[0] for line in cli.out.splitlines()[1:]] == ["diffusers", "comfyui"]
    assert cli("check", "m").code == 0
    assert [line.split()[0] for line in cli.out.splitlines()[1:]] == ["mlx"]


def test_json_holds_the_findings_and_nothing_else(cli, tmp_path):
    write(tmp_path / "a", 0, {"r": 24, "lora_alpha": 24}, wide=8)
    (found,) = cli("check", "a", "--for", "vllm", "--for", "peft", "--json").json()["adapters"]
    assert cli.code == 3
    assert found["source"] == "a"
    assert [row["loads"] for row in found["consumers"]] == [False, True]
    (finding,) = found["consumers"][0]["findings"]
    assert finding["effect"] == "rejects"
    assert finding["mend"] == "start it with --max-lora-rank 32, or cut it to that rank"
    assert finding["command"] == "loramerge combine a --for vllm -o a-vllm"


def test_max_rank_is_what_the_program_was_told(cli, tmp_path):
    write(tmp_path / "a", 0, {"r": 24, "lora_alpha": 24}, wide=8)
    assert cli("check", "a", "--for", "vllm", "--max-rank", 32).code == 0
    assert cli("check", "a", "--for", "sglang").code == 0
    assert cli("check", "a", "--for", "sglang", "--max-rank", 8).code == 3
    assert "rank 24 is above 8, the limit given" in cli.out
    assert "--for sglang --max-rank 8" in cli.out


def test_a_file_that_does_not_say_its_alpha_gets_a_command_with_a_place_for_it(cli, tmp_path):
    HOSTILE["one file"](tmp_path / "x")
    assert cli("check", "x.safetensors", "--for", "peft").code == 3
    assert "loramerge combine x.safetensors --for peft --alpha A -o x-peft" in cli.out
    assert "give its training alpha for A, or" in cli.out


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nowhere", 1, "nowhere"),
        ("empty", 1, "holds no file of weights (it holds no files)"),
        ("many", 1, "holds several files of weights (1.safetensors, 2.safetensors): name one of them"),
        ("cut", 1, "cut"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(cli, tmp_path, name, code, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "adapter_config.json").write_text("{}")
    for number in "12":
        bare(tmp_path / "many" / f"{number}.safetensors")
    write(tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    before = content(tmp_path)
    cli("check", name, "--for", "vllm").refused(code, words)
    assert content(tmp_path) == before


def test_the_one_file_of_a_folder_is_named_so_that_other_commands_read_it(cli, tmp_path):
    (tmp_path / "a").mkdir()
    HOSTILE["comfy"](tmp_path / "a" / "x")
    assert cli("check", "a", "--for", "diffusers").code == 3
    assert cli.out.startswith("a/x.safetensors: a ComfyUI LoRA in one file, 2 tensors\n")
    command = cli.out.splitlines()[-1].partition("mend: ")[2]
    assert cli(*command.split()[1:]).code == 0
    assert cli("check", "a/x-diffusers.safetensors", "--for", "diffusers").code == 0


def test_sentences_keep_to_a_narrow_terminal_and_commands_stay_whole(cli, tmp_path, monkeypatch):
    write(tmp_path / "a", 0, SCALINGS["patterns"])
    cli("check", "a", "--for", "sglang")
    wide = cli.out
    monkeypatch.setenv("COLUMNS", "60")
    cli("check", "a", "--for", "sglang")
    *sentences, command = cli.out.splitlines()
    assert max(len(line) for line in sentences[1:]) <= 60 < max(map(len, wide.splitlines()[1:-1]))
    assert command == wide.splitlines()[-1]
    assert cli.out.split() == wide.split()


def test_what_mends_several_findings_is_said_once(cli, tmp_path):
    HOSTILE["dora"](tmp_path / "a")
    cli("check", "a", "--for", "vllm")
    assert cli.out.count("vLLM rejects it") == 2
    assert cli.out.count("loramerge cannot rewrite it") == 1


def test_a_pickle_is_read_only_if_it_is_allowed(cli, tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    cli("check", "a", "--for", "vllm").refused(3, "--allow-pickle")


def test_a_hostile_name_is_shown_without_its_escapes(cli, tmp_path):
    change = {"model.layers.0.\x1b[31m": (2, 3)}
    from tests.helpers.files import folder, tensors

    folder(tmp_path / "a", tensors(shapes=change), modules_to_save=["\x1b]0;x\x07"])
    cli("check", "a")
    assert "\x1b" not in cli.out + cli.err


def test_combine_for_a_server_writes_a_folder_and_says_so(cli, tmp_path):
    for i, name in enumerate("ab"):
        HOSTILE["one file"](tmp_path / name).rename(tmp_path / f"{name}{i}.safetensors")
    words = ["combine", "a0.safetensors", "b1.safetensors", "--alpha", 8, "--for", "vllm"]
    cli(*words).refused(3, "for a model that is not known here", "--allow-unknown")
    assert cli(*words, "--allow-unknown").code == 0, cli.err
    assert (tmp_path / "merged" / "adapter_config.json").exists()
    assert "note: vLLM may or may not load it as it is meant" in cli.err
    cli(*words, "--allow-unknown", "-o", "m.safetensors").refused(2, "write to m instead of m.safetensors")
    words = ["combine", "merged", "--for", "vllm", "--allow-unknown", "-o", "m.safetensors", "--dry-run"]
    cli(*words).refused(2, "write to m")


def test_a_recipe_may_name_the_consumer(cli, tmp_path):
    write(tmp_path / "a", 0, {"r": 24, "lora_alpha": 24}, wide=8)
    cli("combine", "a", "--for", "vllm", "--max-rank", 8, "--print-recipe")
    assert "for: vllm\nmax_rank: 8\n" in cli.out
    (tmp_path / "recipe.yaml").write_text(cli.out)
    assert cli("combine", "--recipe", "recipe.yaml", "-o", "m").code == 0
    assert "rank 8 is the largest that vLLM loads" in cli.err
    assert cli("check", "m", "--for", "vllm", "--max-rank", 8).code == 0


def test_resize_for_a_consumer(cli, tmp_path):
    write(tmp_path / "a", 0, {"r": 24, "lora_alpha": 24}, wide=8)
    assert cli("resize", "a", "--rank", 8, "--for", "vllm", "-o", "m").code == 0
    cli("resize", "a", "--rank", 20, "--for", "vllm", "-o", "n").refused(2, "--rank 20 gives rank 20")


def test_dense_deltas_are_for_no_consumer(cli, tmp_path):
    write(tmp_path / "a", 0)
    (tmp_path / "recipe.yaml").write_text("sources: [a]\nfor: vllm\n")
    for words in (["a", "--for", "vllm"], ["--recipe", "recipe.yaml"]):
        cli("combine", *words, "--dense-delta")
        assert cli.code == 2
        assert "--for is not for --dense-delta" in cli.err
    assert not (tmp_path / "merged.safetensors").exists()
