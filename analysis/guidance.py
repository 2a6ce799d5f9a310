"""Classifier-free guidance (Figs. 6 and 7): what its scale does to the errors, and orders, of solvers.

A class-conditional network is guided, ε = (1 + w) ε_c - w ε_u (Eq. 16). DDIM needs no more than that. TTM-2
needs dε/dγ, and there are two to be had: the exact derivative of the guided ε along the guided flow; and the
one of the paper, which combines the derivatives of ε_c and ε_u, each along its own unguided flow, in the
same way (Eq. 81). The second is what distilled heads can give. It is not the derivative of the guided ε, so
for w > 0 it is expected to leave order one, where the exact one leaves order two.

All methods run on the DDIM form and on one grid, from the same latents, the classes in turn, and are compared
with the exact end points of the same guided network at the same scale.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.fits import FLOOR, stands
from analysis.measure.guided import guided_end, guided_exact, in_turn
from analysis.measure.statistics import Bootstrap, Interval, Slope, slope
from analysis.methods import GRIDS, METHODS, Grid, Method, chosen_grids
from analysis.show import plots, tables
from analysis.show.guidance import by_scale, errors_and_orders
from analysis.study.cells import Cell, Result, Study, frame, measured
from problems import Problem
from problems.console import MOST, Parser, UsageError, finite, positive

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)
STEPS = (5, 10, 20, 40, 80, 160)

POINTS = 3
"""Numbers of steps in a fit: the largest ones that stand."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument("--scales", nargs="+", type=scale, default=list(SCALES), help="scales w")
    p.add_argument("--steps", nargs="+", type=positive, default=list(STEPS), help="numbers of solver steps")
    p.add_argument("--grid", default="quadratic", metavar="NAME", help=f"grid: {', '.join(GRIDS)}")


def scale(text: str) -> float:
    """Read a guidance scale."""
    value = finite(text)
    if not 0.0 <= value <= MOST:
        raise argparse.ArgumentTypeError(
            f"{text} is no guidance scale; type one from 0, no guidance, to {MOST:,}"
        )
    return value


class Ends(NamedTuple):
    """What was measured.

    Attributes
    ----------
    table
        The tidy table; see ``guided_errors``.
    exact
        By scale, the exact ends.
    results
        The ends by methods.
    """

    table: pd.DataFrame
    exact: dict[float, Result]
    results: list[Result]


def guided_errors(
    problem: Case | Problem | str | Path = "digits-classes",
    scales: Sequence[float] = SCALES,
    steps: Sequence[int] = STEPS,
    grid: str | Grid = "quadratic",
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the errors and orders of DDIM and TTM-2 on a guided network, as a tidy table.

    Parameters
    ----------
    problem
        A class-conditional network; anything that ``Case`` takes, or a case. Trajectories are of all classes
        in turn.
    scales
        Guidance scales w.
    steps
        Numbers of steps.
    grid
        A name in ``GRIDS``, or a grid.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    A row for each scale, method and number of steps. The methods are ``ddim`` and ``ttm2``, with the exact
    derivatives of the guided ε; ``ttm2-combined``, with those of the two networks along their own flows,
    combined (Eq. 81); and, if the network has a head, ``genie``, the same with what the head says. Columns
    ``error`` (mean L2 in x at t_cut), ``ratio`` (to DDIM's), each with its 95% interval; ``nfe``, ``jvp``,
    ``head``; ``stands``, whether the error enters a fit; ``order`` of the curve with its 95% interval, and
    ``fitted``, whether the row is among those through which it was fitted.

    Raises
    ------
    ValueError
        If the problem is no class-conditional network.
    """
    return _measured(case_of(problem), scales, steps, grid, study or Study()).table


def _measured(
    case: Case, scales: Sequence[float], steps: Sequence[int], grid: str | Grid, study: Study
) -> Ends:
    """Measure the exact ends at every scale, then the ends by every method."""
    labels = in_turn(case)
    (grid,) = chosen_grids([grid])

    def about(w: float, solver: str, n: int) -> dict[str, Any]:
        return {**case.config, "scale": w, "solver": solver, "grid": grid.name, "steps": n}

    exact = {
        result.config["scale"]: result
        for result in measured(
            study.run(
                "guidance",
                [
                    Cell(about(w, "exact", 0), guided_exact, {"case": case, "labels": labels, "scale": w})
                    for w in sorted(set(scales))
                ],
            )
        )
    }
    cells = [
        Cell(
            about(w, name, n),
            guided_end,
            {
                "case": case,
                "labels": labels,
                "scale": w,
                "method": method,
                "combined": combined,
                "steps": n,
                "target": result.arrays["x"],
            },
        )
        for w, result in exact.items()
        for name, (method, combined) in contenders(grid, head=case.problem.distilled is not None).items()
        for n in sorted(set(steps))
    ]
    results = measured(study.run("guidance", cells))
    solved_to = {w: float(result.arrays["error"]) for w, result in exact.items()}
    return Ends(tabulated(results, solved_to, case.epsilon), exact, results)


def contenders(grid: Grid, *, head: bool) -> dict[str, tuple[Method, bool]]:
    """Return what is compared: methods by name, each with whether it takes combined derivatives.

    Parameters
    ----------
    grid
        The grid of all of them.
    head
        Whether the network has a head.
    """
    found = {"ddim": ("ddim", False), "ttm2": ("ttm2", False), "ttm2-combined": ("ttm2", True)}
    if head:
        found["genie"] = ("genie", False)
    return {name: (replace(METHODS[line], grid=grid), combined) for name, (line, combined) in found.items()}


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    try:
        found = _measured(session.case, args.scales, args.steps, args.grid, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(found.table, extra=found)


def tabulated(results: list[Result], solved_to: dict[float, float], epsilon: float) -> pd.DataFrame:
    """Return the tidy table: error, its ratio to DDIM's, the bill, and the order of the curve.

    Parameters
    ----------
    results
        Measured cells.
    solved_to
        Error of the reference at each scale.
    epsilon
        The rounding unit of the precision in which methods ran; a march of n steps errs by n of them.
    """
    errors = np.stack([r.arrays["error"] for r in results])
    bootstrap = Bootstrap(errors.shape[1])
    table = frame(results)
    keys = list(zip(table["scale"], table["steps"], strict=True))
    ddim = {key: i for i, key in enumerate(keys) if table["solver"][i] == "ddim"}
    base = [ddim.get(key, -1) for key in keys]
    ratios = bootstrap.ratios(errors, errors[base])
    known = np.array(base) >= 0
    for column in ("nfe", "jvp", "head"):
        table[column] = [int(r.arrays[column]) for r in results]
    for column, interval in {
        "error": bootstrap.means(errors),
        "ratio": Interval(*(np.where(known, value, math.nan) for value in ratios)),
    }.items():
        table = table.assign(**interval.columns(column))
    table["reference_error"] = table["scale"].map(solved_to)
    table["stands"] = stands(table["error"], table["reference_error"], table["steps"] * epsilon)
    for _, curve in table.groupby(["scale", "solver"]):
        rows = curve.index.to_numpy(dtype=int)
        fit, used = fitted(curve["steps"].to_numpy(), errors[rows], curve["stands"], bootstrap)
        for column, value in zip(("order", "order_low", "order_high"), fit, strict=True):
            table.loc[rows, column] = value
        table.loc[rows, "fitted"] = used
    return table.assign(fitted=table["fitted"].astype(bool))


def fitted(
    steps: Any, errors: Any, standing: Iterable[bool], bootstrap: Bootstrap
) -> tuple[Slope, list[bool]]:
    """Fit the order of one curve over the largest numbers of steps whose errors stand; see ``measure.fits``.

    Parameters
    ----------
    steps
        Numbers of steps, (m,).
    errors
        Errors, (m, samples).
    standing
        Which of them stand, (m,).
    bootstrap
        Gives the interval.

    Returns
    -------
    The order, NaN where fewer than two stand, and which numbers of steps were used.
    """
    last = [i for i, yes in enumerate(standing) if yes][-POINTS:]
    used = [i in last for i in range(len(steps))]
    if len(last) < 2:
        return Slope(math.nan, math.nan, math.nan), used
    return slope(1.0 / steps[used], errors[used], bootstrap), used


def report(session: Session, outcome: Outcome) -> None:
    """Print errors and their ratios to DDIM's, a line per scale and method, then the measured orders."""
    table = outcome.table
    looks = plots.looks(list(table["solver"]))

    def wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
        return tables.pivot(
            rows,
            lambda row: {"scale": f"{row['scale']:g}", "method": looks[row["solver"]].label},
            lambda row: f"{row['steps']} steps, {row['nfe']} NFE",
            partial(tables.cell, name=column),
        )

    notes = ["TTM-2: exact derivative of the guided score; combined: the derivatives of the two (Eq. 81)"]
    if (table["jvp"] > 0).any():
        notes.append("Jacobian-vector products of both networks come on top of the NFE (column jvp)")
    notes.append(f"reference: own error {table['reference_error'].max():.1e}")
    tables.show("Mean L2 error of the end point in x at t_cut (95%)", wide(table, "error"), notes)
    compared = table[(table["solver"] != "ddim") & table["ratio"].notna()]
    tables.show("Mean error as a multiple of DDIM's on the same trajectories (95%)", wide(compared, "ratio"))
    orders: dict[float, dict[str, str]] = {}
    for _, curve in table.groupby(["scale", "solver"], sort=False):
        used, row = curve["steps"][curve["fitted"]], curve.iloc[0]
        text = f"{row['order']:.2f} [{row['order_low']:.2f}, {row['order_high']:.2f}]"
        line = orders.setdefault(row["scale"], {"scale": f"{row['scale']:g}"})
        line[looks[row["solver"]].label] = (
            f"{text}, {used.min()}-{used.max()}" if row["order"] == row["order"] else "too few steps"
        )
    left_out = table[~table["stands"]]
    notes = ["expected: 1 for DDIM; 2 for TTM-2; 2 for combined derivatives where w = 0, 1 where w > 0"]
    if len(left_out):
        points = [
            f"{looks[row['solver']].label} at {row['steps']} steps, w = {row['scale']:g}"
            for _, row in left_out.iterrows()
        ]
        notes.append(
            f"left out, within {FLOOR:g} times the error of the reference or of rounding: "
            + "; ".join(points)
        )
    tables.show(
        f"Measured order over the largest {POINTS} numbers of steps that count (95%), and those",
        pd.DataFrame(list(orders.values())),
        notes,
    )


def draw(session: Session, outcome: Outcome) -> dict[str, Figure]:
    """Draw errors and orders, and sheets of samples: TTM-2 at few steps, and exact ones."""
    _, exact, results = outcome.extra
    steps = sorted(set(session.args.steps))
    few = steps[min(1, len(steps) - 1)]
    ttm2 = [r for r in results if (r.config["solver"], r.config["steps"]) == ("ttm2", few)]
    shown = {f"TTM-2, {few} steps": ttm2, "exact": exact.values()}
    images = {title: {r.config["scale"]: r.arrays["x"] for r in ends} for title, ends in shown.items()}
    sheets = by_scale(images, list(exact), len(set(in_turn(session.case))))
    return {"": errors_and_orders(outcome.table), "-samples": sheets}


EXPERIMENT = Experiment(
    name="guidance",
    title="Classifier-free guidance",
    finding="What the scale of guidance does to the errors and orders of solvers, with either derivative.",
    help="Classifier-free guidance: error and order by scale (Eqs. 16 and 81; Figs. 6 and 7), of DDIM, of\n"
    "TTM-2 with the exact derivative of the guided score, and of TTM-2 with the paper's combination.",
    examples=(
        "",
        "--scales 0 1 4 --samples 20 --steps 5 10 20 40",
        "--dtype float64 --steps 20 40 80 160 320",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=16,
    paper="Figs. 6 and 7; Eqs. 16 and 81",
    defaults={"problem": "digits-classes", "samples": 50},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("guidance"))
