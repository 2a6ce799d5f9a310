"""Figures of guidance: errors and orders by scale, and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.show import plots


def errors_and_orders(table: pd.DataFrame) -> Figure:
    """Draw error against steps, a panel per scale, and last the measured orders."""
    scales = list(dict.fromkeys(table["scale"]))
    looks = plots.looks(list(table["solver"]))
    columns = min(3, len(scales) + 1)
    rows = math.ceil((len(scales) + 1) / columns)
    with plots.style():
        size = (plots.WIDTH, 0.4 + 1.9 * rows)
        figure, axes = plots.panels(rows, columns, figsize=size)
        *curves, orders = list(axes.flat)[: len(scales) + 1]
        for ax in list(axes.flat)[len(scales) + 1 :]:
            ax.set_axis_off()
        ticks = sorted(set(table["steps"]))
        for i, (ax, w) in enumerate(zip(curves, scales, strict=True)):
            here = table[table["scale"] == w]
            plots.curves(
                ax, here, "steps", "error", band=("error_low", "error_high"), among=list(table["solver"])
            )
            ax.set(xscale="log", yscale="log", title=f"guidance scale $w = {w:g}$", xlabel="steps")
            ax.set_ylim(0.7 * table["error_low"].min(), 1.4 * table["error_high"].max())
            ax.set_xticks(ticks, [str(n) for n in ticks])
            ax.set_xticks([], minor=True)
            if i % columns == 0:
                ax.set_ylabel("mean $L_2$ error at $t_{cut}$")
            else:
                ax.tick_params(labelleft=False)
        per_curve = table.drop_duplicates(["scale", "solver"])
        for i, (solver, look) in enumerate(looks.items()):
            part = per_curve[per_curve["solver"] == solver]
            x = part["scale"].map(scales.index) + 0.5 * ((i + 0.5) / len(looks) - 0.5)
            interval = (part["order"] - part["order_low"], part["order_high"] - part["order"])
            orders.errorbar(
                x,
                part["order"],
                yerr=interval,
                linestyle="",
                marker=look.marker,
                markersize=3.2,
                color=look.colour,
                elinewidth=0.8,
            )
        orders.set(title="measured order", xlabel="guidance scale $w$", ylim=(0.5, 2.5))
        orders.set_xticks(range(len(scales)), [f"{w:g}" for w in scales])
        orders.set_xlim(-0.5, len(scales) - 0.5)
        orders.set_yticks([1, 2])
        orders.grid(visible=False, axis="x")
        plots.legend_below(figure, curves)
        return figure


def by_scale(shown: Mapping[str, Mapping[float, Any]], scales: Sequence[float], columns: int) -> Figure:
    """Draw samples, a row per scale and a column per class, white where there are none.

    Parameters
    ----------
    shown
        By the title of a sheet, the images by scale, (N, 1 or 3, H, W); the last one has all scales.
    scales
        The scales.
    columns
        How many samples are shown, one of each class.
    """
    blank = np.ones_like([*shown.values()][-1][scales[0]])
    with plots.style():
        width = plots.WIDTH / len(shown)
        size = (plots.WIDTH, width * len(scales) / columns + 0.25)
        figure, axes = plots.panels(1, len(shown), figsize=size, gridspec_kw={"wspace": 0.04})
        for ax, (title, ends) in zip(axes[0], shown.items(), strict=True):
            images = [ends.get(w, blank)[:columns] for w in scales]
            plots.sheet(ax, np.concatenate(images), len(scales), columns)
            ax.set_title(title)
            ax.grid(visible=False)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        height = blank.shape[-2]
        pitch = height + max(1, height // 16)
        axes[0, 0].set_yticks(
            [0.5 * height + i * pitch for i in range(len(scales))], [f"{w:g}" for w in scales]
        )
        axes[0, 0].tick_params(left=False)
        axes[0, 0].set_ylabel("guidance scale $w$")
        return figure
