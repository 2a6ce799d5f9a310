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
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, main, named, parser
from analysis.methods import GRIDS, METHODS, Grid, Method
from analysis.reference import reference
from analysis.statistics import Bootstrap, Slope, slope
from analysis.study import Cell, Result, frame, run
from problems import Guided, GuidedHeads, Model
from problems.console import Parser, UsageError, positive
from problems.images.score import Learned

POINTS = 3
"""Numbers of steps in a fit: the largest ones that stand."""

FLOOR = 5.0
"""An error counts in a fit where it is this many times the error that the reference states, and rounding.

The reference is some thirty times as good as it states (see ``reference``), and a relative contamination δ of
the last of three points moves a slope by no more than 0.7 δ.
"""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "guidance",
        "Classifier-free guidance: error and order by scale (Eqs. 16 and 81; Figs. 6 and 7), of DDIM, of\n"
        "TTM-2 with the exact derivative of the guided score, and of TTM-2 with the paper's combination.",
        "  python -m analysis.guidance\n"
        "  python -m analysis.guidance --scales 0 1 4 --samples 20 --steps 5 10 20 40\n"
        "  python -m analysis.guidance --dtype float64 --steps 20 40 80 160 320",
    )
    p.set_defaults(problem="digits-classes", samples=50)
    p.add_argument("--scales", nargs="+", type=scale, default=[0.0, 0.5, 1.0, 2.0, 4.0], help="scales w")
    p.add_argument(
        "--steps", nargs="+", type=positive, default=[5, 10, 20, 40, 80, 160], help="numbers of solver steps"
    )
    p.add_argument("--grid", default="quadratic", metavar="NAME", help=f"grid: {', '.join(GRIDS)}")
    return p


def scale(text: str) -> float:
    """Read a guidance scale."""
    value = float(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a guidance scale; 0 is no guidance")
    return value


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figures."""
    args, problem, working = session.args, session.problem, session.working
    if not (isinstance(problem, Learned) and isinstance(working, Learned) and problem.network.config.classes):
        raise UsageError(
            f"{args.problem} is no class-conditional network; choose one, such as --problem digits-classes"
        )
    grid = named("grid", GRIDS, args.grid)
    scales, steps = sorted(set(args.scales)), sorted(set(args.steps))
    labels = torch.arange(args.samples) % problem.network.config.classes
    schedule, parts = problem.schedule, (*session.parts, Guided)

    def config(w: float, solver: str, steps: int) -> dict[str, Any]:
        return {**session.config, "scale": w, "solver": solver, "grid": grid.name, "steps": steps}

    def solve(w: float) -> dict[str, Any]:
        guided = Guided(problem.labelled(labels), problem.labelled(None), w)
        solution = reference(guided, session.latents(), (schedule.start, schedule.stop))
        return {"x": solution.x[-1].numpy(), "error": np.array(solution.error)}

    exact = dict(
        zip(
            scales,
            run(
                "guidance",
                [Cell(config(w, "exact", 0), (*parts, solve), partial(solve, w)) for w in scales],
                session.store,
                fresh=args.fresh,
            ),
            strict=True,
        )
    )
    cells = [
        Cell(
            config(w, name, n),
            (*method.parts, *parts, end_point),
            partial(end_point, session, method, model, n, torch.from_numpy(exact[w].arrays["x"])),
        )
        for w in scales
        for name, (method, model) in contenders(working, labels.to(args.device), w, grid).items()
        for n in steps
    ]
    results = run("guidance", cells, session.store, fresh=args.fresh)
    table = tabulated(results, {w: float(r.arrays["error"]) for w, r in exact.items()}, session.dtype)
    report(table)
    sheets = draw_samples(
        list(exact.values()), results, steps[min(1, len(steps) - 1)], problem.network.config.classes
    )
    return [*session.save(table, draw(table)), *plots.save(sheets, session.path("-samples"))]


def contenders(
    problem: Learned, labels: int | Tensor, w: float, grid: Grid
) -> dict[str, tuple[Method, Model]]:
    """Return what is compared at one scale: methods by name, each with the guided model it is to solve.

    Parameters
    ----------
    problem
        A class-conditional network.
    labels
        The class of every trajectory.
    w
        The guidance scale.
    grid
        The grid of all of them.

    Returns
    -------
    ``ddim`` and ``ttm2`` on the guided ε with its exact derivatives; ``ttm2-combined`` with the exact
    derivatives of the two networks along their own flows, combined (Eq. 81); if the network has a head,
    ``genie``, the same with what the head says.
    """
    pair = problem.labelled(labels), problem.labelled(None)
    guided, combined = Guided(*pair, w), GuidedHeads(*pair, w)
    found = {"ddim": ("ddim", guided), "ttm2": ("ttm2", guided), "ttm2-combined": ("ttm2", combined)}
    if problem.head is not None:
        found["genie"] = ("genie", guided)
    return {name: (replace(METHODS[line], grid=grid), model) for name, (line, model) in found.items()}


def end_point(session: Session, method: Method, model: Model, steps: int, target: Tensor) -> dict[str, Any]:
    """Measure one number of steps: where each trajectory ends, how far from where it should, and the bill.

    Parameters
    ----------
    session
        The run.
    method, model, steps
        What to measure; see ``contenders``.
    target
        The exact end points at t_cut, (samples, *event), float64.

    Returns
    -------
    Arrays by name: the ends x, their L2 errors (samples,), the bill.
    """
    before = model.spent
    x = method.sample(model, steps, session.cast(session.latents())).double().cpu()
    spent = model.spent - before
    return {
        "x": x.numpy(),
        "error": (x - target).flatten(1).norm(dim=1).numpy(),
        **asdict(spent),
    }


def tabulated(results: list[Result], solved_to: dict[float, float], dtype: torch.dtype) -> pd.DataFrame:
    """Return the tidy table: error, its ratio to DDIM's, the bill, and the order of the curve.

    Parameters
    ----------
    results
        Measured cells.
    solved_to
        Error of the reference at each scale.
    dtype
        The precision in which methods ran.
    """
    errors = np.stack([r.arrays["error"] for r in results])
    bootstrap = Bootstrap(errors.shape[1])
    table = frame(results)
    keys = list(zip(table["scale"], table["steps"], strict=True))
    ddim = {key: i for i, key in enumerate(keys) if table["solver"][i] == "ddim"}
    base = [ddim[key] for key in keys]
    for column in ("nfe", "jvp", "head"):
        table[column] = [int(r.arrays[column]) for r in results]
    for column, interval in {
        "error": bootstrap.means(errors),
        "ratio": bootstrap.ratios(errors, errors[base]),
    }.items():
        table = table.assign(**interval.columns(column))
    table["reference_error"] = table["scale"].map(solved_to)
    floor = FLOOR * np.maximum(table["reference_error"], table["steps"] * torch.finfo(dtype).eps)
    table["stands"] = table["error"] > floor
    for _, curve in table.groupby(["scale", "solver"]):
        rows = curve.index.to_numpy(dtype=int)
        fit, used = fitted(curve["steps"].to_numpy(), errors[rows], curve["stands"], bootstrap)
        for column, value in zip(("order", "order_low", "order_high"), fit, strict=True):
            table.loc[rows, column] = value
        table.loc[rows, "fitted"] = used
    return table.assign(fitted=table["fitted"].astype(bool))


def fitted(steps: Any, errors: Any, stands: Iterable[bool], bootstrap: Bootstrap) -> tuple[Slope, list[bool]]:
    """Fit the order of one curve over the largest numbers of steps whose errors stand above the floor.

    Parameters
    ----------
    steps
        Numbers of steps, (m,).
    errors
        Errors, (m, samples).
    stands
        Which of them stand, (m,).
    bootstrap
        Gives the interval.

    Returns
    -------
    The order, NaN where fewer than two stand, and which numbers of steps were used.
    """
    last = [i for i, yes in enumerate(stands) if yes][-POINTS:]
    used = [i in last for i in range(len(steps))]
    if len(last) < 2:
        return Slope(math.nan, math.nan, math.nan), used
    return slope(1.0 / steps[used], errors[used], bootstrap), used


def report(table: pd.DataFrame) -> None:
    """Print errors and their ratios to DDIM's, a line per scale and method, then the measured orders."""
    looks = plots.looks(list(table["solver"]))

    def wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
        lines: dict[tuple[float, str], dict[str, str]] = {}
        for _, row in rows.iterrows():
            key = row["scale"], row["solver"]
            line = lines.setdefault(key, {"scale": f"{key[0]:g}", "method": looks[key[1]].label})
            place = f"{row['steps']} steps, {row['nfe']} NFE"
            line[place] = tables.cell(row, column)
        return pd.DataFrame(list(lines.values()))

    notes = ["TTM-2: exact derivative of the guided score; combined: the derivatives of the two (Eq. 81)"]
    if (table["jvp"] > 0).any():
        notes.append("Jacobian-vector products of both networks come on top of the NFE (column jvp)")
    notes.append(f"reference: own error {table['reference_error'].max():.1e}")
    tables.show("Mean L2 error of the end point in x at t_cut (95%)", wide(table, "error"), notes)
    tables.show(
        "Mean error as a multiple of DDIM's on the same trajectories (95%)",
        wide(table[table["solver"] != "ddim"], "ratio"),
    )
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


def draw(table: pd.DataFrame) -> Figure:
    """Draw error against steps, a panel per scale, and last the measured orders."""
    scales = list(dict.fromkeys(table["scale"]))
    looks = plots.looks(list(table["solver"]))
    columns = min(3, len(scales) + 1)
    rows = math.ceil((len(scales) + 1) / columns)
    with plots.style():
        size = (plots.WIDTH, 0.4 + 1.9 * rows)
        figure, axes = plots.panels(rows, columns, figsize=size)
        *curves, orders = list(axes.flat)[: len(scales) + 1]
        for ax in list(axes.flat)[len(scales) + 1 :]:
            ax.set_axis_off()
        ticks = sorted(set(table["steps"]))
        for i, (ax, w) in enumerate(zip(curves, scales, strict=True)):
            here = table[table["scale"] == w]
            plots.curves(
                ax, here, "steps", "error", band=("error_low", "error_high"), among=list(table["solver"])
            )
            ax.set(xscale="log", yscale="log", title=f"guidance scale $w = {w:g}$", xlabel="steps")
            ax.set_ylim(0.7 * table["error_low"].min(), 1.4 * table["error_high"].max())
            ax.set_xticks(ticks, [str(n) for n in ticks])
            ax.set_xticks([], minor=True)
            if i % columns == 0:
                ax.set_ylabel("mean $L_2$ error at $t_{cut}$")
            else:
                ax.tick_params(labelleft=False)
        per_curve = table.drop_duplicates(["scale", "solver"])
        for i, (solver, look) in enumerate(looks.items()):
            part = per_curve[per_curve["solver"] == solver]
            x = part["scale"].map(scales.index) + 0.5 * ((i + 0.5) / len(looks) - 0.5)
            interval = (part["order"] - part["order_low"], part["order_high"] - part["order"])
            orders.errorbar(
                x,
                part["order"],
                yerr=interval,
                linestyle="",
                marker=look.marker,
                markersize=3.2,
                color=look.colour,
                elinewidth=0.8,
            )
        orders.set(title="measured order", xlabel="guidance scale $w$", ylim=(0.5, 2.5))
        orders.set_xticks(range(len(scales)), [f"{w:g}" for w in scales])
        orders.set_xlim(-0.5, len(scales) - 0.5)
        orders.set_yticks([1, 2])
        orders.grid(visible=False, axis="x")
        plots.legend_below(figure, curves)
        return figure


def draw_samples(exact: list[Result], results: list[Result], steps: int, classes: int) -> Figure:
    """Draw samples, a row per scale and a column per class: TTM-2 at few steps, and exact ones."""
    scales = [r.config["scale"] for r in exact]

    few = [r for r in results if (r.config["solver"], r.config["steps"]) == ("ttm2", steps)]
    shown = {f"TTM-2, {steps} steps": few, "exact": exact}
    columns = min(classes, len(exact[0].arrays["x"]))
    with plots.style():
        width = plots.WIDTH / len(shown)
        size = (plots.WIDTH, width * len(scales) / columns + 0.25)
        figure, axes = plots.panels(1, len(shown), figsize=size, gridspec_kw={"wspace": 0.04})
        for ax, (title, cells) in zip(axes[0], shown.items(), strict=True):
            plots.sheet(ax, np.concatenate([r.arrays["x"][:columns] for r in cells]), len(scales), columns)
            ax.set_title(title)
            ax.grid(visible=False)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        height = cells[0].arrays["x"].shape[-2]
        pitch = height + max(1, height // 16)
        axes[0, 0].set_yticks(
            [0.5 * height + i * pitch for i in range(len(scales))], [f"{w:g}" for w in scales]
        )
        axes[0, 0].tick_params(left=False)
        axes[0, 0].set_ylabel("guidance scale $w$")
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("guidance", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
