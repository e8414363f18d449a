"""What mkdocs adds to the pages of this folder: README as the first page, a page for each method with a
picture by the report's own charts, the reference of the package, and a gallery of reports.

`mkdocs.yml` names this file; `mkdocs build --strict` runs it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import loramerge as lm

sys.path.insert(0, str(Path(__file__).parent))
from gallery import GALLERY, found, picture
from methods import section

ROOT = Path(__file__).resolve().parent.parent
TOP = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")  # pages that lie beside README
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """The pages of methods, in the table of contents."""
    for entry in config.nav:
        if isinstance(entry, dict) and "Methods" in entry:
            entry["Methods"] = ["methods.md", *(f"methods/{name}.md" for name in lm.METHODS)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what is made here."""
    made = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "fixtures.md": (ROOT / "fixtures" / "README.md").read_text(encoding="utf-8"),
        **{name: (ROOT / name).read_text(encoding="utf-8") for name in TOP},
        "reference.md": "\n".join(_reference()),
        "gallery/index.md": "\n".join(_gallery()),
    }
    for name in lm.METHODS:
        made[f"methods/{name}.md"] = method(name)
        made[f"methods/{name}.svg"] = picture(name)
    for name, (_, page) in {**GALLERY, **found()}.items():
        made[f"gallery/{name}.html"] = page().html()
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links as they are in the repository, led to the pages of the site."""
    depth = page.file.src_uri.count("/")
    return LINK.sub(lambda match: _led(match, depth, files), markdown)


def _led(match: re.Match[str], depth: int, files: Files) -> str:
    mark, words, target, anchor = match.groups()
    if not target or depth:  # pages that are made here link as they should
        return match[0]
    there = {"README.md": "index.md", "fixtures/README.md": "fixtures.md"}
    plain = target.removeprefix("../").removeprefix("docs/")
    plain = there.get(plain, plain)
    if (
        plain.endswith(".py") or files.get_file_from_path(plain) is None
    ):  # a file of the repository, which the site does not hold
        return words
    return f"{mark}[{words}]({plain}{anchor or ''})"


def method(name: str) -> str:
    """The page of a method: what it is, a picture of what it does to spectra, its options."""
    head, _, rest = section(name).partition("\n")
    told, _, options = rest.partition("\n*Family")
    words = (
        "Singular values of the sources, and of their merge at one rank, in one module of the fixtures. "
        "`merge.plot.spectra()` draws it for every module."
    )
    shown = f"![Spectra of two sources and of their merge by {name}]({name}.svg)\n\n{words}\n"
    return f"{head.removeprefix('#')}\n{told}\n\n{shown}\n*Family{options}"


def _reference() -> Iterator[str]:
    """Every public name, by its docstring."""
    yield "# Reference\n\nEvery name of `import loramerge as lm`; methods have pages of their own.\n"
    for name in lm.__all__:
        value = getattr(lm, name)
        if name == "METHODS" or (
            isinstance(value, type) and issubclass(value, lm.Method) and value is not lm.Method
        ):
            continue
        yield f"::: loramerge.{lm._HOME[name]}.{name}\n"


def _gallery() -> Iterator[str]:
    """The reports, and how each was made."""
    yield "# Gallery\n\nPages that `loramerge report` writes, each one file that opens without a network.\n"
    for name, (words, _) in {**GALLERY, **found()}.items():
        yield f"* [{name}]({name}.html): {words}"
