"""Global error at the end of a trajectory against the cost of getting there.

Every method starts from the same latents and is compared, trajectory by trajectory, with the exact end point
at t_cut (denoised ones with the denoised exact end point). The budget is a number of score evaluations, or
of steps; form, grid, analytical first step and denoising are factors. With ``--encode`` exact samples of
p_{t_cut} are sent to t = 1 and back instead, at the same cost each way, and compared with themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import plots, tables
from analysis.cli import Session, add_factors, add_solvers, main, parser
from analysis.ends import Ends
from analysis.methods import METHODS
from analysis.rows import (
    BUDGETS,
    WHOLE,
    Row,
    add_budget,
    common,
    cost,
    interval_of,
    plan,
    reasons,
    tariff,
    titled,
    varying,
    wide,
    word,
)
from analysis.statistics import Bootstrap, Interval, medians, share
from problems import Mixture, Tariff
from problems.console import Parser

DEFAULT = ("ddim", "ttm2", "ttm3", "s-pndm", "f-pndm", "tab-deis2", "adams22", "rk45")


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "gte",
        "Global error at t_cut against NFE and steps, solver by form by grid by AFS by denoising.",
        "  python -m analysis.gte\n"
        "  python -m analysis.gte --solvers ddim ttm2 s-pndm --nfe 10 --grids linear quadratic edm\n"
        "  python -m analysis.gte --solvers ddim ttm2 --forms ddim data preconditioned --steps 5 10 20\n"
        "  python -m analysis.gte --solvers ddim ttm2 s-pndm --afs both --denoise both\n"
        "  python -m analysis.gte --encode --solvers ddim ttm2 --nfe 5 10 15 20 25 50",
    )
    add_solvers(p, DEFAULT)
    add_factors(p, None, ("linear", "quadratic"))
    add_budget(p, ", and 50 with --encode")
    p.add_argument("--encode", action="store_true", help="measure encoding and decoding there and back")
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write tables and figure."""
    args, problem = session.args, session.problem
    stop = problem.schedule.stop
    budgets = args.steps or args.nfe or ((*BUDGETS, 50) if args.encode else BUDGETS)
    rows = plan(session, budgets, encode=args.encode)

    measured = [i for i, row in enumerate(rows) if not row.note]
    results = Ends(session, args.encode).measured([rows[i] for i in measured])

    errors = np.stack([r.arrays["error"] for r in results])
    bootstrap = Bootstrap(args.samples)
    unit = "steps" if args.steps else "nfe"
    columns: dict[str, Any] = {
        **{name: [float(r.arrays[name]) for r in results] for name in ("nfe", "jvp", "head", "encode_nfe")},
        **bootstrap.means(errors).columns("error"),
        **medians(errors).columns("median"),
        **paired([rows[i] for i in measured], errors, bootstrap).columns("ratio"),
        "reference_error": [float(r.arrays["reference_error"]) for r in results],
    }
    if "feature_error" in results[0].arrays:
        apart = np.stack([r.arrays["feature_error"] for r in results])
        columns |= bootstrap.means(apart).columns("feature_error")
        columns |= paired([rows[i] for i in measured], apart, bootstrap).columns("feature_ratio")
    if isinstance(problem, Mixture):
        flips = np.array([share(r.arrays["flip"].sum(), args.samples) for r in results]).T
        columns |= Interval(*flips).columns("flips")
    table = pd.DataFrame(
        [
            {
                **session.config,
                **row.factors,
                f"{unit}_budget": row.budget,
                "steps": row.steps or None,
                "encode_steps": row.encode_steps,
                "note": row.note,
            }
            for row in rows
        ]
    ).join(pd.DataFrame(columns, index=measured))
    # A denoised state is one at γ = 0, where α = 1.
    table["error_xbar"] = table["error"] / np.where(table["denoise"], 1.0, problem.schedule.alpha(stop))

    report(table, f"{unit}_budget", args.encode, tariff(problem))
    return session.save(table, draw(table, session))


def paired(rows: Sequence[Row], errors: Any, bootstrap: Bootstrap) -> Interval:
    """Return the ratio of mean errors to DDIM's under the same budget and factors, NaN where it is not."""

    def key(row: Row) -> tuple[Any, ...]:
        factors = {k: v for k, v in row.factors.items() if k not in ("solver", "billed")}
        return (*("ddim" if v == "distilled" else v for v in factors.values()), row.budget)

    base = {key(row): i for i, row in enumerate(rows) if row.solver == "ddim"}
    there = [i for i, row in enumerate(rows) if key(row) in base]
    ratio = np.full((3, len(rows)), math.nan)
    if there:
        ratio[:, there] = bootstrap.ratios(errors[there], errors[[base[key(rows[i])] for i in there]])
    return Interval(*ratio)


def report(table: pd.DataFrame, budget: str, encode: bool, costs: Tariff) -> None:
    """Print means, medians with mode flips, and ratios to DDIM: a line per curve, a column per budget."""
    what = "decoded samples in x" if encode else "the end point in x at t_cut"
    unit = "NFE" if budget == "nfe_budget" else "steps"
    given, own = table[table[budget].notna()], table[table[budget].isna()]
    middle = "median" + ("; % in another mode (95%)" if "flips" in table else "")
    if len(given):
        notes = [f"N/A: {solver} {note}" for solver, note in reasons(given)]
        chance = [name for name in dict.fromkeys(given["solver"]) if METHODS[name].random]
        if chance:
            notes.append(f"random: {', '.join(chance)}; ends are samples, not those of these trajectories")
        if (given["jvp"] > 0).any():
            spent = ", ".join(dict.fromkeys(given["solver"][given["jvp"] > 0]))
            notes.append(f"{spent}: Jacobian-vector products come on top of the NFE (column jvp)")
        if given["billed"].any():
            notes.append(
                f"billed: a derivative costs {costs.jvp:.3g} NFE, a call of the head {costs.head:.3g}"
            )
        if given["denoise"].any():
            notes.append("denoised ends are compared with denoised exact ones, at t = 0")
        if not encode:
            notes.append(f"reference: own error {table['reference_error'].max():.1e}")
        title = f"Mean L2 error of {what} (95%){common(given)}"
        tables.show(title, wide(given, budget, unit, interval_of("error")), notes)
        tables.show(f"The same, {middle}", wide(given, budget, unit, _middle))
        if "feature_error" in given:
            title = "The same in the features of the digits classifier, mean (95%)"
            tables.show(title, wide(given, budget, unit, interval_of("feature_error")))
        compared = given[(given["solver"] != "ddim") & given["ratio"].notna()]
        if len(compared):
            title = "Mean error as a multiple of DDIM's on the same trajectories (95%)"
            tables.show(title, wide(compared, budget, unit, interval_of("ratio")))
        if len(compared) and "feature_ratio" in compared:
            title = "The same in the features of the digits classifier (95%)"
            tables.show(title, wide(compared, budget, unit, interval_of("feature_ratio")))
    if len(own):
        lines = [
            {
                "solver": row["solver"],
                "form": row["form"],
                **{f: word(row[f]) for f in varying(own) if f != "form"},
                "NFE": f"{row['nfe']:g}",
                "mean error (95%)": interval_of("error")(row),
                middle: _middle(row),
            }
            for _, row in own.iterrows()
        ]
        title = f"Methods that choose their own steps: L2 error of {what}{common(own)}"
        tables.show(title, pd.DataFrame(lines))


def _middle(row: Any) -> str:
    if "flips" not in row:
        return f"{row['median']:.2e}"
    low, high = 100.0 * row["flips_low"], 100.0 * row["flips_high"]
    return f"{row['median']:.2e}; {100.0 * row['flips']:.1f} [{low:.1f}, {high:.1f}]"


def draw(table: pd.DataFrame, session: Session) -> Figure:
    """Draw error against NFE: a column of panels per grid, a row per form (if crossed) and other factor."""
    factors = [*(["form"] if session.args.forms else []), "afs", "denoise", "billed"]
    rows = table[table["note"] == ""].assign(cost=lambda r: cost(r, tariff(session.problem)))
    grids = [g for g in dict.fromkeys(rows["grid"]) if g != WHOLE.name] or [WHOLE.name]
    measures = {"error": "mean $L_2$ error", "feature_error": "error in features"}
    lines = [
        (variant, measure)
        for measure in measures
        if measure in rows
        for _, variant in rows[factors].drop_duplicates().iterrows()
    ]
    what = "of decoded samples" if session.args.encode else "at $t_{cut}$"
    with plots.style():
        size = (plots.WIDTH, 0.6 + 2.0 * len(lines))
        figure, axes = plots.panels(len(lines), len(grids), figsize=size, sharex=True, sharey="row")
        for line, (variant, measure) in zip(axes, lines, strict=True):
            free = {**variant, "billed": False}
            plain = (rows[factors] == pd.Series(free)).all(axis=1) & (rows["jvp"] + rows["head"] == 0)
            here = rows[(rows[factors] == variant).all(axis=1) | plain]
            band = (f"{measure}_low", f"{measure}_high")
            for ax, grid in zip(line, grids, strict=True):
                shown = here[here["grid"].isin([grid, WHOLE.name])]
                place = "cost" if variant["billed"] else "nfe"
                plots.curves(ax, shown, place, measure, band=band, among=list(rows["solver"]))
                ax.set(xscale="log", yscale="log", title=titled(grid, variant))
                ax.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
                ax.set_xticks([], minor=True)
                ax.set_xlim(0.9 * rows["nfe"].min(), 1.1 * rows["nfe"].max())
            line[0].set_ylabel(f"{measures[measure]} {what}")
        for ax in axes[-1]:
            ax.set_xlabel("NFE each way" if session.args.encode else "NFE")
        plots.legend_below(figure, list(axes.flat), columns=4)
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    return main("gte-encode" if p.parse_args(argv).encode else "gte", p, experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
