"""Atomic writing of files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path


def atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a temporary file beside ``path`` by ``write``, rename it to ``path``, and return ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        temporary.replace(path)
    return path
