"""Which method to take: a race of all methods, forms and grids under a budget of evaluations.

The race is run in rounds (Maron & Moore 1994; Birattari et al. 2002). In each all candidates left are
measured on the same latents, new in every round; those that are worse than the leader beyond doubt drop out,
and the field is cut to a number that the next, larger round affords. What is reported was measured in a last
round, on latents that took no part in choosing those who reached it, so that they are not flattered by that.
The winner is the least of these few, whose errors rise and fall together; that flatters it by far less than
its interval is wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_budget, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.ends import ends
from analysis.measure.rows import BUDGETS, Row, plan, tariff
from analysis.measure.statistics import Bootstrap, Interval
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

ROUNDS = ((1 / 16, 80), (1 / 4, 20))
"""Share of the samples in each round of choosing, and how many candidates may stay."""

GRIDDED = ("linear", "quadratic", "log-snr", "edm")
"""Grids that enter the race."""

FEWEST = 64
"""Samples that a race needs at least."""

SHOWN = 8
"""Lines of a table of runners-up."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, None)
    add_factors(p, FLOWS, GRIDDED)
    add_budget(p)


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
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    The finalists of every budget. Columns with 95% intervals are ``error``, the mean L2 error in x, and
    ``ratio``, that error as a multiple of the best one's on the same latents; ``worse`` says whether it is
    significantly above one. DDIM on its quadratic grid, if it entered, is always among them (``usual``).

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
    tables = [
        raced(case, plan(case.problem, pairs, [budget], bill=bill, afs=afs), budget, study or Study())
        for budget in budgets
    ]
    return pd.concat(tables, ignore_index=True)


def raced(case: Case, rows: Sequence[Row], budget: int, study: Study) -> pd.DataFrame:
    """Return the finalists among rows of one budget; see ``race``."""
    if case.samples < FEWEST:
        raise ValueError(f"{case.samples} samples decide no race; type --samples {FEWEST} or more")
    rows = [row for row in rows if competes(row.method) and not row.note]
    if not rows:
        raise ValueError(f"no candidate can do anything with a budget of {budget}; type a larger one")
    entered = len(rows)
    baseline = [row for row in rows if row.method == METHODS["ddim"]]
    for number, (part, places) in enumerate(ROUNDS, start=1):
        others = case.but(samples=round(case.samples * part), seed=case.seed + number)
        rows, errors = _measured(others, rows, study)
        rows = [rows[i] for i in survivors(errors, places)]
    rows += [row for row in baseline if row not in rows]
    results = ends(case, rows, study)
    pairs = [(row, result) for row, result in zip(rows, results, strict=True) if not result.failure]
    if not pairs:
        raise ArithmeticError(f"nothing could be measured: {results[0].failure}")
    rows, arrays = [row for row, _ in pairs], [result.arrays for _, result in pairs]
    errors = np.stack([r["error"] for r in arrays])
    order = np.argsort(np.where(np.isfinite(errors.mean(1)), errors.mean(1), np.inf), kind="stable")
    errors, bootstrap = errors[order], Bootstrap(case.samples)
    ratio = bootstrap.ratios(errors, np.broadcast_to(errors[0], errors.shape))
    return pd.DataFrame(
        [
            {
                **case.config,
                "budget": budget,
                "entrants": entered,
                **rows[i].factors,
                "steps": rows[i].steps,
            }
            for i in order
        ]
    ).assign(
        **{name: [float(arrays[i][name]) for i in order] for name in ("nfe", "jvp", "head")},
        **bootstrap.means(errors).columns("error"),
        **ratio.columns("ratio"),
        worse=ratio.low > 1.0,
        usual=[rows[i].method == METHODS["ddim"] for i in order],
        reference_error=[float(arrays[i]["reference_error"]) for i in order],
    )


def measure(session: Session) -> Outcome:
    """Race, under every budget that was asked for."""
    args, case = session.args, session.case
    if case.samples < FEWEST:
        raise UsageError(f"{case.samples} samples decide no race; type --samples {FEWEST} or more")
    if args.denoise != "off":
        raise UsageError("denoised ends and others are no competitors; leave out --denoise")
    session = session.choosing(args.solvers or list(entrants(session.problem)))
    found = []
    for budget in dict.fromkeys(args.steps or args.nfe or BUDGETS):
        rows = session.rows([budget])
        try:
            found.append(raced(case, rows, budget, session.study))
        except ValueError as error:
            raise UsageError(str(error)) from error
    return Outcome(pd.concat(found, ignore_index=True))


def competes(method: Method) -> bool:
    """Return whether a method has an end point to be judged by, and steps for a budget to buy."""
    return not (method.random or method.adaptive)


def _measured(case: Case, rows: Sequence[Row], study: Study) -> tuple[list[Row], Any]:
    """Return the rows that could be measured, and their errors, (rows, samples)."""
    found = [pair for pair in zip(rows, ends(case, rows, study), strict=True) if not pair[1].failure]
    if not found:
        raise ArithmeticError(f"nothing could be measured: {study.failures[-1].failure}")
    return [row for row, _ in found], np.stack([result.arrays["error"] for _, result in found])


def survivors(errors: Any, places: int) -> list[int]:
    """Return which candidates stay in the race, the best first.

    Parameters
    ----------
    errors
        Errors of the candidates on common latents, (candidates, samples).
    places
        How many may stay.

    Returns
    -------
    Indices of those whose mean is finite, is not above the least one with 95% confidence (paired bootstrap),
    and is among the ``places`` least; the first ``SHOWN`` stay in any case.
    """
    finite = np.flatnonzero(np.isfinite(errors).all(1))
    if not len(finite):
        return list(range(len(errors)))[:places]
    order = finite[np.argsort(errors[finite].mean(1), kind="stable")]
    ratio: Interval = Bootstrap(errors.shape[1]).ratios(
        errors[order], np.broadcast_to(errors[order[0]], (len(order), errors.shape[1]))
    )
    doubtful = [i for i, low in enumerate(ratio.low) if i < SHOWN or not low > 1.0]
    return [int(order[i]) for i in doubtful[:places]]


def report(session: Session, outcome: Outcome) -> None:
    """Print the winners, a line per budget, then a table of runners-up for each budget."""
    table = outcome.table
    unit = "steps" if session.args.steps else "NFE"
    columns = ["solver", "form", "grid", *(["afs"] if table["afs"].any() else [])]

    def line(row: Any) -> dict[str, Any]:
        shown = {c: ("off", "on")[bool(row[c])] if c == "afs" else row[c] for c in columns}
        cost = f"{row['nfe']:g}" + (
            f" + {row['jvp'] + row['head']:g} derivatives" if row["jvp"] + row["head"] else ""
        )
        return {**shown, "steps": row["steps"], "NFE": cost, "mean L2 error (95%)": tables.cell(row, "error")}

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
        f"The best on {session.case.name}: least mean L2 error of the end point in x",
        pd.DataFrame(winners),
        [
            "level: runners-up not significantly worse (95%, paired, on latents that chose no finalist)",
            "of: combinations of method, form and grid that entered the race",
            "DDIM, quadratic: its error as a multiple of the best one's (95%, paired)",
            f"{billed}; random methods and those that choose their own steps do not take part",
            f"reference: own error {table['reference_error'].max():.1e}",
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


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the best of each budget with their intervals; those that are significantly worse are hollow."""
    table = outcome.table
    budgets = list(dict.fromkeys(table["budget"]))
    shown = {b: table[table["budget"] == b].head(SHOWN) for b in budgets}
    with plots.style():
        figure, axes = plots.panels(len(budgets), 1, figsize=(plots.WIDTH, 0.4 + 1.5 * len(budgets)))
        for ax, (budget, rows) in zip(axes[:, 0], shown.items(), strict=True):
            y = np.arange(len(rows))
            apart = [rows["error"] - rows["error_low"], rows["error_high"] - rows["error"]]
            ax.errorbar(rows["error"], y, xerr=apart, linestyle="", color="0.4", elinewidth=0.8)
            for i, (_, row) in enumerate(rows.iterrows()):
                ax.plot(row["error"], i, "o", color="#0072B2", fillstyle="none" if row["worse"] else "full")
            names = plots.looks(list(rows["solver"]))
            words = [f"{names[r['solver']].label}, {r['form']}, {r['grid']}" for _, r in rows.iterrows()]
            ax.set_yticks(y, words)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.set_title(f"budget {budget}", loc="left")
            ax.grid(visible=False, axis="y")
        axes[-1, 0].set_xlabel("mean $L_2$ error at $t_{cut}$ (hollow: significantly worse than the best)")
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
