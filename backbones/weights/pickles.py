"""Read pickles that strangers made without executing anything of theirs.

A pickle is a program for a stack machine that may name any importable object and call it. Python's
machine would import and call. The one here interprets the same opcodes, imports nothing, and builds
only what `pickled_objects` lists: plain containers, tensors, arrays. Other objects become inert
placeholders; a call of a function that is not listed is refused. Nothing is allocated beyond a
multiple of the pickle's own length.

Source: the opcodes are those of Python's `pickletools`, protocols 0 to 5.
"""

import codecs
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.weights.pickled_objects import (
    ArrayShell,
    ArrayType,
    Foreign,
    Reference,
    UnsafePickle,
    refer,
    set_metadata,
)

_SPARE = 1 << 24  # bytes and elements that calls may copy beside a multiple of the pickle's length
_DEPTH = 50  # of nested tuples, which Python hashes by recursion in C, without a check


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _latin1(raw: bytes) -> str:
    """Python 2's strings, which are bytes or text."""
    return raw.decode("latin1")


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string without its quotes")
    return _latin1(codecs.escape_decode(line[1:-1])[0])


def _integer_line(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line)


class PickleMachine:
    """Interprets one pickle.

    Args:
        content: bytes that hold the pickle.
        position: where in them it begins.
        persistent: makes the object that a persistent id stands for; None: there are none.
        nested: makes the storage of a tensor that was pickled as a file of torch inside a pickle.
    """

    def __init__(
        self,
        content: bytes,
        position: int = 0,
        persistent: Callable[[Any], Any] | None = None,
        nested: Callable[[Any], Any] | None = None,
    ) -> None:
        self.content = content
        self.position = position  # after `run`: behind the pickle
        self._persistent = persistent
        self._nested = nested
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._depths: dict[int, int] = {}  # id of a tuple -> how deeply it nests tuples
        self._budget = 4 * len(content) + _SPARE

    def run(self) -> Any:
        """Interpret up to STOP and return what is on the stack then.

        Raises:
            UnsafePickle: (a ValueError) the pickle calls something that is not admitted.
            ValueError, LookupError, TypeError, ...: the pickle is damaged.
        """
        while True:
            code = chr(self._take(1)[0])
            if code == ".":
                return self._stack.pop()
            if code in _OPERATIONS:
                _OPERATIONS[code](self)
            elif code in _VALUES:
                self._stack.append(_VALUES[code](self))
            else:
                raise ValueError(f"an opcode {code!r} that pickles of data do not have")

    # Reading ---------------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.content):
            raise ValueError("cut short")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def _line(self) -> bytes:
        end = self.content.index(b"\n", self.position)
        line = self._take(end - self.position)
        self.position += 1
        return line

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _counted(self, form: str) -> bytes:
        return self._take(self._number(form))

    # Stack and memo ----------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def _remember(self, key: int) -> None:
        value = self._stack[-1]
        self._memo[key] = value
        if isinstance(value, ArrayShell):
            value.memo_keys.append(key)

    def _recall(self, key: int) -> None:
        self._stack.append(self._memo[key])

    # Containers --------------------------------------------------------------------------------------

    def _push_tuple(self, items: Iterable[Any]) -> None:
        made = tuple(items)
        depth = 1 + max((self._depths.get(id(i), 0) for i in made if type(i) is tuple), default=0)
        if depth > _DEPTH:
            raise ValueError("tuples nested too deeply")
        self._depths[id(made)] = depth
        self._stack.append(made)

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("a tuple of more than there is")
        items = self._stack[-count:]
        del self._stack[-count:]
        self._push_tuple(items)

    def _append(self, items: list[Any]) -> None:
        into = self._stack[-1]
        if isinstance(into, list):
            into.extend(items)
        elif not isinstance(into, Foreign):  # a placeholder for a subclass of list keeps nothing
            raise TypeError(f"items are appended to a {type(into).__name__}")

    def _add(self) -> None:
        items = self._pop_mark()
        into = self._stack[-1]
        if isinstance(into, set):
            into.update(items)
        elif not isinstance(into, Foreign):
            raise TypeError(f"items are added to a {type(into).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key without its value")
        into = self._stack[-1]
        if isinstance(into, Foreign):
            into = into.content
        if not isinstance(into, dict):
            raise TypeError(f"items are set in a {type(into).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[key] = value

    def _push_list(self) -> None:
        items = self._pop_mark()  # before `self._stack` is looked up: it changes it
        self._stack.append(items)

    def _push_frozenset(self) -> None:
        items = self._pop_mark()
        self._stack.append(frozenset(items))

    def _push_dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    # Objects -----------------------------------------------------------------------------------------

    def _refer(self, module: Any, name: Any) -> None:
        reference = refer(module, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            reference = Reference(module, name, self._nested)
        self._stack.append(reference)

    def _global(self) -> None:
        self._refer(_text(self._line()), _text(self._line()))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._refer(module, name)

    def _call(self, what: Any, arguments: Any) -> None:
        if not isinstance(what, Reference) or not isinstance(arguments, tuple):
            raise UnsafePickle(f"the pickle calls a {type(what).__name__}")
        self._budget -= sum(len(a) for a in arguments if hasattr(a, "__len__"))
        if self._budget < 0:
            raise ValueError("it copies far more than it holds")
        made = what.call(*arguments)
        if type(made) is tuple:
            self._push_tuple(made)
        else:
            self._stack.append(made)

    def _reduce(self) -> None:
        arguments, what = self._stack.pop(), self._stack.pop()
        self._call(what, arguments)

    def _new_object(self) -> None:
        arguments, what = self._stack.pop(), self._stack.pop()
        self._call(what, arguments)

    def _new_object_by_name(self) -> None:
        named, arguments, what = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if named and isinstance(what, Reference) and what.build is not None:
            raise TypeError("keyword arguments for a container")
        self._call(what, arguments)

    def _instance(self) -> None:
        what = refer(_text(self._line()), _text(self._line()))
        self._call(what, tuple(self._pop_mark()))

    def _object(self) -> None:
        what, *arguments = self._pop_mark()
        self._call(what, tuple(arguments))

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, ArrayShell):
            array = target.build(state)
            self._stack[-1] = array
            for key in target.memo_keys:
                self._memo[key] = array
        elif isinstance(target, ArrayType):
            target.set_state(state)
        elif isinstance(target, Foreign):
            target.state = state
        elif isinstance(target, OrderedDict):
            if isinstance(state, Mapping) and "_metadata" in state:  # of a module's state dict
                set_metadata(target, state["_metadata"])
        elif not isinstance(target, Tensor):  # attributes of a tensor are not its numbers
            raise TypeError(f"attributes are set on a {type(target).__name__}")

    def _persistent_object(self) -> None:
        if self._persistent is None:
            raise UnsafePickle("the pickle refers to objects outside itself")
        self._stack.append(self._persistent(self._stack.pop()))


# Opcode -> what makes the value that it pushes.
_VALUES: dict[str, Callable[[PickleMachine], Any]] = {
    "N": lambda m: None,
    "\x88": lambda m: True,
    "\x89": lambda m: False,
    "}": lambda m: {},
    "]": lambda m: [],
    ")": lambda m: (),
    "\x8f": lambda m: set(),
    "J": lambda m: m._number("<i"),
    "K": lambda m: m._number("<B"),
    "M": lambda m: m._number("<H"),
    "G": lambda m: m._number(">d"),
    "\x8c": lambda m: _text(m._counted("<B")),
    "X": lambda m: _text(m._counted("<I")),
    "\x8d": lambda m: _text(m._counted("<Q")),
    "U": lambda m: _latin1(m._counted("<B")),
    "T": lambda m: _latin1(m._counted("<i")),
    "C": lambda m: m._counted("<B"),
    "B": lambda m: m._counted("<I"),
    "\x8e": lambda m: m._counted("<Q"),
    "\x96": lambda m: bytearray(m._counted("<Q")),
    "\x8a": lambda m: _integer(m._counted("<B")),
    "\x8b": lambda m: _integer(m._counted("<i")),
    "I": lambda m: _integer_line(m._line()),
    "L": lambda m: int(m._line().removesuffix(b"L")),
    "F": lambda m: float(m._line()),
    "S": lambda m: _quoted(m._line()),
    "V": lambda m: m._line().decode("raw-unicode-escape"),
}
# Opcode -> what it does to stack and memo.
_OPERATIONS: dict[str, Callable[[PickleMachine], Any]] = {
    "\x80": lambda m: m._take(1),  # the protocol
    "\x95": lambda m: m._take(8),  # the length of a frame
    "(": PickleMachine._mark,
    "0": PickleMachine._pop,
    "1": PickleMachine._pop_mark,
    "2": PickleMachine._duplicate,
    "p": lambda m: m._remember(int(m._line())),
    "q": lambda m: m._remember(m._number("<B")),
    "r": lambda m: m._remember(m._number("<I")),
    "\x94": lambda m: m._remember(len(m._memo)),
    "g": lambda m: m._recall(int(m._line())),
    "h": lambda m: m._recall(m._number("<B")),
    "j": lambda m: m._recall(m._number("<I")),
    "t": lambda m: m._push_tuple(m._pop_mark()),
    "\x85": lambda m: m._tuple_of(1),
    "\x86": lambda m: m._tuple_of(2),
    "\x87": lambda m: m._tuple_of(3),
    "l": PickleMachine._push_list,
    "d": PickleMachine._push_dict,
    "\x91": PickleMachine._push_frozenset,
    "a": lambda m: m._append([m._stack.pop()]),
    "e": lambda m: m._append(m._pop_mark()),
    "\x90": PickleMachine._add,
    "s": lambda m: m._set_items([m._stack.pop(), m._stack.pop()][::-1]),
    "u": lambda m: m._set_items(m._pop_mark()),
    "c": PickleMachine._global,
    "\x93": PickleMachine._stack_global,
    "R": PickleMachine._reduce,
    "\x81": PickleMachine._new_object,
    "\x92": PickleMachine._new_object_by_name,
    "i": PickleMachine._instance,
    "o": PickleMachine._object,
    "b": PickleMachine._build,
    "Q": PickleMachine._persistent_object,
}


def read_pickle(path: str | Path) -> Any:
    """Read a file that is one plain pickle, of any age; Python 2's strings are decoded as latin1.

    Returns:
        Plain containers of numbers, text and numpy arrays (read-only).

    Raises:
        UnsafePickle: (a ValueError) it calls something that is not admitted; nothing was executed.
        ValueError: it is damaged, or not a pickle.
    """
    try:
        return interpret(PickleMachine(Path(path).read_bytes()))
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def interpret(machine: PickleMachine) -> Any:
    """Run a machine, with every error of a damaged pickle as a ValueError."""
    try:
        return machine.run()
    except UnsafePickle:
        raise
    except Exception as error:  # whatever a damaged stream makes the builders raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"damaged, or not a pickle of tensors or arrays: {reason}") from error
