"""Read pickles that strangers made without executing anything of theirs.

A pickle is a program for a stack machine that may name any importable object and call it. Python's
machine would import and call. The one here interprets the same opcodes, imports nothing, and builds
only what `pickled_objects` lists: plain containers, tensors, arrays. Other objects become inert
placeholders; a call of a function that is not listed is refused. Nothing is allocated beyond a
multiple of the pickle's own length.

Source: the opcodes of protocols 0 to 5; Python's `pickletools` reads their arguments.
"""

import codecs
import io
import os
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.config import first_line
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


def interpret(
    file: io.BytesIO,
    persistent: Callable[[Any], Any] | None = None,
    nested: Callable[[Any], Any] | None = None,
) -> Any:
    """Interpret the pickle that begins where a file is read next; the file stands behind it then.

    Args:
        persistent: makes the object that a persistent id stands for; None: there are none.
        nested: makes the storage of a tensor that was pickled as a file of torch inside a pickle.

    Raises:
        UnsafePickle: (a ValueError) it calls something that is not admitted; nothing was executed.
        ValueError: it is damaged, or not a pickle.
    """
    try:
        return _Machine(file, persistent, nested).run()
    except UnsafePickle:
        raise
    except Exception as error:  # whatever a damaged stream makes the builders raise
        reason = first_line(error)
        raise ValueError(f"damaged, or not a pickle of tensors or arrays: {reason}") from error


def read_pickle(path: str | Path) -> Any:
    """Read a file that is one plain pickle, of any age; Python 2's strings are decoded as latin1.

    Returns:
        Plain containers of numbers, text and numpy arrays (read-only).

    Raises:
        UnsafePickle: (a ValueError) it calls something that is not admitted; nothing was executed.
        ValueError: it is damaged, or not a pickle.
    """
    try:
        return interpret(io.BytesIO(Path(path).read_bytes()))
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


class _Machine:
    """The stack, the stacks under each mark, and the memo of one pickle."""

    def __init__(self, file: io.BytesIO, persistent: Any, nested: Any) -> None:
        self.file, self.persistent, self.nested = file, persistent, nested
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.depths: dict[int, int] = {}  # id of a tuple -> how deeply it nests tuples
        start = file.tell()
        self.budget = 4 * file.seek(0, os.SEEK_END) + _SPARE
        file.seek(start)

    def run(self) -> Any:
        while (code := self.file.read(1)) != b".":
            if not code:
                raise ValueError("cut short")
            if code not in _OPCODES:
                raise ValueError(f"an opcode {code!r} that pickles of data do not have")
            opcode, operation = _OPCODES[code]
            argument = None
            if opcode.name == "STRING":  # Python 2's, of any bytes; pickletools reads ASCII
                line = pickletools.read_stringnl(self.file, decode=False)
                argument = codecs.escape_decode(line)[0].decode("latin1")
            elif opcode.arg is not None:
                argument = opcode.arg.reader(self.file)
            operation(self, argument)
        return self.stack.pop()

    # Stack and memo ----------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("more is taken than there is")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def remember(self, key: int) -> None:
        value = self.stack[-1]
        self.memo[key] = value
        if isinstance(value, ArrayShell):
            value.memo_keys.append(key)

    # Containers --------------------------------------------------------------------------------------

    def push_tuple(self, items: Iterable[Any]) -> None:
        made = tuple(items)
        depth = 1 + max((self.depths.get(id(i), 0) for i in made if type(i) is tuple), default=0)
        if depth > _DEPTH:
            raise ValueError("tuples nested too deeply")
        self.depths[id(made)] = depth
        self.push(made)

    def extend(self, kind: type[list] | type[set], items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, kind):
            into.extend(items) if isinstance(into, list) else into.update(items)
        elif not isinstance(into, Foreign):  # a placeholder for a subclass keeps nothing
            raise TypeError(f"items are put into a {type(into).__name__}")

    def set_items(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, Foreign):
            into = into.content
        if not isinstance(into, dict):
            raise TypeError(f"items are set in a {type(into).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[key] = value

    def push_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    # Objects -----------------------------------------------------------------------------------------

    def refer(self, module: Any, name: Any) -> None:
        reference = refer(module, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            reference = Reference(module, name, self.nested)
        self.push(reference)

    def call(self, what: Any, arguments: Any, named: Any = None) -> None:
        if not isinstance(what, Reference) or not isinstance(arguments, tuple):
            raise UnsafePickle(f"the pickle calls a {type(what).__name__}")
        if named and what.build is not None:
            raise TypeError("keyword arguments for a container")
        self.budget -= sum(len(a) for a in arguments if hasattr(a, "__len__"))
        if self.budget < 0:
            raise ValueError("it copies far more than it holds")
        made = what.call(*arguments)
        if type(made) is tuple:
            self.push_tuple(made)
        else:
            self.push(made)

    def call_marked(self, what: Any, *arguments: Any) -> None:
        self.call(what, arguments)

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, ArrayShell):
            array = target.build(state)
            self.stack[-1] = array
            for key in target.memo_keys:
                self.memo[key] = array
        elif isinstance(target, ArrayType):
            target.set_state(state)
        elif isinstance(target, Foreign):
            target.state = state
        elif isinstance(target, OrderedDict):
            if isinstance(state, Mapping) and "_metadata" in state:  # of a module's state dict
                set_metadata(target, state["_metadata"])
        elif not isinstance(target, Tensor):  # attributes of a tensor are not its numbers
            raise TypeError(f"attributes are set on a {type(target).__name__}")

    def push_persistent(self, key: Any) -> None:
        if self.persistent is None:
            raise UnsafePickle("the pickle refers to objects outside itself")
        self.push(self.persistent(key))


# Opcodes whose argument is itself what they push: numbers, text and bytes.
_LITERALS = [
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and opcode.stack_after and opcode.stack_after[0] is not pickletools.anyobject
]
# Opcode -> what it does to the machine, given the argument that follows it in the pickle.
_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    **dict.fromkeys(_LITERALS, _Machine.push),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, key: m.push(m.memo[key])),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push_tuple(m.pop_mark()),
    "TUPLE1": lambda m, _: m.push_tuple(m.take(1)),
    "TUPLE2": lambda m, _: m.push_tuple(m.take(2)),
    "TUPLE3": lambda m, _: m.push_tuple(m.take(3)),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "APPEND": lambda m, _: m.extend(list, m.take(1)),
    "APPENDS": lambda m, _: m.extend(list, m.pop_mark()),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "FROZENSET": lambda m, _: m.push(frozenset(m.pop_mark())),
    "ADDITEMS": lambda m, _: m.extend(set, m.pop_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.push_dict(),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "GLOBAL": lambda m, names: m.refer(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.refer(*m.take(2)),
    "REDUCE": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ_EX": lambda m, _: m.call(*m.take(3)),
    "INST": lambda m, names: m.call(refer(*names.split(" ", 1)), tuple(m.pop_mark())),
    "OBJ": lambda m, _: m.call_marked(*m.pop_mark()),
    "BUILD": lambda m, _: m.build(*m.take(1)),
    "BINPERSID": lambda m, _: m.push_persistent(*m.take(1)),
}
_OPCODES = {
    opcode.code.encode("latin1"): (opcode, _OPERATIONS[opcode.name])
    for opcode in pickletools.opcodes
    if opcode.name in _OPERATIONS
}
