"""README.md of a bundle: what it is, and the lines that load it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from loramerge.formats.bundles import task
from loramerge.hub.escape import code, markdown, quoted
from loramerge.hub.usage import CLASSES
from loramerge.routing.bundle import Bundle
from loramerge.routing.gates.arrow import FAR, STEPS, Arrow
from loramerge.routing.gates.names import name_of

MARK = "<!-- written by loramerge route -->"


def readme(bundle: Bundle) -> str:
    """The whole text."""
    parts = [MARK, _title(bundle), _experts(bundle), _gate(bundle), loading(bundle)]
    return "\n\n".join(parts) + "\n"


def _title(bundle: Bundle) -> str:
    base = f" for {markdown(bundle.base.name)}" if bundle.base.name else ""
    count = f"{len(bundle.experts)} LoRA adapter{'s' * (len(bundle.experts) != 1)}"
    apart = "The adapters are kept apart, and a gate says for each token how much of each takes part."
    return f"# A routed bundle of {count}{base}\n\n{apart} {_alone(bundle)}"


def _alone(bundle: Bundle) -> str:
    """Whether one adapter does the same."""
    if bundle.record.get("weights"):
        return "Here every token gets the same, so that `loramerge combine` makes one adapter of it."
    if bundle.gate.asks == "row" and not bundle.gates:
        return "For one row `loramerge combine`, with `--row NAME`, makes one adapter of it."
    return "No single adapter does the same."


def _experts(bundle: Bundle) -> str:
    rows = [f"| {code(task(e))} | {markdown(name)} |" for e, name in enumerate(bundle.experts)]
    return "\n".join(["| folder | adapter |", "|---|---|", *rows])


def _gate(bundle: Bundle) -> str:
    said = inspect.cleandoc(type(bundle.gate).description())
    options = "\n".join(
        f"* {markdown(name)}: {code(str(value)[:200])}" for name, value in bundle.gate.options().items()
    )
    return f"## The gate: {name_of(bundle.gate)}\n\n{said}\n\n{options}"


def loading(bundle: Bundle) -> str:
    """The lines that load it, as they stand."""
    parts = [
        "## How to load it",
        "With loramerge, any gate, in torch. Run it in this folder:",
        _torch(bundle),
    ]
    if isinstance(bundle.gate, Arrow) and not bundle.gates and all(t.kind == "linear" for t in bundle):
        parts += [
            f"With PEFT, whose last line here matters. {_astray(bundle)} PEFT may warn of missing adapter "
            "keys: where a layer has no adapter, it fills in zeros.",
            _peft(bundle, bundle.gate),
        ]
    return "\n\n".join(parts)


def _astray(bundle: Bundle) -> str:
    """What PEFT does without `put_prototypes`, as measured."""
    found = bundle.record.get("prototypes")
    head = f"By itself it finds the directions of the experts by {STEPS} power iterations"
    if not isinstance(found, dict):
        return f"{head}, which may lead elsewhere; `put_prototypes` puts the exact ones in their place."
    count, off = found.get("count"), found.get("astray")
    if not off:
        return (
            f"{head}. None of the {count} here is off by more than a sine of {FAR:g}, so that few tokens go "
            "another way; `put_prototypes` puts the exact ones in their place."
        )
    return (
        f"{head}, and {off} of the {count} here are off by more than a sine of {FAR:g}: tokens go to other "
        "adapters than the gate says. `put_prototypes` puts the exact ones in their place."
    )


@dataclass(frozen=True, slots=True)
class Model:
    """The lines that load and run the model of a bundle."""

    library: str
    name: str
    base: str
    folder: str = ""

    @property
    def lines(self) -> list[str]:
        where = f", subfolder={quoted(self.folder)}" if self.folder else ""
        made = f"model = {self.name}.from_pretrained({quoted(self.base)}{where})"
        return [f"from {self.library} import {self.name}", "", made]

    @property
    def run(self) -> str:
        if self.folder:  # of a pipeline, which has inputs of its own
            return "...  # use the model here"
        return "print(model(input_ids=model.dummy_inputs['input_ids']).logits.shape)"


IMAGE = {  # how modules of image models begin -> the folder of the pipeline
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
    "transformer_blocks.": "transformer",
    "single_transformer_blocks.": "transformer",
}


def _model(bundle: Bundle) -> Model:
    """By the names of its modules, and by the task that the configs of its adapters name."""
    base = bundle.base.name or "BASE-MODEL"
    for target in bundle.layouts:
        for start, folder in IMAGE.items():
            if target.path.startswith(start):
                return Model("diffusers", "AutoModel", base, folder)
    kind = bundle.config.get("task_type")
    return Model(
        "transformers", CLASSES.get(kind if isinstance(kind, str) else "", CLASSES["CAUSAL_LM"]), base
    )


def _torch(bundle: Bundle) -> str:
    model = _model(bundle)
    told = {"row": ', rows=["ROW"]', "prompt": ", prompt=HIDDEN_STATES", "": ""}[bundle.gate.asks]
    return _python(
        "import loramerge as lm",
        "from loramerge.routing.torch import attach",
        *model.lines,
        'bundle = lm.load_bundle(".")',
        f"with attach(model, bundle{told}):",
        f"    {model.run}",
    )


def _peft(bundle: Bundle, gate: Arrow) -> str:
    return _python(
        "from peft import ArrowConfig, create_arrow_model",
        *_model(bundle).lines,
        f'tasks = [f"./{task(0)[:-1]}{{i}}" for i in range({len(bundle.experts)})]',
        f"arrow = ArrowConfig(top_k={gate.top_k}, router_temperature={gate.temperature})",
        "model = create_arrow_model(model, tasks, arrow)",
        "",
        "import loramerge as lm",
        "from loramerge.routing.torch import put_prototypes",
        "",
        'put_prototypes(model, lm.load_bundle("."))',
    )


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
