"""Eight small adapters that were really trained: what they can do, and what every merge of them still does.

Another CPU rounds otherwise, and a sample near a boundary then turns; the bounds leave room for that.
"""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the fixtures are run")
pytest.importorskip("peft", reason="the fixtures were trained by it")
pytest.importorskip("sklearn", reason="one domain is its digits")

import loramerge as lm
from fixtures.quality import make

KEPT = json.loads((make.HERE / "accuracy.json").read_text())
FEW = 0.031  # of 100 samples of a task; in the mean over four tasks far less turns
DOMAINS = list(make.ADAPTERS)


def test_they_are_small():
    assert sum(path.stat().st_size for path in make.HERE.iterdir() if path.is_file()) < 3e6


def test_they_differ_as_adapters_do():
    loaded = [lm.load(path) for domain in DOMAINS for path in make.adapters(domain)]
    assert len({one.rank for one in loaded}) > 3
    assert len({frozenset(target.path for target in one) for one in loaded}) > 3
    assert len({make.ADAPTERS[d][n][1] for d in DOMAINS for n in make.ADAPTERS[d]}) == 2


def test_each_is_good_at_its_task_and_the_base_is_not():
    assert make.single() == {
        domain: {name: pytest.approx(tasks, abs=FEW) for name, tasks in each.items()}
        for domain, each in KEPT["alone"].items()
    }
    for domain, each in KEPT["alone"].items():
        for name in make.ADAPTERS[domain]:
            assert each[name][name] > each["base"][name] + 0.1, name


@pytest.mark.parametrize("name", KEPT["merged"])
def test_a_merge_keeps_the_accuracy_that_it_had(name):
    domain, count, method, scale = name.split(", ")
    found = make.merged(domain, int(count), method, scale="norm" if scale == "norm" else 1.0)
    assert found == pytest.approx(KEPT["merged"][name], abs=FEW)


def test_every_method_is_held_or_cannot_merge_them():
    for domain, count in make.MERGED:
        for method in lm.METHODS:
            if f"{domain}, {count}, {method}, 1.0" not in KEPT["merged"]:
                with pytest.raises(lm.LoramergeError):
                    make.merged(domain, count, method)


def test_a_sum_of_four_is_worse_than_no_adapter_and_with_a_strength_it_is_better():
    base = np.mean(list(KEPT["alone"]["digits"]["base"].values()))
    assert KEPT["merged"]["digits, 4, linear, 1.0"] < base - 0.2
    for method in ("average", "level", "pico"):
        assert KEPT["merged"][f"digits, 4, {method}, 1.0"] > base + 0.03, method
