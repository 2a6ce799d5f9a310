"""Keys: the name under which a measurement is kept is all that determines it, its code included.

A key is the hash of the plain arguments of a function, of the code that function and arguments can reach,
and of the versions of Python, of this package and of the libraries that this code uses. The code is found by
following the names in code objects: globals and what they hold, attributes of modules, closures, defaults,
and the methods of every class that is reached. Of a class three kinds of methods count: those whose names
occur in the code reached (a rapid type analysis by name), special methods, and those that a library may call
back. A comment, a docstring or a line number is no part of what is read here, so it moves no key.

A library stands in a key by its name and version; see ``libraries``. Everything else stands there by its
code: this suite, packages of its users, scripts and notebooks.
"""

from __future__ import annotations

import abc
import builtins
import importlib
import platform
import types
import typing
from collections.abc import Callable, Mapping
from importlib.util import resolve_name
from typing import Any, NamedTuple

from analysis.study.code import IMPORT, Chain, hashed, scanned
from analysis.study.libraries import library, package_version
from analysis.study.values import CODE, Memo, NoFingerprintError, Roots, name_of, written


class Reached(NamedTuple):
    """What a measurement can reach.

    Attributes
    ----------
    entries
        What determines its result: names of functions, classes, constants and libraries, each with a digest
        or a version.
    codes
        The code objects among it, those inside of others included.
    """

    entries: frozenset[tuple[str, str]]
    codes: frozenset[types.CodeType]


class Keys:
    """Makes keys. What it has looked at, it remembers: make a new one whenever code may have changed."""

    def __init__(self) -> None:
        self._values: Memo = {}
        self._members: dict[tuple[str, int], tuple[object, Facts]] = {}
        self._facts: dict[int, tuple[object, Facts]] = {}
        self._reached: dict[frozenset[int], tuple[Roots, Reached, str]] = {}

    def key(self, function: Callable[..., Any], arguments: Mapping[str, object]) -> str:
        """Return the key of a call, 64 hexadecimal digits.

        Raises
        ------
        NoFingerprintError
            If part of it cannot be written down.
        """
        digest, roots = self.value(tuple(sorted(arguments.items())))
        return hashed(digest, self._from((function, *roots))[1])

    def reached(self, function: Callable[..., Any], arguments: Mapping[str, object]) -> Reached:
        """Return the code and the constants that a call can reach, item by item."""
        return self._from((function, *self.value(tuple(arguments.items()))[1]))[0]

    def value(self, value: object) -> tuple[str, Roots]:
        """Return the digest of a value, and the functions and classes in it, whose code is apart."""
        return written(value, self._values)

    def facts(self, code: object) -> Facts:
        """Return what is known of a function or a class by looking at it alone."""
        if id(code) not in self._facts:
            self._facts[id(code)] = (
                code,
                _class(self, code) if isinstance(code, type) else _function(self, code),
            )
        return self._facts[id(code)][1]

    def member(self, name: str, attribute: object) -> Facts:
        """Return what is known of an attribute of a class, by its full name."""
        key = name, id(attribute)
        if key not in self._members:
            notes = _Notes(self)
            notes.value(name, attribute)
            self._members[key] = attribute, notes.facts()
        return self._members[key][1]

    def _from(self, roots: Roots) -> tuple[Reached, str]:
        name = frozenset(map(id, roots))
        if name not in self._reached:
            reached = _follow(self, roots)
            words = (word for entry in sorted(reached.entries) for word in entry)
            versions = platform.python_version(), package_version()
            self._reached[name] = roots, reached, hashed(*versions, *words)
        return self._reached[name][1:]


class _Field(NamedTuple):
    name: str


_NEVER = frozenset(("__reduce__", "__reduce_ex__", "__repr__", "__key__", "__class_getitem__", "_abc_impl"))
"""Attributes of classes on which no result depends."""

_MAKING = frozenset(("__new__", "__init__", "__post_init__", "__setstate__"))
"""Attributes of a class whose objects say by ``__key__`` what they are, however they were made."""

_SLOT = (types.MemberDescriptorType, types.GetSetDescriptorType, type(_Field.name))


class Facts(NamedTuple):
    """What a function or a class says by itself.

    Attributes
    ----------
    entries
        Its digest, and those of the constants and libraries that it names.
    names
        The attributes that it asks for.
    roots
        The functions and classes that it names.
    codes
        Its code objects.
    members
        Of a class: attributes that count once their name occurs, as (name, full name, attribute).
    """

    entries: frozenset[tuple[str, str]]
    names: frozenset[str] = frozenset()
    roots: Roots = ()
    codes: frozenset[types.CodeType] = frozenset()
    members: tuple[tuple[str, str, object], ...] = ()


def _follow(keys: Keys, roots: Roots) -> Reached:
    """Follow names from code to code until nothing new turns up."""
    entries: set[tuple[str, str]] = set()
    codes: set[types.CodeType] = set()
    names: set[str] = set()
    waiting: dict[str, list[tuple[str, object]]] = {}
    seen: set[int] = set()
    queue: list[Facts] = []

    def add(roots: Roots) -> None:
        for root in roots:
            if id(root) not in seen:
                seen.add(id(root))
                queue.append(keys.facts(root))

    add(roots)
    while queue:
        facts = queue.pop()
        entries |= facts.entries
        codes |= facts.codes
        for name in facts.names - names:
            names.add(name)
            queue.extend(keys.member(*member) for member in waiting.pop(name, ()))
        for name, full, attribute in facts.members:
            if name in names:
                queue.append(keys.member(full, attribute))
            else:
                waiting.setdefault(name, []).append((full, attribute))
        add(facts.roots)
    return Reached(frozenset(entries), frozenset(codes))


class _Notes:
    """Collects the facts of one function or class."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.entries: set[tuple[str, str]] = set()
        self.roots: list[object] = []

    def library(self, what: str, module: str) -> None:
        """Take note of a library."""
        version = library(module)
        if version is None:
            raise NoFingerprintError(f"{module}.{what} has no code that can be read")
        self.entries.add((f"library {module.split('.')[0]}", version))

    def facts(self) -> Facts:
        """Return what was noted."""
        return Facts(frozenset(self.entries), roots=tuple(self.roots))

    def value(self, name: str, value: object) -> None:
        """Take note of the value that a name holds."""
        digest, roots = self._keys.value(value)
        if not isinstance(value, CODE):
            self.entries.add((name, digest))
        self.roots.extend(roots)


def _function(keys: Keys, function: Any) -> Facts:
    notes = _Notes(keys)
    if not isinstance(function, types.FunctionType):  # one written in C
        owner: Any = getattr(function, "__self__", None) or getattr(function, "__objclass__", None)
        notes.library(function.__name__, _module_of(function, owner))
        return notes.facts()
    home = str(function.__globals__.get("__name__", ""))
    name = f"{home}.{function.__qualname__}"
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    free = {variable: cell.cell_contents for variable, cell in cells if _full(cell)}
    for part in (function.__defaults__, function.__kwdefaults__):
        if part:
            notes.value(f"{name} defaults", part)
    for variable, value in free.items():
        if variable != "__class__" and value is not function:
            notes.value(f"{name} closure {variable}", value)
    if hasattr(function, "__wrapped__"):
        notes.roots.append(function.__wrapped__)
    if library(home) is not None:
        notes.library(name, home)
        return notes.facts()
    scan = scanned(function.__code__)
    notes.entries.add((name, scan.digest))
    for chain in scan.chains:
        _resolve(notes, function, free, chain)
    return notes.facts()._replace(names=scan.names, codes=scan.codes)


def _resolve(notes: _Notes, function: types.FunctionType, free: Mapping[str, object], chain: Chain) -> None:
    """Take note of what a global, or an attribute of a module, holds that a function names."""
    scope, (first, *rest) = function.__globals__, chain
    path, value = f"{scope.get('__name__', '')}.{first}", None
    if first.startswith(IMPORT):
        value = _imported(notes, first.removeprefix(IMPORT), str(scope.get("__package__") or ""))
    elif first in free:
        value = free[first]
    elif first in scope:
        value = scope[first]
    elif hasattr(builtins, first):
        value = getattr(builtins, first)
    else:
        return
    for attribute in rest:
        if not isinstance(value, types.ModuleType) or library(value.__name__) is not None:
            break
        path, value = f"{value.__name__}.{attribute}", getattr(value, attribute, None)
    if isinstance(value, types.ModuleType):
        if library(value.__name__) is not None:
            notes.library("", value.__name__)
    elif first not in free:
        notes.value(path, value)


def _imported(notes: _Notes, name: str, package: str) -> object:
    """Return a module that a function imports; None for a library, whose code is not read."""
    full = resolve_name(name, package) if name.startswith(".") else name
    if library(full) is not None:
        notes.library("", full)
        return None
    try:
        return importlib.import_module(full)
    except ImportError:
        return None


def _class(keys: Keys, cls: type) -> Facts:
    notes = _Notes(keys)
    libraries = [base for base in cls.__mro__ if library(base.__module__) is not None]
    for base in libraries:
        if base is not object:
            notes.library(base.__name__, base.__module__)
    if libraries[:1] == [cls]:
        return notes.facts()
    notes.roots.extend(base for base in (*cls.__mro__[1:], type(cls)) if library(base.__module__) is None)
    notes.entries.add((f"class {name_of(cls)}", " ".join(map(name_of, cls.__bases__))))
    called_back = {name for base in libraries if base not in _ROOTS for name in dir(base)}
    members = []
    never = _NEVER | _MAKING if hasattr(cls, "__key__") else _NEVER
    for name, attribute in vars(cls).items():
        special = name.startswith("__") and name.endswith("__")
        if name in never or (special and not isinstance(attribute, _METHOD)) or isinstance(attribute, _SLOT):
            continue
        if special or name in called_back:
            notes.value(f"{name_of(cls)}.{name}", attribute)
        else:
            members.append((name, f"{name_of(cls)}.{name}", attribute))
    return notes.facts()._replace(members=tuple(members))


_METHOD = (types.FunctionType, staticmethod, classmethod, property)
_ROOTS = (object, typing.Generic, typing.Protocol, abc.ABC)


def _module_of(root: Any, owner: Any) -> str:
    """Return the module of a function written in C."""
    if isinstance(owner, types.ModuleType):
        return owner.__name__
    return str(
        getattr(root, "__module__", None) or getattr(owner, "__module__", None) or type(owner).__module__
    )


def _full(cell: types.CellType) -> bool:
    """Return whether a variable of an enclosing function has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
