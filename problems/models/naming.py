"""Problems by what is typed: the path of a model, or a function in a file or module; and their heads."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from problems.console import UsageError
from problems.images import any_head
from problems.models.door import bare, load
from problems.network import Network
from problems.score import Problem
from problems.scripts import module_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".bin", ".ckpt")
"""A name that ends so is meant as a file."""


def found(name: str) -> Problem | None:
    """Return the problem of a name, with the head that lies beside it; None if nothing is named so.

    Parameters
    ----------
    name
        The path of a file or folder that ``load`` reads; or a function that returns a problem, as
        ``package.module:function`` or ``file.py:function``.

    Raises
    ------
    ValueError
        If it cannot be used, with a sentence for the user.
    """
    path = Path(name)
    if path.suffix == ".py":
        raise UsageError(f"{name} is a Python file; type {name}:FUNCTION, one that returns a problem")
    if path.exists():
        return _loaded(path.resolve(), _state(path))
    if not is_function(name):
        return load(path) if path.suffix in SUFFIXES or path.name != name else None
    problem, head = headless(name), head_of(name)
    if not isinstance(problem, Network) or head is None or not head.is_file():
        return problem
    return _headed(problem, head, _state(head))


def headless(name: str) -> Problem | None:
    """Return the problem of a name without the head that lies beside it; see ``found``."""
    if Path(name).exists():
        return bare(Path(name).resolve())
    return made(_function(name)[0]) if is_function(name) else None


def head_of(name: str) -> Path | None:
    """Return where the head of a problem of this name lies, if it has one; None if there is no such place.

    It is ``PATH-head.safetensors`` beside a folder PATH, ``NAME-head.safetensors`` beside a file NAME.pth,
    and ``FILE-FUNCTION-head.safetensors`` beside the file of a function.
    """
    path = Path(name)
    if path.exists() or not is_function(name):
        return any_head.beside(path)
    file, function = _function(name)[1], name.rpartition(":")[2]
    return None if file is None else file.with_name(f"{file.stem}-{function}-head.safetensors")


@lru_cache(maxsize=8)
def made(factory: Callable[[], Problem]) -> Problem:
    """Return what a function returns, the same for each call.

    Raises
    ------
    UsageError
        If that is no problem.
    """
    try:
        problem = factory()
    except Exception as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = getattr(factory, "__name__", "it")
        raise UsageError(f"the problem of {name} cannot be made: {words}") from error
    if not isinstance(problem, Problem):
        kind, name = type(problem).__name__, getattr(factory, "__name__", "it")
        raise UsageError(f"{name} returns a {kind}, not a Problem; wrap it in problems.Network")
    return problem


def is_function(name: str) -> bool:
    """Return whether a name is of the form ``module:function`` or ``file.py:function``."""
    where, _, function = name.rpartition(":")
    return bool(where) and function.isidentifier()


def function_of(name: str) -> Callable[..., Any]:
    """Return a function by its name, ``package.module:function`` or ``file.py:function``.

    Raises
    ------
    UsageError
        If there is none.
    """
    where, _, function = name.rpartition(":")
    found: Callable[..., Any] | None = getattr(_module(where), function, None)
    if found is None or not callable(found):
        raise UsageError(f"{where} has no function {function!r}")
    return found


def _function(name: str) -> tuple[Callable[[], Problem], Path | None]:
    """Return a function that makes a problem by the file or module it is in, and that file.

    Raises
    ------
    UsageError
        If there is none.
    """
    factory: Callable[[], Problem] = function_of(name)
    file = _module(name.rpartition(":")[0]).__file__
    return factory, None if file is None else Path(file)


def _module(where: str) -> ModuleType:
    """Return the module of a name: a file, executed once for each text that it has, or a package's."""
    if where.endswith(".py"):
        return module_of(Path(where))
    try:
        return importlib.import_module(where)
    except ImportError as error:
        raise UsageError(f"the module {where!r} cannot be imported ({error})") from error


@lru_cache(maxsize=4)
def _loaded(path: Path, state: tuple[object, ...]) -> Problem:
    return load(path)


@lru_cache(maxsize=4)
def _headed(problem: Network, head: Path, state: tuple[object, ...]) -> Network:
    return any_head.attached(problem, head)


def _state(path: Path) -> tuple[object, ...]:
    """Return what changes when a file, or one beside it or in it, is written again."""
    files = [*path.parent.glob(f"{path.stem}*"), *(path.rglob("*") if path.is_dir() else ())]
    return tuple(sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))
