"""A machine for pickles that runs nothing and whose work is bounded: Python's own has neither property.

It knows plain data and the stand-ins that its caller gives for globals. No value is ever hashed, printed, compared or
copied as a whole: keys are text, small numbers or short flat tuples of these, calls get their arguments as they are,
and each step, byte of text and copied element is paid from a budget.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_STEPS = 2_000_000
"""Opcodes and copied elements of one pickle. A tensor takes some 40."""
MAX_BYTES = 1 << 28
"""Bytes of text of one pickle, each text counted as often as it is made."""
MAX_NUMBER = 1 << 256
"""What a whole number stays below: states of random generators have 128 bits."""
MAX_DEPTH = 100
"""Levels of tuples in tuples, along the first or the last of each."""
_KEY = 1 << 64
_MOST_PARTS = 8
"""Of a tuple that is a key."""
_COMPARED = 256
"""Characters of a key that are compared in the time of a step."""
_MARK = object()
_Resolve = Callable[[str, str], Any]


class Budget:
    """What is left to spend on one pickle."""

    def __init__(self) -> None:
        self.steps, self.bytes = MAX_STEPS, MAX_BYTES

    def steps_of(self, count: int) -> None:
        """Pay steps.

        Raises:
            ValueError: None are left.
        """
        self.steps -= count
        if self.steps < 0:
            raise ValueError(f"more than {MAX_STEPS} steps")

    def text(self, value: str | bytes | bytearray) -> None:
        """Pay for the memory of a text.

        Raises:
            ValueError: Too much of it.
        """
        self.bytes -= sys.getsizeof(value)
        if self.bytes < 0:
            raise ValueError(f"more than {MAX_BYTES} bytes of text")


@dataclass(frozen=True)
class Call:
    """A global that a pickle may call.

    Attributes:
        name: With its module.
        function: Takes the budget and the pickle's arguments, and gives what the call stands for.
    """

    name: str
    function: Callable[..., Any]


class Leftover:
    """Stands for an object that is no tensor; whatever the pickle does to it is forgotten."""

    __slots__ = ()


def put(budget: Budget, mapping: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an entry. A flat tuple as key becomes the text that it would print as: hashes of tuples can be made equal.

    Raises:
        TypeError: The key is not None, text, a number of 64 bits or a flat tuple of up to 8 of these; hashing another
            one may never end.
        ValueError: It holds half of a surrogate pair, which no file format can write, or the budget is spent: keys are
            compared with one another.
    """
    if type(key) is tuple:
        if len(key) > _MOST_PARTS:
            raise TypeError(f"a key is a tuple of more than {_MOST_PARTS}")
        for part in key:
            _check_key(budget, part)
        key = repr(key)
        budget.text(key)
    _check_key(budget, key)
    mapping[key] = value


def _check_key(budget: Budget, key: Any) -> None:
    if type(key) is str:
        budget.steps_of(len(key) // _COMPARED)
        if not key.isascii():
            key.encode("utf-8")
    elif type(key) is int:
        if not -_KEY < key < _KEY:
            raise TypeError("a key is a number of more than 64 bits")
    elif key is not None and type(key) not in (bool, float):
        raise TypeError("a key is neither text nor a number")


class Machine:
    """Runs one pickle.

    Args:
        resolve: Gives the stand-in for a global by module and name, or refuses it.
        persistent: Gives what a persistent id stands for.
    """

    def __init__(self, resolve: _Resolve, persistent: Callable[[Any], Any]) -> None:
        self.budget = Budget()
        self._resolve, self._persistent = resolve, persistent
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """What the pickle at the file's position stands for; the file is left behind its end.

        Raises:
            Exception: Nearly any kind, for a pickle that is damaged or goes beyond the bounds.
        """
        for opcode, argument, _ in pickletools.genops(file):
            self.budget.steps_of(1)
            name = opcode.name
            if name in _LITERALS:
                self._stack.append(self._literal(argument))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _GETS:
                self._stack.append(self._memo[argument])
            elif name in _PUTS:
                self._memo[argument] = self._stack[-1]
            elif name == "STOP":
                return self._pop()
            elif name not in _IGNORED:
                if name not in _STEPS:
                    raise ValueError(f"the opcode {name}")
                _STEPS[name](self, argument)
        raise ValueError("no end")

    def _literal(self, value: Any) -> Any:
        if isinstance(value, (str, bytes, bytearray)):
            self.budget.text(value)
        elif type(value) is int and not -MAX_NUMBER < value < MAX_NUMBER:
            raise ValueError("a number of more than 256 bits")
        return value

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark in the place of a value")
        return value

    def _marked(self) -> list[Any]:
        """The values above the last mark, taken off with it."""
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:  # ends below the bottom with IndexError
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        found = self._stack[at + 1 :]
        del self._stack[at:]
        self.budget.steps_of(len(found))
        return found

    def _top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise TypeError(f"something else than a {kind.__name__} is filled")
        return value

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_marked(self, _: Any) -> None:
        self._marked()

    def _again(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _list(self, _: Any) -> None:
        found = self._marked()
        self._stack.append(found)

    def _tuple(self, _: Any) -> None:
        self._push_tuple(self._marked())

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        self._push_tuple([self._pop() for _ in range(count)][::-1])

    def _push_tuple(self, found: list[Any]) -> None:
        made = tuple(found)
        for end in (0, -1):
            value, depth = made, 0
            while type(value) is tuple and value:
                value, depth = value[end], depth + 1
            if depth > MAX_DEPTH:
                raise ValueError(f"tuples more than {MAX_DEPTH} deep")
        self._stack.append(made)

    def _dict(self, _: Any) -> None:
        found = self._marked()
        made: dict[Any, Any] = {}
        self._fill(made, found)
        self._stack.append(made)

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        found = self._marked()
        self._top(list).extend(found)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        put(self.budget, self._top(dict), key, value)

    def _set_items(self, _: Any) -> None:
        found = self._marked()
        self._fill(self._top(dict), found)

    def _fill(self, target: dict[Any, Any], found: list[Any]) -> None:
        for key, value in zip(found[::2], found[1::2], strict=True):
            put(self.budget, target, key, value)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._resolve(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a global is not named by text")
        self._stack.append(self._resolve(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, called = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise TypeError("a call without arguments")
        if not isinstance(called, Call):
            raise TypeError("a call of something that is no function")
        self.budget.steps_of(len(arguments))
        self._stack.append(called.function(self.budget, *arguments))

    def _reduce_named(self, _: Any) -> None:
        named = self._pop()
        if type(named) is not dict:
            raise TypeError("named arguments that are none")
        self._reduce(None)

    def _build(self, _: Any) -> None:
        self._pop()
        if type(self._stack[-1]) is not dict and not isinstance(self._stack[-1], Leftover):
            raise TypeError("it changes something that can't be changed")

    def _persistent_id(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


_LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_IGNORED = frozenset(("PROTO", "FRAME"))
_STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": Machine._drop_marked,
    "DUP": Machine._again,
    "MEMOIZE": Machine._memoize,
    "EMPTY_LIST": Machine._empty_list,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "LIST": Machine._list,
    "TUPLE": Machine._tuple,
    "TUPLE1": Machine._tuple1,
    "TUPLE2": Machine._tuple2,
    "TUPLE3": Machine._tuple3,
    "EMPTY_DICT": Machine._empty_dict,
    "DICT": Machine._dict,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
    "EMPTY_SET": Machine._empty_list,
    "ADDITEMS": Machine._appends,
    "FROZENSET": Machine._list,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._reduce_named,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
"""A set is a list here: what is in one is never looked up."""
