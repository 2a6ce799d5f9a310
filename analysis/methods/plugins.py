"""Additions from outside: entry points of installed packages, and files named by ``--plugin``.

A package declares entry points in the groups ``genie_bench.methods``, ``.problems``, ``.forms``, ``.grids``,
``.features`` and ``.experiments``. The name of the entry is that of the method, problem and so on; its object is
a ``Method``, a function that returns a ``Problem``, a ``Coordinates``, a ``Grid``, a function of a problem that
returns ``Features``, or an ``Experiment``. A file has a dictionary ``GENIE_BENCH`` of the same groups, without the
prefix, each a dictionary by name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from problems.console import UsageError

PREFIX = "genie_bench."
FILE = "genie_bench_plugin_"
"""How the modules of files are called."""

_TABLES: dict[str, tuple[dict[str, Any], type | None]] = {}


def extensible(group: str, table: dict[str, Any], kind: type | None = None) -> None:
    """Let a table be added to from outside.

    Parameters
    ----------
    group
        The group of its entry points, without the prefix.
    table
        The table.
    kind
        The class of its values; None for functions.
    """
    _TABLES[group] = table, kind


@lru_cache(maxsize=1)
def installed() -> None:
    """Add what installed packages declare, once; what cannot be loaded is told of and left out."""
    for group in _TABLES:
        for entry in entry_points(group=PREFIX + group):
            try:
                add(group, entry.name, entry.load())
            except Exception as error:
                print(f"plugin {entry.value} cannot be used: {error}", file=sys.stderr)


def add(group: str, name: str, value: Any) -> None:
    """Add an entry to a table.

    Raises
    ------
    ValueError
        If there is no such table, the entry is not of its kind, or the name is taken.
    """
    if group not in _TABLES:
        raise ValueError(f"there is no group {group!r}; choose from {', '.join(_TABLES)}")
    table, kind = _TABLES[group]
    if not (isinstance(value, kind) if kind else callable(value)):
        raise ValueError(f"{name!r} among the {group} is no {kind.__name__ if kind else 'function'}")
    if table.get(name, value) is not value:
        raise ValueError(f"the name {name!r} is taken among the {group}; choose another")
    table[name] = value


def from_file(path: Path) -> None:
    """Add what a file lists in its ``GENIE_BENCH``.

    Raises
    ------
    UsageError
        If it cannot be used; the message says why.
    """
    name = FILE + path.stem
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"--plugin {path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        groups: Mapping[str, Mapping[str, Any]] = module.GENIE_BENCH
        for group, entries in groups.items():
            for entry, value in entries.items():
                add(group, entry, value)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"--plugin {path} cannot be used: {type(error).__name__}: {error}") from error
    _travels(module)


def _travels(module: Any) -> None:
    """Let workers have the module, which they cannot import, by value."""
    try:
        import cloudpickle
    except ImportError:  # then there are no workers either
        return
    cloudpickle.register_pickle_by_value(module)


def importable(value: Callable[..., Any]) -> bool:
    """Return whether another process can import a function, which it cannot from a file or a script."""
    module = str(getattr(value, "__module__", ""))
    return not module.startswith(FILE) and module not in ("", "__main__")


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
