"""The error budget of a learned sampler: how much is the solver's, the head's and the score network's.

The network was trained on samples of a distribution whose flow is known. From one latent there are four
ends: that of the exact flow, x*; that of the network's own flow, x_net; that of a method with the network's
exact derivatives, x_jets; and, for TTM-2 with a distilled head (GENIE, Eqs. 9 and 14), x_head. The error
telescopes,

    x_head - x* = (x_head - x_jets) + (x_jets - x_net) + (x_net - x*),

into the parts of the derivative, the discretisation and the score network. The share of a part in an error
e is its component along it, ⟨part, e⟩/|e|: shares add up to |e|, and are negative where a part makes up for
others. Along the exact flow, ε, its derivative dε/dγ (Eq. 10) and the head are compared point by point.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from analysis.measure.error_parts import PAIRS, PARTS, distances, error_parts
from analysis.measure.rows import BUDGETS
from analysis.measure.statistics import Bootstrap, Interval
from analysis.methods import FORMS, GRIDS, METHODS, Grid, chosen_grids
from analysis.show import plots, tables
from analysis.study.cells import Cell, Result, Study, frame, measured
from analysis.study.values import Aside
from problems import Gaussian, Mixture, Problem
from problems.console import Parser, UsageError, positive

SOLVERS = ("ddim", "ttm2", "genie")
"""The methods that are compared, each at one evaluation of the network per step."""

NETWORK, TRUTH = "digits-gaussians-network", "digits-gaussians"
TIMES = (0.01, 0.05, 0.1, 0.2, 0.5, 0.9)


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument("--truth", default=TRUTH, help="the distribution the network was trained on")
    p.add_argument("--nfe", nargs="+", type=positive, default=list(BUDGETS), help="budgets")
    p.add_argument("--grid", default="quadratic", metavar="NAME", help=f"grid: {', '.join(GRIDS)}")
    p.add_argument(
        "--t",
        nargs="+",
        type=float,
        default=list(TIMES),
        help="times at which ε and its derivatives are compared",
    )


class Budget(NamedTuple):
    """What was measured, as tidy tables.

    Attributes
    ----------
    parts
        A row for each part of the error of each method and budget, and for the ``total``: ``norm``, the mean
        L2 norm in x at t_cut; ``share``, the mean of its component along the error; ``fraction``, that over
        the mean norm of the error; each with its 95% interval.
    pointwise
        A row for each pair in ``PAIRS`` and time ``t``: ``error``, the root mean square distance of the first
        to the second, over that of the second's size, with its 95% interval.
    references
        Errors of the exact flow and of the network's own.
    """

    parts: pd.DataFrame
    pointwise: pd.DataFrame
    references: tuple[float, float]


def error_budget(
    problem: Case | Problem | str | Path = NETWORK,
    truth: Case | Problem | str | Path = TRUTH,
    nfe: Sequence[int] = BUDGETS,
    t: Sequence[float] = TIMES,
    grid: str | Grid = "quadratic",
    study: Study | None = None,
) -> Budget:
    """Split the errors of DDIM, TTM-2 and, where there is a head, GENIE on a network whose truth is known.

    Parameters
    ----------
    problem
        The network; anything that ``Case`` takes, or a case.
    truth
        The distribution that it was trained on, which is a mixture or a Gaussian. Of a case only the problem
        counts.
    nfe
        Budgets of evaluations.
    t
        Times at which ε and its derivatives are compared.
    grid
        A name in ``GRIDS``, or a grid.
    study
        Where results are kept; nowhere by default.

    Raises
    ------
    ValueError
        If the truth is not known exactly, differs from the network in the shape of states or the schedule, or
        a time is outside the schedule.
    """
    case, study = case_of(problem), study or Study()
    known = truth_of(case, truth)
    schedule, times = case.problem.schedule, list(dict.fromkeys(t))
    for time in times:
        if not schedule.stop <= time <= schedule.start:
            raise ValueError(f"--t {time:g} is outside [{schedule.stop:g}, {schedule.start:g}]")
    (grid,) = chosen_grids([grid])
    names = SOLVERS if case.problem.distilled is not None else SOLVERS[:-1]
    methods = {name: replace(METHODS[name], grid=grid) for name in names}
    config = {**case.config, "truth": known.name}
    stops = Aside(tuple(sorted({schedule.stop, *times} - {schedule.start}, reverse=True)))
    both = {"case": case, "truth": known, "times": stops}
    ends = [
        Cell(
            {**config, "grid": grid.name, "solver": name, "nfe": n},
            error_parts,
            {
                **both,
                "method": method,
                "jets": None if method.form.exact else replace(method, form=FORMS["ddim"]),
                "steps": n,
            },
        )
        for name, method in methods.items()
        for n in dict.fromkeys(nfe)
    ]
    points = [Cell({**config, "t": time}, distances, {**both, "t": time}) for time in times]
    results = study.run("budget", [*ends, *points])
    found = measured(results[: len(ends)])
    bootstrap = Bootstrap(case.samples)
    local = relative(measured(results[len(ends) :]), bootstrap) if points else pd.DataFrame()
    exact, own = (float(found[0].arrays[name]) for name in ("exact_error", "own_error"))
    return Budget(shares(found, bootstrap), local, (exact, own))


def truth_of(case: Case, truth: Case | Problem | str | Path) -> Case:
    """Return the case of the distribution that a network was trained on.

    Raises
    ------
    ValueError
        If that is not known exactly, or is no truth of this network.
    """
    if isinstance(truth, Case):
        found = truth.but(samples=case.samples, seed=case.seed, batch=case.batch)
    else:
        found = case.on(truth)
    if not isinstance(found.problem, Mixture | Gaussian):
        raise ValueError(
            f"{found.name} is no exact problem; choose the distribution that the network was trained on, "
            "such as --truth digits-gaussians"
        )
    for what in ("event_shape", "schedule"):
        if getattr(found.problem, what) != getattr(case.problem, what):
            raise ValueError(
                f"{found.name} and {case.name} differ in {what.replace('_', ' ')}; "
                "choose the distribution that the network was trained on"
            )
    return found


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    try:
        found = error_budget(session.case, args.truth, args.nfe, args.t, args.grid, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(found.parts, {"-pointwise": found.pointwise}, found)


def shares(results: list[Result], bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each part of each result: its mean norm and share, and that over the mean error."""
    rows = [(r, part) for r in results for part in ("total", *PARTS) if part in r.arrays]
    norms, along, totals = (
        np.stack([r.arrays[name.format(part)] for r, part in rows]) for name in ("{}", "{} share", "total")
    )
    return frame(
        [r for r, _ in rows],
        part=[part for _, part in rows],
        **bootstrap.means(norms).columns("norm"),
        **bootstrap.means(along).columns("share"),
        **bootstrap.ratios(along, totals).columns("fraction"),
    )


def relative(results: list[Result], bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each pair at each time: |a - b|/|b|, both root mean squares."""
    rows = [(r, pair) for r in results for pair in PAIRS if pair in r.arrays]
    apart, size = (np.stack([r.arrays[pair + end] for r, pair in rows]) for end in ("", " size"))
    ratio = Interval(*map(np.sqrt, bootstrap.ratios(apart, size)))
    return frame([r for r, _ in rows], pair=[pair for _, pair in rows], **ratio.columns("error"))


def report(session: Session, outcome: Outcome) -> None:
    """Print the norms of the parts, their shares, and the errors point by point."""
    table, local, errors = outcome.extra
    notes = [
        f"reference: own error {errors[0]:.1e} of the exact flow, {errors[1]:.1e} of the network's",
        "ttm2, and the derivative part of genie, rest on Jacobian-vector products on top of the NFE",
    ]
    if "genie" not in set(table["solver"]):
        notes.append("no genie: this network has no distilled head")
    parts = table[table["part"] != "total"]
    title = "Mean L2 norm of the error in x at t_cut and of its parts (95%)"
    tables.show(title, _wide(table, "norm"), notes)
    title = "Mean signed shares, which add up to the mean norm of the error (95%)"
    tables.show(title, _wide(parts, "share"))
    tables.show("The same as fractions of it (95%)", _wide(parts, "fraction"))
    compared = tables.pivot(
        local,
        lambda row: {"distance": PAIRS[row["pair"]]},
        lambda row: f"t = {row['t']:g}",
        partial(tables.cell, name="error"),
    )
    title = "Along the exact flow: distance of the first to the second, over the second's size, rms (95%)"
    note = "ε changes ever less towards t = 1, so that relative errors of dε/dγ say little there"
    tables.show(title, compared, [note])


def _wide(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return a line per method and budget, and a column per part, in the order of the parts."""
    rows = tables.pivot(
        table,
        lambda row: {"solver": row["solver"], "nfe": f"{row['nfe']}"},
        lambda row: row["part"],
        partial(tables.cell, name=value),
    )
    return rows[["solver", "nfe", *(part for part in ("total", *PARTS) if part in rows)]]


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the shares as stacked bars, a group for each NFE; below, the norms of the parts and the points."""
    table, local, _ = outcome.extra
    with plots.style():
        figure, axes = plots.panels(2, 2, figsize=(plots.WIDTH, 5.2), height_ratios=(1.25, 1.0))
        for ax in axes[0]:
            ax.remove()
        _bars(figure.add_subplot(axes[0, 0].get_gridspec()[0, :]), table)
        _norms(axes[1, 0], table)
        _points(axes[1, 1], local)
        return figure


def _bars(ax: Any, table: pd.DataFrame) -> None:
    looks, solvers = plots.looks(PARTS), list(dict.fromkeys(table["solver"]))
    budgets = sorted(set(table["nfe"]))
    width, ticks = 0.8 / len(solvers), {}
    mark: Any = {"marker": "_", "markersize": 7, "linewidth": 0.8}
    for solver, nfe in dict.fromkeys(zip(table["solver"], table["nfe"], strict=True)):
        rows = table[(table["solver"] == solver) & (table["nfe"] == nfe)].set_index("part")
        place = budgets.index(nfe) + width * (solvers.index(solver) - (len(solvers) - 1) / 2)
        ticks[place] = plots.LABELS[solver]
        ends = {True: 0.0, False: 0.0}  # of what is stacked above zero, and below
        for part, share in rows["share"].reindex(PARTS[::-1]).dropna().items():
            ax.bar(place, share, 0.9 * width, ends[share > 0], color=looks[str(part)].colour)
            ends[share > 0] += share
        norm, low, high = rows.loc["total", ["norm", "norm_low", "norm_high"]]
        ax.errorbar(place, norm, [[norm - low], [high - norm]], color="0.1", **mark)
    for part in reversed(PARTS):
        if part in set(table["part"]):
            ax.bar(0, 0, color=looks[part].colour, label=looks[part].label)
    ax.errorbar([], [], [], color="0.1", label="total (95%)", **mark)
    ax.axhline(0.0, color="0.1", linewidth=0.6)
    ax.set_xticks(list(ticks), list(ticks.values()), rotation=30, ha="right", rotation_mode="anchor", size=6)
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False, axis="x")
    for place, nfe in enumerate(budgets):
        ax.text(place, 1.0, f"{nfe} NFE", transform=ax.get_xaxis_transform(), ha="center", va="bottom")
    ax.set_ylabel("mean share of the $L_2$ error")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=4)


def _norms(ax: Any, table: pd.DataFrame) -> None:
    looks, budgets = plots.looks(PARTS), sorted(set(table["nfe"]))
    curves = (
        ("score network", "ddim", "-", "score network"),
        ("discretisation", "ddim", "-", "discretisation, DDIM"),
        ("discretisation", "ttm2", "--", "discretisation, TTM-2 and GENIE"),
        ("derivative", "genie", "-", "derivative, GENIE"),
    )
    for part, solver, line, label in curves:
        rows = table[(table["part"] == part) & (table["solver"] == solver)].sort_values("nfe")
        if (rows["norm"] > 0.0).any():
            look, band = looks[part], (rows["nfe"], rows["norm_low"], rows["norm_high"])
            ax.plot(rows["nfe"], rows["norm"], line, color=look.colour, marker=look.marker, label=label)
            ax.fill_between(*band, color=look.colour, alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="NFE", ylabel="mean $L_2$ norm of a part")
    ax.set_xticks(budgets, [str(b) for b in budgets])
    ax.set_xticks([], minor=True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24))


def _points(ax: Any, local: pd.DataFrame) -> None:
    rows = local.assign(what=local["pair"].map(PAIRS))
    plots.curves(ax, rows, "t", "error", by="what", band=("error_low", "error_high"))
    scale = "log" if (rows["error"] > 0.0).any() else "linear"
    ax.set(xscale="log", yscale=scale, xlabel="$t$, along the exact flow", ylabel="relative error (rms)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24))


EXPERIMENT = Experiment(
    name="budget",
    title="Error budget",
    finding="How much of a learned sampler's error is the solver's, the derivative's and the network's.",
    help="Error of a learned sampler, split into derivative, discretisation and score network.",
    examples=(
        "",
        "--nfe 5 10 --t 0.05 0.5 --samples 100",
        "--problem mine.safetensors --truth digits-gaussians",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=14,
    paper="Eqs. 9 and 14",
    defaults={"problem": NETWORK, "samples": 400},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("budget"))
