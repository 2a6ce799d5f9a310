"""Tables and titles of studies that cross methods with factors: grid, form, AFS, denoising, billing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from analysis.show import tables


def varying(table: pd.DataFrame) -> list[str]:
    """Return the factors that are worth a column: most methods have one form, AFS and denoising are off."""
    return [f for f in ("form", "afs", "denoise", "billed") if len(set(table[f])) > 1]


def common(table: pd.DataFrame) -> str:
    """Return the factors that all rows share, for a title."""
    shared = [f for f in ("form", "afs", "denoise") if f not in varying(table)]
    return "".join(f", {f} {word(table[f].iloc[0])}" for f in shared)


def wide(table: pd.DataFrame, budget: str, unit: str, text: Callable[[Any], str]) -> pd.DataFrame:
    """Return a line per curve and a column per budget."""
    factors = ["solver", "grid", *varying(table)]
    return tables.pivot(
        table,
        lambda row: {f: word(row[f]) for f in factors},
        lambda row: f"{row[budget]:g} {unit}",
        lambda row: "N/A" if row["note"] else text(row),
    )


def interval_of(name: str) -> Callable[[Any], str]:
    """Return what formats the column ``name`` of a row with its interval."""
    return lambda row: tables.cell(row, name)


def word(value: Any) -> str:
    """Return a factor as tables have it."""
    return ("off", "on")[bool(value)] if isinstance(value, bool | np.bool_) else str(value)


def titled(grid: str, variant: Any) -> str:
    """Return the title of a panel: its grid, the form if they are crossed, and what else is not as usual."""
    words = [f"{grid} grid", *([f"{variant['form']} form"] if "form" in variant else [])]
    extras = {"afs": "AFS", "denoise": "denoised", "billed": "all billed"}
    return ", ".join(words + [text for name, text in extras.items() if variant[name]])


def reasons(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the methods that have nothing to measure, each with the reason."""
    rows = table[table["note"] != ""]
    return list(dict.fromkeys(zip(rows["solver"], rows["note"], strict=True)))
