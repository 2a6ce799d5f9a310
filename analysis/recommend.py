"""Which method to take: a race of all methods, forms and grids under a budget of evaluations.

The race is run in rounds, see ``analysis.measure.race``. What is reported was measured in a last round, on
latents that took no part in choosing those who reached it, so that they are not flattered by that. The winner
is the least of these few, whose errors rise and fall together; that flatters it by far less than its interval
is wide. What is to be typed to run it is printed with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.answer import answered, to_type
from analysis.command.arguments import add_budget, add_data, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.features import FEATURES, classifier
from analysis.measure.features import features as named
from analysis.measure.given import need_data
from analysis.measure.race import (
    BY_ERROR,
    FEWEST,
    KEPT,
    SHOWN,
    Criterion,
    announced,
    by_frechet,
    competes,
    raced,
)
from analysis.measure.rows import BUDGETS, Row, plan, tariff
from analysis.measure.schedulers import candidates
from analysis.methods import (
    FLOWS,
    METHODS,
    Coordinates,
    Grid,
    Method,
    chosen,
    chosen_forms,
    chosen_grids,
    crossed,
)
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Study
from problems import Problem
from problems.console import Parser, UsageError

GRIDDED = ("linear", "quadratic", "log-snr", "edm")
"""Grids that enter the race."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, None)
    add_factors(p, FLOWS, GRIDDED)
    add_budget(p)
    p.add_argument(
        "--by",
        choices=("error", "frechet"),
        default="error",
        help="what decides: the distance of end points from the accurate ones, or of samples from data",
    )
    p.add_argument(
        "--features",
        metavar="NAME",
        help=f"with --by frechet, what samples are compared in: {', '.join(FEATURES)}, or a file of "
        "Inception-v3 weights (default: classifier, where one is shipped for such images, else pixels)",
    )
    add_data(p, "with --by frechet, data with which samples are compared")
    p.add_argument("--dry-run", action="store_true", help="only list what would be measured, and how long")


def entrants(problem: Problem) -> dict[str, Method]:
    """Return the methods that can race: not random, of given steps, and with a head if they need one."""
    return {
        name: method
        for name, method in METHODS.items()
        if competes(method) and (method.form.name != "distilled" or problem.distilled is not None)
    }


def race(
    problem: Case | Problem | str | Path,
    nfe: int | Sequence[int] = 10,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] | None = None,
    *,
    forms: Sequence[str | Coordinates] = FLOWS,
    grids: Sequence[str | Grid] = GRIDDED,
    bill: str = "cost",
    afs: str = "off",
    by: str | Criterion = "error",
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the best methods under a budget, the best first, as a tidy table.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case of at least 64 samples.
    nfe
        The budget in score evaluations, or several.
    methods
        Who races; all that can by default. See ``analysis.methods.chosen``.
    forms, grids
        With which they are crossed.
    bill
        ``nfe`` or ``cost``: whether the budget pays for evaluations alone, or for derivatives too.
    afs
        ``off``, ``on`` or ``both``.
    by
        What decides: ``error``, ``frechet`` in the features of ``criterion``, or a criterion.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    The finalists of every budget. Columns with 95% intervals are ``error``, the mean L2 error in x, or
    ``frechet``, and ``ratio``, that as a multiple of the best one's on the same latents; ``worse`` says
    whether it is significantly above one. DDIM on its quadratic grid, if it entered, is always among them
    (``usual``).

    Raises
    ------
    ValueError
        If nothing can race.
    """
    case = case_of(problem)
    on, over = chosen_forms(forms), chosen_grids(grids)
    who = entrants(case.problem) if methods is None else chosen(methods)
    pairs = crossed(who, on, over)
    budgets = [nfe] if isinstance(nfe, int) else list(dict.fromkeys(nfe))
    decides = criterion(case, by) if isinstance(by, str) else by
    tables = [
        raced(
            case, plan(case.problem, pairs, [budget], bill=bill, afs=afs), budget, study or Study(), decides
        )
        for budget in budgets
    ]
    return pd.concat([table for table, _ in tables], ignore_index=True)


def criterion(case: Case, by: str, features: str | None = None) -> Criterion:
    """Return what a race is decided by.

    Parameters
    ----------
    case
        What is solved, with the data of a user, if there are any.
    by
        ``error`` or ``frechet``.
    features
        In which Fréchet distances are taken, see ``analysis.measure.features.features``; by default those of
        the shipped classifier of such images, if there is one, else pixels.

    Raises
    ------
    ValueError
        If there are no such features or, for Fréchet distances, no data.
    """
    if by == "error":
        return BY_ERROR
    need_data(case)
    usual = ["pixels"] if classifier(case.problem) is None else ["classifier"]
    return by_frechet(named([features] if features else usual, case.problem)[0])


def measure(session: Session) -> Outcome | None:
    """Race, under every budget that was asked for."""
    args, case = session.args, session.case
    if case.samples < FEWEST:
        raise UsageError(f"{case.samples} samples decide no race; type --samples {FEWEST} or more")
    if args.denoise != "off":
        raise UsageError("denoised ends and others are no competitors; leave out --denoise")
    if (args.features or args.data) and args.by == "error":
        raise UsageError(
            "errors are those of end points in x; leave out --features and --data, or type --by frechet"
        )
    session = session.choosing(args.solvers or list(entrants(session.problem)))
    try:
        by = criterion(case, args.by, args.features)
        budgets = {
            budget: session.rows([budget]) for budget in dict.fromkeys(args.steps or args.nfe or BUDGETS)
        }
        if args.dry_run:
            announce(session, budgets, by)
            return None
        found, answers = [], []
        for budget, rows in budgets.items():
            keep = partial(likely, case.problem)
            table, finalists = raced(case, rows, budget, session.study, by, keep)
            found.append(table)
            answers.append(answered(case, budget, finalists, session.study))
    except ValueError as error:
        raise UsageError(str(error)) from error
    table = pd.concat(found, ignore_index=True)
    if by.floor is not None:
        for column, value in by.floor(case, session.study).columns("accurate").items():
            table[column] = float(value[0])
    return Outcome(table, extra=(by, answers))


def likely(problem: Problem, row: Row) -> bool:
    """Return whether a row may have an equal in diffusers."""
    return bool(candidates(problem, row.method))


def announce(session: Session, budgets: Mapping[int, Sequence[Row]], by: Criterion) -> None:
    """Print what would be measured at most, and how long it would take in this process."""
    parts = [
        announced(session.case, rows, by, 2 * KEPT).assign(budget=budget) for budget, rows in budgets.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    notes = [
        "evaluations: of the network for one sample, derivatives and accurate ends included",
        f"about {table['minutes'].sum():.1f} minutes in one process, if nothing of it is in the store yet",
    ]
    order = ["budget", "round", "candidates", "samples", "evaluations"]
    tables.show(f"To be measured on {session.case.name}, at most", table[order], notes)


def report(session: Session, outcome: Outcome) -> None:
    """Print the winners, a line per budget, then a table of runners-up for each, then what is to be typed."""
    table, (by, answers) = outcome.table, outcome.extra
    unit = "steps" if session.args.steps else "NFE"
    columns = ["solver", "form", "grid", *(["afs"] if table["afs"].any() else [])]

    def line(row: Any) -> dict[str, Any]:
        shown = {c: ("off", "on")[bool(row[c])] if c == "afs" else row[c] for c in columns}
        cost = f"{row['nfe']:g}" + (
            f" + {row['jvp'] + row['head']:g} derivatives" if row["jvp"] + row["head"] else ""
        )
        return {**shown, "steps": row["steps"], "NFE": cost, f"{short(by)} (95%)": tables.cell(row, by.name)}

    groups = list(table.groupby("budget", sort=False))
    winners = []
    for budget, rows in groups:
        level = int((~rows["worse"]).sum()) - 1
        usual = rows[rows["usual"]]
        compared = {"DDIM, quadratic": tables.cell(usual.iloc[0], "ratio")} if len(usual) else {}
        entrants = rows["entrants"].iloc[0]
        winners.append(
            {f"budget ({unit})": budget, **line(rows.iloc[0]), "level": level, "of": entrants, **compared}
        )
    costs = tariff(session.problem)
    billed = (
        "derivatives are free" if session.args.bill == "nfe" else f"a derivative costs {costs.jvp:.3g} NFE"
    )
    tables.show(
        f"The best on {session.case.name}: least {by.title}",
        pd.DataFrame(winners),
        [
            "level: runners-up not significantly worse (95%, paired, on latents that chose no finalist)",
            "of: combinations of method, form and grid that entered the race",
            f"DDIM, quadratic: its {short(by)} as a multiple of the best one's (95%, paired)",
            f"{billed}; random methods and those that choose their own steps do not take part",
            *floor(session, by, table),
        ],
    )
    for budget, rows in groups:
        near = rows[~rows["worse"]].head(SHOWN)
        lines = [
            {**line(row), "times the best (95%)": tables.cell(row, "ratio")} for _, row in near.iterrows()
        ]
        more = int((~rows["worse"]).sum()) - len(near)
        notes = [f"and {more} more in the CSV"] if more else []
        tables.show(
            f"{budget} {unit}: the best and those not significantly worse", pd.DataFrame(lines), notes
        )
    for answer in answers:
        rows = table[table["budget"] == answer.budget]
        to_type(session, answer, rows.iloc[answer.place], f"{answer.budget} {unit}")


def short(by: Criterion) -> str:
    """Return what stands above a column of what decides."""
    return "mean L2 error" if by.name == "error" else "Fréchet distance"


def floor(session: Session, by: Criterion, table: pd.DataFrame) -> list[str]:
    """Return a note on the least that means anything."""
    if by.name == "error":
        return [f"reference: own error {table['reference_error'].max():.1e}"]
    return [
        f"{session.case.samples} samples; fewer give larger distances",
        f"accurate solution: {tables.cell(table.iloc[0], 'accurate')}; less is chance or luck",
        *([session.case.note] if session.case.note else []),
    ]


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the best of each budget with their intervals; those that are significantly worse are hollow."""
    table, (by, _) = outcome.table, outcome.extra
    budgets = list(dict.fromkeys(table["budget"]))
    shown = {b: table[table["budget"] == b].head(SHOWN) for b in budgets}
    with plots.style():
        figure, axes = plots.panels(len(budgets), 1, figsize=(plots.WIDTH, 0.4 + 1.5 * len(budgets)))
        for ax, (budget, rows) in zip(axes[:, 0], shown.items(), strict=True):
            y = np.arange(len(rows))
            value = rows[by.name]
            apart = [value - rows[f"{by.name}_low"], rows[f"{by.name}_high"] - value]
            ax.errorbar(value, y, xerr=apart, linestyle="", color="0.4", elinewidth=0.8)
            for i, (_, row) in enumerate(rows.iterrows()):
                ax.plot(row[by.name], i, "o", color="#0072B2", fillstyle="none" if row["worse"] else "full")
            names = plots.looks(list(rows["solver"]))
            words = [f"{names[r['solver']].label}, {r['form']}, {r['grid']}" for _, r in rows.iterrows()]
            ax.set_yticks(y, words)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.set_title(f"budget {budget}", loc="left")
            ax.grid(visible=False, axis="y")
        what = "mean $L_2$ error at $t_{cut}$" if by.name == "error" else by.title
        axes[-1, 0].set_xlabel(f"{what}\n(hollow: significantly worse than the best)")
        return figure


EXPERIMENT = Experiment(
    name="recommend",
    title="Which method to take",
    finding="A race of all methods, forms and grids under a budget, decided on latents that did not choose.",
    help="The best method, form and grid at a budget, and the runners-up that are not significantly worse.",
    examples=(
        "--problem toy --nfe 10",
        "--problem digits-mixture --samples 320 --nfe 5 10 15 20 25",
        "--problem digits --samples 320 --nfe 10 --afs both",
        "--nfe 10 --solvers ddim ttm2 unipc3 --bill nfe",
        "--problem digits --samples 500 --nfe 10 --by frechet --dry-run",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=5,
    defaults={"bill": "cost"},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("recommend"))
