"""Local truncation error: the error of a single step against its size (Figs. 3, top, and 10).

Every trajectory starts on the exact solution at time t and takes one step of Δt. Multistep methods are
handed the exact past at t + Δt, t + 2Δt, …, so they are compared like for like. Where a method is a linear
rule in past derivatives, the leading term of its error is known from the exact next derivative and drawn
beside the measurement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.fits import stands
from analysis.measure.statistics import Bootstrap, Slope, medians, slope
from analysis.measure.steps import end_of, single_step, stops_of
from analysis.methods import Method, chosen
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Cell, Study, frame, measured
from analysis.study.values import Aside
from problems import Problem
from problems.console import Parser, UsageError, positive

DEFAULT = ("ddim", "ttm2", "ttm3", "s-pndm", "f-pndm", "ab2", "heun")
TIMES = (0.1, 0.2, 0.5)


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument("--t", nargs="+", type=float, default=list(TIMES), help="times at which steps begin")
    p.add_argument("--points", type=positive, default=25, help="step sizes per time, from 1e-4 to t - t_cut")
    add_solvers(p, DEFAULT)


def step_sizes(t: float, stop: float, points: int) -> list[float]:
    """Return the step sizes Δt: logarithmic, from 1e-4 (or a tenth of what there is) to t - stop."""
    longest = t - stop
    shortest = min(1e-4, 0.1 * longest)
    sizes: list[float] = np.geomspace(shortest, longest, points).tolist()
    sizes[-1] = longest
    return sizes


def local_errors(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    t: Sequence[float] = TIMES,
    points: int = 25,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the local errors of methods as a tidy table: a row for each time, step size and method.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case.
    methods
        The methods; see ``analysis.methods.chosen``.
    t
        Times at which steps begin.
    points
        Number of step sizes for each time; see ``step_sizes``.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    Columns ``error`` (mean L2 in x), ``median``, each with its 95% interval, ``theory`` (the leading term of
    linear rules), ``nfe``, ``jvp``, and what tells the rows apart. Rows of a method whose past would begin
    before the schedule are left out.

    Raises
    ------
    ValueError
        If a time is outside the schedule, or a method takes no deterministic steps.
    """
    return _measured(case_of(problem), chosen(methods), t, points, study or Study())[0]


def _measured(
    case: Case, methods: Mapping[str, Method], times: Sequence[float], points: int, study: Study
) -> tuple[pd.DataFrame, Any]:
    """Return the tidy table and the errors behind it, (rows, samples)."""
    schedule = case.problem.schedule
    for t in times:
        if not schedule.stop < t <= schedule.start:
            raise ValueError(
                f"--t {t:g} is outside ({schedule.stop:g}, {schedule.start:g}], where the steps can begin"
            )
    for name, method in methods.items():
        if method.adaptive or method.random:
            raise ValueError(f"{name} has no single deterministic step; leave it out of --solvers")
    plan = [
        (name, t, dt)
        for t in dict.fromkeys(times)
        for dt in step_sizes(t, schedule.stop, points)
        for name, method in methods.items()
        if t + method.solver.reach * dt <= schedule.start
    ]
    reach = max(m.solver.reach for m in methods.values())
    needed = {
        stop
        for t in times
        for dt in step_sizes(t, schedule.stop, points)
        for stop in stops_of(t, dt, reach, schedule.stop)
    }
    stops = Aside(tuple(sorted((stop for stop in needed if stop < schedule.start), reverse=True)))
    cells = [
        Cell(
            {**case.config, "solver": name, "t": t, "dt": dt},
            single_step,
            {"case": case, "method": methods[name], "t": t, "dt": dt, "times": stops},
        )
        for name, t, dt in plan
    ]
    results = measured(study.run("lte", cells))

    errors = np.stack([r.arrays["error"] for r in results])
    mean, median = Bootstrap(case.samples).means(errors), medians(errors)
    alpha = [schedule.alpha(end_of(r.config["t"], r.config["dt"], schedule.stop)) for r in results]
    nfe = [int(r.arrays["nfe"]) for r in results]
    table = frame(
        results,
        nfe=nfe,
        jvp=[int(r.arrays["jvp"]) for r in results],
        error=mean.value,
        error_low=mean.low,
        error_high=mean.high,
        median=median.value,
        median_low=median.low,
        median_high=median.high,
        error_xbar=mean.value / np.array(alpha),
        theory=[float(r.arrays["theory"].mean()) if "theory" in r.arrays else math.nan for r in results],
        dt_per_nfe=[r.config["dt"] / n for r, n in zip(results, nfe, strict=True)],
        error_per_nfe=mean.value / np.array(nfe),
        reference_error=[float(r.arrays["reference_error"]) for r in results],
    )
    return table, errors


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    try:
        table, errors = _measured(session.case, session.methods(), args.t, args.points, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(table, extra=errors)


def asymptotic(rows: pd.DataFrame, rounding: float, decade: float = 6.0) -> pd.Series[bool]:
    """Mark the asymptotic range: the smallest steps whose error stands above reference and rounding."""
    above = pd.Series(stands(rows["error"], rows["reference_error"], rounding), index=rows.index)
    first = rows["dt"].where(above).min()
    range_: pd.Series[bool] = above & (rows["dt"] <= decade * first)
    return range_


def fitted(rows: pd.DataFrame, errors: Any, bootstrap: Bootstrap, rounding: float) -> Slope | None:
    """Fit the slope of error against Δt over the asymptotic range; None where that has no two points."""
    inside = asymptotic(rows, rounding)
    if inside.sum() < 2:
        return None
    return slope(rows["dt"][inside].to_numpy(), errors[rows.index[inside]], bootstrap)


def report(session: Session, outcome: Outcome) -> None:
    """Print one line per time and method."""
    table, errors, methods = outcome.table, outcome.extra, session.methods()
    bootstrap, rounding, lines = Bootstrap(session.case.samples), session.case.epsilon, []
    for t, name in dict.fromkeys(zip(table["t"], table["solver"], strict=True)):
        rows = table[(table["t"] == t) & (table["solver"] == name)]
        fit = fitted(rows, errors, bootstrap, rounding)
        near = rows.loc[(np.log(rows["dt"]) - math.log(0.05 * t)).abs().idxmin()]
        ratio = (rows["theory"] / rows["error"])[asymptotic(rows, rounding)]
        lines.append(
            {
                "t": f"{t:g}",
                "solver": name,
                "NFE": int(near["nfe"]),
                "slope (95%)": "-" if fit is None else f"{fit.value:.3f} [{fit.low:.3f}, {fit.high:.3f}]",
                "declared": methods[name].solver.local_order if methods[name].form.exact else 2,
                "theory/error": "-" if ratio.isna().all() else f"{ratio.iloc[0]:.4f}",
                "Δt": f"{near['dt']:.3g}",
                "mean error (95%)": tables.cell(near, "error"),
                "median": f"{near['median']:.2e}",
                "error per NFE": f"{near['error_per_nfe']:.2e}",
            }
        )
    tables.show(
        "Local truncation error of one step in x (mean L2 over trajectories)",
        pd.DataFrame(lines),
        [
            "slope: of log error against log Δt over the smallest steps that the reference resolves",
            "theory/error: leading term from the exact next derivative, at the smallest of those steps",
            f"reference: own error {table['reference_error'].max():.1e}",
        ],
    )


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw Fig. 3 (top) and 10: error against Δt, and below it against time advanced per evaluation."""
    table = outcome.table
    starts = list(dict.fromkeys(table["t"]))
    band, names = ("error_low", "error_high"), list(dict.fromkeys(table["solver"]))
    with plots.style():
        figure, axes = plots.panels(2, len(starts), figsize=(plots.WIDTH, 4.6), sharey="row")
        for column, t in enumerate(starts):
            rows = table[(table["t"] == t) & (table["error"] > table["reference_error"])]
            top, bottom = axes[0, column], axes[1, column]
            plots.curves(top, rows, "dt", "error", band=band, among=names)
            limits = 0.5 * table["reference_error"].max(), 3 * rows["error_high"].max()
            for name in dict.fromkeys(rows["solver"][rows["theory"].notna()]):
                part = rows[rows["solver"] == name].sort_values("dt")
                top.plot(part["dt"], part["theory"], color="0.25", linestyle=":", linewidth=0.8)
            top.set_ylim(*limits)
            plots.curves(bottom, rows, "dt_per_nfe", "error", band=band, among=names)
            top.set_title(f"$t = {t:g}$")
            top.set_xlabel(r"step size $\Delta t$")
            bottom.set_xlabel(r"$\Delta t$ per evaluation (NFE)")
            for ax in (top, bottom):
                ax.set(xscale="log", yscale="log")
        for ax in axes[:, 0]:
            ax.set_ylabel("mean $L_2$ error of a step")
        axes[0, 0].plot([], [], color="0.25", linestyle=":", linewidth=0.8, label="leading term (theory)")
        plots.legend_below(figure, list(axes.flat), columns=5)
        return figure


EXPERIMENT = Experiment(
    name="lte",
    title="Local truncation error",
    finding="How far a single step leads from the exact solution, against its size, with an exact past.",
    help="Local truncation error of single steps, on the exact solution (Figs. 3 and 10 of the paper).",
    examples=(
        "--t 0.1 0.2 0.5",
        "--t 0.3 --solvers ddim ttm2 adams22 rk4",
        "--problem digits-mixture --samples 200 --points 9",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=1,
    paper="Figs. 3 (top), 10 and 15",
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("lte"))
