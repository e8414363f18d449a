"""For the tests of those who use loramerge: two adapters must be the same update.

from loramerge.testing import assert_adapters_close

def test_the_nightly_merge_has_not_changed():
    assert_adapters_close("merged", "tests/expected.safetensors", max_error=1e-6)
"""

from __future__ import annotations

from pathlib import Path

from loramerge.adapters.adapter import Adapter
from loramerge.errors import VerificationError
from loramerge.merge.tables import aligned
from loramerge.sources.open import Alphas
from loramerge.verbs.diff import diff

__all__ = ["assert_adapters_close"]


def assert_adapters_close(
    actual: str | Path | Adapter,
    expected: str | Path | Adapter,
    *,
    max_error: float = 1e-6,
    alpha: Alphas = None,
) -> None:
    """Every module of `actual` is within `max_error` of ‖expected‖ there, and neither lacks one.

    What is compared is ΔW: ranks, factors, scales and types may differ. Rounding to float32 costs
    about 1e-7, to float16 5e-4, to bfloat16 4e-3.

    Raises:
        AssertionError: with the worst modules, A being `expected` and B `actual`.
    """
    __tracebackhide__ = True
    found = diff(expected, actual, alpha=alpha)
    try:
        found.check(max_error)
    except VerificationError as error:
        lines = [str(error).partition(" If that")[0], *aligned(found.table(5))]
        raise AssertionError("\n".join(lines)) from None
