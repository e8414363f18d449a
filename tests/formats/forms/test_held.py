"""A form says what it takes to read one of its factors, and takes no more."""

import tracemalloc

import numpy as np
import pytest

from loramerge.adapters.adapter import Held
from loramerge.formats.forms.form import Given, Layer
from loramerge.formats.forms.table import ROWS

OUTS, INS = 48, 2048  # its Grams are small, so that what is said is of the factors
SPARE = 200_000  # bytes of Python's own


def n(*shape):
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


LOHA = {f"hada_w{i}_{side}": n(*shape) for i in (1, 2) for side, shape in (("a", (OUTS, 4)), ("b", (4, INS)))}
PAIR = {"down": n(8, INS), "up": n(OUTS, 8)}
LARGE = {  # form -> its tensors, and its config
    "lora": (PAIR, {}),
    "merged": ({"down": n(16, INS), "up": n(2 * OUTS // 3, 8)}, {"enable_lora": [True, False, True]}),
    "adalora": ({"svd_A": n(8, INS), "svd_B": n(OUTS, 8), "svd_E": n(8, 1)}, {}),
    "stacked": ({f"{s}.{i}": n(*x) for i in (0, 1) for s, x in (("up", (24, 8)), ("down", (8, INS)))}, {}),
    "loha": (LOHA, {}),
    "lokr": ({"lokr_w1": n(4, 16), "lokr_w2": n(OUTS // 4, INS // 16)}, {}),
    "full": ({"diff": n(OUTS, INS)}, {}),
    "dora": ({**PAIR, "magnitude": n(OUTS)}, {"use_dora": True}),
    "hira": ({"hira_A": n(8, INS), "hira_B": n(OUTS, 8)}, {}),
    "hra": ({"hra_u": n(INS, 8)}, {}),
    "ia3": ({"ia3_l": n(OUTS, 1)}, {}),
    "oft": ({"oft_R": n(INS // 8, 28)}, {"eps": 1e-5}),
    "boft": ({"boft_R": n(2, INS // 8, 8, 8), "boft_s": n(OUTS, 1)}, {}),
    "c3a": ({"c3a_kernel": n(3, INS // 16, 16)}, {}),
    "delora": (
        {"delora_A": n(8, INS), "delora_B": n(OUTS, 8), "delora_lambda": n(1), "delora_w_norm": n(INS)},
        {},
    ),
    "fourierft": (
        {"fourierft_spectrum": n(64)},
        {"n_frequency": 64, "scaling": 1.0, "random_loc_seed": 1},
    ),
    "waveft": ({"waveft_spectrum": n(64)}, {"n_frequency": 64, "scaling": 1.0, "random_loc_seed": 1}),
    "kasa": ({**PAIR, "diag": n(8)}, {"use_kasa": True}),
    "gralora": ({"gralora_A": n(2, INS // 2, 4), "gralora_B": n(2, 4, OUTS // 2)}, {"alpha": 4}),
}


@pytest.mark.parametrize("form", LARGE)
def test_a_factor_takes_no_more_than_its_form_says(form):
    parts, config = LARGE[form]
    weight = Held(n(OUTS, INS))
    given = Given("m", config, 8, 1.0, "m", {}, {"m": Layer((OUTS, INS), weight)}, "base")
    update = ROWS[form].make({part: Held(array) for part, array in parts.items()}, given)
    for side in (update.up, update.down):
        side.read()  # what it imports is there
        tracemalloc.start()
        given = side.read()
        taken = tracemalloc.get_traced_memory()[1] - given.nbytes
        tracemalloc.stop()
        assert taken <= side.held + SPARE, f"{taken / 1e6:.1f} MB of {side.held / 1e6:.1f}"
