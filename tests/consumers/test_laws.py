"""What holds for every program that loads adapters: a new row of the table is held to it by itself."""

import json
import re
import shlex
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

import loramerge as lm
from loramerge.cli import COMMANDS, loramerge
from loramerge.consumers import CONSUMERS, meant
from loramerge.consumers.check import facts_of
from loramerge.consumers.consumer import NOUNS
from loramerge.consumers.facts import SCALING, SPECIAL, Module
from loramerge.formats.dialects import DIALECTS, FORMATS, named
from loramerge.formats.peft.names import UNKNOWN
from tests.consumers.hostile import HOSTILE
from tests.consumers.inputs import BASE
from tests.consumers.test_families import file as family
from tests.consumers.test_formats import FILES
from tests.helpers.files import bare, folder
from tests.helpers.samples import LAYERS, SPELLINGS, adapter

ALL = [*FORMATS, *(name for name, d in DIALECTS.items() if not d.writes)]
LOADS = [(name, format) for name, consumer in CONSUMERS.items() for format in consumer.formats]
READS = [(name, dialect) for name, consumer in CONSUMERS.items() for dialect in consumer.dialects]
FOREIGN = [(name, d) for name, consumer in CONSUMERS.items() for d in ALL if d not in consumer.dialects]
MLX = {
    "fine_tune_type": "lora",
    "num_layers": 1,
    "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0},
}


def written(tmp_path, format, rank=2, size=None):
    """A plain adapter in a format, where its programs look for it."""
    layers = {target: size or shape for target, shape in LAYERS[format]["linear"].items()}
    out = tmp_path / (f"{format}.safetensors" if named(format).weights is None else format)
    lm.save(adapter(layers, [rank]), out, format=format)
    if format == "peft":  # of which servers want to know the model
        said = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": BASE}))
    return out


def example(dialect):
    """A file of a format; NOLA's holds no factors."""
    return FILES["NOLA"][1] if dialect == "nola" else SPELLINGS[dialect].file()


def told(tmp_path, dialect, values, name="a"):
    """Tensors in the names of a format, with the config that says the scale where the format has one."""
    if dialect == "peft":
        changes = {"lora_alpha": 2, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": BASE}
        return folder(tmp_path / name, values, **changes)
    if dialect != "mlx":
        return bare(tmp_path / f"{name}.safetensors", values)
    (tmp_path / name).mkdir()
    bare(tmp_path / name / "adapters.safetensors", values)
    (tmp_path / name / "adapter_config.json").write_text(json.dumps(MLX))
    return tmp_path / name


def parsed(command):
    """Our own command line takes it, without doing anything."""
    program, *words = shlex.split(command.replace("--alpha A", "--alpha 8"))
    assert program == "loramerge"
    name, subcommand, rest = loramerge.resolve_command(loramerge.make_context(program, list(words)), words)
    subcommand.make_context(name, rest)


def check_sentences(consumer, found):
    """Each finding is of this consumer, names it, is a whole sentence, and what it offers can be typed."""
    for finding in found:
        assert finding.consumer == consumer
        assert finding.effect in ("rejects", "scales", "ignores", "unknown")
        assert finding.sentence.startswith(f"{CONSUMERS[consumer].title} ")
        assert finding.sentence.endswith(".")
        assert (finding.sentence + finding.mend + finding.command).isprintable()
        if finding.command:
            parsed(finding.command)


@pytest.mark.parametrize("name", CONSUMERS)
def test_what_a_program_declares_is_of_the_words_that_there_are(name):
    consumer = CONSUMERS[name]
    assert consumer.name == name
    assert consumer.formats, "what is mended is written in one of them"
    assert set(consumer.formats) <= set(FORMATS) & set(consumer.dialects)
    assert {*consumer.dialects, *consumer.asked, *consumer.partly} <= {UNKNOWN, *ALL}
    assert set(consumer.partly) <= set(consumer.dialects)
    assert set(consumer.dialects) - set(consumer.partly) <= set(consumer.asked)
    assert consumer.rejects | consumer.heeds <= set(SPECIAL)
    assert not consumer.rejects & consumer.heeds
    assert set(consumer.reads) <= set(SCALING)
    assert set(consumer.lacks) <= set(NOUNS)
    assert consumer.scale.__doc__
    assert all(map(re.compile, consumer.beside.values()))
    for format in consumer.formats:
        assert named(format).weights is not None if consumer.folder else named(format).single
    if consumer.max_rank is not None:
        assert consumer.rank_option
    if consumer.rank_choices:
        assert list(consumer.rank_choices) == sorted(consumer.rank_choices)
        assert consumer.max_rank in consumer.rank_choices


def test_every_format_is_for_somebody():
    for dialect in (UNKNOWN, *ALL):
        assert [c for c in CONSUMERS.values() if dialect in c.asked], dialect


@pytest.mark.parametrize(("name", "format"), LOADS)
def test_a_plain_adapter_loads_in_every_format_that_is_said_to_load(name, format, tmp_path):
    place = written(tmp_path, format)
    assert facts_of(place).dialect == format
    assert CONSUMERS[name] in meant(facts_of(place))
    assert lm.check(place, name) == []
    out = tmp_path / f"merged{place.suffix}"
    lm.combine([place], consumer=name, format=format, out=out)
    assert lm.check(out, name) == []


@pytest.mark.parametrize(("name", "dialect"), READS)
def test_names_that_a_program_reads_are_never_foreign_to_it(name, dialect, tmp_path):
    found = lm.check(told(tmp_path, dialect, example(dialect)), name)
    told_of = [each for each in found if each.effect != "unknown"]  # a toy of no model that is known
    assert dialect in CONSUMERS[name].partly or not told_of
    assert not [each for each in found if "finds nothing to load" in each.sentence]
    check_sentences(name, found)


@pytest.mark.parametrize(("name", "dialect"), FOREIGN)
def test_names_that_a_program_does_not_read_are_one_finding(name, dialect, tmp_path):
    (finding,) = lm.check(told(tmp_path, dialect, example(dialect)), name)
    assert finding.effect == "rejects"
    assert "finds nothing to load: it reads the names of " in finding.sentence
    assert named(dialect).words in finding.sentence
    assert all(named(own).tool in finding.sentence for own in CONSUMERS[name].dialects)
    check_sentences(name, [finding])


def test_what_is_loaded_in_part_has_a_file_that_shows_it(tmp_path):
    """A format stands in `partly` for a reason: there is a file of it with a finding of its own."""
    files = [bare(tmp_path / f"{n}.safetensors", values) for n, (_, values, *_) in enumerate(FILES.values())]
    files += [write(tmp_path / f"hostile{n}") for n, write in enumerate(HOSTILE.values())]
    files.append(family(tmp_path, "wan no prefix first")[0])
    facts = [facts_of(place) for place in files]
    for consumer in CONSUMERS.values():
        for dialect in consumer.partly:
            own = [consumer.findings(each) for each in facts if each.dialect == dialect]
            assert any(f.effect != "scales" for found in own for f in found), (consumer.name, dialect)


@pytest.mark.parametrize("name", CONSUMERS)
def test_every_finding_is_a_sentence_and_its_command_can_be_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, write in enumerate(HOSTILE.values()):
        check_sentences(name, lm.check(write(tmp_path / str(number)), name))


@pytest.mark.parametrize(("name", "format"), LOADS)
def test_the_largest_rank_is_held_to_the_limit_that_is_declared_or_given(name, format, tmp_path):
    consumer = CONSUMERS[name]
    for limit, given in {consumer.max_rank: None, 5: 5}.items():
        if limit is None:
            continue
        kept, above = (written(tmp_path / str(r), format, r, (40, 40)) for r in made(tmp_path, limit))
        assert lm.check(kept, name, max_rank=given) == []
        (finding,) = lm.check(above, name, max_rank=given)
        assert finding.effect == "rejects"
        assert f"rank {limit + 1} is above {limit}, " in finding.sentence
        assert consumer.rank_option in finding.mend
        check_sentences(name, [finding])


def made(tmp_path, limit):
    """Two ranks, each with a folder of its name."""
    for rank in (limit, limit + 1):
        (tmp_path / str(rank)).mkdir()
        yield rank


@pytest.mark.parametrize("name", CONSUMERS)
def test_the_settings_that_a_program_reads_decide_its_scale_and_no_others_do(name):
    consumer, module = CONSUMERS[name], Module("model.layers.0.self_attn.q_proj", 4)
    plain = {"r": 4, "lora_alpha": 8, "lora_parameters": {"scale": 2.0}}
    changes = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6}}
    assert changes.keys() == set(SCALING)
    before = consumer.scale(plain, module)
    for setting, value in changes.items():
        after = consumer.scale(plain | {setting: value}, module)
        assert (after != before) == (setting in consumer.reads), setting


@pytest.mark.parametrize(("name", "format"), LOADS)
def test_a_tensor_beside_the_pairs_is_kept_as_declared_or_told_by_its_key(name, format, tmp_path):
    spelling = SPELLINGS[format]
    key = "base_model.model.norm.weight" if format == "peft" else "strange.weight"
    found = lm.check(told(tmp_path, format, spelling.file() | {key: np.ones(3, "f4")}), name)
    if CONSUMERS[name].keeps(key):
        assert found == []
    else:
        assert any(key in finding.sentence for finding in found)


@pytest.mark.parametrize("what", ["nothing", "a head", "alphas alone", "a strange tensor"])
@pytest.mark.parametrize(("name", "dialect"), READS)
def test_files_without_a_pair_never_load(name, dialect, what, tmp_path):
    spelling = SPELLINGS[dialect]
    values = {
        "nothing": {},
        "a head": {f"{spelling.prefix}score.weight": np.ones((2, 3), "f4")},
        "alphas alone": {f"{spelling.module}.alpha": np.float32(2)},
        "a strange tensor": {f"{spelling.module}.strange": np.ones(3, "f4")},
    }[what]
    found = lm.check(told(tmp_path, dialect, values), name)
    assert found
    assert all(CONSUMERS[name].title in finding.sentence for finding in found)
    assert not any(finding.command for finding in found)


def test_the_command_line_offers_every_program_and_knows_its_limit():
    asked = []
    for command in COMMANDS:
        options = getattr(import_module(f"loramerge.cli.{command}"), command).params
        asked += [(o.type.choices, command) for o in options if "--for" in o.opts]
        for option in (o for o in options if "--max-rank" in o.opts):
            for consumer in CONSUMERS.values():
                limit = consumer.max_rank and f"{consumer.max_rank} for {consumer.title}"
                assert not limit or limit in option.help, command
    assert len(asked) >= 3
    assert all(list(choices) == list(CONSUMERS) for choices, _ in asked)


def test_their_names_are_known_without_loading_them():
    probe = (
        "import sys, loramerge.consumers as c; list(c.CONSUMERS); print([m for m in sys.modules if m in WHO])"
    )
    who = ("numpy", "loramerge.consumers.consumer", "loramerge.consumers.peft", "loramerge.formats")
    done = subprocess.run(
        [sys.executable, "-c", f"WHO = {who}; {probe}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
