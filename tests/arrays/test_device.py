"""Every function of the array layer gives on a device what it gives on the host, and stays there.

`CASES` has each public function and method that takes arrays; one that is missing here fails.
"""

import inspect
from dataclasses import is_dataclass

import ml_dtypes
import numpy as np
import pytest

from loramerge.arrays import basis, dtypes, frames, gram, linalg, polar, remix, rounding
from tests.helpers.adapters import random_adapters, units_of
from tests.helpers.device import Away, assert_alike, copies, down, numbers, up

MODULES = (linalg, gram, frames, basis, polar, remix, rounding, dtypes)
OF_WORDS = {"parse", "word", "name_of", "widest", "epsilon", "largest"}  # names of types: no arrays
RNG = np.random.default_rng(11)


def made(ranks, seed=1, shapes=None):
    """Grams of several modules, one of them with units that nearly coincide, and a zero unit."""
    sources = random_adapters(seed, ranks, shapes or {"a": (40, 50), "b": (30, 60), "c": (5, 6)})
    return units_of(sources)[0].grams()


UNITS = made((3, 2, 4))
MANY = made((40, 40), shapes={"a": (90, 100), "b": (120, 100)})  # enough for the short way of `leading`
WEIGHTED = gram.Grams(
    **{**{n: getattr(UNITS, n) for n in UNITS.__slots__}, "weights": np.array([1.0, -0.5, 0.0])}
)
SPECTRAL = frames.spectral(WEIGHTED)
BASIS = basis.basis(SPECTRAL, 1e-5)
PARTS = gram.spectrum(UNITS.up, UNITS.down)
FACTORS = (
    RNG.standard_normal((20, 3)) * [1e5, 1.0, 1e-6],
    RNG.standard_normal((3, 30)) * [[1e-5], [1.0], [1.0]],
)
CORES = RNG.standard_normal((2, 3, 9, 9))
REMIX = remix.Remix(RNG.standard_normal((3, 9, 2)), RNG.standard_normal((3, 2, 9)))


def nearly_alike():
    """Units whose Grams have lost digits, so that the factors are looked at again."""
    high = RNG.standard_normal((3, 20, 2))
    high = np.concatenate([high, high[:, :, :1] + 1e-9], axis=2)
    wide = RNG.standard_normal((3, 3, 25))
    eye = np.broadcast_to(np.eye(3), (3, 3, 3))
    return gram.Grams(
        high.swapaxes(1, 2) @ high,
        wide @ wide.swapaxes(1, 2),
        np.array([0, 0, 1]),
        np.ones((3, 3), bool),
        remix.Remix(eye, eye),
        ("a", "b", "c"),
        read=lambda module: (high[module], wide[module]),
    )


def stored(up, down, dtype):
    return rounding.store(up, down, dtype, 4, "q")


# Two solvers choose signs, and turns where values coincide. They agree on what is made of the vectors.
def made_of(parts):
    """σ and the matrix of singular vectors."""
    x, sigma, y = parts
    return sigma, x * sigma[..., None, :] @ y


def summed(function):
    """σ of a spectrum of two Grams and the sum, as all units see it from both sides."""

    def look(one, other, *more):
        found = function(one, other, *more)
        return found.sigma, one @ (found.left * found.sigma[..., None, :]) @ found.right @ other

    return look


def spanned(function):
    """What bases keep of the units."""

    def look(grams):
        found = function(grams)
        sides = [(found.reach_up, found.left), (found.reach_down, found.right)]
        return [(square(reach), back @ reach) for reach, back in sides], found.ranks

    return look


def grams_of(function):
    """The lift of a frame as a sum of units, and what it says of them."""

    def look(*given):
        found = function(*given)
        return found.lift.P @ found.lift.Q, found.live, found.kernel.trace(axis1=1, axis2=2)

    return look


def square(half):
    return half.swapaxes(-1, -2) @ half


CASES = {
    "linalg.cholesky": [(linalg.cholesky, UNITS.up[:, :2, :2])],
    "linalg.solve": [(linalg.solve, UNITS.up + 3 * np.eye(9), UNITS.down)],
    "linalg.eigh": [(lambda m: (linalg.eigh(m)[0], square(linalg.eigh(m)[1])), UNITS.up)],
    "linalg.svd": [(lambda m: made_of(linalg.svd(m)), CORES[0])],
    "linalg.singular_values": [(linalg.singular_values, CORES[0])],
    "gram.triangle": [(lambda x: square(gram.triangle(x)), CORES[0][:, :, :4])],
    "gram.sharp": [
        (
            lambda x, e, g: square(gram.sharp(lambda turn: square(x @ turn), e, g)),
            CORES[0],
            np.eye(9),
            square(CORES[0]),
        )
    ],
    "gram.square": [(gram.square, CORES[0])],
    "gram.Grams.kernel": [(lambda g: g.kernel, UNITS)],
    "gram.Grams.unit_weights": [(lambda g: g.unit_weights, UNITS), (lambda g: g.unit_weights, WEIGHTED)],
    "gram.Grams.remix": [(lambda g, p, q: g.remix(p, q), UNITS, REMIX.P, REMIX.Q)],
    "gram.Grams.owners": [(lambda g: g.up[:, g.owners], UNITS)],
    "gram.Grams.of": [(lambda g: g.up[:, g.of(1)], UNITS)],
    "gram.Grams.members": [(lambda g: g.members(3), UNITS)],
    "gram.cosines_of": [(gram.cosines_of, UNITS.up)],
    "gram.halves": [(gram.halves, UNITS.up), (gram.halves, np.stack([np.eye(2), np.ones((2, 2))]))],
    "gram.spectrum": [
        (summed(gram.spectrum), UNITS.up, UNITS.down),
        (summed(gram.spectrum), UNITS.up[0], UNITS.down[0]),
    ],
    "gram.leading": [
        (summed(gram.leading), UNITS.up, UNITS.down, 2),
        (summed(gram.leading), MANY.up, MANY.down, 5),
        (summed(gram.leading), MANY.up[0], MANY.down[0], 5),
        (
            summed(gram.leading),
            MANY.up * np.diag(10.0 ** -np.arange(0, 40, 0.5)),
            MANY.down,
            20,
        ),
    ],
    "gram.balanced": [(gram.balanced, PARTS, 2)],
    "gram.weigh": [
        (lambda g: gram.weigh(g, np.array([1.0, -2.0, 0.0])), frames.halved(UNITS)),
        (lambda g: gram.weigh(g, np.array([1.0, -2.0, 0.0]), even=True), UNITS),
        (gram.weigh, UNITS, np.array([[1.0, -2.0, 0.0], [0.5, 1.0, 1.0], [0.0, 0.0, 1.0]])),
    ],
    "gram.inner": [(gram.inner, UNITS, *CORES)],
    "frames.framed": [(grams_of(lambda g: frames.framed(g, "canonical")), UNITS)],
    "frames.halved": [(frames.halved, UNITS)],
    "frames.canonical": [
        (grams_of(frames.canonical), UNITS),
        (grams_of(frames.canonical), frames.halved(UNITS)),
    ],
    "frames.spectral": [(grams_of(frames.spectral), UNITS), (grams_of(frames.spectral), nearly_alike())],
    "basis.Basis.core": [(lambda b, g: b.core(g, 1), BASIS, SPECTRAL)],
    "basis.Basis.weighted_sum": [(lambda b, g: b.weighted_sum(g), BASIS, SPECTRAL)],
    "basis.Basis.remix": [(lambda b, g, x, y: b.remix(g, x, y), BASIS, SPECTRAL, REMIX.P, REMIX.Q)],
    "basis.Basis.leading": [
        (lambda b, g, x, s, y: b.leading(g, x, s, y, 2), BASIS, SPECTRAL, *np.linalg.svd(CORES[0]))
    ],
    "basis.basis": [(spanned(lambda g: basis.basis(g, 1e-5)), SPECTRAL)],
    "basis.directions": [(spanned(lambda g: basis.directions(g, g.live, 1e-5)), SPECTRAL)],
    "polar.nearest": [(lambda columns: polar.nearest(columns, 1e-5), CORES[0])],
    "polar.rows_as_directions": [(polar.rows_as_directions, CORES[0] * (np.arange(9) > 0)[:, None])],
    "polar.singular": [
        (polar.singular, CORES[0], np.abs(CORES[1, :, 0]), CORES[1]),
        (polar.singular, *(np.linalg.svd(CORES[0])[n] for n in (0, 1)), np.linalg.svd(CORES[1])[0]),
    ],
    "remix.Remix.after": [(lambda r, s: s.after(r), remix.Remix(CORES[0], CORES[1]), REMIX)],
    "remix.Remix.core": [(lambda r: r.core, REMIX)],
    "rounding.store": [
        (lambda u, d, kind=kind: stored(u, d, kind), *FACTORS) for kind in ("F16", "BF16", "F32", "F64")
    ],
    "rounding.error": [
        (lambda u, d, kind=kind: rounding.error(u, d, *stored(u, d, kind)), *FACTORS)
        for kind in ("F16", "BF16")
    ],
    "rounding.bound": [(lambda u, d: rounding.bound(*stored(u, d, "BF16"), "BF16"), *FACTORS)],
    "dtypes.wide": [(dtypes.wide, FACTORS[0].astype(ml_dtypes.bfloat16))],
}
NUMBERS_OF_PYTHON = {"rounding.error", "rounding.bound"}  # one for a module, for its report


def public(module):
    """Functions of a module and methods of its values, without those that only hold arrays."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(value) and name not in OF_WORDS:
            yield name
        elif inspect.isclass(value) and is_dataclass(value):
            for verb, made in vars(value).items():
                if not verb.startswith("_") and (inspect.isfunction(made) or isinstance(made, property)):
                    yield f"{name}.{verb}"


def test_every_function_of_the_layer_is_here():
    found = {f"{module.__name__.rpartition('.')[2]}.{name}" for module in MODULES for name in public(module)}

    assert found == set(CASES)


@pytest.mark.parametrize(
    ("name", "case"),
    [(n, c) for n, cases in CASES.items() for c in cases],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_it_gives_the_same_on_a_device(name, case):
    function, *given = case
    wanted = function(*given)

    with copies() as copied:
        found = function(*map(up, given))

    assert_alike(down(found), wanted)
    assert not copied
    assert name in NUMBERS_OF_PYTHON or _is_away(found)


def _is_away(value):
    """Every array of a value is on the device, and there is one."""
    away = down(value)
    return len(numbers(away)) > 0 and not [each for each in _held(value) if isinstance(each, np.ndarray)]


def _held(value):
    if isinstance(value, gram.Grams):
        return [value.up, value.down, value.live, *_held(value.lift), *_held(value.halves or ())]
    if is_dataclass(value):
        return [each for name in value.__slots__ for each in _held(getattr(value, name))]
    return [each for one in value for each in _held(one)] if isinstance(value, tuple | list) else [value]


def test_the_functions_are_those_of_cupy():
    cupy = pytest.importorskip(
        "cupy", reason="CuPy is not installed: the stand-in's lists were read from 14.2"
    )
    from tests.helpers.device import FUNCTIONS, LINALG, METHODS

    assert [n for n in FUNCTIONS.split() if not hasattr(cupy, n)] == []
    assert [n for n in LINALG.split() if not hasattr(cupy.linalg, n)] == []
    assert [n for n in METHODS.split() if not hasattr(cupy.ndarray, n)] == []


def test_the_device_is_no_numpy_array():
    assert not isinstance(up(np.ones(2)), np.ndarray)
    assert isinstance(up(np.ones(2)), Away)
