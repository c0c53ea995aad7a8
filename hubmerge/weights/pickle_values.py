"""The values in a pickle of plain data and tensors, interpreted and never executed.

A pickle is a program whose instructions may call any function. This reader knows only instructions
that make numbers, strings, lists, dicts and tuples, and a fixed list of names, such as those of the
functions by which torch rebuilds a tensor (`pickle_objects`). It calls none of them: it notes what
the tensor would be. Anything else is refused by its name. Source: Python's pickletools.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO

from hubmerge.errors import CheckpointError
from hubmerge.weights.pickle_objects import (
    RefusedError,
    find_storage,
    make_dict,
    named,
    result_of_call,
)

MAX_BYTES = 64 << 20
_MAX_INSTRUCTIONS = 4_000_000
_IMPORT_HINT = "Save its state dict alone: torch.save(model.state_dict(), FILE)."

_SIMPLE = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "STRING",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Mark:
    """The place on the stack where the items of a container begin."""


@dataclass
class _Machine:
    """The stack and the memory of the interpreter."""

    where: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise self.error("it is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[place], _Mark):
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise self.error("it is damaged")

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.where} cannot be imported: {reason}.", _IMPORT_HINT)


def read_pickle(source: BinaryIO | bytes, where: str) -> Any:
    """The value of the first pickle in a stream, which is read to the pickle's end.

    Dicts, lists, tuples, strings, numbers and `StoredTensor`s. `where` names the file in errors.
    Raises CheckpointError for anything else, and for a pickle that is too long.
    """
    stream = BytesIO(source) if isinstance(source, bytes) else source
    machine = _Machine(where)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_INSTRUCTIONS or stream.tell() > MAX_BYTES:
                raise machine.error("its pickle is too long for a state dict")
            if opcode.name == "STOP":
                return machine.pop()
            _run(machine, opcode.name, argument)
    except RefusedError as error:
        raise machine.error(str(error)) from error
    except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
        raise machine.error("it is damaged") from error
    raise machine.error("it is damaged")


def _run(machine: _Machine, name: str, argument: Any) -> None:
    if name in _SIMPLE:
        machine.stack.append(argument)
    elif name in _CONSTANTS:
        machine.stack.append(_CONSTANTS[name])
    elif name in _INSTRUCTIONS:
        _INSTRUCTIONS[name](machine, argument)
    else:
        raise machine.error(f"its pickle has the instruction {name}, which no state dict needs")


def _mark(machine: _Machine, _: Any) -> None:
    machine.stack.append(_Mark())


def _new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _tuple(count: int | None) -> Callable[[_Machine, Any], None]:
    def run(machine: _Machine, _: Any) -> None:
        items = (
            machine.pop_to_mark() if count is None else [machine.pop() for _ in range(count)][::-1]
        )
        machine.stack.append(tuple(items))

    return run


def _list(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.pop_to_mark())


def _dict(machine: _Machine, _: Any) -> None:
    machine.stack.append(make_dict(machine.pop_to_mark()))


def _append(machine: _Machine, _: Any) -> None:
    item = machine.pop()
    _top(machine, list).append(item)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.pop_to_mark()
    _top(machine, list).extend(items)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _top(machine, dict).update(make_dict([key, value]))


def _set_items(machine: _Machine, _: Any) -> None:
    items = machine.pop_to_mark()
    _top(machine, dict).update(make_dict(items))


def _top(machine: _Machine, kind: type) -> Any:
    top = machine.stack[-1] if machine.stack else None
    if type(top) is not kind:
        raise machine.error("it is damaged")
    return top


def _put(machine: _Machine, argument: Any) -> None:
    value = machine.pop()
    machine.stack.append(value)
    machine.memo[len(machine.memo) if argument is None else int(argument)] = value


def _get(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[int(argument)])


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(named(".".join(str(argument).split(" ", 1))))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(named(f"{module}.{name}"))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, called = machine.pop(), machine.pop()
    machine.stack.append(result_of_call(called, arguments))


def _persistent_id(machine: _Machine, _: Any) -> None:
    machine.stack.append(find_storage(machine.pop()))


def _build(machine: _Machine, _: Any) -> None:
    """The attributes of a state dict (`_metadata`) are versions of modules, which nothing needs."""
    machine.pop()
    _top(machine, dict)


_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _mark,
    "EMPTY_DICT": _new(dict),
    "EMPTY_LIST": _new(list),
    "EMPTY_TUPLE": _new(tuple),
    "TUPLE": _tuple(None),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": _list,
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BINPERSID": _persistent_id,
    "BUILD": _build,
}
