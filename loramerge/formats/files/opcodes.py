"""A machine for pickles that knows only the instructions which torch.save and kohya's scripts write.

A pickle is a program for a stack machine. This one has the instructions for numbers, texts, tuples, lists,
tables, and for the few functions that it is given. Any other ends the run before it acts. So does one that
is more than a state dict needs: each instruction makes at most as much as the file has bytes for it.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

MOST = 8_000_000  # instructions: 40 for a tensor, so 200 000 tensors
LARGEST = 8_000_000  # values, each as often as it is repeated: 30 for a tensor and its name
TENSOR, LETTERS = 16, 8  # how many values a tensor counts for, and how many letters of a text for one
MADE = 1_600_000  # tables, lists and tuples: 8 for a tensor. One byte of a file makes 400 of memory
KEPT = 2_400_000  # values to recall: 12 for a tensor
NESTED = 1_000  # pieces begun and not ended
LONGEST = 64  # of a tuple: a shape
NAME = 200  # of a function
WORDS = {info.code.encode("latin-1"): info.name for info in pickletools.opcodes}

Named = Callable[[str, str], Any]  # what stands for a name; raises where a state dict has no need of it
Persistent = Callable[[Any], Any]  # what stands for a storage


def run(data: bytes, start: int, named: Named, persistent: Persistent) -> tuple[Any, int]:
    """What a pickle in `data` makes, and where it ends.

    Raises:
        ValueError: it is none, is cut short, or does what torch.save never writes; and what `named` raises.

    >>> run(pickle.dumps({"a": (1, 2.5)}, 2), 0, named=max, persistent=max)[0]
    {'a': (1, 2.5)}
    """
    machine = _Machine(data, start, named, persistent)
    for _ in range(MOST):
        code = machine.take(1)
        if code == b".":
            return machine.pop(), machine.at
        step = STEPS.get(code)
        if step is None:
            raise ValueError(
                f"its pickle has {WORDS.get(code, 'an unknown instruction')}, which torch never writes"
            )
        step(machine)
    raise ValueError("its pickle has more instructions than any state dict")


class _Machine:
    def __init__(self, data: bytes, at: int, named: Named, persistent: Persistent) -> None:
        self.data, self.at, self.named, self.persistent = data, at, named, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}  # of tables, lists and tuples, by their identity
        self.made = 0  # tables, lists and tuples
        self.shared: set[int] = set()  # those that were recalled: what grew now would grow in many places

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise ValueError("it is cut short")
        self.at += count
        return piece

    def number(self, form: str) -> int:
        found: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + NAME)
        if end < 0:
            raise ValueError("a name in it is too long")
        return self.take(end + 1 - self.at)[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes more values than it has")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("it takes more values than it has")
        mark = self.marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def last(self, *kinds: type) -> Any:
        """The value that is added to, of one of these kinds: no other can be changed."""
        value = self.pop()
        self.push(value)
        if type(value) not in kinds:
            raise ValueError(f"it adds to a {type(value).__name__}")
        return value

    def remember(self, key: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[key] = value
        if len(self.memo) > KEPT:
            raise ValueError("it keeps more values than any state dict has")

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise ValueError("it recalls what was never kept")
        value = self.memo[key]
        if type(value) in HOLDERS:
            self.shared.add(id(value))
        self.push(value)

    def mark(self) -> None:
        self.marks.append(len(self.stack))
        if len(self.marks) > NESTED:
            raise ValueError("it nests deeper than any state dict")

    def begin(self, holder: Any) -> None:
        self.made += holder != ()  # which is but one in all of Python
        if self.made > MADE:
            raise ValueError("it makes more tables, lists and tuples than any state dict has")
        self.push(holder)
        self.sizes[id(holder)] = 1
        self.shared.discard(id(holder))

    def grow(self, holder: Any, values: list[Any]) -> None:
        """Count what a holder is given: repeated in one another, few bytes would hold more than a disk."""
        if id(holder) in self.shared:
            raise ValueError("it adds to what it repeats")
        size = self.sizes[id(holder)] + sum(map(self.size, values))
        if size > LARGEST:
            raise ValueError("it repeats more than any state dict holds")
        self.sizes[id(holder)] = size

    def size(self, value: Any) -> int:
        if type(value) in HOLDERS:
            return self.sizes[id(value)]
        if type(value) is str:
            return 1 + len(value) // LETTERS
        return 1 if type(value) in NUMBERS else TENSOR

    def tuple_of(self, values: list[Any]) -> None:
        nested = [each for each in values if type(each) is tuple]
        if len(values) > LONGEST or any(type(each) is tuple for inner in nested for each in inner):
            raise ValueError("it nests tuples as no tensor needs")
        made = tuple(values)
        self.begin(made)
        self.grow(made, values)

    def few(self, count: int) -> None:
        self.tuple_of([self.pop() for _ in range(count)][::-1])

    def put(self, values: list[Any]) -> None:
        target = self.last(dict, OrderedDict)
        if len(values) % 2 or not all(type(key) is str for key in values[::2]):
            raise ValueError("a name in it is no text")
        self.grow(target, values)
        target.update(zip(values[::2], values[1::2], strict=True))

    def put_one(self) -> None:
        value, key = self.pop(), self.pop()
        self.put([key, value])

    def append(self, values: list[Any]) -> None:
        target = self.last(list)
        self.grow(target, values)
        target.extend(values)

    def call(self) -> None:
        given, function = self.pop(), self.pop()
        if type(given) is not tuple or not isinstance(function, Function):
            raise ValueError("it calls something that is not a function")
        made = function.make(*given)
        if type(made) is OrderedDict and not given:  # a new one
            self.begin(made)
        elif type(made) in HOLDERS:  # one that is held already, which could then be put into itself
            raise ValueError("it calls a function for a table that it has")
        else:
            self.push(made)

    def build(self) -> None:
        state = self.pop()
        self.last(OrderedDict)  # the versions of a module's parts, which nobody here reads
        if type(state) is not dict:
            raise ValueError("it gives a table another state")

    def long(self) -> int:
        return int.from_bytes(self.take(self.number("<B")), "little", signed=True)

    def text(self) -> str:
        return self.take(self.number("<I")).decode("utf-8", "surrogatepass")


HOLDERS = frozenset({tuple, list, dict, OrderedDict})
NUMBERS = frozenset({int, float, bool, type(None)})


class Function:
    """A function that a pickle may call: `make` of ours, in the place of the one that it names."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def _protocol(machine: _Machine) -> None:
    if machine.number("<B") > 2:
        raise ValueError("its protocol is newer than the one that torch writes")


STEPS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: _protocol,
    pickle.MARK: lambda m: m.mark(),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(m.long()),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.BINUNICODE: lambda m: m.push(m.text()),
    pickle.EMPTY_TUPLE: lambda m: m.begin(()),
    pickle.TUPLE1: lambda m: m.few(1),
    pickle.TUPLE2: lambda m: m.few(2),
    pickle.TUPLE3: lambda m: m.few(3),
    pickle.TUPLE: lambda m: m.tuple_of(m.since_mark()),
    pickle.EMPTY_LIST: lambda m: m.begin([]),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.since_mark()),
    pickle.EMPTY_DICT: lambda m: m.begin({}),
    pickle.SETITEM: lambda m: m.put_one(),
    pickle.SETITEMS: lambda m: m.put(m.since_mark()),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GLOBAL: lambda m: m.push(m.named(m.line(), m.line())),
    pickle.BINPERSID: lambda m: m.push(m.persistent(m.pop())),
    pickle.REDUCE: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
}
