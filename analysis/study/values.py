"""Values written down: the digest of a value, and the functions and classes in it, whose code is followed."""

from __future__ import annotations

import enum
import functools
import hashlib
import pickle
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.study.libraries import library

Roots = tuple[object, ...]
"""Functions and classes, whose code is to be followed."""


Memo = dict[int, tuple[object, str, Roots]]
"""Instances that were written, by identity, each with its digest and roots."""


class NoFingerprintError(ValueError):
    """Something in a measurement that cannot be written down, so that the measurement cannot be kept."""


@dataclass(frozen=True, eq=False)
class Aside:
    """An argument that does not determine the result, such as the times at which a solution is also wanted.

    Attributes
    ----------
    value
        The argument.
    """

    value: Any


@functools.singledispatch
def plain(value: object) -> object:
    """Return a value of another library as one that can be written down; itself if nothing is known of it.

    Whoever brings such a type registers a function for it, as ``analysis.measure.case`` does for tensors.
    """
    return value


_ATOMS = (type(None), bool, int, str, bytes, complex, type(Ellipsis), range, slice)
CODE = (
    types.FunctionType,
    type,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
)
_TYPING = ("typing", "types", "typing_extensions", "collections.abc")
_NO_NUMBERS = ("logging", "threading", "_thread", "contextvars", "_contextvars", "weakref")
"""Modules whose objects hold nothing that a result depends on."""


def written(value: object, memo: Memo) -> tuple[str, Roots]:
    """Return the digest of a value, and the functions and classes in it.

    Parameters
    ----------
    value
        The value.
    memo
        What was written before; instances are looked up here by identity, and kept.
    """
    writer = Writer(memo)
    writer.write(value)
    return writer.digest(), tuple(writer.roots.values())


class Writer:
    """Writes values down, collecting the functions and classes among them."""

    def __init__(self, memo: Memo) -> None:
        self._memo, self._hash = memo, hashlib.sha256()
        self._open: dict[int, int] = {}
        self.roots: dict[int, object] = {}

    def digest(self) -> str:
        """Return the digest of what was written, 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def _put(self, *words: str | bytes) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else word.encode()
            self._hash.update(len(data).to_bytes(8, "little") + data)

    def write(self, value: object) -> None:
        """Write a value.

        Raises
        ------
        NoFingerprintError
            If it, or part of it, cannot be written down.
        """
        value = plain(value)
        kind = type(value)
        if hasattr(kind, "__key__"):
            self._instance(value)
        elif isinstance(value, float):
            self._put("float", value.hex())
        elif kind in _ATOMS:
            self._put(kind.__name__, repr(value))
        elif isinstance(value, Aside):
            self._put("aside")
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            if array.dtype.hasobject:
                self.write(array.tolist())
            else:
                self._put("array", array.dtype.str, repr(array.shape), array.tobytes())
        elif isinstance(value, enum.Enum):
            self._put("enum", f"{kind.__module__}.{kind.__qualname__}", value.name)
        elif kind.__module__ in _TYPING or isinstance(value, typing.TypeVar):
            self._put("type", repr(value))
        elif isinstance(value, types.ModuleType):
            self._put("module", value.__name__)
        elif isinstance(value, CODE):
            self._root(value)
        elif isinstance(value, types.MethodType):
            self._sequence("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._sequence("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, staticmethod | classmethod):
            self._sequence("method", (value.__func__,))
        elif isinstance(value, functools.cached_property):
            self._root(value.func)
        elif isinstance(value, property):
            self._sequence("property", (value.fget, value.fset, value.fdel))
        elif hasattr(value, "__wrapped__") and callable(value):
            self._sequence("wrapped", (value.__wrapped__,))
        elif isinstance(value, tuple | list):
            self._within(value, lambda: self._sequence("sequence", (kind, *value)))
        elif isinstance(value, Mapping):
            self._within(
                value, lambda: self._sequence("mapping", [part for item in value.items() for part in item])
            )
        elif isinstance(value, set | frozenset):
            parts = [written(part, self._memo) for part in value]
            self._put("set", *sorted(digest for digest, _ in parts))
            self._add(root for _, roots in parts for root in roots)
        else:
            self._instance(value)

    def _sequence(self, tag: str, parts: Iterable[object]) -> None:
        self._put(tag)
        for part in parts:
            self.write(part)
        self._put("end")

    def _within(self, value: object, write: Callable[[], None]) -> None:
        """Write a container once, and refer to it where it contains itself."""
        if id(value) in self._open:
            self._put("again", str(self._open[id(value)]))
            return
        self._open[id(value)] = len(self._open)
        write()
        del self._open[id(value)]

    def _root(self, value: object) -> None:
        self._put("code", name_of(value))
        self._add([value])

    def _add(self, roots: Iterable[object]) -> None:
        self.roots.update((id(root), root) for root in roots)

    def _instance(self, value: object) -> None:
        known = self._memo.get(id(value))
        if known is None:
            if id(value) in self._open:
                self._put("again", str(self._open[id(value)]))
                return
            writer = Writer(self._memo)
            writer._open = {**self._open, id(value): len(self._open)}
            writer._state(value)
            known = self._memo[id(value)] = value, writer.digest(), tuple(writer.roots.values())
        _, digest, roots = known
        self._put("instance", digest)
        self._add(roots)

    def _state(self, value: object) -> None:
        kind = type(value)
        self._root(kind)
        if kind.__module__.split(".")[0] in _NO_NUMBERS:
            return
        if hasattr(kind, "__key__"):
            self.write(kind.__key__(value))
            return
        state = value.__getstate__()
        if isinstance(state, dict):
            kept = {name: part for name, part in state.items() if not _cached(kind, name)}
            self.write(kept)
        elif library(kind.__module__) is None:
            self.write(state)
        else:
            try:
                self._put("pickle", pickle.dumps(value, protocol=4))
            except Exception as error:
                raise NoFingerprintError(
                    f"a {kind.__module__}.{kind.__qualname__} cannot be written down"
                ) from error


def _cached(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), functools.cached_property)


def name_of(code: Any) -> str:
    """Return the full name of a function or class."""
    module = getattr(code, "__module__", None) or getattr(
        getattr(code, "__objclass__", None), "__module__", ""
    )
    return f"{module}.{getattr(code, '__qualname__', code)}"
