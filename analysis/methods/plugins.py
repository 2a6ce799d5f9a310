"""Additions from outside: entry points of installed packages, and files named by ``--plugin``.

A package declares entry points in the groups ``genie_bench.methods``, ``.problems``, ``.forms``, ``.grids``,
``.features`` and ``.experiments``. The name of the entry is that of the method, problem and so on; its object
is a ``Method``, a function that returns a ``Problem``, a ``Coordinates``, a ``Grid``, a function of a problem
that returns ``Features``, or an ``Experiment``. A file has a dictionary ``GENIE_BENCH`` of the same groups,
without the prefix, each a dictionary by name.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from problems import Model
from problems.console import UsageError
from problems.scripts import module_of, text, told

PREFIX = "genie_bench."
"""What precedes the names of groups of entry points."""


class Group(NamedTuple):
    """A table that can be added to.

    Attributes
    ----------
    table
        The table.
    kind
        The class of its values; None for functions.
    taken
        Returns names besides those in the table that nothing new may have.
    """

    table: dict[str, Any]
    kind: type | None
    taken: Callable[[], Collection[str]]


class Loaded(NamedTuple):
    """A file that was loaded: its text, and what it added, as groups and names."""

    text: bytes
    added: list[tuple[str, str]]


_GROUPS: dict[str, Group] = {}
_ASKED: set[str] = set()
_INSTALLED: set[tuple[str, str]] = set()
_FILES: dict[Path, Loaded] = {}


def extensible(
    group: str,
    table: dict[str, Any],
    kind: type | None = None,
    taken: Callable[[], Collection[str]] = tuple,
) -> None:
    """Let a table be added to from outside.

    Parameters
    ----------
    group
        The group of its entry points, without the prefix.
    table, kind, taken
        See ``Group``.
    """
    _GROUPS[group] = Group(table, kind, taken)


def installed() -> None:
    """Add what installed packages declare, once; what cannot be used is told of and left out."""
    for group in [group for group in _GROUPS if group not in _ASKED]:
        _ASKED.add(group)
        for entry in entry_points(group=PREFIX + group):
            try:
                add(group, entry.name, entry.load())
                _INSTALLED.add((group, entry.name))
            except (Exception, SystemExit) as error:
                print(f"plugin {entry.value} cannot be used: {_told(error)}", file=sys.stderr)


def of_package(group: str, name: str) -> bool:
    """Return whether an installed package added an entry, so that other processes find it by its name."""
    return (group, name) in _INSTALLED


def add(group: str, name: str, value: Any) -> None:
    """Add an entry to a table.

    Raises
    ------
    ValueError
        If there is no such table, the entry is not of its kind, or the name is taken or another inside.
    """
    if group not in _GROUPS:
        raise ValueError(f"there is no group {group!r}; choose from {', '.join(_GROUPS)}")
    table, kind, taken = _GROUPS[group]
    if not (isinstance(value, kind) if kind else callable(value) and not isinstance(value, Model)):
        what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise ValueError(
            f"{name!r} among the {group} is {what}, not a {kind.__name__ if kind else 'function'}"
        )
    if kind and getattr(value, "name", name) != name:
        raise ValueError(f"{name!r} among the {group} calls itself {value.name!r}; give it one name")
    if table.get(name, value) is not value or name in taken():
        raise ValueError(f"the name {name!r} is taken among the {group}; choose another")
    table[name] = value


def from_file(path: Path) -> None:
    """Add what a file lists in its ``GENIE_BENCH``; a file that has changed replaces what it added before.

    Raises
    ------
    UsageError
        If it cannot be used; the message says why.
    """
    file = path.resolve()
    known = _FILES.get(file)
    content = text(path, "--plugin ")
    if known is not None and known.text == content:
        return
    _forget(file)
    module = module_of(path, "--plugin ")
    _FILES[file] = Loaded(content, [])
    try:
        for group, name, value in _listed(module):
            add(group, name, value)
            _FILES[file].added.append((group, name))
    except (Exception, SystemExit) as error:
        _forget(file)
        raise UsageError(f"--plugin {path} cannot be used: {_told(error, file)}") from error


def _listed(module: ModuleType) -> list[tuple[str, str, Any]]:
    """Return the groups, names and values in the ``GENIE_BENCH`` of a module."""
    groups = getattr(module, "GENIE_BENCH", None)
    if not isinstance(groups, Mapping) or not all(isinstance(part, Mapping) for part in groups.values()):
        raise ValueError('it lists nothing; write GENIE_BENCH = {"methods": {"name": METHOD}}')
    return [(group, name, value) for group, part in groups.items() for name, value in part.items()]


def _forget(file: Path) -> None:
    """Take back what a file added."""
    loaded = _FILES.pop(file, None)
    for group, name in loaded.added if loaded else ():
        _GROUPS[group].table.pop(name, None)


def _told(error: BaseException, file: Path | None = None) -> str:
    """Return what went wrong, in one line: the bare sentence of an error of this module."""
    if isinstance(error, ValueError) and traceback.extract_tb(error.__traceback__)[-1].filename == __file__:
        return str(error)
    return told(error, file)


def files_in(argv: Sequence[str]) -> list[Path]:
    """Return the files that follow ``--plugin`` in a command line."""
    files, take = [], False
    for word in argv:
        if word.startswith("--plugin="):
            files.append(Path(word.removeprefix("--plugin=")))
        elif take and not word.startswith("-"):
            files.append(Path(word))
        take = word == "--plugin" or (take and not word.startswith("-"))
    return files
