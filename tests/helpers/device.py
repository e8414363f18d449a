"""A device that needs no GPU: arrays that NumPy cannot touch, and the functions that CuPy has for them.

`Away` wraps an ndarray and refuses what CuPy refuses: to become a NumPy array by itself, and to meet one in
an operator or a function. `AWAY` is its namespace; a function or an argument that CuPy 14 lacks (``where=``,
``initial=``) is refused too. What comes down goes through `Away.get`, which keeps count. It is no
`array-api-strict`: CuPy has NumPy's functions and methods, and only a part of them is in that standard.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager, suppress

import numpy as np

from loramerge.arrays.gram import Grams

FUNCTIONS = """
abs all any append arange arccos argsort ascontiguousarray broadcast_to clip concatenate cos count_nonzero
ceil diag einsum empty empty_like exp exp2 eye full full_like isfinite log2 maximum minimum nonzero ones pad
round sign sin sort sqrt stack sum take_along_axis where zeros zeros_like
"""  # each is in CuPy 14.2 by that name
LINALG = "cholesky eigh norm solve"  # what CuPy does for a batch in one launch
METHODS = """
all any argmax argmin argsort astype copy cumsum diagonal max mean min repeat reshape sum swapaxes trace
"""
LACKED = {"where", "out", "initial"}

COPIES: list[np.ndarray] = []  # what came down, while `copies` watches
CALLS: Counter[str] = Counter()  # of the solvers and of matmul
WORKSPACE = 2  # matrices that a batched eigensolver takes beside its result: `workspace_by_rule`


@contextmanager
def copies():
    """The arrays of floats that are copied to the host inside; one number alone is no array."""
    COPIES.clear()
    found: list[np.ndarray] = []
    yield found
    found += [a for a in COPIES if a.dtype.kind == "f" and a.size > 1]


class Streams:
    """What threads have asked of the device, each on a stream of its own; on while a test is in `watched`.

    Whoever touches an array of another thread, which that thread has not waited for, sees half of it on a
    GPU. And
    memory goes back to the thread that took it: if another still works on it, it is written over.
    """

    def __init__(self):
        self.on, self._own = False, threading.local()
        self._lock = threading.RLock()

    @property
    def me(self):
        if not hasattr(self._own, "work"):
            self._own.work = SimpleWork()
        return self._own.work

    @contextmanager
    def watched(self):
        self.on, self.live, self.peak, self.early, self._known = True, 0, 0, [], {}
        try:
            yield self
        finally:
            self.on = False

    def wait(self):
        self.me.done = self.me.asked

    def born(self, held):
        root = _root(held)
        with self._lock:
            if id(root) not in self._known:
                self._known[id(root)] = (self.me, self.me.asked, {})
                self.live += root.nbytes
                self.peak = max(self.peak, self.live)
                weakref.finalize(root, self._gone, id(root), root.nbytes)
            else:
                self.touched(held)

    def touched(self, held):
        self.me.asked += 1
        maker, when, users = self._known.get(id(_root(held)), (self.me, 0, {}))
        if maker is self.me:
            return
        assert maker.done >= when, "an array of another thread, which nobody has waited for"
        users[self.me] = self.me.asked

    def _gone(self, key, size):
        with self._lock:
            _, _, users = self._known.pop(key, (None, 0, {}))
            self.live -= size
            self.early += [work for work, when in users.items() if work.done < when]


class SimpleWork:
    """How much a thread has asked for, and how much of it is done."""

    def __init__(self):
        self.asked = self.done = 0


def _root(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


STREAMS = Streams()


class Away:
    """An array on the device."""

    __slots__ = ("_array",)
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, held):
        self._array = np.asarray(held)
        if STREAMS.on:
            STREAMS.born(self._array)

    @property
    def _held(self):
        if STREAMS.on:
            STREAMS.touched(self._array)
        return self._array

    def __array_namespace__(self, api_version=None):
        return AWAY

    def __array__(self, *_, **__):
        raise TypeError("This array is on the device: no implicit conversion to a NumPy array.")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} does not work on the device.")

    def __dlpack__(self, **asked):
        return self._held.__dlpack__(**asked)

    def __dlpack_device__(self):
        return self._held.__dlpack_device__()

    def get(self):
        COPIES.append(self._held)
        found = self._held.copy()
        STREAMS.wait()  # CuPy waits for what it copies down
        return found

    def set(self, values, stream=None):
        assert isinstance(values, np.ndarray)
        assert values.shape == self.shape
        assert values.dtype == self.dtype
        self._held[...] = values

    def __getattr__(self, name):
        if name in ("shape", "ndim", "size", "dtype", "flags", "strides"):
            return getattr(self._held, name)
        if name == "T":
            return Away(self._held.T)
        if name in METHODS.split():
            return _guarded(getattr(self._held, name))
        raise AttributeError(f"Arrays on the device have no {name}.")

    def __len__(self):
        return len(self._held)

    def __iter__(self):
        return (self[n] for n in range(len(self)))

    def __bool__(self):
        return bool(self._held)

    def __float__(self):
        return float(self._held)

    def __int__(self):
        return int(self._held)

    def __getitem__(self, where):
        return Away(self._held[_index(where)])

    def __setitem__(self, where, values):
        self._held[_index(where)] = _inside(values)

    def __isub__(self, other):
        np.subtract(self._held, _inside(other), out=self._held)
        return self

    def __matmul__(self, other):
        CALLS["matmul"] += 1
        turned = [each for each in (self, other) if each.ndim > 2 and not each.flags.c_contiguous]
        copies = [
            Away(each._held.copy()) for each in turned
        ]  # CuPy's strided-batched product wants dense ones
        found = Away(self._held @ _inside(other))
        del copies
        return found


def _operator(name):
    def operate(self, *others):
        return _outside(getattr(self._held, name)(*map(_inside, others)))

    return operate


for _name in "add sub mul truediv floordiv pow and or xor mod".split():
    setattr(Away, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(Away, f"__r{_name}__", _operator(f"__r{_name}__"))
for _name in "eq ne lt le gt ge neg invert abs".split():
    setattr(Away, f"__{_name}__", _operator(f"__{_name}__"))


def _inside(value):
    """What the device sees of an operand."""
    if isinstance(value, Away):
        return value._held
    if isinstance(value, tuple | list):
        return type(value)(map(_inside, value))
    if isinstance(value, np.ndarray):
        raise TypeError("A NumPy array meets one on the device: move it there by `like`.")
    return value


def _outside(value):
    if isinstance(value, tuple):
        return tuple(map(_outside, value))
    return value if value is NotImplemented else Away(value)


def _index(where):
    """CuPy takes NumPy arrays as indices: positions are small."""
    each = where if isinstance(where, tuple) else (where,)
    return tuple(one._held if isinstance(one, Away) else one for one in each)


def _guarded(function):
    def call(*args, **options):
        if lacked := LACKED & options.keys():
            raise TypeError(f"CuPy's {function.__name__} has no {', '.join(lacked)}=.")
        if options.get("kind", "stable") != "stable":
            raise TypeError("CuPy sorts by kind='stable' alone.")
        return _outside(function(*map(_inside, args), **options))

    return call


class Namespace:
    """The functions of the device."""

    def __init__(self, module, names):
        self._module, self._names = module, names.split()

    def __getattr__(self, name):
        if name not in self._names:
            raise AttributeError(f"{name} is not known to be in CuPy.")
        return _guarded(getattr(self._module, name))

    @staticmethod
    def asarray(values, dtype=None):
        """Moves up."""
        return Away(np.array(values._held if isinstance(values, Away) else values, dtype=dtype))


AWAY = Namespace(np, FUNCTIONS)
AWAY.linalg = Namespace(np.linalg, LINALG)


def _cholesky(matrices):
    """As CuPy: of a matrix that has none it says nothing and leaves something else."""
    CALLS["cholesky"] += 1
    held = _inside(matrices)
    made = np.tril(held)
    for where in np.ndindex(held.shape[:-2]):
        with suppress(np.linalg.LinAlgError):
            made[where] = np.linalg.cholesky(held[where])
    return Away(made)


def _eigh(matrices):
    """With the memory that cuSOLVER takes beside its result."""
    CALLS["eigh"] += 1
    held = _inside(matrices)
    work = Away(np.empty(WORKSPACE * held.size))
    values, vectors = np.linalg.eigh(held)
    del work
    return Away(values), Away(vectors)


def _solve(matrices, right):
    """As CuPy: of a matrix that has no inverse it says nothing."""
    CALLS["solve"] += 1
    try:
        return Away(np.linalg.solve(_inside(matrices), _inside(right)))
    except np.linalg.LinAlgError:
        return Away(np.full(right.shape, np.nan))


AWAY.linalg.cholesky = _cholesky
AWAY.linalg.eigh = _eigh
AWAY.linalg.solve = _solve


def up(value):
    """The same value with its arrays on the device; of Grams those that are large."""
    if isinstance(value, np.ndarray):
        return AWAY.asarray(value)
    if isinstance(value, Grams):
        names = ("up", "down", "live", "lift", "halves")
        return dataclasses.replace(value, **{name: up(getattr(value, name)) for name in names})
    return _through(value, up)


def down(value):
    """The same value with its arrays on the host."""
    return value._held if isinstance(value, Away) else _through(value, down)


def _through(value, move):
    if dataclasses.is_dataclass(value):
        fields = {f.name: move(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple | list):
        made = map(move, value)
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return {key: move(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def numbers(value):
    """Every array and number in a value of the host, in order."""
    if dataclasses.is_dataclass(value):
        return [n for f in dataclasses.fields(value) for n in numbers(getattr(value, f.name))]
    if isinstance(value, Mapping):
        return [n for one in value.values() for n in numbers(one)]
    if isinstance(value, tuple | list):
        return [n for one in value for n in numbers(one)]
    return [np.asarray(value)] if isinstance(value, np.ndarray | np.generic | int | float) else []


def assert_alike(found, wanted, tolerance=1e-12):
    """Two values of the host hold the same numbers, to a share of the largest in each array."""
    pairs = list(zip(numbers(found), numbers(wanted), strict=True))
    assert pairs
    for one, other in pairs:
        largest = np.abs(other.astype(float)).max(initial=0.0)
        np.testing.assert_allclose(
            one.astype(float), other.astype(float), rtol=tolerance, atol=tolerance * largest
        )
