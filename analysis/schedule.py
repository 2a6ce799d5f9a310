"""Schedules fitted to a problem: where should so many steps lie, what is gained, and does it transfer?

Two fits, for each method and budget, on trajectories of their own:

- Dynamic programming (Watson et al. 2021) over the exact cost of every step between candidate times. The
  cost is the local error in x̄ of the step from the exact state, times the growth of a small error in its
  direction on the way to the end, at most the size of the data (a trajectory that lands at another mode is no
  further away than that), averaged over trajectories: to first order a path's sum bounds its mean error at
  the end. The cost of a step of a multistep method depends on the steps before it, which a sum over steps
  cannot know: it is given an exact past with steps as long, in log-SNR, as the one it takes. That is a proxy.
- A search over ρ in t_n = (1 - c n/N)^ρ, by sampling.

Both are judged by sampling latents that neither has seen, against quadratic striding on the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.ends import ends
from analysis.measure.rows import Row
from analysis.measure.schedules import best_paths, mesh, rho_errors, step_costs
from analysis.measure.statistics import Bootstrap
from analysis.methods import QUADRATIC, Grid, Method, chosen, grid_of, striding
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Cell, Study
from problems import Problem
from problems.console import Parser, UsageError, positive

DEFAULT = ("ddim", "ttm2", "ab2", "dpm-solver++2m")
BUDGETS = (5, 10, 20)
RHOS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 7.0, 10.0)

APART = 10_000
"""How far the seed of the trajectories that are fitted to is from that of those that judge."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, DEFAULT)
    p.add_argument("--nfe", nargs="+", type=positive, default=list(BUDGETS), help="budgets of evaluations")
    p.add_argument("--candidates", type=positive, default=48, help="steps of the mesh, equal in log-SNR")
    p.add_argument("--fitted", type=positive, default=200, help="number of trajectories to fit to")
    p.add_argument("--transfer", nargs="+", default=[], metavar="PROBLEM", help="judge on these as well")


class Fit(NamedTuple):
    """Schedules of a method under a budget.

    Attributes
    ----------
    solver, method, nfe, steps
        The method, its name, the budget, and the steps that it pays for.
    grids
        The grids by kind: ``quadratic``, ``dp`` and ``rho``.
    """

    solver: str
    method: Method
    nfe: int
    steps: int
    grids: dict[str, Grid]


def schedules(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    *,
    candidates: int = 48,
    fitted: int = 200,
    rhos: Sequence[float] = RHOS,
    transfer: Sequence[Case | Problem | str | Path] = (),
    study: Study | None = None,
) -> pd.DataFrame:
    """Fit schedules to a problem, and judge them on latents that they were not fitted to.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case.
    methods
        The methods; see ``analysis.methods.chosen``.
    nfe
        Budgets of evaluations.
    candidates
        Steps of the mesh, equal in log-SNR, on which dynamic programming chooses times.
    fitted
        Number of trajectories to fit to.
    rhos
        The exponents of power schedules among which the best is searched for.
    transfer
        Further problems of the same schedule of noise on which the grids are judged, on as many trajectories.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    A row for each method, budget, problem ``judged_on`` and ``schedule`` (``quadratic``, ``dp``, ``rho``):
    ``times``, as ``grid_of`` takes them, ``error`` (mean L2 in x at t_cut) and ``gain`` (the error of
    quadratic striding over this one's), each with its 95% interval.

    Raises
    ------
    ValueError
        If a problem has another schedule of noise, a method takes no deterministic
        steps of a grid, or a budget, the mesh or the number of trajectories is too small.
    """
    case = case_of(problem)
    alike = {"samples": case.samples, "seed": case.seed}
    others = [other.but(**alike) if isinstance(other, Case) else case.on(other) for other in transfer]
    return _measured(case, chosen(methods), nfe, candidates, fitted, rhos, others, study or Study())


def _measured(
    case: Case,
    methods: Mapping[str, Method],
    budgets: Sequence[int],
    candidates: int,
    fitted: int,
    rhos: Sequence[float],
    transfer: Sequence[Case],
    study: Study,
) -> pd.DataFrame:
    cases, own = list(dict.fromkeys((case, *transfer))), case.problem.schedule
    for other in cases:
        schedule = other.problem.schedule
        if (schedule.start, schedule.stop) != (own.start, own.stop):
            raise ValueError(
                f"{other.name} has another schedule than {case.name}; nothing can be transferred"
            )
    if case.samples < 2 or fitted < 2:
        raise ValueError("intervals need at least two trajectories; type larger --samples and --fitted")
    rows = planned(case, methods, budgets, candidates)
    fits = fitted_to(case.but(samples=fitted, seed=case.seed + APART), rows, candidates, rhos, study)
    return judged(cases, fits, study)


def planned(
    case: Case, methods: Mapping[str, Method], budgets: Sequence[int], candidates: int
) -> list[tuple[str, Method, int, int]]:
    """Return name, method, budget and steps of everything to be fitted.

    Raises
    ------
    ValueError
        If a method takes no deterministic steps of a grid, or cannot be fitted.
    """
    rows = []
    for name, method in methods.items():
        if method.adaptive or method.random or not method.form.exact:
            raise ValueError(f"{name} takes no deterministic steps of a grid; leave it out of --solvers")
        for nfe in dict.fromkeys(budgets):
            try:
                rows.append((name, method, nfe, method.steps(case.problem, nfe)))
            except ValueError as error:
                raise ValueError(f"{name} {error}; type a larger --nfe") from error
    most = max(steps for *_, steps in rows)
    if most > candidates:
        raise ValueError(
            f"{most} steps need at least as many candidates; type --candidates {2 * most} or more"
        )
    return rows


def fitted_to(
    case: Case,
    rows: Sequence[tuple[str, Method, int, int]],
    candidates: int,
    rhos: Sequence[float],
    study: Study,
) -> list[Fit]:
    """Return the schedules fitted to a case, of all rows of ``planned`` that could be measured."""
    methods = {name: method for name, method, _, _ in rows}
    about = {**case.config, "candidates": candidates}
    programs = study.run(
        "schedule-fit",
        [
            Cell(
                {**about, "solver": name},
                step_costs,
                {"case": case, "method": method, "candidates": candidates},
            )
            for name, method in methods.items()
        ],
    )
    searches = study.run(
        "schedule-fit",
        [
            Cell(
                {**about, "solver": name, "nfe": nfe, "steps": steps},
                rho_errors,
                {"case": case, "method": method, "steps": steps, "rhos": tuple(rhos)},
            )
            for name, method, nfe, steps in rows
        ],
    )
    costs = dict(zip(methods, programs, strict=True))
    fits = []
    for (name, method, nfe, steps), search in zip(rows, searches, strict=True):
        if costs[name].failure or search.failure:
            continue
        times, path = mesh(case, candidates), best_paths(costs[name].arrays["cost"], steps)[-1]
        rho = rhos[int(np.nan_to_num(search.arrays["error"], nan=np.inf).argmin())]
        grids = {
            "quadratic": QUADRATIC,
            "dp": grid_of(text_of([times[i] for i in path])),
            "rho": striding(float(rho)),
        }
        fits.append(Fit(name, method, nfe, steps, grids))
    return fits


def judged(cases: Sequence[Case], fits: Sequence[Fit], study: Study) -> pd.DataFrame:
    """Return errors and gains of fitted schedules on cases, of which the first was fitted to."""
    rows = [
        Row(fit.solver, replace(fit.method, grid=grid), fit.nfe, steps=fit.steps)
        for fit in fits
        for grid in fit.grids.values()
    ]
    results = [ends(case, rows, study) for case in cases]
    about, errors, base = [], [], []
    for n, fit in enumerate(fits):
        for case, found in zip(cases, results, strict=True):
            three = found[3 * n : 3 * n + 3]  # one for each of its grids, quadratic striding first
            if any(result.failure for result in three):
                continue
            for (kind, grid), result in zip(fit.grids.items(), three, strict=True):
                times = text_of(grid.times(fit.steps, case.problem.schedule).tolist())
                about.append(
                    {
                        "solver": fit.solver,
                        "nfe": fit.nfe,
                        "steps": fit.steps,
                        "judged_on": case.name,
                        "schedule": kind,
                        "grid": grid.name if kind == "rho" else kind,
                        "times": times,
                    }
                )
                errors.append(result.arrays["error"])
                base.append(three[0].arrays["error"])
    if not about:
        raise ArithmeticError(f"nothing could be measured: {study.failures[-1].failure}")
    bootstrap = Bootstrap(cases[0].samples)
    return pd.DataFrame(about).assign(
        fitted_to=cases[0].name,
        **bootstrap.means(np.stack(errors)).columns("error"),
        **bootstrap.ratios(np.stack(base), np.stack(errors)).columns("gain"),
    )


def text_of(times: Sequence[float]) -> str:
    """Return times as ``--grids`` takes them, with six digits."""
    return ",".join(f"{t:.6g}" for t in times)


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    transfer = [session.on(name) for name in args.transfer]
    try:
        table = _measured(
            session.case,
            session.methods(),
            args.nfe,
            args.candidates,
            args.fitted,
            RHOS,
            transfer,
            session.study,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(table)


def report(session: Session, outcome: Outcome) -> None:
    """Print errors and gains, on the problem itself and on others, and the schedules."""
    table, own_name = outcome.table, session.case.name
    for on, rows in table.groupby("judged_on", sort=False):
        lines = []
        for (solver, nfe), group in rows.groupby(["solver", "nfe"], sort=False):
            found = group.set_index("schedule")
            lines.append(
                {
                    "solver": solver,
                    "NFE": f"{nfe}",
                    "quadratic": tables.cell(found.loc["quadratic"], "error"),
                    "gain by DP": tables.cell(found.loc["dp"], "gain"),
                    "best ρ": found.loc["rho", "grid"],
                    "gain by ρ": tables.cell(found.loc["rho"], "gain"),
                }
            )
        where = "" if on == own_name else f", of schedules fitted to {own_name}"
        tables.show(
            f"Mean L2 error at t_cut on {on}{where}, and by what it is divided (95%)",
            pd.DataFrame(lines),
            ["gain: quadratic striding's mean error over the schedule's, on latents not fitted to"],
        )
    own = table[(table["judged_on"] == own_name) & (table["schedule"] == "dp")]
    lines = [
        {"solver": row["solver"], "NFE": f"{row['nfe']}", "times": row["times"]} for _, row in own.iterrows()
    ]
    tables.show("Schedules by dynamic programming, as --grids takes them", pd.DataFrame(lines))


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the schedules of the largest budget, log-SNR against the step, a panel per method; and gains."""
    table, schedule = outcome.table, session.problem.schedule
    largest = table["nfe"].max()
    solvers = list(dict.fromkeys(table["solver"]))
    colours = {"quadratic": "#7F7F7F", "dp": "#D55E00", "rho": "#0072B2"}
    with plots.style():
        size = (plots.WIDTH, 3.8)
        figure, axes = plots.panels(2, len(solvers), figsize=size, sharey="row")
        for column, solver in zip(axes.T, solvers, strict=True):
            own = table[(table["solver"] == solver) & (table["judged_on"] == session.case.name)]
            for _, row in own[own["nfe"] == largest].iterrows():
                snr = [schedule.log_snr(float(t)) for t in row["times"].split(",")]
                column[0].plot(snr, color=colours[row["schedule"]], marker=".", label=row["schedule"])
            column[0].set(title=f"{plots.looks([solver])[solver].label}, {largest} NFE", xlabel="step")
            for name in ("dp", "rho"):
                rows = own[own["schedule"] == name]
                spread = [rows["gain"] - rows["gain_low"], rows["gain_high"] - rows["gain"]]
                column[1].errorbar(rows["nfe"], rows["gain"], np.abs(spread), color=colours[name], marker=".")
            column[1].axhline(1.0, color=colours["quadratic"], linewidth=0.8)
            column[1].set(xlabel="NFE")
        axes[0][0].set_ylabel("log-SNR")
        axes[1][0].set_ylabel("gain over quadratic")
        plots.legend_below(figure, list(axes.flat), columns=3)
        return figure


EXPERIMENT = Experiment(
    name="schedule",
    title="Schedules",
    finding="The best times for a solver and a budget, against quadratic ones, and on another problem.",
    help="Schedules by dynamic programming and by a search over ρ, their gain over quadratic striding.",
    examples=(
        "",
        "--solvers ddim ttm2 --nfe 10 --transfer digits-mixture",
        "--problem smooth --candidates 96",
        "--problem digits --solvers ddim --candidates 24 --fitted 32",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=6,
    paper="Tab. 7",
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("schedule"))
