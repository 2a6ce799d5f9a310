"""Taylor methods on networks that are told the time smoothly or fast (Fig. 11, explained).

A truncated Taylor method of order p uses derivatives of ε along the flow up to the order p - 1. A network
that is told the time by waves of high frequency can have the same loss as one that is told it smoothly, and
higher derivatives that are larger by orders of magnitude: each brings down a factor of the frequency. With a
step h = r γ the terms of the method's step (Eq. 8) are

    h ε, h²/2 dε/dγ, h³/6 d²ε/dγ² = γ (r ε, r²/2 γ dε/dγ, r³/6 γ² d²ε/dγ²),

so that the sizes of γᵏ dᵏε/dγᵏ relative to that of ε say for which r each further term is smaller than the
one before. They are measured along the exact flow of each network, next to the errors at its end and to the
loss with which the networks were trained, on which they hardly differ.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.features import is_image
from analysis.measure.reference import SETTLED, STEPS
from analysis.measure.smoothness import ORDERS, derivative_squares, exact_end, sampled_end, training_loss
from analysis.measure.statistics import Bootstrap, Interval
from analysis.methods import Method, chosen
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Cell, Result, Study, frame, measured
from analysis.study.values import Aside
from problems import Problem
from problems.console import Parser, UsageError, positive

NETWORKS = ("digits", "digits-positional", "digits-fourier")
"""Networks that differ in how they are told the time; the last one has no Gaussian skip either."""

POWERS = {1: "γ dε/dγ", 2: "γ² d²ε/dγ²"}
"""The derivatives of which the sizes are measured, by their order."""

DRAWS = 2000
"""Noisy images on which the loss is measured, the same ones for all networks."""

DEFAULT = ("ddim", "ttm2", "ttm3")
BUDGETS = (5, 10, 15, 20, 25)
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument(
        "--networks",
        nargs="+",
        action=_Networks,
        default=list(NETWORKS),
        metavar="NAME",
        help="problems or checkpoints to compare, instead of one --problem",
    )
    add_solvers(p, DEFAULT)
    p.add_argument("--nfe", nargs="+", type=positive, default=list(BUDGETS), help="budgets")
    p.add_argument("--show", type=positive, default=10, help="the budget whose images are shown")
    p.add_argument("--t", nargs="+", type=float, default=list(TIMES), help="times of the derivatives")


class _Networks(argparse.Action):
    """Keeps the networks, and the first of them as the problem of the run."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        namespace.networks, namespace.problem = list(dict.fromkeys(values)), values[0]


class Smoothness(NamedTuple):
    """What was measured on several networks, as tidy tables.

    Attributes
    ----------
    errors
        A row for each network, method and budget: ``error`` (mean L2 in x at t_cut, from the end of the
        network's own flow), with its 95% interval. The method ``exact`` has the error of the reference.
    sizes
        A row for each network, time ``t`` and ``order`` k: ``size``, the root mean square of |γᵏ dᵏε/dγᵏ|
        over that of |ε|, along the exact flow, with its 95% interval.
    losses
        A row for each network: ``loss``, the mean of (ε - noise)² on the same noisy images, and ``ratio``,
        that over the loss of the first network, each with its 95% interval; NaN where the images are not at
        hand.
    ends
        The measured ends behind ``errors``, whose arrays ``x`` are images.
    """

    errors: pd.DataFrame
    sizes: pd.DataFrame
    losses: pd.DataFrame
    ends: list[Result]


def network_smoothness(
    networks: Sequence[Case | Problem | str | Path] = NETWORKS,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    t: Sequence[float] = TIMES,
    study: Study | None = None,
    samples: int = 100,
) -> Smoothness:
    """Compare Taylor methods on several networks, with the sizes of derivatives and the losses.

    Parameters
    ----------
    networks
        What is solved; anything that ``Case`` takes, or cases.
    methods
        The methods; see ``analysis.methods.chosen``.
    nfe
        Budgets of evaluations.
    t
        Times of the derivatives.
    study
        Where results are kept; nowhere by default.
    samples
        Number of trajectories, where ``networks`` are no cases.

    Raises
    ------
    ValueError
        If the networks differ in images or schedule, a time is outside the schedule, or a method cannot solve
        a network or take so few evaluations.
    """
    cases = [case if isinstance(case, Case) else case_of(case, samples=samples) for case in networks]
    return _measured(cases, chosen(methods), nfe, t, study or Study())


def _measured(
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    budgets: Sequence[int],
    times: Sequence[float],
    study: Study,
) -> Smoothness:
    """Measure ends of trajectories, sizes of derivatives and the loss of every network."""
    _alike(cases, times)
    cells = [cell for case in cases for cell in _cells(case, methods, budgets, list(dict.fromkeys(times)))]
    results = list(zip(cells, study.run("smoothness", cells), strict=True))
    ends, points, losses = (
        measured([result for cell, result in results if cell.measure in kind])
        for kind in ((exact_end, sampled_end), (derivative_squares,), (training_loss,))
    )
    return Smoothness(errors(ends), derivatives(points), training(losses, cases[0].name), ends)


def _alike(cases: Sequence[Case], times: Sequence[float]) -> None:
    """Raise a ValueError where networks have not the latents in common, or times are not theirs."""
    first = cases[0].problem
    schedule = first.schedule
    if outside := [t for t in times if not schedule.stop <= t <= schedule.start]:
        raise ValueError(f"--t {outside[0]:g} is outside [{schedule.stop:g}, {schedule.start:g}]")
    for case in cases:
        if (case.problem.event_shape, case.problem.schedule) != (first.event_shape, schedule):
            raise ValueError(
                f"{case.name} and {cases[0].name} differ in images or schedule; choose alike ones"
            )


def _cells(
    case: Case, methods: Mapping[str, Method], budgets: Sequence[int], times: Sequence[float]
) -> list[Cell]:
    """Return what is measured on one network."""
    schedule = case.problem.schedule
    stops = Aside(tuple(sorted({schedule.stop, *times} - {schedule.start}, reverse=True)))
    cells = [Cell({**case.config, "solver": "exact", "nfe": 0}, exact_end, {"case": case, "times": stops})]
    for name, method in methods.items():
        for nfe in sorted(set(budgets)):
            try:
                steps = method.steps(case.problem, nfe)
            except ValueError as reason:
                raise ValueError(
                    f"{name} {reason}; type larger --nfe and --show, or other --solvers"
                ) from reason
            about = {**case.config, "solver": name, "nfe": nfe}
            what = {"case": case, "method": method, "steps": steps, "times": stops}
            cells.append(Cell(about, sampled_end, what))
    cells += [
        Cell({**case.config, "t": t}, derivative_squares, {"case": case, "t": t, "times": stops})
        for t in times
    ]
    return [*cells, Cell({**case.config, "draws": DRAWS}, training_loss, {"case": case, "draws": DRAWS})]


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    if args.problem != args.networks[0]:
        raise UsageError(f"type --networks {args.problem} and further ones instead of --problem")
    cases = [session.on(name) for name in args.networks]
    for case in cases:
        if not is_image(shape := case.problem.event_shape):
            raise UsageError(
                f"{case.name} has states of shape {tuple(shape)}, and images of one or three colours are "
                "shown; type --networks of images"
            )
    try:
        _alike(cases, args.t)
        for case in cases:
            methods = replace(session, case=case).methods()
        found = _measured(cases, methods, [*args.nfe, args.show], args.t, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(found.errors, {"-sizes": found.sizes, "-networks": found.losses}, found)


def errors(results: list[Result]) -> pd.DataFrame:
    """Return a row for each end: its mean error, that of the reference for the exact one."""
    found = np.stack([r.arrays["error"] for r in results])
    mean = Bootstrap(found.shape[1]).means(np.where(np.isfinite(found), found, np.nan))
    return frame(results, **mean.columns("error"))


def derivatives(results: list[Result]) -> pd.DataFrame:
    """Return a row for each derivative at each time: root mean squares of γᵏ dᵏε/dγᵏ over that of ε."""
    rows = [(r, k) for r in results for k in range(1, ORDERS + 1)]
    size, base = (
        np.stack([r.arrays[f"order {i}"] for r, i in each]) for each in (rows, [(r, 0) for r, _ in rows])
    )
    ratio = Interval(*map(np.sqrt, Bootstrap(size.shape[1]).ratios(size, base)))
    return frame([r for r, _ in rows], order=[k for _, k in rows], **ratio.columns("size"))


def training(results: list[Result], first: str) -> pd.DataFrame:
    """Return a row for each network: its loss, and that over the loss of the first on the same images."""
    found = np.stack([r.arrays["loss"] for r in results])
    base = [r.arrays["loss"] for r in results if r.config["problem"] == first] or [np.full(DRAWS, np.nan)]
    bootstrap = Bootstrap(found.shape[1])
    ratio = bootstrap.ratios(found, np.broadcast_to(base[0], found.shape))
    return frame(results, **bootstrap.means(found).columns("loss"), **ratio.columns("ratio"))


def report(session: Session, outcome: Outcome) -> None:
    """Print the errors, the sizes of the derivatives and the losses."""
    found: Smoothness = outcome.extra
    names = short(found)
    exact = found.errors[found.errors["solver"] == "exact"].set_index("problem")["error"]
    rows = found.errors[found.errors["solver"] != "exact"]
    wide = tables.pivot(
        rows,
        lambda row: {"network": names[row["problem"]], "solver": row["solver"]},
        lambda row: f"{row['nfe']} NFE",
        lambda row: tables.cell(row, "error"),
    )
    lines = dict.fromkeys(zip(rows["problem"], rows["solver"], strict=True))
    wide["reference"] = [f"{exact.get(problem, np.nan):.1e}" for problem, _ in lines]
    notes = [
        "each network against the end of its own flow; reference: the largest error of that, in x̄",
        "derivatives of a network are exact, and come on top of the NFE",
    ]
    if (exact > SETTLED).any():
        notes.append(f"a reference above {SETTLED:g} did not settle in {STEPS[1]} steps, and is left at that")
    if found.errors["error"].isna().any():
        notes.append("nan: a trajectory left the range of numbers")
    tables.show("Mean L2 error of the end in x at t_cut (95%)", wide, notes)
    tables.show(
        "Derivatives of ε along the exact flow over ε, root mean squares (95%)",
        tables.pivot(
            found.sizes,
            lambda row: {"network": names[row["problem"]], "derivative": POWERS[row["order"]]},
            lambda row: f"t = {row['t']:g}",
            lambda row: tables.cell(row, "size"),
        ),
    )
    losses = [
        {
            "network": names[row["problem"]],
            "loss": tables.cell(row, "loss"),
            "over that of the first": tables.cell(row, "ratio"),
        }
        for _, row in found.losses.iterrows()
    ]
    unknown = [names[row["problem"]] for _, row in found.losses.iterrows() if math.isnan(row["loss"])]
    notes = [f"nan: the training data of {', '.join(unknown)} are not at hand"] if unknown else []
    tables.show(f"Training loss on the same {DRAWS} noisy images (95%)", pd.DataFrame(losses), notes)


def short(found: Smoothness) -> dict[str, str]:
    """Return what networks are called in tables: the names of their files, where these tell them apart."""
    networks = pd.concat([found.errors["problem"], found.sizes["problem"], found.losses["problem"]])
    names = {n: n.removesuffix(".safetensors").replace("\\", "/").split("/")[-1] for n in networks}
    return names if len(set(names.values())) == len(names) else {n: n for n in names}


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw a row for each network: images and errors; below, the sizes of the derivatives."""
    return drawn(outcome.extra, session.args.show)


def drawn(found: Smoothness, nfe: int) -> Figure:
    """Draw what was measured, with the images at ``nfe`` evaluations."""
    table, names = found.errors, short(found)
    networks = list(dict.fromkeys(table["problem"]))
    solvers = [s for s in dict.fromkeys(table["solver"]) if s != "exact"]
    with plots.style():
        height = plots.WIDTH / (len(solvers) + 2.9)  # of a row: sheets are square
        figure = Figure((plots.WIDTH, height * len(networks) + 2.5), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(height * len(networks) + 0.4, 2.1))
        top, bottom = halves
        left, right = top.subfigures(1, 2, width_ratios=(len(solvers) + 1, 1.9))
        sheets = left.subplots(len(networks), len(solvers) + 1, squeeze=False)
        curves = right.subplots(len(networks), 1, squeeze=False, sharex=True, sharey=True)
        rows = table[table["solver"] != "exact"]
        for network, line, ax in zip(networks, sheets, curves[:, 0], strict=True):
            images = {
                r.config["solver"]: r.arrays["x"]
                for r in found.ends
                if r.config["problem"] == network and r.config["nfe"] in (0, nfe)
            }
            _sheets(line, [images.get(name) for name in ("exact", *solvers)])
            line[0].set_ylabel(names[network])
            here = rows[rows["problem"] == network]
            plots.curves(ax, here, "nfe", "error", band=("error_low", "error_high"), among=solvers)
            ax.set(xscale="log", yscale="log", ylabel="mean $L_2$ error")
        for title, ax in zip(["exact", *solvers], sheets[0], strict=True):
            ax.set_title(plots.LABELS.get(title, title))
        budgets = sorted(set(rows["nfe"]))
        curves[-1, 0].set_xticks(budgets, [str(n) for n in budgets])
        curves[-1, 0].set_xticks([], minor=True)
        curves[-1, 0].set_xlabel("NFE")
        curves[0, 0].legend(loc="upper right")
        left.supxlabel(f"images at {nfe} NFE", size="medium")
        _sizes(bottom.subplots(1, len(POWERS)), found.sizes.assign(network=found.sizes["problem"].map(names)))
        return figure


def _sheets(line: Any, images: Sequence[Any]) -> None:
    for ax, x in zip(line, images, strict=True):
        if x is not None:
            plots.sheet(ax, np.nan_to_num(x), 3, 3)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _sizes(line: Any, sizes: pd.DataFrame) -> None:
    for ax, (order, power) in zip(line, POWERS.items(), strict=True):
        rows = sizes[sizes["order"] == order]
        plots.curves(ax, rows, "t", "size", by="network", band=("size_low", "size_high"))
        ax.set(yscale="log", xlabel="$t$, along the exact flow", ylabel=f"{power} over ε (rms)")
    line[0].legend(loc="lower left")


EXPERIMENT = Experiment(
    name="smoothness",
    title="Smoothness in time",
    finding="What Taylor methods gain or lose by higher order where networks are told the time fast.",
    help="Taylor methods on networks that are told the time smoothly or fast (Fig. 11, explained).",
    examples=(
        "",
        "--solvers ddim ttm2 ttm3 ttm4 --nfe 5 10 25 50 --show 25",
        "--networks digits mine.safetensors --samples 50",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=15,
    paper="Fig. 11",
    defaults={"problem": NETWORKS[0], "samples": 100},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("smoothness"))
