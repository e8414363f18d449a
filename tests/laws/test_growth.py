"""Work grows with what there is, not with its square: calls are counted, so that no clock decides."""

import json
import re
import sys
import threading

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Adapter, Held, Slot
from loramerge.adapters.patterns.search import Search
from loramerge.adapters.target import Target
from loramerge.algorithms.entries.chance import own_names
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from loramerge.merge.report import PAIRS
from loramerge.sources.bundles import members
from loramerge.sources.links import check_shared
from loramerge.sources.strengths import strengthened
from loramerge.verbs.inspect import inspect
from loramerge.verbs.push import card_facts
from tests.helpers.files import bare

STEP = 4
ALLOWED = 1.35 * STEP  # n log n, from the sizes below


def calls(act):
    """How many functions are called, of Python and of C, in every thread."""
    count = [0]

    def seen(frame, event, arg):
        if event in ("call", "c_call"):
            count[0] += 1

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        act()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count[0]


def grows_evenly(make, small):
    """Make it twice as large twice; what the first call of all costs does not count."""
    acts = [make(small * STEP**i) for i in range(2)]
    acts[0]()
    few, many = map(calls, acts)
    assert many <= ALLOWED * few, f"{few} calls became {many}"


def written(folder, count, ranks=True):
    """A folder of so many modules with patterns, as `combine --profile compact` writes it."""
    values, patterns = {}, {}
    for i in range(count):
        path, rank = f"model.layers.{i // 7}.self_attn.{'qkvoabc'[i % 7]}_proj", 1 + i % 3
        values[f"base_model.model.{path}.lora_A.weight"] = np.ones((rank, 4), np.float32)
        values[f"base_model.model.{path}.lora_B.weight"] = np.ones((4, rank), np.float32)
        patterns["^" + path.replace(".", r"\.")] = rank
    folder.mkdir()
    bare(folder / "adapter_model.safetensors", values, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
    }
    config |= {"base_model_name_or_path": "tiny", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _name(number):
    return f"model.layers.{number // 7}.self_attn.{'qkvoabc'[number % 7]}_proj"


RULES = {
    "whole names": _name,
    "whole names, escaped": lambda i: "^" + re.escape(_name(i)) + "$",
    "ends": lambda i: rf"\.{i // 7}\.self_attn\.{'qkvoabc'[i % 7]}_proj$",
    "what looks around": lambda i: rf"(?!.*vision)\.{i // 7}\..*(?<=_attn)\.{'qkvoabc'[i % 7]}_(?=proj)",
    "any of some": lambda i: rf"(layers|x{i}).{i // 7}\..*\.({'qkvoabc'[i % 7]}|z{i})_",
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_grow_with_themselves_and_the_modules(tmp_path, rule):
    def make(count):
        place = written(tmp_path / str(count), count)
        rules = [lm.Rule(rule(i), rank=1 + i % 3) for i in range(count)]
        return lambda: lm.plan([place], "svd", rules=rules)

    grows_evenly(make, 60)


def test_many_rules_for_many_modules_are_within_the_budget(monkeypatch):
    """A tenth of what there is; each name is held against all rules at once."""
    monkeypatch.setattr("loramerge.adapters.patterns.search.BUDGET", 1_000_000)
    names = [_name(i) for i in range(3_000)]
    for rule in RULES.values():
        search = Search([rule(i) for i in range(1000)], "match")
        assert [search.first(name) for name in names[:1000]] == [*range(1000)]
        assert search.unmet(names) is None


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_check_grows_with_the_modules(tmp_path, consumer):
    def make(count):
        facts = facts_of(written(tmp_path / str(count), count))
        return lambda: lm.check(facts.path, consumer)

    grows_evenly(make, 40)


def test_an_inspection_grows_with_the_modules(tmp_path):
    def make(count):
        place = written(tmp_path / str(count), count)
        return lambda: str(inspect(place))

    grows_evenly(make, 40)


def test_a_card_grows_with_the_modules(tmp_path):
    def make(count):
        place = written(tmp_path / str(count), count)
        return lambda: card_facts(place, lm.load(place), "me/merged", None)

    grows_evenly(make, 40)


def test_names_for_chance_grow_with_the_sources():
    def make(count):
        names = [Counted("same" if i % 2 else f"s{i}") for i in range(count)]
        return lambda: own_names(names, range(count))

    acts = [make(100 * STEP**i) for i in range(2)]
    few, many = (compared(act) for act in acts)
    assert many <= ALLOWED * max(few, 1)


class Counted(str):
    """A name that counts how often it is compared, which no count of calls sees."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)

    def rpartition(self, sep):
        return tuple(map(Counted, str.rpartition(self, sep)))


def compared(act):
    Counted.compared = 0
    act()
    return Counted.compared


@pytest.mark.parametrize("consumer", ["peft", "vllm"])
def test_a_merge_for_a_consumer_grows_with_the_modules(tmp_path, consumer):
    def make(count):
        place = written(tmp_path / str(count), count)
        return lambda: lm.plan([place, place], "svd", rank=1, consumer=consumer, allow_unknown=True)

    grows_evenly(make, 40)


def many_sources(count, shared):
    """Sources in memory; `shared`: more units than a module has rows, so that their sum is folded."""
    size, config = (6 if shared else 4 * count), {"target_modules": ["q"], "base_model_name_or_path": "tiny"}
    rng = np.random.default_rng(0)
    one = lm.LowRank(rng.standard_normal((size, 1)), rng.standard_normal((1, size)), 1.0)
    slots = lm.Adapter.of({"layers.0.q": one, "layers.1.q": one}).slots
    return [Adapter(f"s{i}", slots, config=config) for i in range(count)]


@pytest.mark.parametrize("shared", [True, False])
def test_a_merge_grows_with_its_sources(shared):
    def make(count):
        sources = many_sources(count, shared)
        return lambda: json.dumps(lm.combine(sources, "svd", rank=1, threads=1).report.to_dict())

    grows_evenly(make, PAIRS + 10)


def test_a_table_of_pairs_is_for_few_sources():
    few, many = (lm.combine(many_sources(n, True), "svd", rank=1).report for n in (PAIRS, PAIRS + 1))
    assert (len(few.pairwise), many.pairwise) == (PAIRS, [])
    assert many.cosines == pytest.approx([1.0] * (PAIRS + 1))
    assert many.norm_ratios == pytest.approx([PAIRS + 1.0] * (PAIRS + 1))
    assert many.energy_lost == pytest.approx(0, abs=1e-9)
    assert f"{PAIRS + 1} s{PAIRS}" in str(many)


def test_facts_grow_with_tensors_that_are_no_pair(tmp_path):
    def make(count):
        heads = {f"head.{i}.weight": np.ones((2, 2), np.float32) for i in range(count)}
        place = written(tmp_path / str(count), count)
        pairs = {k: np.ones(t.shape, np.float32) for k, t in lm.load(place).extras.items()}
        bare(place / "adapter_model.safetensors", {**heads, **pairs, **_factors(count)}, {"format": "pt"})
        return lambda: (lm.check(place, "vllm"), facts_of(place).example)

    grows_evenly(make, 40)


def test_tensors_beside_the_pairs_grow_with_the_heads_of_a_config(tmp_path):
    """Comparisons inside `any` are resumed generators, which a count of calls sees."""

    def make(count):
        place = written(tmp_path / str(count), 7)
        path = place / "adapter_config.json"
        heads = [f"model.norms.{i}" for i in range(count)]
        path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": heads}))
        extras = {f"base_model.model.{head}.weight": np.ones(2, np.float32) for head in heads}
        bare(place / "adapter_model.safetensors", {**extras, **_factors(7)}, {"format": "pt"})
        return lambda: lm.combine([place, place], "svd", extras="average")

    grows_evenly(make, 100)


def test_blocks_of_many_sources_grow_with_them():
    def make(count):
        slots = Adapter.of({"model.layers.0.q": lm.LowRank(np.ones((2, 1)), np.ones((1, 2)))}).slots
        sources = [Adapter(f"s{i}", slots) for i in range(count)]
        asked = {f"s{i}": "layers=0.5" for i in range(count)}
        return lambda: strengthened(sources, asked)

    grows_evenly(make, 40)


def test_blocks_that_are_named_grow_with_those_of_the_model():
    def make(count):
        delta = lm.LowRank(np.ones((2, 1)), np.ones((1, 2)))
        source = Adapter.of({f"model.layers.{i}.q": delta for i in range(count)}, "s")
        return lambda: strengthened([source], "layers 0-3=0.5, layers 5=2")

    grows_evenly(make, 40)


def _factors(count):
    return {
        f"base_model.model.layers.{i}.q.lora_{s}.weight": np.ones((1, 1), np.float32)
        for i in range(count)
        for s in "AB"
    }


@pytest.mark.parametrize("allowed", [False, True])
def test_sources_that_share_no_module_grow_with_their_number(allowed):
    def make(count):
        update = lm.LowRank(np.ones((1, 1)), np.ones((1, 1)))
        paths = [f"model.layers.{i}.self_attn.{'qk'[i % 2]}_proj" for i in range(count)]
        apart = [Adapter.of({path: update}) for path in paths]
        return lambda: check_shared(apart, allowed)

    grows_evenly(make, 40)


APART = {  # how sources may be apart, each of another kind -> the modules of the i-th
    "names of their own beside a common one": lambda i: [
        ("model", f"layers.{i}.q"),
        ("model", f"layers.{i}.{_word(i)}"),
    ],
    "two parts of a pipeline": lambda i: [
        (("unet", "text_encoder")[i % 2], f"layers.{i}.{name}") for name in ("q", _word(i))
    ],
}


def _word(number):
    """A name without a number."""
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in str(number))


@pytest.mark.parametrize("modules", APART.values(), ids=APART)
def test_sources_of_many_kinds_that_share_no_module_grow_with_their_number(modules):
    def make(count):
        slot = Slot(Held(np.ones((1, 1))), Held(np.ones((1, 1))), 1.0)
        targets = [[Target(path, component=part) for part, path in modules(i)] for i in range(count)]
        apart = [Adapter(f"{i}", dict.fromkeys(each, slot)) for i, each in enumerate(targets)]
        return lambda: check_shared(apart, False)

    grows_evenly(make, 40)


def test_the_row_of_a_task_grows_with_the_tasks():
    def make(count):
        names = [f"t{i}" for i in range(count)]
        gate = {"name": "task", "options": {"tasks": names}}
        return lambda: members("x", {"gate": gate, "experts": names}, "t1")

    grows_evenly(make, 40)


def test_a_bundle_grows_with_the_modules(tmp_path):
    def make(count):
        place = written(tmp_path / str(count), count)
        lm.route([place, place], out=tmp_path / f"bundle{count}", threads=1)
        return lambda: lm.load_bundle(tmp_path / f"bundle{count}")

    grows_evenly(make, 100)


def test_a_session_grows_with_the_modules(tmp_path):
    def make(count):
        place = written(tmp_path / str(count), count)
        return lambda: lm.open([place, place]).combine("svd", rank=1)

    grows_evenly(make, 60)


def test_a_table_of_names_grows_with_its_rows(tmp_path):
    """Every module gets an end of its own, which `target_modules` then lists."""

    def make(count):
        place = written(tmp_path / str(count), count)
        names = {str(target): f"x{i}" for i, target in enumerate(lm.load(place))}

        def act():
            lm.plan([place], "svd", rank=1, rename=names)

        act()  # patterns are made once for a process
        return act

    grows_evenly(make, 200)
