"""What a command does to its process before anything long is imported: streams that last, and signals.

This module imports nothing that takes time. ``problems`` calls ``begin`` first of all, so that an
interruption while torch is imported, which takes seconds, is answered by a sentence too. Imported as a
library it changes nothing.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

PACKAGES = ("analysis", "problems")
SCRIPT = "genie-bench"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


class Lasting:
    """A text stream that takes what is written also when nobody reads it any more.

    A pipe whose reader has gone, or a terminal that has, is replaced by the null device.

    Parameters
    ----------
    stream
        The stream; None, as Python has it where the descriptor was closed, is the null device.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = _nowhere() if stream is None else stream

    def write(self, text: str) -> int:
        """Write a text, or drop it; returns its length."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what it holds."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):  # a stream without a descriptor
            self._stream = _nowhere()
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _nowhere() -> TextIO:
    return cast(TextIO, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))


def begin() -> None:
    """Make the process ready, if it is one that was started to run a command of the suite."""
    if not _typed(sys.argv, sys.orig_argv):
        return
    occupy()
    sys.stdout, sys.stderr = (cast(TextIO, Lasting(stream)) for stream in (sys.stdout, sys.stderr))
    for number in SIGNALS:
        signal.signal(number, _left)


def _typed(argv: list[str], whole: list[str]) -> bool:
    """Return whether ``python -m`` of one of the packages, or the console script, was typed.

    While ``python -m`` imports packages, ``sys.argv[0]`` is "-m". Processes that multiprocessing starts have
    the ``sys.argv`` of their parent, but not its ``sys.orig_argv``.
    """
    if argv[:1] == ["-m"] and "-m" in whole[:-1]:
        return whole[whole.index("-m") + 1].partition(".")[0] in PACKAGES
    return bool(argv) and Path(argv[0]).stem == SCRIPT and argv[0] in whole


def occupy() -> None:
    """Open the null device as each of descriptors 0 to 2 that is closed; files would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _left(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"stopped before anything was measured\n")
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT raise a ``KeyboardInterrupt`` and SIGTERM a ``TerminatedError`` within the block.

    Does nothing outside the main thread, where Python handles no signals.
    """
    try:
        before = [signal.signal(number, _interrupt) for number in SIGNALS]
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
