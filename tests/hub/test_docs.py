"""The commands about the Hub in the documents work, against a Hub of our own."""

import re
import shlex
from pathlib import Path

import pytest

import loramerge as lm
from tests.helpers.files import folder, tensors
from tests.hub.loopback import files_of

ROOT = Path(__file__).parents[2]
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/hub.md")}


@pytest.fixture
def filled(hub, login, cli, tmp_path):
    """What the pages name, there and in the current folder."""
    tag = ["peft", "base_model:adapter:Qwen/Qwen3-4B"]
    a, b = (folder(Path(name), tensors(seed)) for seed, name in enumerate("ab"))
    hub.add("org/name", files_of(a))
    sub = {f"subfolder/{name}": data for name, data in files_of(b).items()}
    hub.repos["org/other"] = type(hub.repos["org/name"])("org/other")
    hub.repos["org/other"].commit({**files_of(b), **sub}, "v1")
    hub.add("me/mine", files_of(a), tags=tag)
    hub.add("team/merged", {})
    return cli


@pytest.mark.parametrize("page", PAGES)
def test_every_line_works(hub, filled, page):
    blocks = re.findall(r"```console\n(.*?)```", PAGES[page], re.DOTALL)
    told = [line for block in blocks for line in block.splitlines()]
    lines = [line.removeprefix("$ loramerge ") for line in told if line.startswith("$ loramerge ")]
    assert len(lines) >= 4
    if page != "README.md":
        lm.combine(["a", "b"], out="merged")
    for line in lines:
        assert filled(*shlex.split(line)).code == 0, f"{line}\n{filled.err}"
        assert filled.out


def test_the_python_works(hub, filled):
    lm.combine(["a", "b"], out="merged")
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["docs/hub.md"], re.DOTALL)
    found = {"lm": lm}
    exec(code, found)
    assert found["pushed"].commit == hub.repos["me/merged"].sha("main")
