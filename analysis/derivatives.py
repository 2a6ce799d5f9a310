"""Finite differences against the exact derivative dε/dγ (Fig. 3, bottom).

A multistep method replaces the derivative of ε along the flow by differences to points it has passed. Here
those points lie on the exact solution, at t + Δt, t + 2Δt, … (or on the other side on request), so the
error is that of the difference alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.fits import stands
from analysis.measure.statistics import Bootstrap, medians, slope
from analysis.show import plots, tables
from analysis.study.cells import Cell, Result, Study, frame, measured
from analysis.study.values import Aside
from problems import Model, Problem
from problems.console import Parser, UsageError, positive, up_to

TIMES = (0.1, 0.2, 0.5)
STENCILS = (1, 2)
SIDES = {"backward": 1.0, "forward": -1.0}
"""The sign of the way from the point of the derivative to the further points, in t."""

FITTED = 5
"""How many distances a slope is fitted to."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument("--t", nargs="+", type=float, default=list(TIMES), help="times of the derivative")
    p.add_argument("--points", type=positive, default=25, help="distances Δt per time, from 1e-4 on")
    p.add_argument(
        "--stencils",
        nargs="+",
        type=up_to(100),  # the weights of more points are no numbers of float64
        default=list(STENCILS),
        help="number of further points in a difference",
    )
    p.add_argument(
        "--direction",
        choices=tuple(SIDES),
        default="backward",
        help="side of the further points: backward is the previous, noisier one",
    )


class Measured(NamedTuple):
    """What was measured.

    Attributes
    ----------
    table
        The tidy table.
    errors
        The errors behind it, (rows, samples).
    rounding
        The error of rounding in each difference, (rows,).
    """

    table: pd.DataFrame
    errors: Any
    rounding: Any


def difference_errors(
    problem: Case | Problem | str | Path,
    t: Sequence[float] = TIMES,
    points: int = 25,
    stencils: Sequence[int] = STENCILS,
    direction: str = "backward",
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the errors of finite differences as a tidy table: a row for each time, distance and stencil.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case.
    t
        Times of the derivative dε/dγ.
    points
        Number of distances Δt for each time, logarithmic, from 1e-4 to the end of the schedule.
    stencils
        Numbers k of further points on the exact solution, at t ± Δt, …, t ± k Δt, through which, and the
        point at t, the polynomial is laid whose derivative at t is the difference.
    direction
        ``backward`` (earlier, noisier points) or ``forward``.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    Columns ``error`` (mean L2 norm of the difference minus dε/dγ), ``median``, each with its 95% interval,
    ``theory`` (mean norm of the leading term of the error), ``derivative`` (mean norm of dε/dγ), and what
    tells the rows apart.

    Raises
    ------
    ValueError
        If a time leaves no room for a difference inside the schedule, or there is no such direction.
    """
    return _measured(case_of(problem), t, points, stencils, direction, study or Study()).table


def _measured(
    case: Case,
    times: Sequence[float],
    points: int,
    stencils: Sequence[int],
    direction: str,
    study: Study,
) -> Measured:
    if direction not in SIDES:
        raise ValueError(f"unknown direction {direction!r}; choose from {', '.join(SIDES)}")
    schedule, sign = case.problem.schedule, SIDES[direction]
    plan = []
    for t in dict.fromkeys(times):
        room = schedule.start - t if sign > 0 else t - schedule.stop
        if not schedule.stop <= t <= schedule.start or room <= 1e-4:
            raise ValueError(
                f"--t {t:g} leaves no room for a {direction} difference inside "
                f"[{schedule.stop:g}, {schedule.start:g}]"
            )
        longest = min(t - schedule.stop, room) if t > schedule.stop else room
        for dt in np.geomspace(1e-4, 0.999 * longest, points).tolist():
            plan += [(t, dt, k) for k in dict.fromkeys(stencils) if k * dt < room]
    if not plan:
        raise ValueError("there is no room for so many points in a difference; type smaller --stencils")
    needed = {node for t, dt, k in plan for node in nodes(t, sign * dt, k)} - {schedule.start}
    stops = Aside(tuple(sorted(needed, reverse=True)))
    cells = [
        Cell(
            {**case.config, "t": t, "dt": dt, "stencil": k, "direction": direction},
            difference,
            {"case": case, "t": t, "step": sign * dt, "k": k, "times": stops},
        )
        for t, dt, k in plan
    ]
    results = measured(study.run("derivatives", cells))

    errors = np.stack([r.arrays["error"] for r in results])
    mean, median = Bootstrap(case.samples).means(errors), medians(errors)
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
    return Measured(table, errors, np.array([rounding(case, r, sign) for r in results]))


def rounding(case: Case, result: Result, sign: float) -> float:
    """Return the error of rounding in a difference: that of ε, over the distance of the points in γ."""
    t, dt = result.config["t"], result.config["dt"]
    gamma = case.problem.schedule.gamma
    apart = abs(float(gamma(t + sign * dt)) - float(gamma(t)))
    return case.epsilon * float(result.arrays["eps"].mean()) / apart


def nodes(t: float, step: float, k: int) -> list[float]:
    """Return the times of the points in a difference, that of the derivative first."""
    return [t + j * step for j in range(k + 1)]


def difference(case: Case, t: float, step: float, k: int, times: Aside) -> dict[str, Any]:
    """Measure the error of a difference at every trajectory, between points on the exact solution.

    Parameters
    ----------
    case
        The trajectories.
    t
        Time of the derivative.
    step
        Time from one point to the next, positive towards the noise.
    k
        Number of further points.
    times
        The times after the start at which the exact solution is wanted by this cell or by others, falling.

    Returns
    -------
    Arrays by name, (samples,): the L2 norms of the error ξ, of its leading term, of the exact derivative and
    of ε.
    """
    solution = case.exact(*times.value)
    exact = dict(zip(solution.times, solution.x, strict=True))
    with torch.no_grad():
        parts = [
            _difference(case, score, [(time, exact[time][rows]) for time in nodes(t, step, k)])
            for score, rows in case.split(case.samples)
        ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _difference(case: Case, score: Model, points: list[tuple[float, Tensor]]) -> dict[str, Tensor]:
    k = len(points) - 1
    gamma = [float(case.problem.schedule.gamma(t)) for t, _ in points]
    t, x = points[0]
    jet = score.jet(case.cast(x), t, k + 2)
    eps = [jet[0], *(score(case.cast(x), t) for t, x in points[1:])]
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
        "eps": _norm(jet[0]),
    }


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = x.double().cpu().flatten(1).norm(dim=1)
    return norm


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    try:
        found = _measured(session.case, args.t, args.points, args.stencils, args.direction, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(found.table, extra=found)


def resolved(found: Measured) -> Any:
    """Return which rows enter a slope: those whose error stands above the error of rounding."""
    return stands(found.table["error"], 0.0, found.rounding)


def report(session: Session, outcome: Outcome) -> None:
    """Print one line per time and stencil."""
    table, bootstrap, lines = outcome.table, Bootstrap(session.case.samples), []
    stand = pd.Series(resolved(outcome.extra), index=table.index)
    for t, k in dict.fromkeys(zip(table["t"], table["stencil"], strict=True)):
        rows = table[(table["t"] == t) & (table["stencil"] == k)]
        # Rounding errors of ε are divided by Δγ, so the smallest steps are not the cleanest.
        clean = rows[stand[rows.index]].head(FITTED)
        line = {"t": f"{t:g}", "points": str(k)}
        if len(clean) > 1:
            fit = slope(clean["dt"].to_numpy(), outcome.extra.errors[clean.index], bootstrap)
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


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw Fig. 3 (bottom): the error against the distance of the points."""
    table = outcome.table
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


EXPERIMENT = Experiment(
    name="derivatives",
    title="Finite differences",
    finding="How far finite differences, which multistep methods use, are from the exact derivative dε/dγ.",
    help="Error of finite-difference approximations of dε/dγ, on the exact solution (Fig. 3, bottom).",
    examples=("--t 0.1 0.2 0.5", "--stencils 1 2 3 --direction forward"),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=2,
    paper="Fig. 3 (bottom)",
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("derivatives"))
