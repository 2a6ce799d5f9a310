"""Weak errors: how far the law of what a method makes is from the law of the data, against its cost.

Where a method adds noise, the end of a trajectory has no right place, but the samples have a right law. So
samples of every method, random or not, are compared with many exact samples of p_{t_cut} (denoised ones
with those of p_0): in mean, covariance and occupancy of the components, in sliced Wasserstein and energy
distance. As many exact samples, drawn anew, show the floor below which chance rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_budget, add_data, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.distances import chance, weak_error
from analysis.measure.given import need_data
from analysis.measure.laws import MEASURES
from analysis.measure.rows import BUDGETS, Row, rows_of
from analysis.methods import WHOLE, Coordinates, Grid, Method
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.show.factors import common, interval_of, reasons, titled, varying, wide, word
from analysis.study.cells import Cell, Study
from problems import Problem
from problems.console import Parser, UsageError

DEFAULT = (
    "ddim",
    "ttm2",
    "dpm-solver++2m",
    "euler-maruyama",
    "ddpm",
    "ddim-eta0.5",
    "sde-dpm-solver++2m",
    "sde-dpm-solver++3m",
    "edm-churn",
    "adaptive-sde",
)

EXACT = 10_000
"""Exact samples, at least, with which samples are compared."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, DEFAULT)
    add_factors(p, None, ("quadratic",))
    add_budget(p)
    add_data(p, "data that stand for the law")


def weak_errors(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    *,
    steps: Sequence[int] = (),
    forms: Sequence[str | Coordinates] | None = None,
    grids: Sequence[str | Grid] = ("quadratic",),
    bill: str = "nfe",
    afs: str = "off",
    denoise: str = "off",
    exact: int = EXACT,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the weak errors of methods as a tidy table: a row for each method, factor and budget.

    Parameters
    ----------
    problem
        What is sampled; anything that ``Case`` takes, or a case of at least 4 samples.
    methods
        The methods; see ``analysis.methods.chosen``.
    nfe, steps
        Budgets in score evaluations, or numbers of steps instead.
    forms
        Names in ``FLOWS``, or forms, with which methods are crossed; None is each method's own.
    grids
        Names in ``GRIDS``, or grids.
    bill
        ``nfe``, ``cost`` or ``both``: whether a budget pays for evaluations alone, or for derivatives too.
    afs, denoise
        ``off``, ``on`` or ``both``.
    exact
        Exact samples, at least, with which samples are compared.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    First rows of exact samples (``solver`` is ``exact``), the floor. Columns ``mean``, ``covariance``,
    ``sliced``, ``energy`` and, on mixtures, ``occupancy`` (see ``analysis.measure.laws.Law.compare``), each
    with its 95% interval; ``nfe``, ``jvp``, ``head``; ``note``, why a row could not be measured within its
    budget.

    Raises
    ------
    ValueError
        If there are too few samples, or a method cannot do what is asked for.
    ArithmeticError
        If nothing could be measured.
    """
    case = case_of(problem)
    rows = rows_of(
        case.problem,
        methods,
        nfe,
        steps,
        forms=forms,
        grids=grids,
        bill=bill,
        afs=afs,
        denoise=denoise,
    )
    return tabulated(case, rows, study or Study(), "steps" if steps else "nfe", exact)


def tabulated(case: Case, rows: Sequence[Row], study: Study, unit: str, exact: int) -> pd.DataFrame:
    """Return the tidy table of rows; those whose measurement fails are left out.

    Parameters
    ----------
    case
        What is sampled.
    rows
        What is measured.
    study
        Where results are kept.
    unit
        Of the budgets: ``nfe`` or ``steps``.
    exact
        Exact samples, at least.

    Raises
    ------
    ValueError
        If there are too few samples.
    ArithmeticError
        If there are no exact samples, or no row could be measured.
    """
    if case.samples < 4:
        raise ValueError(f"{case.samples} samples say little of a law; type --samples 4 or more")
    need_data(case)
    able = [row for row in rows if not row.note]
    floors = list(dict.fromkeys(row.method.denoise for row in able))
    known = {"case": case, "exact": exact}
    cells = [
        Cell({**case.config, "solver": "exact", "denoise": denoised}, chance, {**known, "denoised": denoised})
        for denoised in floors
    ]
    cells += [
        Cell(
            {**case.config, **row.factors, "steps": row.steps},
            weak_error,
            {**known, "method": row.method, "steps": row.steps},
        )
        for row in able
    ]
    results = study.run("weak", cells)
    made = iter(results[len(floors) :])
    pairs = [(row, None if row.note else next(made)) for row in rows]
    pairs = [(row, result) for row, result in pairs if result is None or not result.failure]
    found = [*results[: len(floors)], *(result for _, result in pairs if result is not None)]
    for result in results if len(found) == len(floors) else found:
        if result.failure:
            raise ArithmeticError(f"nothing could be measured: {result.failure}")

    arrays = [result.arrays for result in found]
    columns: dict[str, Any] = {bill: [float(a[bill]) for a in arrays] for bill in ("nfe", "jvp", "head")}
    for name in measures_in(arrays[0]):
        for i, end in enumerate(("", "_low", "_high")):
            columns[name + end] = [float(a[name][i]) for a in arrays]
    lines: list[dict[str, Any]] = [
        {"solver": "exact", "form": "-", "grid": "-", "afs": False, "denoise": d, "billed": False, "note": ""}
        for d in floors
    ]
    lines += [
        {
            **row.factors,
            "random": row.method.random,
            f"{unit}_budget": row.budget,
            "steps": row.steps or None,
            "note": row.note,
        }
        for row, _ in pairs
    ]
    index = [*range(len(floors)), *(len(floors) + i for i, (_, result) in enumerate(pairs) if result)]
    about = pd.DataFrame([{**case.config, **line} for line in lines])
    return about.join(pd.DataFrame(columns, index=index))


def measures_in(names: Mapping[str, Any] | pd.DataFrame) -> list[str]:
    """Return those of ``MEASURES`` that are among names."""
    return [name for name in MEASURES if name in names]


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    rows = session.rows(args.steps or args.nfe or BUDGETS)
    try:
        table = tabulated(session.case, rows, session.study, "steps" if args.steps else "nfe", EXACT)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(table)


def report(session: Session, outcome: Outcome) -> None:
    """Print a table for each measure, and one of the methods that choose their own steps."""
    table, samples, names = outcome.table, session.case.samples, measures_in(outcome.table)
    budget, unit = ("steps_budget", "steps") if session.args.steps else ("nfe_budget", "NFE")
    floors, rows = table[table["solver"] == "exact"], table[table["solver"] != "exact"]
    given, own = rows[rows[budget].notna()], rows[rows[budget].isna()]
    if len(given):
        notes = [f"N/A: {solver} {note}" for solver, note in reasons(given)]
        if (given["jvp"] > 0).any():
            spent = ", ".join(dict.fromkeys(given["solver"][given["jvp"] > 0]))
            notes.append(f"{spent}: Jacobian-vector products come on top of the NFE (column jvp)")
        notes += [session.case.note] if session.case.note else []
        for name in names:
            floor = [
                f"exact samples{', denoised' if row['denoise'] else ''}: {interval_of(name)(row)}"
                for _, row in floors.iterrows()
            ]
            title = f"{MEASURES[name]}, {samples} samples (95%){common(given)}"
            tables.show(title, wide(given, budget, unit, interval_of(name)), [*floor, *notes])
    if len(own):
        lines = [
            {
                "solver": row["solver"],
                **{f: word(row[f]) for f in varying(own)},
                "NFE": f"{row['nfe']:.4g}",
                **{name: interval_of(name)(row) for name in names},
            }
            for _, row in own.iterrows()
        ]
        title = f"Methods that choose their own steps, {samples} samples (95%){common(own)}"
        tables.show(title, pd.DataFrame(lines))


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw every measure against NFE: a column of panels per grid, a row per measure and factor."""
    table, names = outcome.table, measures_in(outcome.table)
    factors = [*(["form"] if session.args.forms else []), "afs", "denoise", "billed"]
    floors = table[table["solver"] == "exact"].set_index("denoise")
    rows = table[(table["note"] == "") & (table["solver"] != "exact")]
    grids = [g for g in dict.fromkeys(rows["grid"]) if g != WHOLE.name] or [WHOLE.name]
    lines = [(v, name) for _, v in rows[factors].drop_duplicates().iterrows() for name in names]
    with plots.style():
        size = (plots.WIDTH, 0.8 + 1.8 * len(lines))
        figure, axes = plots.panels(len(lines), len(grids), figsize=size, sharex=True, sharey="row")
        for line, (variant, name) in zip(axes, lines, strict=True):
            here = rows[(rows[factors] == variant).all(axis=1) & np.isfinite(rows[name])]
            floor = floors.loc[variant["denoise"]]
            for ax, grid in zip(line, grids, strict=True):
                shown = here[here["grid"].isin([grid, WHOLE.name])]
                band = (f"{name}_low", f"{name}_high")
                plots.curves(ax, shown, "nfe", name, band=band, among=list(rows["solver"]))
                low, high = floor[f"{name}_low"], floor[f"{name}_high"]
                ax.axhspan(low, high, color="0.4", alpha=0.25, linewidth=0, label="exact samples")
                ax.set(xscale="log", yscale="log", title=titled(grid, variant))
                ax.set_ylim(bottom=0.5 * high)
                ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
                ax.set_xticks([], minor=True)
                ax.set_xlim(0.9 * rows["nfe"].min(), 1.1 * rows["nfe"].max())
            line[0].set_ylabel(name)
        for ax in axes[-1]:
            ax.set_xlabel("NFE")
        plots.legend_below(figure, list(axes.flat), columns=4)
        return figure


EXPERIMENT = Experiment(
    name="weak",
    title="Weak errors",
    finding="How far the distribution of samples is from the exact one, for stochastic methods and others.",
    help="Weak errors of samples (moments, occupancy, sliced Wasserstein and energy distance) against NFE.",
    examples=(
        "",
        "--problem toy --solvers ddim ddpm sde-dpm-solver++2m --nfe 5 10 25 50",
        "--problem toy-ve --solvers ddpm-beta vesde-pc --grids linear",
        "--problem digits-mixture --samples 1000 --denoise on --grids log-snr",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=7,
    defaults={"samples": 2000},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("weak"))
