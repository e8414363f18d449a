"""A method of another package joins by an entry point, and is loaded only when it is named."""

import importlib
import json
import sys

import pytest

import loramerge
from loramerge import METHODS, combine, replay
from loramerge.algorithms import find, name_of, plugins
from loramerge.errors import UsageError
from tests.helpers.adapters import dense, distance, random_adapters
from tests.helpers.files import Cli, bare, tensors

MODULE = '''
"""A method from elsewhere."""
from dataclasses import dataclass
import loramerge as lm
from loramerge.algorithms.method import Interval, Traits, option

@dataclass(frozen=True, kw_only=True)
class Faded(lm.Cat):
    """The sum, fainter.

        ΔW = c Σ w_t ΔW_t

    Source: nobody.  Limits: none.
    """

    c: float = option(0.5, "How faint.", Interval(low=0, high=1))

    @property
    def traits(self):
        return Traits("linear", weights="additive", identity=False)

    def remix(self, grams):
        made = super().remix(grams)
        return type(made)(self.c * made.P, made.Q)

@dataclass(frozen=True, kw_only=True)
class Firm(lm.Ties):
    """TIES with other defaults, and louder.

        ΔW = c ties(ΔW_1 …)

    Source: nobody.  Limits: none.
    """

    density: float = option(0.5, "The share that is kept.", Interval(low=0, high=1, low_open=True))
    c: float = option(2.0, "How loud.", Interval(low=0))

    def weights(self, weights):
        return self.c * weights

thing = 3
'''
POINTS = """[loramerge.methods]
faded = faded_package:Faded
firm = faded_package:Firm
broken = faded_package_that_is_absent:Faded
number = faded_package:thing
linear = faded_package:Faded
"""


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package installed in a folder of the path, as pip would."""
    site = tmp_path / "site"
    info = site / "faded_package-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "faded_package.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faded-package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    plugins.installed.cache_clear()
    yield site
    plugins.installed.cache_clear()
    sys.modules.pop("faded_package", None)


SOURCES = random_adapters(1, (2, 3))


def test_it_merges_by_its_name_and_takes_its_options():
    half = combine(SOURCES, "faded", dtype="float64")
    tenth = combine(SOURCES, "faded", c=0.1, dtype="float64")
    total = dense(combine(SOURCES, "linear", dtype="float64").adapter)
    assert distance(dense(half.adapter), {k: 0.5 * v for k, v in total.items()}) < 1e-14
    assert distance(dense(tenth.adapter), {k: 0.1 * v for k, v in total.items()}) < 1e-14
    assert name_of(half.method) == "faded"


@pytest.mark.parametrize("space", ["dense", "core"])
def test_it_may_be_made_of_an_elementwise_method(space):
    options = {"space": space, "divisor": "none", "dtype": "float64"}
    firm = combine(SOURCES, "firm", c=3.0, **options)
    ties = combine(SOURCES, "ties", weights=[3.0, 3.0], density=0.5, **options)
    assert distance(dense(firm.adapter), dense(ties.adapter)) < 1e-12
    assert list(firm.method.options())[-2:] == ["scope", "c"]


def test_it_is_loaded_only_when_it_is_named(cli):
    assert cli("methods").code == 0
    assert "faded" in cli.out
    assert "of the package faded-package" in cli.out
    assert "faded_package" not in sys.modules
    assert cli("methods", "faded").code == 0
    assert "The sum, fainter." in cli.out
    assert "--c" in cli.out
    assert "faded_package" in sys.modules


def test_the_command_line_takes_its_options(cli, tmp_path):
    bare(tmp_path / "a.safetensors", tensors(1), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'})
    assert cli("combine", "a.safetensors", "--method", "faded", "--c", "0.25", "-o", "m").code == 0
    assert json.loads((tmp_path / "m" / "loramerge.json").read_text())["versions"]["faded-package"] == "1.2"
    replay("m", out="again")
    again, first = (dense(loramerge.load(name)) for name in ("again", "m"))
    assert distance(again, first) == 0.0
    assert cli("combine", "a.safetensors", "--method", "faded", "--c", "7", "-o", "n").code == 2
    assert "--c" in cli.err


def test_a_name_of_ours_stays_ours():
    assert find("linear") is METHODS["linear"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken", "of the package faded-package cannot be loaded: ModuleNotFoundError"),
        ("number", "is not a loramerge.Method: faded_package:thing is a int"),
        ("fadet", "Did you mean faded?"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        find(name)
