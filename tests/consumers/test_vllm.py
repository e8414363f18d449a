"""vLLM's own loader, out of its wheel: it accepts what we say it accepts, at the strength we say."""

from types import SimpleNamespace

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from tests.consumers.hostile import HOSTILE
from tests.consumers.inputs import NAMES, SCALINGS, embedding, write
from tests.consumers.own_code import archive, module, only, quiet, source

pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("ignore")]
VLLM = CONSUMERS["vllm"]


@pytest.fixture
def vllm(monkeypatch):
    """(PEFTHelper, LoRAModel) of the wheel."""
    wheel = archive(f"vllm-{VLLM.version}-*.whl")
    module(monkeypatch, "vllm.logger", init_logger=quiet)
    module(monkeypatch, "vllm.config.lora", LoRAConfig=object)
    module(monkeypatch, "vllm.utils.torch_utils", PIN_MEMORY=False)
    module(monkeypatch, "vllm.model_executor.models.utils", WeightsMapper=object)
    helper = module(monkeypatch, "vllm.lora.peft_helper", source(wheel, "vllm/lora/peft_helper.py"))
    module(monkeypatch, "vllm.lora.lora_weights", source(wheel, "vllm/lora/lora_weights.py"))
    text = "from __future__ import annotations\n" + only(
        source(wheel, "vllm/lora/utils.py"),
        "_GLOBAL_LORA_ID",
        "get_lora_id",
        "parse_fine_tuned_lora_name",
        "is_base_embedding_weights",
    )
    module(monkeypatch, "vllm.lora.utils", text)
    model = module(monkeypatch, "vllm.lora.lora_model", source(wheel, "vllm/lora/lora_model.py"))
    return helper.PEFTHelper, model.LoRAModel


def load(vllm, place, max_rank=16):
    """Module -> what vLLM adds to the weight, after it has checked and loaded a folder."""
    helper = vllm[0].from_local_dir(str(place), 2048)
    helper.validate_legal(SimpleNamespace(max_lora_rank=max_rank))
    expected = {*NAMES, "embed_tokens", "experts", "up_proj"}
    model = vllm[1].from_local_checkpoint(str(place), expected, helper, device="cpu")
    return {
        path: weights.optimize().lora_b.double().numpy() @ weights.lora_a.double().numpy()
        for path, weights in model.loras.items()
    }


@pytest.mark.parametrize("more", [None, embedding(5, 4)], ids=["linear", "embedding"])
@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_it_loads_a_merge_as_it_is_meant(vllm, scaling, profile, more, tmp_path):
    places = [write(tmp_path / n, i, SCALINGS[scaling], more) for i, n in enumerate("ab")]
    merge = lm.combine(places, weights=[0.7, -0.3], consumer="vllm", profile=profile, out=tmp_path / "m")
    found = load(vllm, tmp_path / "m")
    assert found.keys() == {target.path for target in merge.adapter}
    for target in merge.adapter:
        assert np.allclose(found[target.path], merge.adapter[target].dense(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_its_scaling_rule_is_the_one_that_we_hold_it_to(vllm, scaling, tmp_path):
    facts = facts_of(write(tmp_path / "a", 0, SCALINGS[scaling]))
    helper = vllm[0].from_local_dir(str(tmp_path / "a"), 2048)
    for each in facts.modules:
        assert helper.get_rank_and_scaling(each.place)[1] == pytest.approx(VLLM.scale(facts.config, each))


@pytest.mark.parametrize("name", [name for name in HOSTILE if "mlx" not in name])
def test_it_refuses_what_we_say_it_refuses_and_nothing_else(vllm, name, tmp_path):
    place = HOSTILE[name](tmp_path / "a")
    if any(finding.effect == "rejects" for finding in lm.check(place, "vllm")):
        with pytest.raises((ValueError, TypeError, FileNotFoundError, NotADirectoryError)):
            load(vllm, place)
    else:
        load(vllm, place)
