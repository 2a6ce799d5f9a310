"""Global error at the end of a trajectory against the cost of getting there.

Every method starts from the same latents and is compared, trajectory by trajectory, with the exact end point
at t_cut (denoised ones with the denoised exact end point). The budget is a number of score evaluations, or
of steps; form, grid, analytical first step and denoising are factors. With ``--encode`` exact samples of
p_{t_cut} are sent to t = 1 and back instead, at the same cost each way, and compared with themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_budget, add_data, add_decoder, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome, Variant
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.ends import ends
from analysis.measure.features import Features, decoded
from analysis.measure.given import need_data
from analysis.measure.rows import BUDGETS, Row, cost, rows_of, taken_whole, tariff
from analysis.measure.statistics import Bootstrap, Interval, medians, share
from analysis.methods import (
    METHODS,
    WHOLE,
    Coordinates,
    Grid,
    Method,
)
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.show.factors import common, interval_of, reasons, titled, varying, wide, word
from analysis.study.cells import Study
from problems import Problem, Tariff
from problems.console import Parser, UsageError

DEFAULT = ("ddim", "ttm2", "ttm3", "s-pndm", "f-pndm", "tab-deis2", "adams22", "rk45")


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, DEFAULT)
    add_factors(p, None, ("linear", "quadratic"))
    add_budget(p, ", and 50 with --encode")
    p.add_argument("--encode", action="store_true", help="measure encoding and decoding there and back")
    add_data(p, "data that are encoded, with --encode")
    add_decoder(p, "errors are measured in its images too")


def end_points(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    *,
    steps: Sequence[int] = (),
    forms: Sequence[str | Coordinates] | None = None,
    grids: Sequence[str | Grid] = ("linear", "quadratic"),
    bill: str = "nfe",
    afs: str = "off",
    denoise: str = "off",
    encode: bool = False,
    features: Features | None = None,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the global errors of methods as a tidy table: a row for each method, factor and budget.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case.
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
    encode
        Whether trajectories are sent from data to latents and back.
    features
        In which errors are measured too; by default those of a shipped classifier of such states.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    Columns ``error`` (mean L2 in x), ``median``, ``ratio`` (to DDIM's under the same budget and factors), on
    images ``feature_error``, on mixtures ``flips`` (share that ends at another component), each with its 95%
    interval; ``nfe``, ``jvp``, ``head``; ``note``, why a row could not be measured within its budget.

    Raises
    ------
    ValueError
        If nothing can be measured, or a method cannot do what is asked for.
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
        encode=encode,
    )
    return tabulated(case, rows, study or Study(), "steps" if steps else "nfe", features)


def tabulated(
    case: Case, rows: Sequence[Row], study: Study, unit: str, features: Features | None = None
) -> pd.DataFrame:
    """Return the tidy table of rows; those whose measurement fails are left out.

    Parameters
    ----------
    case
        The trajectories.
    rows
        What is measured.
    study
        Where results are kept.
    unit
        Of the budgets: ``nfe`` or ``steps``.
    features
        See ``end_points``.
    """
    results = iter(ends(case, [row for row in rows if not row.note], study, features))
    pairs = [(row, None if row.note else next(results)) for row in rows]
    pairs = [(row, result) for row, result in pairs if result is None or not result.failure]
    found = [(i, row, result) for i, (row, result) in enumerate(pairs) if result is not None]
    if not found:
        raise ArithmeticError(f"nothing could be measured: {study.failures[-1].failure}")
    arrays = [result.arrays for _, _, result in found]
    measured = [row for _, row, _ in found]

    errors, bootstrap = np.stack([r["error"] for r in arrays]), Bootstrap(case.samples)
    columns: dict[str, Any] = {
        **{name: [float(r[name]) for r in arrays] for name in ("nfe", "jvp", "head", "encode_nfe")},
        **bootstrap.means(errors).columns("error"),
        **medians(errors).columns("median"),
        **paired(measured, errors, bootstrap).columns("ratio"),
        "reference_error": [float(r["reference_error"]) for r in arrays],
    }
    if "feature_error" in arrays[0]:
        apart = np.stack([r["feature_error"] for r in arrays])
        columns |= bootstrap.means(apart).columns("feature_error")
        columns |= paired(measured, apart, bootstrap).columns("feature_ratio")
    if "flip" in arrays[0]:
        flips = np.array([share(r["flip"].sum(), case.samples) for r in arrays]).T
        columns |= Interval(*flips).columns("flips")
    about = [
        {
            **case.config,
            **row.factors,
            f"{unit}_budget": row.budget,
            "steps": row.steps or None,
            "encode_steps": row.encode_steps,
            "note": row.note,
        }
        for row, _ in pairs
    ]
    table = pd.DataFrame(about).join(pd.DataFrame(columns, index=[i for i, _, _ in found]))
    # A denoised state is one at γ = 0, where α = 1.
    alpha = case.problem.schedule.alpha(case.problem.schedule.stop)
    table["error_xbar"] = table["error"] / np.where(table["denoise"], 1.0, alpha)
    return table


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args, decoder = session.args, session.decoder
    if args.data and not args.encode:
        raise UsageError("--data are encoded; type --encode, or leave them out")
    if args.encode:
        need_data(session.case)
    budgets = args.steps or args.nfe or ((*BUDGETS, 50) if args.encode else BUDGETS)
    rows = session.rows(budgets, encode=args.encode)
    features = None if decoder is None else decoded(decoder)
    table = tabulated(session.case, rows, session.study, "steps" if args.steps else "nfe", features)
    return Outcome(table, name="gte-encode" if args.encode else "")


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


def report(session: Session, outcome: Outcome) -> None:
    """Print means, medians with mode flips, and ratios to DDIM: a line per curve, a column per budget."""
    table, encode = outcome.table, session.args.encode
    budget = "steps_budget" if session.args.steps else "nfe_budget"
    costs: Tariff = tariff(session.problem)
    what = "decoded samples in x" if encode else "the end point in x at t_cut"
    seen = "the decoded images" if session.args.decode else "the features of the classifier"
    unit = "NFE" if budget == "nfe_budget" else "steps"
    given, own = table[table[budget].notna()], table[table[budget].isna()]
    middle = "median" + ("; % in another mode (95%)" if "flips" in table else "")
    if len(given):
        notes = [f"N/A: {solver} {note}" for solver, note in reasons(given)]
        chance = [name for name in dict.fromkeys(given["solver"]) if METHODS[name].random]
        if chance:
            notes.append(f"random: {', '.join(chance)}; ends are samples, not those of these trajectories")
        notes += taken_whole(given["solver"])
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
            title = f"The same in {seen}, mean (95%)"
            tables.show(title, wide(given, budget, unit, interval_of("feature_error")))
        compared = given[(given["solver"] != "ddim") & given["ratio"].notna()]
        if len(compared):
            title = "Mean error as a multiple of DDIM's on the same trajectories (95%)"
            tables.show(title, wide(compared, budget, unit, interval_of("ratio")))
        if len(compared) and "feature_ratio" in compared:
            title = f"The same in {seen} (95%)"
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
        tables.show(title, pd.DataFrame(lines), taken_whole(own["solver"]))


def _middle(row: Any) -> str:
    if "flips" not in row:
        return f"{row['median']:.2e}"
    low, high = 100.0 * row["flips_low"], 100.0 * row["flips_high"]
    return f"{row['median']:.2e}; {100.0 * row['flips']:.1f} [{low:.1f}, {high:.1f}]"


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw error against NFE: a column of panels per grid, a row per form (if crossed) and other factor."""
    table = outcome.table
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


EXPERIMENT = Experiment(
    name="gte",
    title="Global error",
    finding="How far trajectories end from the exact ones, against the evaluations or steps that they took.",
    help="Global error at t_cut against NFE and steps, solver by form by grid by AFS by denoising.",
    examples=(
        "",
        "--solvers ddim ttm2 s-pndm --nfe 10 --grids linear quadratic edm",
        "--solvers ddim ttm2 --forms ddim data preconditioned --steps 5 10 20",
        "--solvers ddim ttm2 s-pndm --afs both --denoise both",
        "--encode --solvers ddim ttm2 --nfe 5 10 15 20 25 50",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=8,
    paper="Fig. 14",
    variants=(
        Variant(
            name="gte-encode",
            arguments="--encode",
            title="Encoding and decoding",
            finding="How far data end from themselves that are sent to t = 1 and back, at equal cost.",
            paper="Fig. 8",
        ),
    ),
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("gte"))
