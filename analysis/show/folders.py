"""The table of images that are compared with others, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.show import tables
from analysis.show.factors import interval_of


def report(table: pd.DataFrame, one: str, two: str, about: Sequence[str]) -> None:
    """Print how far images are from others.

    Parameters
    ----------
    table
        That of ``analysis.measure.folders.folder_quality``.
    one, two
        Where the images are, and the others.
    about
        What is to be said of them.
    """
    measures = {"frechet": "Fréchet distance", "precision": "precision", "recall": "recall"}
    lines = [
        {
            "features": row["feature"],
            **{f"{title} (95%)": interval_of(name)(row) for name, title in measures.items()},
            "with infinitely many": f"{row['frechet_infinite']:.3g}",
            "kernel": f"{row['kernel']:.3g}",
        }
        for _, row in table.iterrows()
    ]
    images, data = table["images"].iloc[0], table["data"].iloc[0]
    held = "statistics" if pd.isna(data) else f"{data:.0f}"
    notes = [f"{images} images of {one}; {held} of {two}", *about]
    tables.show(f"Images of {one} against {two}", pd.DataFrame(lines), notes)
