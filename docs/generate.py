"""Write what the documents take from the code: docs/methods.md, and the tables of other pages.

python docs/generate.py            write them
python docs/generate.py --check    fail if they are stale (a test does the same)
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

import loramerge as lm
from loramerge.cli.combine import combine
from loramerge.cli.options import options_of
from loramerge.consumers import CONSUMERS
from loramerge.consumers.consumer import NOUNS, Consumer
from loramerge.consumers.families import held_against, oracle, reads
from loramerge.consumers.finding import loads
from loramerge.formats.dialects import DIALECTS, Dialect
from loramerge.formats.forms.form import Form
from loramerge.formats.forms.table import FORMS
from loramerge.formats.models.families import FAMILIES
from loramerge.formats.models.spellings import AB, DOWN_UP, MET
from loramerge.formats.tools import SPELLINGS, TOOLS
from loramerge.request.recipe_text import keys
from loramerge.routing.gates.gate import DataFree
from loramerge.routing.gates.names import GATES

sys.path.insert(0, str(Path(__file__).parent))
from catalogue import catalogue, forms
from cells import code, first_line, listed, table, yes
from kernels import kernels_table
from keys import page as json_page
from methods import devices_table, methods_page
from stub import stub

ROOT = Path(__file__).resolve().parent.parent


def documents() -> dict[Path, str]:
    """Path -> the text that it should have."""
    pages = {ROOT / page: _filled(ROOT / page, tables) for page, tables in TABLES.items()}
    return pages | {
        ROOT / "docs" / "methods.md": methods_page(),
        ROOT / "docs" / "json.md": json_page(),
        ROOT / "loramerge" / "__init__.pyi": stub(),
        ROOT / "loramerge" / "cli" / "catalogue.py": catalogue(),
        ROOT / "loramerge" / "formats" / "forms" / "catalogue.py": forms(),
    }


def _filled(page: Path, tables: Mapping[str, Callable[[], str]]) -> str:
    """A page with its tables between their marks."""
    text = page.read_text(encoding="utf-8")
    for name, made in tables.items():
        start, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        if text.count(start) != 1:
            sys.exit(f"{page.name} has {text.count(start)} places for the table {name}, not one.")
        before, _, after = text.partition(start)
        text = f"{before}{start}{made()}\n{end}{after.partition(end)[2]}"
    return text


def options_table() -> str:
    """Every option of `combine` with its default; those of methods are in docs/methods.md."""
    rows = [_row(option, "") for option in combine.params if isinstance(option, click.Option)]
    sizes = [option for option in options_of("svd") if option.name in ("rank", "energy")]
    rows += [_row(option, " (most methods)") for option in sizes]
    return "\n".join(["| option of `combine` | default | meaning |", "|---|---|---|", *rows])


def _row(option: click.Option, owners: str) -> str:
    words, _, bracket = (option.help or "").partition("  [default: ")
    words, _, inner = words.partition(" [default: ")
    if option.is_flag:
        default = "off"
    elif bracket or inner:
        default = (bracket or inner).rstrip("].")
    else:
        default = f"`{option.default}`" if isinstance(option.default, str | int | float) else "none"
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return f"| {names}{owners} | {default} | {words.rstrip('.')} |"


def formats_table() -> str:
    """Every format, in the order in which files are held against them."""
    head = [
        "`--format`",
        "tools",
        "a module is called",
        "scale of a module",
        "layers",
        "place",
        "written",
    ]
    return table(
        head,
        [
            [code(d.name), d.tools, d.spelling, d.strength, ", ".join(d.kinds), _place(d), yes(d.writes)]
            for d in DIALECTS.values()
        ],
    )


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
OLD = (".down.weight", ".up.weight")
UNETS = {  # spelling of a U-Net -> (whose names, the format, one module, the ends of down and up, alphas)
    "lora_unet_": ("diffusers'", "kohya", "lora_unet_down_blocks_1_attentions_0_proj_in", DOWN_UP, True),
    "lora_unet_, XL": ("its own", "kohya", "lora_unet_input_blocks_4_1_proj_in", DOWN_UP, True),
    "unet.": ("diffusers'", "diffusers", f"unet.{ATTENTION}.to_q", AB, False),
    "unet. with .processor.": (
        "diffusers'",
        "diffusers",
        f"unet.{ATTENTION}.processor.to_q_lora",
        OLD,
        False,
    ),
    "no prefix": ("diffusers'", "diffusers", f"{ATTENTION}.to_q", AB, False),
    "diffusion_model.": ("its own", "comfy", "diffusion_model.input_blocks.4.1.proj_in", AB, False),
}


def _unets() -> Iterator[list[str]]:
    """What `check` says of a file of a U-Net in every spelling."""
    words = {True: "reads it", False: "–", None: "not told"}
    for spelling, (names, dialect, stem, ends, alpha) in UNETS.items():
        factors = {f"{stem}{end}": np.ones((8, 8), np.float32) for end in ends}
        factors |= {f"{stem}.alpha": np.array(8, np.float32)} if alpha else {}
        with tempfile.TemporaryDirectory() as folder:
            save_file(factors, f"{folder}/a.safetensors")
            found = [loads(lm.check(f"{folder}/a.safetensors", each)) for each in ("diffusers", "comfyui")]
        facts = ["Stable Diffusion 1, 2, XL", f"{code(dialect)}: `{spelling}`", names]
        facts += ["its class and loaders", code(dialect)]
        yield [*facts, *(words[each] for each in found), "its loaders, run; its key map, compared"]


def families_table() -> str:
    """Every spelling of every family that is met, who reads it, and from what that is known."""
    head = ["family", "`--format`", "names", "held against", "read as", "diffusers", "ComfyUI", "known from"]
    words = {True: "reads it", False: "–", None: "not told"}
    formats = {met: name for name, tool in SPELLINGS.items() for met in tool.rows.values()}
    formats |= {met: met.spelling for met in MET if SPELLINGS[met.spelling].rows[met.family.name] is met}
    rows = []
    for met in sorted(MET, key=lambda each: list(FAMILIES).index(each.family.name)):
        verdicts = [words[reads(consumer, met)] for consumer in ("diffusers", "comfyui")]
        known = f"{oracle('diffusers', met)}; {oracle('comfyui', met)}"
        names = {"diffusers": "diffusers'", "first": "its own"}.get(met.naming, f"{met.naming}'")
        facts = [met.family.title, code(formats[met]), names, held_against(met), code(met.dialect)]
        rows.append([*facts, *verdicts, known])
    return table(head, [*_unets(), *rows])


def tools_table() -> str:
    """Every program whose name is a format, and what it gets."""
    rows = []
    for tool in TOOLS.values():
        spellings: dict[str, list[str]] = {}
        for name, met in tool.rows.items():
            spellings.setdefault(f"`{met.spelling}`", []).append(FAMILIES[name].title)
        if tool.unets:
            spellings.setdefault(f"the format `{tool.unets}`", []).append("U-Nets")
        rows.append(
            [code(tool.name), "; ".join(f"{how}: {', '.join(own)}" for how, own in spellings.items())]
        )
    return table(["`--format`", "what it gets"], rows)


def formats_list() -> str:
    """The same, short."""
    head = ["`--format`", "tools", "place", "read", "written"]
    rows = ([code(d.name), d.tools, _place(d), "yes", yes(d.writes)] for d in DIALECTS.values())
    return table(head, rows)


def _place(dialect: Dialect) -> str:
    """Where a merge in a format lies, or what is read of one that is not written."""
    if dialect.weights is None:
        return "one file"
    return "folder, or one file" if dialect.single else "folder"


def consumers_table() -> str:
    """What every consumer declares."""
    head = ["`--for`", "code read", "loads", "scale of a module", "goes by", "beside the pairs"]
    rows = [
        [
            code(c.name),
            f"{c.title} {c.version}",
            "a folder" if c.folder else "a file",
            first_line(c.scale),
            listed(map(code, c.reads)),
            listed(c.beside, "nothing"),
            _refusals(c),
        ]
        for c in CONSUMERS.values()
    ]
    return table([*head, "refuses or ignores"], rows)


def _refusals(consumer: Consumer) -> str:
    limit = consumer.max_rank and f"rank above `{consumer.rank_option}` ({consumer.max_rank})"
    settings = sorted(map(code, consumer.rejects))
    kinds = [f"{NOUNS[kind].removesuffix('s')}s" for kind in consumer.lacks]
    hard = listed(filter(None, [limit, *settings, *kinds]), "")
    return "; ".join(filter(None, [hard and f"refuses {hard}", consumer.remarks]))


def consumers_list() -> str:
    """Every consumer, short."""
    head = ["`--for`", "program", "loads", "as it is meant, in the format"]
    return table(
        head,
        [
            [code(c.name), c.title, "a folder" if c.folder else "a file", listed(map(code, c.formats))]
            for c in CONSUMERS.values()
        ],
    )


def names_table() -> str:
    """Which consumers read the names of a format, and which of them are asked about such a file."""
    rows = []
    for dialect in DIALECTS.values():
        readers = [_reader(c, dialect.name) for c in CONSUMERS.values() if dialect.name in c.dialects]
        asked = [c.title for c in CONSUMERS.values() if dialect.name in c.asked]
        none = "none of them: `loramerge convert` writes names that they read"
        rows.append([code(dialect.name), "; ".join(readers) or none, listed(asked)])
    return table(["names of", "read by", "asked without `--for`"], rows)


def _reader(consumer: Consumer, dialect: str) -> str:
    part = consumer.partly.get(dialect)
    return f"{consumer.title} ({part})" if part else consumer.title


def forms_table() -> str:
    """Every form: who stores it, what it is, what it needs, and what it is held against in the tests."""
    needs = {"file": "its file", "sizes": "layer sizes", "base": "base weights"}
    head = ["form", "stored by", "ΔW; before the scale, where there is an alpha", "rank at most", "needs"]
    rows = []
    for form in FORMS.values():
        types = f"PEFT {listed(form.types)}" if form.types else ""
        by = "; ".join(filter(None, [types, "image tools" if form.image else ""])) or "its authors"
        kept = f"{form.units}{' (full)' if form.full else ''}"
        rows.append([form.words, by, form.formula, kept, needs[form.needs], _oracle(form)])
    return table([*head, "held against"], rows)


AUTHORS = {  # forms that PEFT does not have, or has otherwise
    "stacked": "its definition", "authors_kasa": "the authors' formula", "xs": "the authors' formula",
    "lofit": "the authors' formula", "merged": "loralib",
    "boft": "PEFT, in steps", "triadapt": "the authors' formula",
}  # fmt: skip


def _oracle(form: Form) -> str:
    packages = filter(None, ["PEFT" if form.types else "", "LyCORIS" if form.image else ""])
    return AUTHORS.get(form.name) or listed(packages)


def gates_table() -> str:
    """Every gate in a line."""
    rows = []
    for name, gate in GATES.items():
        weighs = {"expert": "adapters", "unit": "units", "output": "outputs"}[gate.by]
        goes_by = {"": "the input", "row": "the request", "prompt": "the prompt"}[gate.asks]
        made = "the adapters" if issubclass(gate, DataFree) else "a file"
        first = gate.description().partition("\n")[0].rstrip(".")
        rows.append([code(name), first, weighs, "nothing" if name == "static" else goes_by, made])
    return table(["`--gate`", "it takes", "weighs", "goes by", "made of"], rows)


def recipe_table() -> str:
    """Every key of a recipe; most are fields of the request."""
    fields = ", ".join(code(key) for key in keys() if key != "modules")
    rows = [
        ["`sources`", "a list. A source is a path, folder, glob, `@list` or a name on the Hub, or a table of "
            "`source`, `weight` and `revision` (on the Hub it is fetched, of a local file only recorded). "
            "A table of `tuned`, `base`, `rank` and `weight` takes an adapter out of a tuned model"],
        ["`method`, `parameters`", "the name of the method, by default `linear`; a table of its options"],
        ["`modules`", "a list of rules: `match` (a regular expression searched in names), `weights` (one for "
            "each source), `rank`"],
        [fields, "as on the command line"],
    ]  # fmt: skip
    return table(["key", "what it holds"], rows)


TABLES = {  # page -> name of a table in it -> what writes it
    "README.md": {"formats": formats_list, "consumers": consumers_list},
    "docs/combine.md": {"options": options_table},
    "docs/formats.md": {
        "formats": formats_table,
        "families": families_table,
        "tools": tools_table,
        "forms": forms_table,
        "recipe": recipe_table,
    },
    "docs/gpu.md": {"devices": devices_table, "kernels": kernels_table},
    "docs/routing.md": {"gates": gates_table},
    "docs/consumers.md": {"consumers": consumers_table, "names": names_table},
}


def main() -> None:
    """Write the documents, or say which are stale."""
    texts = documents()
    stale = [p for p, text in texts.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(p.name for p in stale)}; run python docs/generate.py" if stale else 0)
    for path in stale:
        path.write_text(texts[path], encoding="utf-8")
    if any(path.suffix == ".py" for path in stale):  # pages are made of these, and the old ones are loaded
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
