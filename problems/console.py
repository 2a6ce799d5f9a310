"""Arguments, errors and exit codes, the same for every command of the suite."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch


class UsageError(ValueError):
    """A mistake of the caller; the message is one sentence that says what to type."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one sentence and exits with code 2.

    Parameters
    ----------
    module
        Name of the module to run by ``python -m``.
    description
        What the command does.
    examples
        Example command lines, for the help text.
    """

    def __init__(self, module: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Formats defaults as they are typed, and omits those of switches."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        silent = default is None or default is False or default == argparse.SUPPRESS
        return text if silent else f"{text} (default: {default})"


def positive(text: str) -> int:
    """Convert an argument to a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def device(name: str) -> torch.device:
    """Return a torch device of this machine.

    Raises
    ------
    UsageError
        If the name is unknown or the device is not available.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; type --device cpu or --device cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no usable CUDA device; type --device cpu")
    return found


def keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory for this process; does nothing with another C library.

    By default, malloc returns the arrays of a jet to the system, and the next jet page-faults them in again,
    which can more than double its cost. The environment variables of malloc take precedence.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # constants of malloc.h
    mallopt(trim_threshold, 2**28)
    mallopt(mmap_threshold, 2**25)


@contextmanager
def told(p: Parser) -> Iterator[None]:
    """Print a ``UserWarning`` as one line of the command; others are shown as usual."""
    show = warnings.showwarning

    def line(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if category is UserWarning:
            print(f"{p.prog}: {message}", file=sys.stderr)
        else:
            show(message, category, *where, **options)

    with warnings.catch_warnings():
        warnings.showwarning = line
        yield


def attempt(p: Parser, action: Callable[[], None], kept: str) -> int:
    """Run the action of a command and turn exceptions into exit codes.

    Parameters
    ----------
    p
        The parser of the command.
    action
        The work of the command.
    kept
        The message on interruption: what is not lost.

    Returns
    -------
    The exit code: 0, 1 for a failure, 130 when interrupted. A ``UsageError`` exits with code 2.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # A second thread gains nothing on small batches, and threads wait long for each other on a busy
        # machine.
        torch.set_num_threads(1)
    keep_freed_memory()
    try:
        with told(p):
            action()
    except UsageError as error:
        p.error(str(error))
    except (OSError, ArithmeticError) as error:
        print(f"{p.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{p.prog}: interrupted; {kept}", file=sys.stderr)
        return 130
    return 0
