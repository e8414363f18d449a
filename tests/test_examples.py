"""Every example runs as it stands, from the root of the repository."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_docs import ROOT, run

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_works(path: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    done = run(["bash" if path.suffix == ".sh" else sys.executable, str(path)], tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 30


def test_the_page_names_every_example() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"]({path.name})" not in page] == []


def test_one_address_stands_wherever_an_address_is_needed() -> None:
    import tomllib

    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    home = urls["Homepage"]
    assert all(url.startswith(home) for url in urls.values())
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["repository-code"] == home
    assert f"git clone {home}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    import loramerge

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= cited.keys()
    assert cited["version"] == loramerge.__version__


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.name
)
def test_an_issue_form_can_be_read(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert form["blank_issues_enabled"] is True
        return
    assert {"name", "description", "body"} <= form.keys()
    assert all(each["type"] in ("markdown", "textarea", "input", "dropdown") for each in form["body"])


def test_the_image_is_slim_runs_as_a_user_and_its_entry_is_the_command() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert [each[1] for each in words if each[0] == "FROM"] == ["python:3.13-slim"] * 2
    users = [each[1] for each in words if each[0] == "USER"]
    assert users[-1:] == ["loramerge"]
    assert words[-1] == ["ENTRYPOINT", '["loramerge"]']
