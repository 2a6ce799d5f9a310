"""Python files that a user names: executed as modules, with mistakes told in one sentence."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from problems.console import UsageError

PREFIX = "genie_bench_plugin_"
"""How the modules of files are called."""

_EXECUTED: dict[str, bytes] = {}


def module_of(path: Path, typed: str = "") -> ModuleType:
    """Return the module that a file is, executed once for each text that it has.

    The file can import modules that lie beside it. Its functions and classes travel to workers by value.

    Parameters
    ----------
    path
        The file.
    typed
        The option before the path, for messages.

    Raises
    ------
    UsageError
        If it cannot be executed; the message says why.
    """
    file, content = path.resolve(), text(path, typed)
    name = PREFIX + file.stem
    module = sys.modules.get(name)
    if module is not None and (module.__file__, _EXECUTED.get(name)) == (str(file), content):
        return module
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{typed}{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        exec(compile(content, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{typed}{path} cannot be used: {told(error, file)}") from error
    _EXECUTED[name] = content
    _travels(module)
    return module


def text(path: Path, typed: str = "") -> bytes:
    """Return the bytes of a file; see ``module_of`` for the parameters and errors."""
    try:
        if path.is_file():  # and no pipe, which would keep its reader waiting
            return path.read_bytes()
    except OSError:
        pass
    raise UsageError(f"{typed}{path}: there is no such file")


def told(error: BaseException, file: Path | None = None) -> str:
    """Return what went wrong, in one line; of a mistake in a file also the line number."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    return f"{type(error).__name__}: {words}" + (f" (line {lines[-1]})" if lines else "")


def _travels(module: ModuleType) -> None:
    """Let workers have the module, which they cannot import, by value."""
    try:
        import cloudpickle
    except ImportError:  # then there are no workers either
        return
    cloudpickle.register_pickle_by_value(module)
