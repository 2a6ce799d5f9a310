"""Tables and the figure of order certificates, made of the rows of ``orders.csv``.

A row has a solver, a form, a grid, an interval, a kind, the order of the solver, the order that is certified,
the slope with its 95% interval, its least and greatest value over the doublings of the steps, and a verdict:
pass, FAIL, unsettled or rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.show import plots, tables


def show(title: str, table: pd.DataFrame, tolerance: float) -> None:
    """Show certificates, a line per solver and form and kind; nothing if there are none."""
    if table.empty:
        return
    frame = tables.pivot(
        table,
        lambda row: {
            **{name: row[name] for name in ("solver", "form", "kind", "against")},
            "order": f"{row['solver_order']:g}",
        },
        lambda row: f"{row['grid']}, {row['interval']}",
        lambda row: _slope(row) + (f" ({row['order']:g})" if row["order"] != row["solver_order"] else ""),
    )
    counts = table["verdict"].value_counts()
    passed, unsettled = counts.get("pass", 0), counts.get("unsettled", 0)
    settled = passed + counts.get("FAIL", 0)
    notes = [
        f"{passed} of {settled} certificates pass: the slope lies within {tolerance:g} of the order",
        *(
            f"{name}: t from {rows['start'].iloc[0]:g} to {rows['stop'].iloc[0]:g}"
            for name, rows in table.groupby("interval", sort=False)
        ),
        f"reference: own error {table['reference_error'].max():.1e}",
    ]
    if table["kind"].ne("moments").any():
        half = (table["slope_high"] - table["slope_low"]).max() / 2.0
        notes.append(f"95% intervals of the slopes over trajectories: ±{half:.2f} or less")
    if (table["order"] != table["solver_order"]).any():
        notes.append(
            "(n): on this form, grid or interval the order is n, and n is what is certified; see below"
        )
    if unsettled:
        notes.append(f"a to b: {unsettled} of {len(table)} slopes have not settled, and move between a and b")
    if "rounding" in counts:
        notes.append("rounding: errors too near those of rounding, or of the reference, to have a slope")
    constant = [name for name in ("kind", "against") if len(set(frame[name])) == 1]
    tables.show(title, frame.drop(columns=constant), notes)


def _slope(row: Any) -> str:
    if row["verdict"] == "rounding":
        return "rounding"
    if row["verdict"] == "unsettled":
        return f"{row['least']:.1f} to {row['most']:.1f}"
    text = f"{row['slope']:.2f}"
    return text if row["verdict"] == "pass" else f"{text} FAIL"


def listed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return certificates, a line each."""
    lines = [
        {
            **{name: row[name] for name in ("solver", "form", "grid", "interval", "kind")},
            "order": f"{row['order']:g}",
            "slope (95%)": f"{row['slope']:.2f} [{row['slope_low']:.2f}, {row['slope_high']:.2f}]",
            "from": f"{row['least']:.2f}",
            "to": f"{row['most']:.2f}",
            "steps": f"{row['steps']}",
        }
        for _, row in rows.iterrows()
    ]
    return pd.DataFrame(lines)


def together(rows: pd.DataFrame) -> pd.DataFrame:
    """Return certificates of one solver, interval and grid that have the same order, a line for all forms."""
    lines = []
    for about, part in rows.groupby(["solver", "interval", "grid", "solver_order", "order"], sort=False):
        lines.append(
            {
                **dict(zip(("solver", "interval", "grid"), about, strict=False)),
                "forms": ", ".join(dict.fromkeys(part["form"])),
                "order of the solver": f"{about[3]:g}",
                "order here": f"{about[4]:g}",
                "slopes": spread(part["slope"]),
            }
        )
    return pd.DataFrame(lines)


def spread(slopes: pd.Series[float]) -> str:
    """Return the least and the greatest of slopes, once if they are printed alike."""
    low, high = f"{slopes.min():.2f}", f"{slopes.max():.2f}"
    return low if low == high else f"{low} to {high}"


def drawn(table: pd.DataFrame, tolerance: float) -> Figure:
    """Draw measured orders, a line per solver; grey is what the certificate allows.

    There is a row of panels for each interval; in it a panel for each form of the flow, one for the laws of
    random methods and one for their paths. A thin line is the range of a slope that has not settled.
    """
    rows = table[table["slope"].notna()]
    forms = rows["form"].str.removeprefix("ideal-")
    rows = rows.assign(panel=forms.where(rows["kind"] == "ends", rows["kind"]))
    looks = plots.looks(list(table["grid"]))
    solvers = plots.looks(list(table["solver"]))
    panels = list(dict.fromkeys(rows["panel"])) or [""]
    spans = list(dict.fromkeys(table["interval"]))
    with plots.style():
        size = (plots.WIDTH, (1.0 + 0.3 * len(solvers)) * len(spans))
        figure, axes = plots.panels(len(spans), len(panels), figsize=size, sharex=True, sharey=True)
        for (i, j), ax in np.ndenumerate(axes):
            here = rows[(rows["interval"] == spans[i]) & (rows["panel"] == panels[j])]
            for k, (grid, look) in enumerate(looks.items()):
                part = here[here["grid"] == grid]
                y = part["solver"].map(list(solvers).index) + 0.76 * ((k + 0.5) / len(looks) - 0.5)
                _marks(ax, part, y, look, tolerance)
            ax.set_title(f"{panels[j]}\n{spans[i]}")
            ax.grid(visible=False, axis="y")
        for ax in axes[-1]:
            ax.set_xlabel("measured")
        orders = range(1, int(table["order"].max()) + 1)
        ax.set_xticks(list(orders))
        ax.set_xlim(-0.5, max(orders) + 1.0)
        ax.set_yticks(range(len(solvers)), [look.label for look in solvers.values()])
        ax.set_ylim(len(solvers) - 0.5, -0.5)
        first = axes[0, 0]
        first.plot([], [], color="0.87", linewidth=2.6, label=f"declared order ± {tolerance:g}")
        if (rows["verdict"] == "unsettled").any():
            first.plot([], [], color="0.3", linewidth=0.6, label="not settled")
        if (rows["verdict"] == "FAIL").any():
            first.plot([], [], "o", color="red", fillstyle="none", markersize=6, label="FAIL")
        plots.legend_below(figure, list(axes.flat), columns=4)
        return figure


def _marks(ax: Axes, part: pd.DataFrame, y: pd.Series[float], look: plots.Look, tolerance: float) -> None:
    """Draw the certificates of one grid in a panel."""
    ax.hlines(y, part["order"] - tolerance, part["order"] + tolerance, color="0.87", linewidth=2.6)
    moving, failed = part["verdict"] == "unsettled", part["verdict"] == "FAIL"
    ax.hlines(y[moving], part["least"][moving], part["most"][moving], color=look.colour, linewidth=0.6)
    rest, at = part[~moving], y[~moving]
    # Without a spread they differ by rounding.
    interval = [
        (rest[a] - rest[b]).clip(lower=0.0) for a, b in (("slope", "slope_low"), ("slope_high", "slope"))
    ]
    ax.errorbar(
        rest["slope"],
        at,
        xerr=interval,
        linestyle="",
        marker=look.marker,
        color=look.colour,
        elinewidth=0.6,
        label=f"{look.label} grid",
    )
    ax.plot(part["slope"][failed], y[failed], "o", color="red", fillstyle="none", markersize=6)
