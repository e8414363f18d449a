"""Which parameter of the base model an update belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from loramerge.charts.facts import fields_html

Kind = Literal["linear", "conv", "embedding", "expert"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the base stores the parameter; it changes the reading of ΔW, never which parameter it is.

    Args:
        fan_in_fan_out: stored as (in, out).
        kernel: of a convolution, () for others; ΔW is (out, in · Π kernel).
        blocks: how many targets share one stored pair: experts, or groups of a convolution.
    """

    fan_in_fan_out: bool = False
    kernel: tuple[int, ...] = ()
    blocks: int = 1


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """The identity of a base parameter, the same in every file format.

    Args:
        path: dotted module path in the base model, without an adapter's prefixes.
        parameter: name of the parameter in that module.
        component: which part of a pipeline (``model``, ``unet``, ``text_encoder``).
        index: which expert, or which group of a convolution; -1 for an undivided parameter.
        kind: what the module does with it; the update of an embedding is kept as (dim, tokens). Not part of
            the identity: adapters that disagree about the kind of one parameter are refused.
        layout: how the base stores it. Not part of the identity: two trainers may spell it differently.

    >>> Target("h.0.attn.c_attn") == Target("h.0.attn.c_attn", layout=Layout(fan_in_fan_out=True))
    True
    """

    path: str
    parameter: str = "weight"
    component: str = "model"
    index: int = -1
    kind: Kind = field(default="linear", compare=False)
    layout: Layout = field(default=Layout(), compare=False)

    @property
    def place(self) -> str:
        """The name that a config's patterns are held against: a module's, or an expert parameter's."""
        path = self.path if self.component == "model" else f"{self.component}.{self.path}"
        return f"{path}.{self.parameter}" if self.kind == "expert" else path

    def _repr_html_(self) -> str:
        return fields_html(self)

    def __str__(self) -> str:
        prefix = "" if self.component == "model" else f"{self.component}."
        suffix = "" if self.parameter == "weight" else f".{self.parameter}"
        index = "" if self.index < 0 else f"[{self.index}]"
        return f"{prefix}{self.path}{suffix}{index}"
