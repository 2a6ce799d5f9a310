"""Work against precision: the error at the end of a trajectory against evaluations and against seconds.

Every method runs on every grid under every budget, derivatives billed at their cost unless told otherwise.
What no other run beats in both work and error is the Pareto front: the methods worth considering.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.command.arguments import add_budget, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.ends import ends
from analysis.measure.rows import BUDGETS, Row, cost, plan, tariff
from analysis.measure.statistics import Bootstrap
from analysis.methods import Grid, Method, chosen, chosen_grids, crossed
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Cell, Result, Study
from problems import Problem
from problems.console import Parser

DEFAULT = (
    "ddim",
    "ttm2",
    "s-pndm",
    "ipndm",
    "tab-deis2",
    "dpm-solver-2",
    "dpm-solver-2m",
    "dpm-solver++2m",
    "unipc2",
    "unipc3",
    "heun",
    "adams22",
    "rk45",
    "rk45-each",
)
REPEATS = 5
"""How often each method is timed; the fastest counts."""

AXES = {"cost": "NFE, derivatives billed", "seconds": "seconds per 1,000 samples"}


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, DEFAULT, heads=True)
    add_factors(p, None, ("quadratic", "log-snr"))
    add_budget(p)


def work_and_error(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    grids: Sequence[str | Grid] = ("quadratic", "log-snr"),
    bill: str = "cost",
    study: Study | None = None,
) -> pd.DataFrame:
    """Return errors of end points with evaluations and seconds as a tidy table, the Pareto fronts marked.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case.
    methods
        The methods; see ``analysis.methods.chosen``. Random ones have no end points to compare.
    nfe
        Budgets in score evaluations.
    grids
        Names in ``GRIDS``, or grids.
    bill
        ``nfe``, ``cost`` or ``both``: whether a budget pays for evaluations alone, or for derivatives too.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    See ``tabulated``.

    Raises
    ------
    ValueError
        If nothing can be measured.
    """
    case = case_of(problem)
    rows = plan(case.problem, crossed(chosen(methods), None, chosen_grids(grids)), nfe, bill=bill)
    return raced(case, rows, study or Study())


def raced(case: Case, rows: Sequence[Row], study: Study) -> pd.DataFrame:
    """Return the tidy table of the rows that have an error of end points and could be measured.

    Seconds are measured last, one after the other, in this process even if workers measured the rest.
    """
    able = [row for row in rows if not row.note and not row.method.random]
    found = [
        (row, result) for row, result in zip(able, ends(case, able, study), strict=True) if not result.failure
    ]
    cells = [
        Cell(
            {**case.config, **row.factors, "steps": row.steps, "repeats": REPEATS},
            seconds,
            {"case": case, "method": row.method, "steps": row.steps, "repeats": REPEATS},
        )
        for row, _ in found
    ]
    timed = study.alone.run("work-precision", cells)
    pairs = [(row, end, time) for (row, end), time in zip(found, timed, strict=True) if not time.failure]
    if not pairs:
        raise ArithmeticError(f"nothing could be measured: {study.failures[-1].failure}")
    return tabulated(case, *zip(*pairs, strict=True))


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    session = session.usual(DEFAULT)
    args = session.args
    rows = session.rows(args.steps or args.nfe or BUDGETS)
    chance = list(dict.fromkeys(row.solver for row in rows if row.method.random))
    notes = [f"N/A: {row.solver} {row.note}" for row in rows if row.note]
    if chance:
        notes.append(f"random, so without an error of end points: {', '.join(chance)}; see analysis.weak")
    return Outcome(raced(session.case, rows, session.study), extra=notes)


def seconds(case: Case, method: Method, steps: int, repeats: int) -> dict[str, Any]:
    """Time a method on all trajectories, ``repeats`` times after one to warm up; seconds, (repeats,)."""
    x, times = case.latents, []
    for _ in range(repeats + 1):
        _settle(case.device)
        begin = time.perf_counter()
        case.sample(method, steps, x)
        _settle(case.device)
        times.append(time.perf_counter() - begin)
    return {"seconds": np.array(times[1:])}


def _settle(device: str) -> None:
    """Wait until an accelerator has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def tabulated(
    case: Case, rows: Sequence[Row], results: Sequence[Result], timed: Sequence[Result]
) -> pd.DataFrame:
    """Return a tidy table, a line per run, with the fronts in ``pareto_nfe``, ``_cost`` and ``_seconds``.

    Parameters
    ----------
    case
        The trajectories.
    rows
        The runs.
    results, timed
        Their ends and their seconds.
    """
    costs = tariff(case.problem)
    bills = {name: np.array([float(r.arrays[name]) for r in results]) for name in ("nfe", "jvp", "head")}
    errors = np.stack([r.arrays["error"] for r in results])
    took = np.array([r.arrays["seconds"].min() for r in timed])
    table = pd.DataFrame(
        [{**case.config, **row.factors, "budget": row.budget, "steps": row.steps or None} for row in rows]
    ).assign(
        **bills,
        cost=lambda rows: cost(rows, costs),
        seconds=1000.0 * took / case.samples,
        **Bootstrap(case.samples).means(errors).columns("error"),
        reference_error=[float(r.arrays["reference_error"]) for r in results],
    )
    for work in ("nfe", "cost", "seconds"):
        table[f"pareto_{work}"] = pareto(table[work].to_numpy(), table["error"].to_numpy())
    return table


def pareto(work: Any, error: Any) -> Any:
    """Return which points no other one beats: none has less work and no more error, or the reverse.

    Parameters
    ----------
    work, error
        Shape (n,); a point whose error is not finite is beaten.

    Returns
    -------
    Booleans, shape (n,).
    """
    cheaper = (work[:, None] <= work) & (error[:, None] <= error)
    better = (work[:, None] < work) | (error[:, None] < error)
    front: Any = np.isfinite(error) & ~(cheaper & better).any(0)
    return front


def report(session: Session, outcome: Outcome) -> None:
    """Print the two fronts, the cheapest run first."""
    table, notes, costs = outcome.table, outcome.extra, tariff(session.problem)
    free = session.args.bill == "nfe"
    about = [*dict.fromkeys(notes), f"reference: own error {table['reference_error'].max():.1e}"]
    if (table["jvp"] + table["head"] > 0).any():
        price = "nothing" if free else f"{costs.jvp:.3g} NFE, a call of the head {costs.head:.3g}"
        about.append(f"a derivative costs {price}")
    first = "nfe" if free else "cost"
    for work in (first, "seconds"):
        front = table[table[f"pareto_{work}"]].sort_values(work)
        lines = [
            {
                "NFE": f"{row['nfe']:.4g}",
                **({} if free else {"NFE, all billed": f"{row['cost']:.4g}"}),
                "s per 1,000": f"{row['seconds']:.3g}",
                "solver": row["solver"],
                "form": row["form"],
                "grid": row["grid"],
                "mean L2 error in x (95%)": tables.cell(row, "error"),
            }
            for _, row in front.iterrows()
        ]
        what = "evaluations" if work == first else "seconds (fastest of five)"
        title = f"Pareto front: no other run has less error for as few {what}"
        tables.show(title, pd.DataFrame(lines), about)
        about = []


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw error against evaluations and seconds, a curve per method on each grid, and the fronts."""
    table, free = outcome.table, session.args.bill == "nfe"
    axes_of = {"nfe": "NFE", "seconds": AXES["seconds"]} if free else AXES
    grids = list(dict.fromkeys(table["grid"]))
    styles = dict(zip(grids, ("-", "--", ":", "-."), strict=False))
    with plots.style():
        figure, axes = plots.panels(1, 2, figsize=(plots.WIDTH, 4.2), sharey=True)
        for ax, (work, label) in zip(axes[0], axes_of.items(), strict=True):
            front = table[table[f"pareto_{work}"]].sort_values(work)
            ax.step(front[work], front["error"], where="post", color="0.8", linewidth=4.0, zorder=0)
            for grid, part in table.groupby("grid", sort=False):
                plots.curves(
                    ax,
                    part,
                    work,
                    "error",
                    among=list(table["solver"]),
                    linestyle=styles.get(str(grid), "-"),
                    markersize=2.5,
                    linewidth=0.7,
                )
            looks = plots.looks(list(table["solver"]))
            for _, row in front.iterrows():
                look = looks[row["solver"]]
                ax.plot(row[work], row["error"], look.marker, color=look.colour, markersize=6.0)
            ax.set(xscale="log", yscale="log", xlabel=label)
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        axes[0, 0].set_ylabel("mean $L_2$ error at $t_{cut}$")
        axes[0, 0].plot([], [], color="0.8", linewidth=4.0, label="Pareto front")
        for grid in grids:
            axes[0, 0].plot([], [], color="0.3", linestyle=styles.get(grid, "-"), label=f"{grid} grid")
        plots.legend_below(figure, list(axes.flat), columns=4)
        return figure


EXPERIMENT = Experiment(
    name="work_precision",
    title="Work and precision",
    finding="Error at the end against evaluations and seconds; what nothing beats is the Pareto front.",
    help="Global error at t_cut against evaluations and against seconds, with the Pareto front.",
    examples=(
        "",
        "--problem digits-mixture --samples 200",
        "--solvers ddim ttm2 unipc3 --grids quadratic --nfe 5 10 20 40",
        "--problem digits --samples 100 --bill nfe",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=4,
    defaults={"bill": "cost"},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("work_precision"))
