"""VeRA: one frozen pair for all modules, of which each has its own two scalings.

    ΔW = diag(λ_b) B[:out] @ diag(λ_d) A[:, :in]        λ_b (out,), λ_d (r,), A (r, ≥ in), B (≥ out, r)

PEFT stores A and B once, or only the seed by which it drew them. (arXiv:2310.11454)
"""

from __future__ import annotations

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_rank, check_vectors, misfit
from loramerge.formats.forms.draws import frame
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The frozen pair cut to the layer, with λ_b in `up` and λ_d in `down`."""
    return framed(parts["vera_lambda_b"], parts["vera_lambda_d"], given, "vera")


def framed(over: Tensor, under: Tensor, given: Given, name: str, times: int = 1) -> Update:
    """The same with a frame of another name; A and λ_d hold `times` the rank, of which the first r count."""
    outs, ins = given.layer.size
    check_vectors(given.where, {"lambda_b": over, "lambda_d": under})
    rank, rest = divmod(under.shape[0], times)
    check_rank(given, rank)
    a, b = drawn(given, (rank * times, rank)) if _is_drawn(given) else map(given.borrow, named(name))
    shown = {f"{name}_A": a, f"{name}_B": b, "lambda_b": over, "lambda_d": under}
    if rest or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank * times or b.shape[1] != rank:
        raise misfit(given.where, shown)
    if over.shape != (outs,) or b.shape[0] < outs or a.shape[1] < ins:
        raise misfit(given.where, shown)

    def up(b: Array, over: Array) -> Array:
        return b[:outs] * over[:, None]

    def down(a: Array, under: Array) -> Array:
        return a[:rank, :ins] * under[:rank, None]

    return Update(made([b, over], (outs, rank), up), made([a, under], (rank, ins), down), None)


def named(name: str) -> tuple[str, str]:
    """What the two tensors of a frame are called."""
    return f"{name}_A", f"{name}_B"


def drawn(given: Given, ranks: tuple[int, int]) -> list[Tensor]:
    """The frame of an adapter that keeps only its seed: as large as the largest of its layers."""
    outs, ins = (max(layer.size[axis] for layer in given.layers.values()) for axis in (0, 1))
    return frame(given.whole("projection_prng_key"), (ranks[0], ins), (outs, ranks[1]))


def _is_drawn(given: Given) -> bool:
    return given.config.get("save_projection") is False


VERA = Form(
    name="vera",
    words="VeRA",
    formula="`diag(λ_b) B[:out] @ diag(λ_d) A[:, :in]`",
    units="r",
    make=make,
    linear=(("vera_lambda_b",), ("vera_lambda_d",)),
    peft={"vera_lambda_b": ("vera_lambda_b",), "vera_lambda_d": ("vera_lambda_d",)},
    must=("vera_lambda_b", "vera_lambda_d"),
    shared={"vera_A": ("vera_A",), "vera_B": ("vera_B",)},
    types={"VERA": ""},
    bare=False,
    needs="sizes",
    scaled=False,
)
