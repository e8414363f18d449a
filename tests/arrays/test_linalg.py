"""Batched factorisations on a device are those of NumPy, and what fails there is made again and told."""

import re

import numpy as np
import pytest

from loramerge.arrays import frames, gram, linalg, polar, remix
from loramerge.arrays.backend import namespace
from loramerge.cuda.load import FOLDER
from tests.helpers.device import AWAY, CALLS, Away, down
from tests.helpers.device import up as to_device


def steep(modules):
    """Grams on a device, of modules whose σ fall by many digits, so that every short way is left."""
    rng = np.random.default_rng(0)
    up, low = rng.standard_normal((2, modules, 96, 64))
    up, low = up * 10.0 ** -np.arange(0, 32, 0.5), low + low[:, :, :1] * 1e6
    owner, eye = np.arange(64) // 8, np.broadcast_to(np.eye(64), (modules, 64, 64))
    grams = gram.Grams(
        gram.square(up),
        gram.square(low),
        owner,
        np.ones((modules, 64), bool),
        remix.Remix(eye, eye),
        tuple(map(str, range(modules))),
        read=lambda m: (AWAY.asarray(up[m]), AWAY.asarray(low[m].T)),
    )
    return to_device(grams)


class TestChecks:
    """What a solver of the GPU gives is looked at, because its error codes are not."""

    matrices = np.stack([m @ m.T for m in np.random.default_rng(0).standard_normal((3, 5, 5))])

    @pytest.mark.parametrize("fails", ["batch", "always"])
    def test_wrong_eigenvectors_are_solved_again_and_told(self, monkeypatch, fails):
        right = AWAY.linalg.eigh

        def eigh(matrices):
            values, vectors = right(matrices)
            if fails == "always" or matrices.ndim == 3:
                place = (1,) if matrices.ndim == 3 else ()
                vectors[place] = AWAY.asarray(np.zeros((5, 5)))
            return values, vectors

        monkeypatch.setattr(AWAY.linalg, "eigh", eigh, raising=False)
        with pytest.warns(RuntimeWarning, match="one by one" if fails == "batch" else "on the host"):
            values, vectors = map(down, linalg.eigh(AWAY.asarray(self.matrices)))

        np.testing.assert_allclose(vectors * values[:, None, :] @ vectors.swapaxes(1, 2), self.matrices)

    def test_a_cholesky_that_fails_on_a_definite_matrix_is_made_again_and_told(self, monkeypatch):
        right = AWAY.linalg.cholesky

        def wrong(matrices):
            found = right(matrices)
            found[1] = AWAY.asarray(np.eye(5))
            return found

        monkeypatch.setattr(AWAY.linalg, "cholesky", wrong, raising=False)
        with pytest.warns(RuntimeWarning, match="Cholesky factorisation failed .* on the host"):
            found = down(linalg.cholesky(AWAY.asarray(self.matrices)))

        np.testing.assert_allclose(found, np.linalg.cholesky(self.matrices))

    @pytest.mark.parametrize("bad", [0.0, np.nan])
    def test_a_solution_that_is_none_is_made_again_and_told(self, monkeypatch, bad):
        right, given = AWAY.linalg.solve, np.random.default_rng(0).standard_normal((3, 5, 2))

        def wrong(matrices, values):
            found = right(matrices, values)
            found[1] = AWAY.asarray(np.full((5, 2), bad))
            return found

        monkeypatch.setattr(AWAY.linalg, "solve", wrong, raising=False)
        with pytest.warns(RuntimeWarning, match="solver of linear systems failed .* on the host"):
            found = down(linalg.solve(AWAY.asarray(self.matrices), AWAY.asarray(given)))

        np.testing.assert_allclose(found, np.linalg.solve(self.matrices, given))

    def test_a_singular_system_is_an_error_as_with_numpy(self):
        with pytest.raises(np.linalg.LinAlgError):
            linalg.solve(AWAY.asarray(np.ones((2, 3, 3))), AWAY.asarray(np.ones((2, 3, 1))))

    def test_only_the_checked_solvers_run_on_a_device(self):
        """Elsewhere a solver is NumPy's by name: it is for arrays of the host."""
        solver = re.compile(
            r"(\S+)\.linalg\.(cholesky|eigh?|eigvalsh?|svd|qr|solve|inv|pinv|lstsq|det|matrix_rank)\b"
        )
        found = [
            f"{path.name}: {call[0]}"
            for room in ("arrays", "algorithms", "merge", "sources")
            for path in sorted((FOLDER.parent / room).rglob("*.py"))
            for call in solver.finditer(path.read_text(encoding="utf-8"))
            if path.name != "linalg.py" and not call[1].endswith("np")
        ]

        assert not found

    @pytest.mark.parametrize(
        "what",
        [
            lambda g: gram.leading(g.up, g.down, 4),
            lambda g: linalg.svd(g.up[:, :, :5] * AWAY.asarray(np.arange(5.0) > 0)),
            frames.spectral,
            lambda g: polar.singular(*(linalg.svd(g.up)[n] for n in (0, 1)), 0.5 * g.up),
        ],
        ids=["leading", "tall", "spectral", "polar"],
    )
    def test_modules_that_need_more_are_solved_together(self, what):
        """Twenty take no more eigenproblems, factorisations and solutions than one."""
        found = []
        for modules in (1, 20):
            CALLS.clear()
            what(steep(modules))
            found.append({name: CALLS[name] for name in ("eigh", "cholesky", "solve")})

        assert found[0] == found[1]
        assert 0 < found[0]["eigh"] <= 9

    def test_half_of_a_cholesky_factor_is_none(self):
        matrices = self.matrices.copy()
        matrices[1] *= -1

        found = down(linalg.cholesky(AWAY.asarray(matrices)))

        assert np.isnan(found[1]).all()
        np.testing.assert_allclose(found[[0, 2]], np.linalg.cholesky(matrices[[0, 2]]))

    @pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (4, 1), (1, 1)])
    @pytest.mark.parametrize("kind", ["full", "rank 1", "graded", "zero"])
    def test_an_svd_of_two_factorisations_has_every_digit(self, shape, kind):
        a = np.random.default_rng(1).standard_normal((2, *shape))
        a = {"full": a, "rank 1": a[:, :, :1] @ a[:, :1], "zero": 0 * a}.get(
            kind, a * 10.0 ** -np.arange(0, 3 * shape[1], 3)
        )

        u, sigma, vt = map(down, linalg.svd(AWAY.asarray(a)))

        largest = np.linalg.svd(a, compute_uv=False)
        np.testing.assert_allclose(sigma, largest, atol=1e-13 * max(largest.max(), 1e-300))
        np.testing.assert_allclose(u * sigma[:, None, :] @ vt, a, atol=1e-12 * max(np.abs(a).max(), 1e-300))

    def test_it_is_on_the_device_that_they_are_made(self):
        assert all(isinstance(each, Away) for each in linalg.svd(AWAY.asarray(self.matrices)))
        assert namespace(linalg.singular_values(AWAY.asarray(self.matrices))) is AWAY


@pytest.mark.parametrize("batch", [False, True])
def test_what_lapack_does_not_find_is_found_in_another_order(batch, monkeypatch):
    """As OpenBLAS did not converge on one matrix of 256 rows that `level` made of 32 adapters."""
    rng = np.random.default_rng(0)
    bad, others = rng.standard_normal((6, 4)), rng.standard_normal((2, 6, 4))
    symmetric = np.stack([each.T @ each for each in (*others, bad)])
    real_svd, real_eigh, refused = np.linalg.svd, np.linalg.eigh, []

    def failing(real, worst):
        def call(matrices, *args, **named):
            if any(np.array_equal(each, worst) for each in matrices.reshape(-1, *matrices.shape[-2:])):
                refused.append(real)
                raise np.linalg.LinAlgError("did not converge")
            return real(matrices, *args, **named)

        return call

    monkeypatch.setattr(np.linalg, "svd", failing(real_svd, bad))
    monkeypatch.setattr(np.linalg, "eigh", failing(real_eigh, symmetric[2]))
    given = np.stack([*others, bad]) if batch else bad
    u, sigma, vt = linalg.svd(given, full_matrices=False)
    np.testing.assert_allclose((u * sigma[..., None, :]) @ vt, given, atol=1e-12)
    np.testing.assert_allclose(linalg.singular_values(given), sigma, atol=1e-12)
    squares = symmetric if batch else symmetric[2]
    values, vectors = linalg.eigh(squares)
    np.testing.assert_allclose(
        (vectors * values[..., None, :]) @ vectors.swapaxes(-1, -2), squares, atol=1e-12
    )
    assert len(refused) > 2
    with pytest.raises(np.linalg.LinAlgError):
        linalg.svd(np.full((2, 2), np.nan))
