"""Tables: readable on a terminal, exact in CSV. They are made of results and never run solvers.

What a command shows is also kept: inside a ``collected`` block, which is where ``cli.main`` runs experiments,
every table joins a list, from which files are written at the end.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tabulate import tabulate

from problems.files import atomically


class Table(NamedTuple):
    """A table for readers, as opposed to tidy data; or what is to be typed.

    Attributes
    ----------
    title
        What it shows.
    frame
        Its cells.
    notes
        Lines below it.
    code
        What is to be typed, instead of cells.
    language
        In which that is: ``sh`` or ``python``.
    """

    title: str
    frame: pd.DataFrame
    notes: Sequence[str] = ()
    code: str = ""
    language: str = ""

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the names of the columns, and the rows, as they are printed."""
        rows = [["" if c is None else str(c) for c in row] for row in self.frame.to_numpy().tolist()]
        return [str(column) for column in self.frame.columns], rows


_COLLECTION: ContextVar[list[Table] | None] = ContextVar("collection", default=None)


@contextmanager
def collected() -> Iterator[list[Table]]:
    """Collect the tables that are shown or kept inside the block, in their order."""
    collection: list[Table] = []
    token = _COLLECTION.set(collection)
    try:
        yield collection
    finally:
        _COLLECTION.reset(token)


def interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """Format an estimate with its interval, such as ``1.23e-4 [1.19, 1.27]e-4`` with a common exponent."""
    size = abs(value) or max(abs(low), abs(high))
    if not size or not math.isfinite(value):
        return f"{value:.{digits}g}"
    exponent = int(f"{size:.{digits}e}".split("e")[1])
    if -2 <= exponent <= 2:
        places = max(0, digits - exponent)
        return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
    scale = 10.0**-exponent
    tail = f"e{exponent}"
    return f"{value * scale:.{digits}f}{tail} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]{tail}"


def cell(row: Any, name: str, digits: int = 2) -> str:
    """Format the column ``name`` of a row, of a frame or a mapping, with its interval; see ``interval``."""
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits)


def pivot(
    rows: pd.DataFrame,
    line: Callable[[Any], Mapping[str, str]],
    column: Callable[[Any], str],
    text: Callable[[Any], str],
) -> pd.DataFrame:
    """Return a table for readers: a line for each set of first cells, a column for each heading.

    Parameters
    ----------
    rows
        Tidy data, one row for each cell of the table.
    line
        Takes a row, returns the first cells of its line by their headings.
    column
        Takes a row, returns the heading of its column.
    text
        Takes a row, returns its cell.

    Returns
    -------
    Lines and columns in the order in which they first occur; ``-`` where there is no row.
    """
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for _, row in rows.iterrows():
        first = dict(line(row))
        lines.setdefault(tuple(first.values()), first)[column(row)] = text(row)
    return pd.DataFrame(list(lines.values())).fillna("-")


def show(title: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    """Print a table with its title, and notes below it, and keep it."""
    print(f"\n{title}\n\n{_text(Table(title, frame), 'simple')}")
    for note in notes:
        print(note)
    keep(title, frame, notes)


def show_code(title: str, code: str, language: str) -> None:
    """Print what is to be typed, with its title above it, and keep it."""
    print(f"\n{title}\n\n{textwrap.indent(code, '    ')}")
    collection = _COLLECTION.get()
    if collection is not None:
        collection.append(Table(title, pd.DataFrame(), (), code, language))


def say(sentence: str) -> None:
    """Print a sentence, and keep it."""
    print(f"\n{sentence}")
    keep(sentence, pd.DataFrame())


def keep(title: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    """Keep a table for the files without printing it."""
    collection = _COLLECTION.get()
    if collection is not None:
        collection.append(Table(title, frame, notes))


def to_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write tidy data and return the path; floats keep all their digits."""
    return atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.17g"))


def write(path: Path, shown: Sequence[Table]) -> list[Path]:
    """Write tables, each with its title and notes, to ``path``.md and ``path``.tex (for booktabs).

    Parameters
    ----------
    path
        Path without suffix.
    shown
        The tables.

    Returns
    -------
    The paths of the two files.
    """
    kinds = {".md": ("github", "## {}\n\n{}\n\n{}\n"), ".tex": ("latex_booktabs", "% {}\n{}\n% {}\n")}
    written = []
    for suffix, (form, shape) in kinds.items():
        breaks = "\n\n" if suffix == ".md" else "\n% "
        parts = [shape.format(table.title, _text(table, form), breaks.join(table.notes)) for table in shown]
        text = "\n".join(parts)
        target = path.with_name(path.name + suffix)
        written.append(atomically(target, partial(Path.write_text, data=text, encoding="utf-8")))
    return written


def markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    return _text(Table("", frame), "github")


def _text(table: Table, form: str) -> str:
    if table.code:
        github = f"```{table.language}\n{table.code}\n```"
        return github if form == "github" else f"\\begin{{verbatim}}\n{table.code}\n\\end{{verbatim}}"
    columns, rows = table.cells()
    if not columns:
        return ""
    return tabulate(rows, headers=columns, tablefmt=form, disable_numparse=True)
