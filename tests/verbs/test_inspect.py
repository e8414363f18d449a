"""What `inspect` measures agrees with dense arithmetic."""

import json

import numpy as np
import pytest

from loramerge import Adapter, LowRank, inspect
from loramerge.errors import SourceError
from tests.helpers.files import SHAPES, dense, folder, tensors


def test_spectra_norms_and_scales_are_those_of_the_dense_updates(tmp_path):
    values = tensors(rank=dict(zip(SHAPES, (1, 2, 4, 9), strict=True)))  # 9 is above min(in, out)
    ranks = dict(zip(SHAPES, (1, 2, 4, 9), strict=True))
    source = folder(tmp_path / "a", values, rank_pattern=ranks, use_rslora=True, lora_alpha=3)
    found = inspect(source)
    wanted = dense(values, {path: 3 / rank**0.5 for path, rank in ranks.items()})
    assert [module.name for module in found.modules] == sorted(SHAPES)
    for module in found.modules:
        sigma = np.zeros(module.rank)
        exact = np.linalg.svd(wanted[module.name])[1][: module.rank]
        sigma[: len(exact)] = exact
        np.testing.assert_allclose(module.sigma, sigma, rtol=1e-9, atol=1e-7)
        assert module.shape == SHAPES[module.name]
        assert module.rank == ranks[module.name]
        assert module.norm == pytest.approx(np.linalg.norm(wanted[module.name]), rel=1e-12)
    total = np.sqrt(sum(np.linalg.norm(update) ** 2 for update in wanted.values()))
    assert found.norm == pytest.approx(total, rel=1e-12)


def spread(*sigma):
    """An adapter of one module with these singular values."""
    return Adapter.of({"l.q": diagonal(*sigma)})


def diagonal(*sigma, scale=1.0):
    down = np.zeros((len(sigma), 6))
    np.fill_diagonal(down, sigma)
    return LowRank(np.eye(5, len(sigma)), down, scale)


@pytest.mark.parametrize(
    ("sigma", "effective"),
    [((1,), 1), ((2, 2), 2), ((3, 3, 3, 0), 3), ((0, 0), 0), ((1, 1e-6), 1), ((1e-40, 1e-40), 2)],
)
def test_the_effective_rank_counts_units_that_share_the_energy(sigma, effective):
    (module,) = inspect(spread(*map(float, sigma))).modules
    assert module.effective_rank == pytest.approx(effective, abs=1e-9)


def test_the_table_gives_spans_and_the_energy_of_leading_units():
    both = Adapter.of({"l.0.q": diagonal(3, 4), "l.1.q": diagonal(1, 1, scale=0.5)})
    head, row = inspect(both).table()
    assert head[:5] == ["module", "count", "out×in", "rank", "scale"]
    assert row == ["q", "2", "5×6", "2", "0.5…1", "0.707…5", "1.92…2", "64, 100, 100, 100 %"]


def test_modules_of_one_name_and_two_shapes_have_two_rows():
    made = Adapter.of({f"{i}.q": LowRank(np.ones((3, 1)), np.ones((1, 4 + i)), 1.0) for i in range(2)})
    assert [row[2] for row in inspect(made).table()[1:]] == ["3×4", "3×5"]


def test_zeros_have_no_share_of_energy():
    found = inspect(spread(0.0))
    assert found.table()[1][-1] == "–"
    assert found.oddities == ("1 of 1 modules are zero, such as l.q",)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_notebook_shows_the_text_escaped(tmp_path):
    source = folder(tmp_path / "a", base_model_name_or_path="<script>")
    assert "&lt;script&gt;" in inspect(source)._repr_html_()
    assert "<script>" in str(inspect(source))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_factor_that_is_no_number_is_refused_by_name(bad):
    with pytest.raises(SourceError, match=r"NaN or infinity in the down factor of l\.q"):
        inspect(spread(1.0, bad))
