"""Pickles read as data: an interpreter of the few pickle instructions and names that EDM's files consist of.

A pickle is a program whose instructions may call anything that can be imported. This interpreter has the
instructions that build numbers, strings and containers. The names that a file may use stand in one table,
and each stands for a function of this module: nothing is ever imported, no attribute is looked up or set by
a name from the file, and source code that a file carries is dropped. Facts about the format are from
Karras et al. (2022), whose networks are pickled together with their source code.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from problems.models.numpy_numbers import numpy_numbers


class RefusedError(Exception):
    """A file wants what is not allowed; the message is what it wants."""


@dataclass(frozen=True)
class Record:
    """What a file says about an object: the name of its class and its attributes. It does nothing.

    Attributes
    ----------
    class_name
        Name of the class, without its module.
    state
        Attributes by name: Python values, tensors, and further records.
    """

    class_name: str
    state: dict[str, Any]


def load_torch(source: str | IO[bytes]) -> Any:
    """Return what ``torch.save`` wrote, tensors on the CPU, without executing code.

    Parameters
    ----------
    source
        The file, by its path or open.

    Raises
    ------
    RefusedError
        If the file names anything but tensors and plain containers.
    Exception
        Of any type if it is damaged, because torch has no single one for that.
    """
    try:
        with numpy_numbers():
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|function (\S+)|unsupported class (\S+)", str(error))
        if named is None:
            raise
        raise RefusedError(f"the name {next(filter(None, named.groups()))[:100]!r}") from None


def load(file: IO[bytes]) -> Any:
    """Return the value of an EDM pickle.

    Parameters
    ----------
    file
        The pickle, open, protocol 2 to 5.

    Returns
    -------
    Python values, tensors on the CPU, and for every other object a ``Record``. Numbers of numpy become
    Python's.

    Raises
    ------
    RefusedError
        If it uses a name or an instruction that is not allowed.
    Exception
        Of any type if the file is damaged.
    """
    machine = _Machine()
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name == "STOP":
            break
        machine.execute(instruction.name, argument)
    return machine.pop()


class _Machine:
    """The stack, the marked stacks below it, and the memo of a pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Return and remove the value on top."""
        return self._stack.pop()

    def _marked(self) -> list[Any]:
        """Return and remove all values above the last mark."""
        values, self._stack = self._stack, self._below.pop()
        return values

    def execute(self, name: str, argument: Any) -> None:
        """Execute one instruction; ``pickletools`` describes each of them."""
        push = self._stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                push(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                push(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                push(argument)
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_SET":
                push(set())
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                self._stack[-size:] = [tuple(self._stack[-size:])]
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "TUPLE":
                values = self._marked()
                self._stack.append(tuple(values))
            case "APPEND":
                value = self.pop()
                _extend(self._stack[-1], [value])
            case "APPENDS":
                values = self._marked()
                _extend(self._stack[-1], values)
            case "ADDITEMS":
                values = self._marked()
                _include(self._stack[-1], values)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                _assign(self._stack[-1], [key, value])
            case "SETITEMS":
                values = self._marked()
                _assign(self._stack[-1], values)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self._stack.append(_named(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.pop(), self.pop()
                self._stack.append(_call(function, arguments))
            case "BUILD":
                state = self.pop()
                _build(self._stack[-1], state)
            case _:
                raise RefusedError(f"the pickle instruction {name}")


def _extend(target: Any, values: list[Any]) -> None:
    if type(target) is not list:
        raise RefusedError(f"to append to a {type(target).__name__}")
    target.extend(values)


def _include(target: Any, values: list[Any]) -> None:
    if type(target) is not set:
        raise RefusedError(f"to add to a {type(target).__name__}")
    target.update(_key(value) for value in values)


def _assign(target: Any, values: list[Any]) -> None:
    if type(target) is not dict:
        raise RefusedError(f"to set items of a {type(target).__name__}")
    target.update(zip(map(_key, values[::2]), values[1::2], strict=True))


def _key(value: Any) -> str | int:
    # Hashes of nested tuples are computed by recursion, without a limit.
    if not isinstance(value, str | int):
        raise RefusedError(f"a {type(value).__name__} as the key of a dictionary")
    return value


@dataclass(frozen=True)
class _Function:
    """What a name of the table stands for."""

    name: str
    make: Callable[..., Any]


def _named(module: Any, attribute: Any) -> _Function:
    name = f"{module}.{attribute}"
    if type(module) is not str or type(attribute) is not str or (module, attribute) not in _NAMES:
        raise RefusedError(f"the name {name[:100]!r}")
    return _Function(name, _NAMES[module, attribute])


def _call(function: Any, arguments: Any) -> Any:
    if type(function) is not _Function or type(arguments) is not tuple:
        raise RefusedError(f"to call a {type(function).__name__}")
    return function.make(*arguments)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Record) and type(state) is dict:
        target.state.update(state)
    elif type(target) is dict and type(state) is dict and not state:
        pass  # older versions of Python write that an ``EasyDict`` has no attributes
    elif not isinstance(target, _Number):
        what = target.name if isinstance(target, _Function) else f"a {type(target).__name__}"
        raise RefusedError(f"to change the state of {what}")
    elif state[1] not in ("<", "|"):
        raise RefusedError(f"numbers in the byte order {state[1]!r}")


def _persistent(meta: dict[str, Any]) -> Record:
    if meta["type"] != "class" or type(meta["class_name"]) is not str or type(meta["state"]) is not dict:
        raise ValueError("not an object")
    return Record(meta["class_name"], dict(meta["state"]))


def _dictionary() -> dict[str, Any]:
    return {}


def _container() -> Record:
    return Record("container", {})


def _storage(data: bytes) -> Tensor:
    """Return the numbers of a storage as a flat tensor."""
    storage = load_torch(io.BytesIO(data))
    if not isinstance(storage, torch.storage.TypedStorage):
        raise RefusedError(f"a {type(storage).__name__} in place of numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _tensor(
    flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], grad: bool, hooks: Any
) -> Tensor:
    """Return a view of a flat tensor; torch raises an error where it would leave its memory."""
    if not isinstance(flat, Tensor) or flat.ndim != 1:
        raise RefusedError("a tensor without numbers")
    return flat.as_strided(size, stride, offset)


def _parameter(data: Tensor, grad: bool, hooks: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise RefusedError("a parameter that is no tensor")
    return data


_FORMATS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "b1": "<?"}


@dataclass(frozen=True)
class _Number:
    """A numpy type of plain numbers, by its format in ``struct``."""

    format: str


def _number(code: str, align: bool, copy: bool) -> _Number:
    if code not in _FORMATS:
        raise RefusedError(f"numbers of the numpy type {str(code)[:20]!r}")
    return _Number(_FORMATS[code])


def _scalar(kind: _Number, data: bytes) -> float:
    if not isinstance(kind, _Number):
        raise RefusedError("a number without a type")
    value: float = struct.unpack(kind.format, data)[0]
    return value


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _dictionary,
    ("collections", "OrderedDict"): _dictionary,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch.nn.modules.container", "ModuleDict"): _container,
    ("torch.nn.modules.container", "ModuleList"): _container,
    ("numpy", "dtype"): _number,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
