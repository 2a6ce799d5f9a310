"""Tables: readable on a terminal, exact in CSV. They are made of results and never run solvers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from problems.files import atomically


def interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """Format an estimate with its interval, such as ``1.23e-4 [1.19, 1.27]e-4`` with a common exponent."""
    if not value or value != value:
        return f"{value:.{digits}g}"
    exponent = int(f"{abs(value):e}".split("e")[1])
    if -2 <= exponent <= 2:
        places = max(0, digits - exponent)
        return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
    scale = 10.0**-exponent
    tail = f"e{exponent}"
    return f"{value * scale:.{digits}f}{tail} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]{tail}"


def show(title: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    """Print a table with its title, and notes below it."""
    print(f"\n{title}\n")
    print(tabulate(frame.to_numpy().tolist(), headers=list(frame.columns), disable_numparse=True))
    for note in notes:
        print(note)


def to_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write tidy data and return the path; floats keep all their digits."""
    return atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.17g"))


def write(path: Path, sections: Sequence[tuple[str, pd.DataFrame, Sequence[str]]]) -> list[Path]:
    """Write tables, each with its title and notes, to ``path``.md and ``path``.tex (for booktabs).

    Parameters
    ----------
    path
        Path without suffix.
    sections
        Titles, tables and notes.

    Returns
    -------
    The paths of the two files.
    """
    kinds = {".md": ("github", "## {}\n\n{}\n\n{}\n"), ".tex": ("latex_booktabs", "% {}\n{}\n% {}\n")}
    written = []
    for suffix, (form, shape) in kinds.items():
        breaks = "\n\n" if suffix == ".md" else "\n% "
        parts = [
            shape.format(title, _text(frame, form), breaks.join(notes)) for title, frame, notes in sections
        ]
        text = "\n".join(parts)
        target = path.with_name(path.name + suffix)
        written.append(atomically(target, partial(Path.write_text, data=text, encoding="utf-8")))
    return written


def _text(frame: pd.DataFrame, form: str) -> str:
    rows = frame.to_numpy().tolist()
    return tabulate(rows, headers=list(frame.columns), tablefmt=form, disable_numparse=True)
