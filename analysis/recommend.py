"""Which method to take: a race of all methods, forms and grids under a budget of evaluations.

The race is run in rounds (Maron & Moore 1994; Birattari et al. 2002). In each all candidates left are
measured on the same latents, new in every round; those that are worse than the leader beyond doubt drop out,
and the field is cut to a number that the next, larger round affords. What is reported was measured in a last
round, on latents that took no part in choosing those who reached it, so that they are not flattered by that.
The winner is the least of these few, whose errors rise and fall together; that flatters it by far less than
its interval is wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import plots, tables
from analysis.cli import Session, add_factors, add_solvers, main, parser
from analysis.ends import Ends
from analysis.methods import FLOWS, METHODS, Method
from analysis.problems import has_head
from analysis.rows import BUDGETS, Row, add_budget, plan, tariff
from analysis.statistics import Bootstrap, Interval
from problems.console import Parser, UsageError

ROUNDS = ((1 / 16, 80), (1 / 4, 20))
"""Share of the samples in each round of choosing, and how many candidates may stay."""

SHOWN = 8
"""Lines of a table of runners-up."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "recommend",
        "The best method, form and grid at a budget, and the runners-up that are not significantly worse.",
        "  python -m analysis.recommend --problem toy --nfe 10\n"
        "  python -m analysis.recommend --problem digits-mixture --samples 320 --nfe 5 10 15 20 25\n"
        "  python -m analysis.recommend --problem digits --samples 320 --nfe 10 --afs both\n"
        "  python -m analysis.recommend --nfe 10 --solvers ddim ttm2 unipc3 --bill nfe",
    )
    add_solvers(p, None)
    add_factors(p, FLOWS, ("linear", "quadratic", "log-snr", "edm"))
    add_budget(p)
    p.set_defaults(bill="cost")
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Race, then write table and figure."""
    args = session.args
    if args.samples < 64:
        raise UsageError(f"{args.samples} samples decide no race; type --samples 64 or more")
    if args.denoise != "off":
        raise UsageError("denoised ends and others are no competitors; leave out --denoise")
    args.solvers = args.solvers or [
        name
        for name, method in METHODS.items()
        if competes(method) and (method.form.name != "distilled" or has_head(session.problem))
    ]
    table = pd.concat(
        [race(session, budget) for budget in dict.fromkeys(args.steps or args.nfe or BUDGETS)],
        ignore_index=True,
    )
    report(table, session)
    return session.save(table, draw(table))


def race(session: Session, budget: int) -> pd.DataFrame:
    """Return the finalists under a budget, the best first, as a tidy table.

    DDIM on its quadratic grid, if it entered the race, is always among them.
    Columns with intervals are ``error``, the mean L2 error in x, and ``ratio``, that error as a multiple of
    the best one's on the same latents.
    """
    args = session.args
    rows = [row for row in plan(session, [budget]) if competes(row.method) and not row.note]
    if not rows:
        raise UsageError(f"no candidate can do anything with a budget of {budget}; type a larger one")
    entrants = len(rows)
    baseline = [row for row in rows if row.method == METHODS["ddim"]]
    for number, (part, places) in enumerate(ROUNDS, start=1):
        samples = round(args.samples * part)
        errors = _errors(session.drawn(samples, args.seed + number), rows)
        rows = [rows[i] for i in survivors(errors, places)]
    rows += [row for row in baseline if row not in rows]
    results = Ends(session).measured(rows)
    errors = np.stack([r.arrays["error"] for r in results])
    order = np.argsort(np.where(np.isfinite(errors.mean(1)), errors.mean(1), np.inf), kind="stable")
    errors, bootstrap = errors[order], Bootstrap(args.samples)
    ratio = bootstrap.ratios(errors, np.broadcast_to(errors[0], errors.shape))
    return pd.DataFrame(
        [
            {
                **session.config,
                "budget": budget,
                "entrants": entrants,
                **rows[i].factors,
                "steps": rows[i].steps,
            }
            for i in order
        ]
    ).assign(
        **{name: [float(results[i].arrays[name]) for i in order] for name in ("nfe", "jvp", "head")},
        **bootstrap.means(errors).columns("error"),
        **ratio.columns("ratio"),
        worse=ratio.low > 1.0,
        usual=[rows[i].method == METHODS["ddim"] for i in order],
        reference_error=[float(results[i].arrays["reference_error"]) for i in order],
    )


def competes(method: Method) -> bool:
    """Return whether a method has an end point to be judged by, and steps for a budget to buy."""
    return not (method.random or method.adaptive)


def _errors(session: Session, rows: Sequence[Row]) -> Any:
    return np.stack([r.arrays["error"] for r in Ends(session).measured(rows)])


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


def report(table: pd.DataFrame, session: Session) -> None:
    """Print the winners, a line per budget, then a table of runners-up for each budget."""
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
        f"The best on {session.args.problem}: least mean L2 error of the end point in x",
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


def draw(table: pd.DataFrame) -> Figure:
    """Draw the best of each budget with their intervals; those that are significantly worse are hollow."""
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


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("recommend", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
