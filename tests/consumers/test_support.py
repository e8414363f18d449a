"""What servers have a place for, by their own code: vLLM's registry and classes, out of its wheel."""

import ast
import zipfile
from functools import cache

import pytest

from loramerge.consumers.support import HEAD, LLAMA_CPP, SGLANG, VLLM, VLLM_INPUTS, VLLM_TOKENS
from tests.consumers.own_code import archive

HOME = "vllm.model_executor.models"
TABLES = [VLLM, SGLANG, LLAMA_CPP]


@pytest.mark.parametrize("table", TABLES)
def test_no_class_has_two_verdicts(table):
    assert not table.loads & table.lacks
    assert not table.lately & (table.loads | table.lacks)
    assert all(name.isidentifier() for name in table.loads | table.lacks | table.lately)


def test_classes_whose_tokens_take_adapters_are_classes_that_load():
    assert VLLM_TOKENS | VLLM_INPUTS <= VLLM.loads | VLLM.lately
    assert not VLLM_TOKENS & VLLM_INPUTS


def test_another_head_makes_no_other_model_and_another_model_does():
    assert VLLM.named("LlamaForSequenceClassification") == "LlamaForCausalLM"
    assert LLAMA_CPP.named("GPT2Model") == "GPT2LMHeadModel"
    assert not HEAD.search("Gemma3ForConditionalGeneration")


class Code:
    """The classes of a wheel, by reading alone."""

    def __init__(self, wheel):
        self.files = zipfile.ZipFile(wheel)
        self.names = set(self.files.namelist())

    def place(self, module):
        ends = (".py", "/__init__.py")
        return next((p for end in ends if (p := module.replace(".", "/") + end) in self.names), None)

    @cache  # noqa: B019
    def module(self, module):
        """(what it imports, its classes)."""
        if (place := self.place(module)) is None:
            return {}, {}
        home = module if place.endswith("__init__.py") else module.rpartition(".")[0]
        imported, classes = {}, {}
        for node in ast.walk(ast.parse(self.files.read(place))):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, node)
            elif isinstance(node, ast.ImportFrom):
                parts = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*parts, *([node.module] if node.module else [])])
                imported |= {alias.asname or alias.name: (base, alias.name) for alias in node.names}
        return imported, classes

    def able(self, module, name, seen=()):
        """Whether a class is `SupportsLoRA`."""
        if name == "SupportsLoRA" or (module, name) in seen:
            return name == "SupportsLoRA"
        imported, classes = self.module(module)
        if name in classes:
            return any(self.able(module, _name(b), (*seen, (module, name))) for b in classes[name].bases)
        return name in imported and self.able(*imported[name], (*seen, (module, name)))


def _name(node):
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else (node.args or [node.func])[0]
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


@pytest.mark.conformance
def test_vllm_itself_has_a_place_for_what_the_table_says():
    code = Code(archive("vllm-0.33.0-*.whl"))
    tree, wrong, asked = ast.parse(code.files.read(f"{HOME.replace('.', '/')}/registry.py")), [], 0
    tables = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)]
    for table in (t.value for t in tables if "SPECULATIVE" not in t.targets[0].id):
        for key, value in zip(table.keys, table.values, strict=True):
            if not isinstance(value, ast.Tuple) or VLLM.verdict(key.value) is None:
                continue
            module, name = ast.literal_eval(value)
            home = module if module.startswith("vllm.") else f"{HOME}.{module}"
            asked += 1
            if code.able(home, name) is not VLLM.verdict(key.value):
                wrong.append(key.value)
    assert not wrong
    assert asked > 300
