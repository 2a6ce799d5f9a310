"""Atomic writing of files."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PREFIX = ".writing-"
"""Begins the names of folders in which files are written; the machine and the process that writes follow."""


def atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a temporary file beside ``path`` by ``write``, rename it to ``path``, and return ``path``.

    What a process of this machine that was killed left beside it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    own = f"{PREFIX}{platform.node()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=own) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        temporary.replace(path)
    return path


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that are gone were writing in a folder."""
    begin = f"{PREFIX}{platform.node()}-"
    for left in folder.glob(f"{PREFIX}*"):
        process = left.name.removeprefix(begin).partition("-")[0]
        if left.name.startswith(begin) and process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
