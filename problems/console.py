"""The manners of every command of the suite: how it is told what to do, and how it fails."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch


class UsageError(ValueError):
    """A mistake of the caller, told in one sentence that says what to type."""


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one sentence and exit code 2.

    Parameters
    ----------
    module
        What is typed after ``python -m``.
    description
        What the command does.
    examples
        Lines that one can type.
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
        """Print the sentence and leave."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Show defaults as one would type them, and none for switches."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        silent = default is None or default is False or default == argparse.SUPPRESS
        return text if silent else f"{text} (default: {default})"


def positive(text: str) -> int:
    """Read a positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def device(name: str) -> torch.device:
    """Return a torch device that can be used here.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; type --device cpu or --device cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no usable CUDA device; type --device cpu")
    return found


def attempt(p: Parser, action: Callable[[], None], kept: str) -> int:
    """Do what a command is for.

    Parameters
    ----------
    p
        Its parser.
    action
        What it is for.
    kept
        What is said when it is interrupted: what is not lost.

    Returns
    -------
    The exit code: 0, 1 for a failure, 130 when interrupted; a ``UsageError`` leaves with 2.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # Two threads gain nothing on small batches, and wait for each other for long on a busy machine.
        torch.set_num_threads(1)
    try:
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
