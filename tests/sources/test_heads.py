"""Heads, embeddings and token rows as pairs: PEFT with the pairs computes what it does with the whole."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.adapters.adapter import Held
from loramerge.sources.heads import as_pairs
from tests.helpers.files import Cli
from tests.helpers.models import random_model, save_model
from tests.helpers.tiny_models import (
    FLIPPED,
    QUIET,
    base,
    distance,
    gpt2,
    llama,
    load_adapters,
    logits,
    peft,
    torch,
)

pytestmark = [*QUIET, FLIPPED, pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")]
PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def tied():
    model = llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def trained(path, make, seed, **config):
    """An adapter with random values in all that it trains."""
    model = peft.get_peft_model(base(make), peft.LoraConfig(**{**PLAIN, **config}))
    randomness = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=randomness)
    model.save_pretrained(path, save_embedding_layers=False)
    return path


TRAINED = {
    "token rows": (llama, {"trainable_token_indices": {"embed_tokens": [3, 17]}}),
    "token rows of a tied model": (tied, {"trainable_token_indices": [3, 17]}),
    "a head": (llama, {"modules_to_save": ["lm_head"]}),
    "an embedding": (llama, {"modules_to_save": ["embed_tokens"]}),
    "both": (llama, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "a full matrix": (llama, {"modules_to_save": ["down_proj"]}),
    "another naming": (gpt2, {"target_modules": ["c_attn"], "modules_to_save": ["wte"]}),
}  # fmt: skip


# A kind from the wild: C4, heads and rows as pairs.
@pytest.mark.parametrize("name", TRAINED)
def test_pairs_act_as_the_whole_did(name, tmp_path):
    make, config = TRAINED[name]
    base(make).save_pretrained(tmp_path / "base")
    source = trained(tmp_path / "a", make, 1, **config)
    merge = lm.combine([source], heads_as_lora=tmp_path / "base", out=tmp_path / "m")
    assert not merge.adapter.extras
    if name == "another naming":  # an embedding that is tied to the head: PEFT gives the head no pair
        return
    wanted, found = (logits(load_adapters(make, [place])) for place in (source, tmp_path / "m"))
    assert distance(found, wanted) < 1e-5
    assert distance(wanted, logits(base(make))) > 0.01
    assert lm.check(tmp_path / "m", "vllm", max_rank=64) == []


def test_two_sources_of_which_one_trains_the_head_and_one_has_a_pair_of_it(tmp_path):
    base(llama).save_pretrained(tmp_path / "base")
    whole = trained(tmp_path / "a", llama, 1, modules_to_save=["lm_head"])
    pair = trained(tmp_path / "b", llama, 2, target_modules=["q_proj", "lm_head"])
    with pytest.raises(lm.IncompatibleError, match="heads_as_lora="):
        lm.combine([whole, pair], extras="first")
    merge = lm.combine([whole, pair], "linear", heads_as_lora=tmp_path / "base")
    before = base(llama).lm_head.weight.detach().numpy().astype(float)
    after = load_file(whole / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    (own,) = (u.dense() for t, u in lm.load(pair).items() if t.path == "lm_head")
    np.testing.assert_allclose(merge.adapter["lm_head"].dense(), after - before + own, atol=1e-5)


def test_rows_that_did_not_change_cost_no_rank(tmp_path):
    base(llama).save_pretrained(tmp_path / "base")
    source = trained(tmp_path / "a", llama, 1, trainable_token_indices={"embed_tokens": [3, 17, 5]})
    found = lm.combine([source], heads_as_lora=tmp_path / "base", profile="compact").adapter
    ranks = {target.path: slot.rank for target, slot in found.slots.items()}
    assert ranks.pop("model.embed_tokens") == 3
    assert set(ranks.values()) == {2}


def test_a_smaller_rank_says_what_it_loses(tmp_path):
    base(llama).save_pretrained(tmp_path / "base")
    source = trained(tmp_path / "a", llama, 1, modules_to_save=["lm_head"])
    merge = lm.resize(source, rank=4, heads_as_lora=tmp_path / "base")
    assert 0.05 < merge.report.energy_lost < 1
    exact = lm.combine([source], heads_as_lora=tmp_path / "base").adapter["lm_head"].dense()
    s = np.linalg.svd(exact, compute_uv=False)
    lost = np.linalg.norm(exact - merge.adapter["lm_head"].dense())
    assert lost == pytest.approx(np.sqrt((s[4:] ** 2).sum()), rel=1e-4)


def test_every_command_takes_it_and_a_replay_asks_for_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base(llama).save_pretrained("base")
    trained(tmp_path / "a", llama, 1, trainable_token_indices={"embed_tokens": [3, 17]})
    cli = Cli(capsys)
    assert cli("convert", "a", "c", "--to", "peft", "--heads-as-lora", "base").code == 0
    assert cli("combine", "a", "-o", "m", "--heads-as-lora", tmp_path / "base").code == 0
    record = json.loads((tmp_path / "m" / "loramerge.json").read_text())
    assert record["settings"]["heads_as_lora"] == "base"
    cli("replay", "m", "-o", "again").refused(2, "--heads-as-lora", "base")
    assert cli("replay", "m", "-o", "again", "--heads-as-lora", "base").code == 0
    weights = "adapter_model.safetensors"
    assert (tmp_path / "m" / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()
    cli("combine", "c", "-o", "n")
    cli("replay", "n", "-o", "o", "--heads-as-lora", "base").refused(2, "No heads were made pairs")


def test_what_the_base_lacks_has_no_pair(tmp_path):
    base(llama).save_pretrained(tmp_path / "base")

    def scoring():
        return peft_classifier(3)

    source = trained(tmp_path / "a", scoring, 1, modules_to_save=["score"])
    with pytest.raises(lm.IncompatibleError, match="has no score"):
        lm.combine([source], heads_as_lora=tmp_path / "base")


def peft_classifier(count):
    from tests.helpers.tiny_models import transformers

    config = llama().config
    config.num_labels, config.pad_token_id = count, 0
    return transformers.LlamaForSequenceClassification(config)


def test_another_size_is_another_base(tmp_path):
    base(llama).save_pretrained(tmp_path / "base")
    model = base(llama)
    model.resize_token_embeddings(36, mean_resizing=False)
    adapter = peft.get_peft_model(model, peft.LoraConfig(**PLAIN, modules_to_save=["lm_head"]))
    adapter.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(lm.IncompatibleError, match="no pair adds rows"):
        lm.combine([tmp_path / "a"], heads_as_lora=tmp_path / "base")


HEADS = {  # what a file calls the head, and what is said of it -> whether token rows are rows of it, too
    ("language_model.lm_head", None): False,
    ("embed_out", None): False,
    ("lm_head", False): False,
    ("lm_head", True): True,  # the file holds it twice
    (None, True): True,
    (None, None): True,
    (None, False): False,
}


@pytest.mark.parametrize(("name", "says"), HEADS)
def test_token_rows_are_those_of_the_head_where_it_is_the_embedding(tmp_path, name, says):
    table = "model.embed_tokens"
    before = random_model(0, {f"{table}.weight": (24, 16)})
    if name:
        before[f"{name}.weight"] = before[f"{table}.weight"] + (not says)
    config = {"architectures": ["LlavaForConditionalGeneration"], "tie_word_embeddings": says}
    model = save_model(tmp_path / "b", before, {k: v for k, v in config.items() if v is not None})
    rows = {f"base_model.model.{table}.token_adapter.trainable_tokens_delta": Held(np.ones((1, 16), "f4"))}
    source = lm.Adapter("a", {}, extras=rows, config={"trainable_token_indices": [3]})
    (found,) = as_pairs([source], model)
    assert {target.path for target in found} == {table, *(["lm_head"] if HEADS[name, says] else [])}
