"""An experiment is one value: what it is called, what it shows, how it is measured, reported and drawn."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.methods.plugins import extensible
from analysis.show.published import Published

if TYPE_CHECKING:
    from analysis.command.session import Session
    from problems.console import Parser


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes
    ----------
    table
        Tidy data, written as ``NAME.csv``.
    further
        More of it, by suffix: ``-sizes`` is written as ``NAME-sizes.csv``.
    extra
        What else the figure is made of.
    name
        What the files are called, if not by the name of the experiment.
    code
        The exit code, if nothing failed.
    """

    table: pd.DataFrame
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    extra: Any = None
    name: str = ""
    code: int = 0


@dataclass(frozen=True)
class Variant:
    """An experiment with other arguments, whose files have a name of their own.

    Attributes
    ----------
    name
        The name.
    arguments
        The arguments.
    title, finding, paper
        As in ``Experiment``.
    """

    name: str
    arguments: str
    title: str
    finding: str
    paper: str = ""


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes
    ----------
    name
        What is typed after ``python -m analysis.``, and the name of its files.
    title
        Headline.
    finding
        What it shows, in a sentence.
    help
        What ``--help`` says that it does.
    examples
        Arguments that one can type.
    arguments
        Adds its own arguments to a parser that has the common ones.
    measure
        Measures; None if there was only something to be announced.
    report
        Prints tables.
    draw
        Draws a figure, or several by suffix.
    place
        Where it stands in lists: experiments are sorted by it.
    paper
        What of the paper it is after.
    defaults
        Defaults of the common arguments, where they are others than usual.
    published
        Tables of the paper, each with the pattern of the titles beside which it belongs.
    variants
        The same with other arguments.
    """

    name: str
    title: str
    finding: str
    help: str
    examples: tuple[str, ...]
    arguments: Callable[[Parser], None]
    measure: Callable[[Session], Outcome | None]
    report: Callable[[Session, Outcome], None]
    draw: Callable[[Session, Outcome], Figure | Mapping[str, Figure]]
    place: float = 100.0
    paper: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[tuple[str, Published], ...] = ()
    variants: tuple[Variant, ...] = ()

    def typed(self, arguments: str = "", launcher: str = "python -m analysis.") -> str:
        """Return the line that runs it with given arguments."""
        return f"{launcher}{self.name} {arguments}".rstrip()


PLUGGED: dict[str, Experiment] = {}
"""Experiments of plugins, by name."""


def commands() -> list[str]:
    """Return the names of everything that ``python -m analysis.NAME`` runs."""
    package = importlib.import_module("analysis")
    return [m.name for m in pkgutil.iter_modules(package.__path__) if not (m.ispkg or m.name in _NO_COMMANDS)]


_NO_COMMANDS = ("__main__", "api")

extensible("experiments", PLUGGED, Experiment, commands)

REPORT = "One page of all figures and tables in a folder of results."
"""What ``report`` does, in lists of commands."""


def experiments() -> list[Experiment]:
    """Return all experiments, those of plugins included, in the order of their places."""
    modules = [importlib.import_module(f"analysis.{name}") for name in commands()]
    found = [m.EXPERIMENT for m in modules if hasattr(m, "EXPERIMENT")]
    return sorted([*found, *PLUGGED.values()], key=lambda e: (e.place, e.name))
