"""In a process of its own, as a user runs it: the environment decides, and only the answer is printed."""

import json
import subprocess
import sys

import pytest

import loramerge as lm
from tests.helpers.files import folder, tensors
from tests.hub.loopback import TOKEN, files_of


def loramerge(*args, env, cwd, code="from loramerge.cli import main; main()"):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def a(hub, tmp_path):
    return hub.add("org/a", files_of(folder(tmp_path / "a", tensors(1))))


def test_merge_push_and_offline_by_the_environment(hub, a, tmp_path, environment):
    with_token = {**environment, "HF_TOKEN": TOKEN}
    done = loramerge("combine", "org/a", "-o", "m", "--push", "me/m", env=with_token, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 2), done.stderr
    assert done.stderr.splitlines()[1].startswith("pushed http")
    assert TOKEN not in done.stdout + done.stderr
    assert lm.diff("me/m", tmp_path / "m").largest == 0
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert loramerge("combine", "org/a", "-q", "-o", "n", env=offline, cwd=tmp_path).stdout == "n\n"
    done = loramerge("combine", "me/m", "-q", "-o", "o", env=offline, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_a_stored_login_is_enough(hub, tmp_path, environment):
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    folder(tmp_path / "a", tensors(1))
    done = loramerge("push", "a", "me/a", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "me/a" in hub.repos


def test_a_download_that_fails_prints_one_sentence(hub, a, tmp_path, environment):
    hub.repos["org/a"].gated = True
    done = loramerge("combine", "org/a", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_the_cache_can_be_lost_between_two_runs(hub, a, tmp_path, environment):
    assert loramerge("combine", f"org/a@{a}", "-o", "m", env=environment, cwd=tmp_path).returncode == 0
    (blob,) = (p for p in (tmp_path / "home").rglob("blobs/*") if p.stat().st_size > 1000)
    blob.unlink()
    again = loramerge("combine", f"org/a@{a}", "-o", "n", env=environment, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert lm.diff(tmp_path / "m", tmp_path / "n").largest == 0


XET_NAME = """
import hashlib, json, pathlib, sys, hf_xet
(found,) = hf_xet.hash_files(sys.argv[1:])
print(json.dumps([hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest(), found.hash]))
"""


def test_with_xet_too_it_is_sent_and_comes_back(hub, tmp_path, environment):
    """Through hf_xet into a store of its own in a folder, and out of it again."""
    pytest.importorskip("hf_xet")
    (tmp_path / "cas").mkdir()
    hub.xet, hub.large = str(tmp_path / "cas"), 20_000
    wide = tensors(1, 8, {"layers.0.q": (600, 500)})
    hub.add("org/a", files_of(folder(tmp_path / "a", wide, r=8)))
    on = {**environment, "HF_HUB_DISABLE_XET": "0", "HF_TOKEN": TOKEN}
    done = loramerge("combine", "org/a", "-o", "m", "--push", "me/m", env=on, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.got("GET", "/xet-write-token/")
    assert not hub.got("PUT", "/lfs/"), "it did not go through LFS"
    assert "adapter_model.safetensors" in hub.repos["me/m"].files()
    named = loramerge("m/adapter_model.safetensors", env=on, cwd=tmp_path, code=XET_NAME)
    hub.xet_names = dict([json.loads(named.stdout)])
    hub.asked.clear()
    done = loramerge("combine", "me/m", "-o", "n", env=on, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.got("GET", "/xet-read-token/")
    assert not hub.got("GET", "/lfs/"), "nor came it from there"
    assert lm.diff(tmp_path / "n", tmp_path / "m").largest == 0


CONSUMERS = """
import json, sys
import torch
from tests.helpers import tiny_models
from peft import PeftModel

base = lambda: tiny_models.base(tiny_models.llama)
here = tiny_models.logits(PeftModel.from_pretrained(base(), sys.argv[1]).eval())
peft = tiny_models.logits(PeftModel.from_pretrained(base(), "me/m").eval())
model = base()
model.load_adapter("me/m")
transformers = tiny_models.logits(model.eval())
plain = tiny_models.logits(base())
print(json.dumps({
    "moved": tiny_models.distance(here, plain),
    "peft": tiny_models.distance(peft, here),
    "transformers": tiny_models.distance(transformers, here),
}))
"""


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_transformers_and_peft_load_what_was_pushed(hub, login, tmp_path, environment, request):
    pytest.importorskip("torch")
    from tests.helpers import tiny_models

    for seed in (1, 2):
        config = {"r": 2 * seed, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
        tiny_models.save_adapter(
            tmp_path / f"s{seed}", tiny_models.llama, seed, config, task_type="CAUSAL_LM"
        )
    lm.combine([tmp_path / "s1", tmp_path / "s2"], weights=[0.5, 2], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    done = loramerge(
        tmp_path / "m", env={**environment, "PYTHONWARNINGS": ""}, cwd=request.config.rootpath, code=CONSUMERS
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("moved") > 0.01, "the adapter does something"
    assert found == {"peft": 0.0, "transformers": 0.0}
    assert [each for each in hub.got("GET", "/lfs/") if each.span is None]
