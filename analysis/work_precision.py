"""Work against precision: the error at the end of a trajectory against evaluations and against seconds.

Every method runs on every grid under every budget, derivatives billed at their cost unless told otherwise.
What no other run beats in both work and error is the Pareto front: the methods worth considering.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis import plots, tables
from analysis.cli import Session, add_factors, add_solvers, main, parser
from analysis.ends import Ends
from analysis.rows import BUDGETS, Row, add_budget, cost, plan, tariff
from analysis.statistics import Bootstrap
from analysis.study import Cell, Result, run
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


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "work_precision",
        "Global error at t_cut against evaluations and against seconds, with the Pareto front.",
        "  python -m analysis.work_precision\n"
        "  python -m analysis.work_precision --problem digits-mixture --samples 200\n"
        "  python -m analysis.work_precision --solvers ddim ttm2 unipc3 --grids quadratic --nfe 5 10 20 40\n"
        "  python -m analysis.work_precision --problem digits --samples 100 --bill nfe",
    )
    add_solvers(p, DEFAULT, heads=True)
    add_factors(p, None, ("quadratic", "log-snr"))
    add_budget(p)
    p.set_defaults(bill="cost")
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    session = session.usual(DEFAULT)
    args = session.args
    rows = plan(session, args.steps or args.nfe or BUDGETS)
    chance = list(dict.fromkeys(row.solver for row in rows if row.method.random))
    measured = [row for row in rows if not row.note and not row.method.random]
    ends = Ends(session)
    results = ends.measured(measured)
    timed = run(
        "work-precision",
        [
            Cell(
                {**session.config, **row.factors, "steps": row.steps, "repeats": REPEATS},
                (*row.method.parts, *session.parts, seconds),
                partial(seconds, session, row, ends),
            )
            for row in measured
        ],
        session.store,
        fresh=args.fresh,
    )
    table = tabulated(session, measured, results, timed)
    notes = [f"N/A: {row.solver} {row.note}" for row in rows if row.note]
    if chance:
        notes.append(f"random, so without an error of end points: {', '.join(chance)}; see analysis.weak")
    report(table, notes, tariff(session.problem), free=args.bill == "nfe")
    return session.save(table, draw(table, free=args.bill == "nfe"))


def seconds(session: Session, row: Row, ends: Ends) -> dict[str, Any]:
    """Time a method on all trajectories at once, ``REPEATS`` times after one to warm up."""
    x, times = session.cast(ends.begin), []
    for _ in range(REPEATS + 1):
        _settle(x)
        begin = time.perf_counter()
        row.method.sample(session.working, row.steps, x)
        _settle(x)
        times.append(time.perf_counter() - begin)
    return {"seconds": np.array(times[1:])}


def _settle(x: torch.Tensor) -> None:
    """Wait until an accelerator has done what it was told."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def tabulated(
    session: Session, rows: Sequence[Row], results: Sequence[Result], timed: Sequence[Result]
) -> pd.DataFrame:
    """Return a tidy table, a line per run, with the fronts in ``pareto_cost`` and ``pareto_seconds``."""
    costs = tariff(session.problem)
    bills = {name: np.array([float(r.arrays[name]) for r in results]) for name in ("nfe", "jvp", "head")}
    errors = np.stack([r.arrays["error"] for r in results])
    took = np.array([r.arrays["seconds"].min() for r in timed])
    table = pd.DataFrame(
        [{**session.config, **row.factors, "budget": row.budget, "steps": row.steps or None} for row in rows]
    ).assign(
        **bills,
        cost=lambda rows: cost(rows, costs),
        seconds=1000.0 * took / session.args.samples,
        **Bootstrap(session.args.samples).means(errors).columns("error"),
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


def report(table: pd.DataFrame, notes: Sequence[str], costs: Any, *, free: bool) -> None:
    """Print the two fronts, the cheapest run first."""
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


def draw(table: pd.DataFrame, *, free: bool) -> Figure:
    """Draw error against evaluations and seconds, a curve per method on each grid, and the fronts."""
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


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("work_precision", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
