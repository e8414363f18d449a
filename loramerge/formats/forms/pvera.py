"""PVeRA: VeRA whose λ_d and A hold means and variances; what is merged is the mean.

    ΔW = diag(λ_b) B[:out] @ diag(λ_d[:r]) A[:r, :in]        λ_b (out,), λ_d (2r,), A (2r, ≥ in), B (≥ out, r)

(arXiv:2512.07703; PEFT)
"""

from __future__ import annotations

from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.vera import framed


def make(parts: Parts, given: Given) -> Update:
    """The pair of the means."""
    return framed(parts["pvera_lambda_b"], parts["pvera_lambda_d"], given, "pvera", 2)


PVERA = Form(
    name="pvera",
    words="PVeRA",
    formula="`diag(λ_b) B[:out] @ diag(λ_d[:r]) A[:r, :in]`",
    units="r",
    make=make,
    linear=(("pvera_lambda_b",),),
    peft={"pvera_lambda_b": ("pvera_lambda_b",), "pvera_lambda_d": ("pvera_lambda_d",)},
    must=("pvera_lambda_b", "pvera_lambda_d"),
    shared={"pvera_A": ("pvera_A",), "pvera_B": ("pvera_B",)},
    types={"PVERA": ""},
    bare=False,
    needs="sizes",
    scaled=False,
)
