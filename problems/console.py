"""Arguments, errors and exit codes, the same for every command of the suite."""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from problems.terminal import TerminatedError, interruptible

MOST = 10**6
"""The largest number of steps, of evaluations or of parts of anything that is taken."""

SEEDS = 2**63 - 1
"""The largest seed: generators of torch take seeds of 64 bits, numpy's no negative ones."""


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


def size(text: str) -> int:
    """Convert an argument to a positive integer of 64 bits."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def up_to(most: int) -> Callable[[str], int]:
    """Return the conversion of an argument to an integer from 1 to ``most``."""

    def convert(text: str) -> int:
        value = size(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most:,}, the largest number that is taken")
        return value

    return convert


positive = up_to(MOST)
"""Converts an argument to a positive integer of at most ``MOST``."""


def seed(text: str) -> int:
    """Convert an argument to the seed of a generator."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is no seed; type a whole number from 0 to 2**63 - 1")
    return value


def finite(text: str) -> float:
    """Convert an argument to a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def folder(text: str) -> Path:
    """Convert an argument to the path of a folder that may be written to."""
    path = Path(text)
    if not text.strip() or "\0" in text or path.resolve() == Path(path.resolve().anchor):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder for results; type one, such as results")
    return path


def stem(text: str) -> Path:
    """Convert an argument to the path of files without their suffix."""
    path = Path(text)
    if path.name in ("", "..") or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name for files; type one, such as runs/digits")
    return path


def device(name: str) -> torch.device:
    """Return a torch device of this machine, on which numbers in float64 go there and back.

    Raises
    ------
    UsageError
        If the name is unknown or the device is not available.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; type --device cpu or --device cuda") from None
    if found.type == "meta":
        raise UsageError("the device 'meta' computes nothing; type --device cpu")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no usable CUDA device; type --device cpu")
    try:
        works = torch.ones(2, dtype=torch.float64, device=found).add(1.0).cpu().tolist() == [2.0, 2.0]
    except Exception:  # every backend that is not there has an error of its own
        works = False
    if not works:
        raise UsageError(f"the device {name!r} does not compute in float64 here; type --device cpu")
    return found


def require_memory(needed: float, what: str, advice: str) -> None:
    """Refuse what does not fit into the memory of this machine.

    Parameters
    ----------
    needed
        Bytes.
    what
        What needs them: the sentence begins with it.
    advice
        What to type instead: the sentence ends with it.

    Raises
    ------
    UsageError
        If the machine has less.
    """
    try:
        present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no system of POSIX
        return
    if needed > present:
        raise UsageError(
            f"{what} needs about {needed / 1e9:,.0f} GB of memory, of which this machine has "
            f"{present / 1e9:,.0f}; {advice}"
        )


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
    The exit code: 0, 1 for a failure, 130 when interrupted, 143 when terminated. A ``UsageError`` exits with
    code 2. Any other exception is a failure too, whose traceback goes to a file.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # A second thread gains nothing on small batches, and threads wait long for each other on a busy
        # machine.
        torch.set_num_threads(1)
    keep_freed_memory()
    try:
        with interruptible(), told(p):
            action()
    except UsageError as error:
        p.error(str(error))
    except (OSError, ArithmeticError) as error:
        return _failed(p, str(error))
    except KeyboardInterrupt as error:
        print(f"{p.prog}: interrupted; {kept}", file=sys.stderr)
        return 143 if isinstance(error, TerminatedError) else 130
    except Exception as error:
        return _failed(p, NO_MEMORY if lacks_memory(error) else unforeseen(error))
    return 0


def _failed(p: Parser, message: str) -> int:
    print(f"{p.prog}: {message}", file=sys.stderr)
    return 1


NO_MEMORY = "there is not enough memory; type a smaller --batch, or less of what is asked for"


def lacks_memory(error: BaseException) -> bool:
    """Return whether an exception is that memory ran out; torch has several, some of them by their words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = (
        "not enough memory",
        "can't allocate memory",
        "out of memory",
        "bad_alloc",
        "calculation overflowed",
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def unforeseen(error: BaseException) -> str:
    """Write the traceback of an exception that nothing foresaw to a file; return a sentence on it."""
    text = "".join(traceback.format_exception(error))
    last = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="genie-bench-", suffix=".txt", delete=False
        ) as file:
            file.write(text)
        where = f"its traceback is in {file.name}"
    except OSError:
        where = "its traceback could not be written to a file"
    return f"a defect of this program, please report it ({last}); {where}"
