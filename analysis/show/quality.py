"""Figures of the quality of samples: distances and errors against cost, and sheets of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.show import plots

TITLES = {
    "frechet": "Fréchet, {}",
    "gap": "above the accurate, {}",
    "error": "mean $L_2$ error in $x$",
}
"""Titles of columns of panels."""


def curves(table: pd.DataFrame, shown: Sequence[str], budget: str) -> Figure:
    """Draw Fig. 5, a row for each grid: distances and errors against cost, best over AFS and denoising.

    Between them stands how much larger the distance in the first of the features is than that of the accurate
    samples from the same latents, which is zero for a perfect solver; linear between two ticks around zero.

    Parameters
    ----------
    table
        The tidy table of ``analysis.fid``.
    shown
        Features, a column of panels each.
    budget
        The column of the budget.
    """
    rows = table[(table["note"] == "") & (table["solver"] != "accurate")]
    grids, solvers = list(dict.fromkeys(rows["grid"])), list(dict.fromkeys(rows["solver"]))
    columns = [*((name, "frechet") for name in shown), (shown[0], "gap"), (shown[0], "error")]
    with plots.style():
        size = (plots.WIDTH, 1.9 * len(grids) + 0.6)
        figure, axes = plots.panels(len(grids), len(columns), figsize=size, sharex=True, sharey="col")
        for line, grid in zip(axes, grids, strict=True):
            line[0].set_ylabel(f"{grid} grid")
            for ax, (name, measure) in zip(line, columns, strict=True):
                here = rows[(rows["feature"] == name) & (rows["grid"] == grid) & rows[measure].notna()]
                best = here.sort_values(measure).drop_duplicates(["solver", budget])
                band = (f"{measure}_low", f"{measure}_high")
                plots.curves(ax, best, budget, measure, band=band, among=solvers)
                if measure == "gap":
                    _symmetric(ax, rows[rows["feature"] == name])
                else:
                    ax.set(yscale="log")
                if measure == "frechet":
                    _floor(ax, table[(table["feature"] == name) & (table["solver"] == "accurate")], here)
        for ax, (name, measure) in zip(axes[0], columns, strict=True):
            ax.set_title(TITLES[measure].format(name))
        for ax in axes[-1]:
            ax.set_xlabel("NFE" if budget == "nfe_budget" else "steps")
        plots.legend_below(figure, list(axes.flat))
        return figure


def _floor(ax: Any, accurate: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Draw the distance of the accurate solution."""
    row = accurate[accurate["denoise"].isin(rows["denoise"])].sort_values("frechet").iloc[0]
    ax.axhline(row["frechet"], color="0.4", linestyle=":", linewidth=0.9, label="accurate solution")
    ax.axhspan(row["frechet_low"], row["frechet_high"], color="0.4", alpha=0.15, linewidth=0)


def _symmetric(ax: Any, rows: pd.DataFrame) -> None:
    """Scale an axis logarithmically on both sides of zero, beyond the narrowest of the intervals."""
    width = float((rows["gap_high"] - rows["gap_low"]).min())
    ax.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(max(width, 1e-12))))
    ax.axhline(0.0, color="0.4", linestyle=":", linewidth=0.9)


def sheet(images: Any) -> Figure:
    """Draw 64 images at most, shape (N, 1 or 3, H, W) with values in [-1, 1], eight in a row."""
    rows = min(8, -(-len(images) // 8))
    with plots.style():
        figure, axes = plots.panels(1, 1, figsize=(3.25, 3.25 * rows / 8))
        axes[0, 0].set_axis_off()
        plots.sheet(axes[0, 0], images, rows, 8)
        return figure
