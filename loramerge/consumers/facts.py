"""What the files of an adapter say, as the programs that load it see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loramerge.adapters.target import Kind
from loramerge.consumers.models import candidates
from loramerge.formats.files.shards import SHARD
from loramerge.formats.float8 import ENDS as SCALES
from loramerge.formats.peft.names import Name, alpha_of, parse
from loramerge.hub.escape import shell

Shape = tuple[int, ...]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Module:
    """One module as a scaling rule sees it.

    Args:
        place: the name that patterns are held against.
        rank: r of its factors.   alpha: what an alpha tensor of its own says.
        scale: the factor of ``up @ down`` that is meant; None if the files do not say it.
        component: the part of the pipeline that its key names, in the names of diffusers.
    """

    place: str
    rank: int
    alpha: float | None = None
    scale: float | None = None
    kind: Kind = "linear"
    component: str = ""

    @property
    def name(self) -> str:
        return f"{self.component}.{self.place}" if self.component else self.place


@dataclass(frozen=True, eq=False)
class Facts:
    """Everything a consumer's rules look at; no numbers but scalar alphas.

    Format and scale are what our own readers find. A second table of names had come to disagree with them.

    Args:
        path: how the user named it.   folder: it has an adapter_config.json.
        config: its settings.   tensors: key -> shape.   beside: other files in its folder.
        dialect: the format that its reader found, by the name of `DIALECTS`; `UNKNOWN` for no known names.
        parts: component -> its settings, in the header of a file of diffusers.
        alphas: stem of a key -> the number in its alpha tensor.
        weights: name of the file of weights.   stem: what is made of it is named after this.
        modules: as loramerge reads them; empty if it does not.
        beyond: the keys of what it reads as no part of a pair; None where the names alone must tell.
        unread: why it does not.   plain: it would be read but for its special settings.
        broken: what of it contradicts itself, or is missing.
        empty: no tensor of it is part of an update.
        unfit: format -> why it cannot be written in that; "" if it can.
        architectures: the classes of the base that a config.json names.
        options: what `loramerge combine` must be told to read it.
        experts: of a routed bundle, its adapters.   gate: the name of its gate; "" if there are several.
        steady: every token gets the same weights of a bundle.
        directions: of a bundle under Arrow, how many prototypes it has, and how many of them PEFT would miss;
            None if it does not say that.
        families: of image models that it can be of.   namings: those of them that have all of its names.
        stranger: a module of an image model that is none of those known here; "" if there is none.
        twice: a module and a part of it, where it has both; empty if it has none.
        full: a merge of it has full rank, unless its size is said.
    """

    path: str
    folder: bool
    config: Settings
    tensors: Mapping[str, Shape]
    dialect: str = "peft"
    parts: Mapping[str, Settings] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    modules: tuple[Module, ...] = ()
    beyond: tuple[str, ...] | None = None
    unread: str = ""
    plain: bool = False
    broken: bool = False
    empty: bool = False
    unfit: Callable[[str], str] = lambda name: ""
    options: str = ""
    weights: str = ""
    stem: str = ""
    beside: frozenset[str] = field(default_factory=frozenset)
    architectures: tuple[str, ...] = ()
    experts: tuple[Facts, ...] = ()
    gate: str = ""
    steady: bool = False
    directions: tuple[int, int] | None = None
    families: tuple[str, ...] = ()
    namings: tuple[str, ...] = ()
    stranger: str = ""
    twice: tuple[str, ...] = ()
    full: bool = False

    def settings(self, module: Module) -> Settings:
        """What its files say of a module: the settings of its component, where these are told apart."""
        # diffusers filters its settings by the prefix of each component: one config for all is nobody's
        return self.parts.get(module.component, {}) if self.parts else self.config

    def said(self, setting: str) -> Any:
        """What the files say of a setting, of any component."""
        every = (self.config, *self.parts.values())
        return next((value for each in every if (value := each.get(setting))), None)

    @cached_property
    def names(self) -> Mapping[str, Name]:
        """The keys of PEFT's factors, taken apart."""
        return {key: name for key in self.tensors if (name := parse(key)) is not None}

    @cached_property
    def others(self) -> tuple[str, ...]:
        """The keys that name no factor and no alpha."""
        if self.beyond is not None:
            return tuple(sorted(self.beyond))
        beside = (key for key in self.tensors if key not in self.names and alpha_of(key) is None)
        return tuple(sorted(key for key in beside if not FACTOR.search(key)))

    @property
    def strange(self) -> list[str]:
        """The keys of what is no part of an update: as its reader says, or by their ends if it reads none."""
        if self.beyond is not None:
            return list(self.beyond)
        return [key for key in self.tensors if not PART.fullmatch(key)]

    @property
    def example(self) -> str:
        """A key to show: that of a factor, if it has one."""
        others = frozenset(self.others)
        return next((k for k in self.tensors if k not in others), next(iter(self.tensors), "none"))

    @property
    def ranks(self) -> dict[str, int]:
        """Module path -> rows of its ``lora_A``."""
        down = {k: n for k, n in self.names.items() if n.part in ("down", "embedding_A") and self.tensors[k]}
        return {name.path: self.tensors[key][0] for key, name in down.items()}

    def of_kind(self, *kinds: Kind) -> list[str]:
        """The places of modules of these kinds."""
        return [module.place for module in self.modules if module.kind in kinds]

    @property
    def scaled(self) -> str:
        """The key of a scale beside an 8-bit factor; "" if there is none."""
        return next((key for key in self.tensors if key.rpartition(".")[2] in SCALES and self.modules), "")

    @property
    def biased(self) -> bool:
        """Whether it holds a trained bias of the base."""
        return any(key.endswith(".bias") for key in self.others)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes that the model it is for can be of; none if nothing tells them."""
        paths = [*self.ranks, *(module.place for module in self.modules)]
        return candidates(self.config, self.architectures, paths)

    @property
    def peft_type(self) -> str:
        """The kind of adapter that its config says."""
        return str(self.config.get("peft_type") or "LORA").upper()

    @property
    def bent(self) -> Iterator[str]:
        """The settings in force under which ``up @ down`` is not the whole of the update."""
        for setting in SPECIAL:
            value = self.said(setting)
            if setting == "init_lora_weights":
                if isinstance(value, str) and value.lower().startswith(MUTATES):
                    yield setting
            elif setting == "bias":
                if value not in (None, "none"):
                    yield setting
            elif value:
                yield setting

    @property
    def sharded(self) -> bool:
        """Whether its weights are in several files."""
        return SHARD.fullmatch(self.weights) is not None

    @property
    def asks_alpha(self) -> bool:
        """Whether only its user knows its scale."""
        return "--alpha" in self.options

    @property
    def quoted(self) -> str:
        """Its path, to be pasted."""
        return shell(self.path)

    def elsewhere(self, consumer: str) -> str:
        """Where an adapter made of it for a consumer would lie, to be pasted."""
        stem = (self.stem or self.path).rstrip("/").removesuffix(".safetensors")
        return shell(f"{stem}-{consumer}")


SCALING = ("use_rslora", "rank_pattern", "alpha_pattern")  # settings that decide the scale of a module
PART = re.compile(  # how the keys of parts of an update end, in the names of tools for images
    r".+(?:\.(?:lora_(?:up|down|mid|A|B)|lora(?:_linear_layer)?\.(?:up|down))(?:\.\w+)*"
    r"|_lora\d?\.(?:up|down)\.weight|\.(?:alpha|rescale|diff|(?:hada|lokr|oft)_\w+|[ab][12]\.weight))",
    re.DOTALL,
)
FACTOR = re.compile(r"\.lora(?:_[ab]|[._](?:up|down)\.weight)$")  # of other tools than PEFT
MUTATES = ("pissa", "olora", "corda", "loftq")  # inits that PEFT repeats on the base when it loads them
SPECIAL = {  # settings beyond a plain LoRA -> what is lost where they are not heeded
    "use_dora": "the magnitudes of DoRA",
    "use_qalora": "the pooling of QALoRA",
    "use_bdlora": "the blocks of BD-LoRA",
    "alora_invocation_tokens": "the tokens that switch an activated LoRA on",
    "arrow_config": "the router of Arrow",
    "kasa_config": "the truncated base of KaSA",
    "layer_replication": "the layers that layer_replication repeats",
    "init_lora_weights": "the change of the base weights that its initialisation made",
    "lora_bias": "the biases of lora_B",
    "bias": "the trained biases",
    "enable_lora": "the fused layout of PEFT 0.2",
}
