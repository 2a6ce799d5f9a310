"""Finite differences against the exact derivative dε/dγ (Fig. 3, bottom).

A multistep method replaces the derivative of ε along the flow by differences to points it has passed. Here
those points lie on the exact solution, at t + Δt, t + 2Δt, … (or on the other side on request), so the
error is that of the difference alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, main, parser
from analysis.reference import Reference, reference
from analysis.statistics import Bootstrap, medians, slope
from analysis.study import Cell, frame, run
from problems.console import Parser, UsageError, positive


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "derivatives",
        "Error of finite-difference approximations of dε/dγ, on the exact solution (Fig. 3, bottom).",
        "  python -m analysis.derivatives --t 0.1 0.2 0.5\n"
        "  python -m analysis.derivatives --stencils 1 2 3 --direction forward",
    )
    p.add_argument("--t", nargs="+", type=float, default=[0.1, 0.2, 0.5], help="times of the derivative")
    p.add_argument("--points", type=positive, default=25, help="distances Δt per time, from 1e-4 on")
    p.add_argument(
        "--stencils",
        nargs="+",
        type=positive,
        default=[1, 2],
        help="number of further points in a difference",
    )
    p.add_argument(
        "--direction",
        choices=("backward", "forward"),
        default="backward",
        help="side of the further points: backward is the previous, noisier one",
    )
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    args, schedule = session.args, session.problem.schedule
    sign = 1.0 if args.direction == "backward" else -1.0
    plan = []
    for t in dict.fromkeys(args.t):
        room = schedule.start - t if sign > 0 else t - schedule.stop
        if not schedule.stop <= t <= schedule.start or room <= 1e-4:
            raise UsageError(
                f"--t {t:g} leaves no room for a {args.direction} difference inside "
                f"[{schedule.stop:g}, {schedule.start:g}]"
            )
        longest = min(t - schedule.stop, room) if t > schedule.stop else room
        for dt in np.geomspace(1e-4, 0.999 * longest, args.points).tolist():
            plan += [(t, dt, k) for k in dict.fromkeys(args.stencils) if k * dt < room]

    @cache
    def exact() -> tuple[Reference, dict[float, int]]:
        times = {schedule.start, *(t + sign * j * dt for t, dt, k in plan for j in range(k + 1))}
        ordered = sorted(times, reverse=True)
        return reference(session.problem, session.latents(), ordered), {t: i for i, t in enumerate(ordered)}

    def measure(t: float, dt: float, k: int) -> dict[str, Any]:
        solution, index = exact()
        nodes = [t + sign * j * dt for j in range(k + 1)]
        return difference(session, [(time, solution.x[index[time]]) for time in nodes])

    cells = [
        Cell(
            {**session.config, "t": t, "dt": dt, "stencil": k, "direction": args.direction},
            (*session.parts, difference),
            partial(measure, t, dt, k),
        )
        for t, dt, k in plan
    ]
    results = run("derivatives", cells, session.store, fresh=args.fresh)

    errors = np.stack([r.arrays["error"] for r in results])
    bootstrap = Bootstrap(args.samples)
    mean, median = bootstrap.means(errors), medians(errors)
    table = frame(
        results,
        error=mean.value,
        error_low=mean.low,
        error_high=mean.high,
        median=median.value,
        median_low=median.low,
        median_high=median.high,
        theory=[float(r.arrays["theory"].mean()) for r in results],
        derivative=[float(r.arrays["derivative"].mean()) for r in results],
    )
    report(table, errors, bootstrap)
    return session.save(table, draw(table))


def difference(session: Session, nodes: list[tuple[float, Tensor]]) -> dict[str, Any]:
    """Measure one cell.

    Parameters
    ----------
    session
        The run.
    nodes
        Times and exact states, the point of the derivative first.

    Returns
    -------
    Per trajectory: the L2 norms of the error ξ, of its leading term and of the exact derivative.
    """
    k = len(nodes) - 1
    score, schedule = session.working, session.problem.schedule
    gamma = [float(schedule.gamma(t)) for t, _ in nodes]
    t, x = nodes[0]
    jet = score.jet(session.cast(x), t, k + 2)
    eps = [jet[0], *(score(session.cast(x), t) for t, x in nodes[1:])]
    # The derivative at the first node of the polynomial through all of them, by divided differences; the
    # error of that is f⁽ᵏ⁺¹⁾/(k + 1)! Π (γ₀ - γⱼ).
    approximation, factor = torch.zeros_like(x.to(jet[0])), 1.0
    column = eps
    for d in range(1, k + 1):
        column = [(b - a) / (gamma[i + d] - gamma[i]) for i, (a, b) in enumerate(pairwise(column))]
        approximation = approximation + factor * column[0]
        factor *= gamma[0] - gamma[d]
    return {
        "error": _norm(approximation - jet[1]),
        "theory": abs(factor) / math.factorial(k + 1) * _norm(jet[k + 1]),
        "derivative": _norm(jet[1]),
    }


def _norm(x: Tensor) -> Any:
    return x.double().cpu().flatten(1).norm(dim=1).numpy()


def report(table: pd.DataFrame, errors: Any, bootstrap: Bootstrap) -> None:
    """Print one line per time and stencil."""
    lines = []
    for t, k in dict.fromkeys(zip(table["t"], table["stencil"], strict=True)):
        rows = table[(table["t"] == t) & (table["stencil"] == k)]
        # Rounding errors of ε are divided by Δγ, so the smallest steps are not the cleanest.
        clean = rows[rows["error"] > 1e-9 * rows["derivative"]].head(5)
        line = {"t": f"{t:g}", "points": str(k)}
        if len(clean) > 1:
            fit = slope(clean["dt"].to_numpy(), errors[clean.index], bootstrap)
            line["slope (95%)"] = f"{fit.value:.3f} [{fit.low:.3f}, {fit.high:.3f}]"
            line["theory/error"] = f"{(clean['theory'] / clean['error']).iloc[0]:.4f}"
        for dt in (1e-3, 1e-2, 5e-2):
            near = rows.loc[(np.log(rows["dt"]) - np.log(dt)).abs().idxmin()]
            ratio = near["error"] / near["derivative"]
            value = tables.cell(near, "error")
            line[f"mean |ξ| near Δt = {dt:g} (95%)"] = f"{value} ({100 * ratio:.2g}%)"
        lines.append(line)
    tables.show(
        "Error of the finite-difference derivative of ε (mean L2; in brackets, relative to |dε/dγ|)",
        pd.DataFrame(lines).fillna("-"),
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw Fig. 3 (bottom): the error against the distance of the points."""
    stencils = list(dict.fromkeys(table["stencil"]))
    with plots.style():
        figure, axes = plots.panels(1, len(stencils), figsize=(3.25 * len(stencils), 2.6), sharey=True)
        for ax, k in zip(axes[0], stencils, strict=True):
            rows = table[table["stencil"] == k].assign(
                start=lambda r: "$t = " + r["t"].map("{:g}".format) + "$"
            )
            plots.curves(ax, rows, "dt", "error", by="start", band=("error_low", "error_high"))
            for t in dict.fromkeys(rows["t"]):
                part = rows[rows["t"] == t]
                ax.plot(part["dt"], part["theory"], color="0.25", linestyle=":", linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlabel=r"distance $\Delta t$ of the points")
            ax.set_ylim(0.3 * table["error_low"].min(), 3 * table["error_high"].max())
            ax.set_title("difference to the previous point" if k == 1 else f"difference through {k} points")
        axes[0, 0].set_ylabel(r"mean $L_2$ norm of $\xi_t(\Delta t)$")
        axes[0, 0].plot([], [], color="0.25", linestyle=":", linewidth=0.8, label="leading term (theory)")
        plots.legend_below(figure, list(axes.flat))
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("derivatives", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
