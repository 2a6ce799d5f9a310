"""Encoding and interpolation (Figs. 8 and 13): images to their latents, along a path between two, and back.

Pairs of images, diffused to t_cut, are sent to t = 1 by a method; the latents z₀ and z₁ are mixed such that
variance is preserved, z_b = √(1-b) z₀ + √b z₁ (Eq. 82); and the mixtures are sent back by the same method
and denoised, at the same cost each way. Every strip of images is compared with the exact one, which is what
the exact flow makes of the pair there and back. At b = 0 and b = 1 that is the pair itself, denoised, so the
error there is that of reconstruction.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
from analysis.cli import Session, add_solvers, main, parser
from analysis.features import Features, classifier
from analysis.reference import reference
from analysis.rows import Row
from analysis.statistics import Bootstrap
from analysis.study import Cell, Result, run
from problems import Problem, denoise
from problems.console import Parser, UsageError, positive

DEFAULT = ("ddim", "ttm2", "s-pndm")

COLUMNS = 5
"""Places b that are printed, at most; all of them are in the table that is written."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "interpolate",
        "Interpolation of latents (Eq. 82; Figs. 8 and 13): pairs of images are encoded, mixed and decoded.",
        "  python -m analysis.interpolate\n"
        "  python -m analysis.interpolate --samples 10 --points 5 --nfe 5 --solvers ddim ttm2\n"
        "  python -m analysis.interpolate --problem digits-mixture --solvers ddim ttm2 ttm3 ab2 --nfe 15",
    )
    add_solvers(p, DEFAULT, heads=True)
    p.set_defaults(problem="digits", samples=50)
    p.add_argument("--nfe", nargs="+", type=positive, default=[10, 25], help="budgets of NFE, each way")
    p.add_argument(
        "--points", type=count, default=9, help="images of a strip, at equal distances in b from 0 to 1"
    )
    return p


def count(text: str) -> int:
    """Read a number of images that has two ends."""
    value = positive(text)
    if value < 2:
        raise argparse.ArgumentTypeError("a strip has two ends, so at least 2 images")
    return value


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    session = session.usual(DEFAULT)
    args, problem = session.args, session.problem
    if len(problem.event_shape) != 3:
        raise UsageError(
            f"strips are made of images, which {args.problem} has none of; choose another problem, "
            "such as --problem digits"
        )
    rows, notes = plan(session)
    pairs = problem.sample(2 * args.samples, problem.schedule.stop, torch.Generator().manual_seed(args.seed))
    seen = classifier(problem)
    config = {**session.config, "points": args.points}

    cell = Cell(
        {**config, "solver": "exact", "encode_steps": 0, "steps": 0},
        (*session.parts, exact_strips),
        lambda: exact_strips(problem, pairs, args.points),
    )
    (exact,) = run("interpolate", [cell], session.store, fresh=args.fresh)
    target = torch.from_numpy(exact.arrays["strips"])
    cells = [
        Cell(
            {**config, "solver": row.solver, "encode_steps": row.encode_steps, "steps": row.steps},
            (*row.method.parts, *session.parts, strips),
            partial(strips, session, row, pairs, target, seen),
        )
        for row in rows
    ]
    results = run("interpolate", cells, session.store, fresh=args.fresh)
    table = tabulated(rows, results, float(exact.arrays["error"]))
    report(table, notes)
    return session.save(table, draw(table, rows, results, exact))


def plan(session: Session) -> tuple[list[Row], list[str]]:
    """Return the rows of the study, and the reasons why some are not among them.

    Raises
    ------
    UsageError
        If no row can be measured, or a method cannot do what is asked for.
    """
    rows, reasons = [], []
    for name, method in session.methods().items():
        if method.random or method.adaptive:
            why = "is stochastic and cannot encode" if method.random else "chooses its own steps"
            raise UsageError(f"{name} {why}; leave it out of --solvers")
        back = replace(method, denoise=True)
        for budget in dict.fromkeys(session.args.nfe):
            try:
                there, steps = (way.steps(session.problem, budget) for way in (method, back))
                rows.append(Row(name, back, budget, steps=steps, encode_steps=there))
            except ValueError as reason:
                reasons.append(f"{name} {reason}")
    if not rows:
        raise UsageError(f"nothing can be measured: {reasons[-1]}; type a larger number")
    return rows, [f"N/A: {reason}" for reason in reasons]


def places(points: int) -> list[float]:
    """Return the places b in [0, 1] of the images of a strip."""
    return [i / (points - 1) for i in range(points)]


def mixed(latents: Tensor, points: int) -> Tensor:
    """Return the latents z_b = √(1-b) z₀ + √b z₁ along the paths between pairs (Eq. 82).

    Parameters
    ----------
    latents
        The latents z₀ of all pairs and then z₁, shape (2n, *event).
    points
        Number of places b.

    Returns
    -------
    Tensor of shape (points, n, *event). The squares of the two weights add up to one, so latents that are
    independent and normal have mixtures that are normal with the same variance.
    """
    first, second = latents.chunk(2)
    return torch.stack([(1.0 - b) ** 0.5 * first + b**0.5 * second for b in places(points)])


def exact_strips(problem: Problem, pairs: Tensor, points: int) -> dict[str, Any]:
    """Return what the exact flow makes of pairs of images, there and back.

    Parameters
    ----------
    problem
        The problem.
    pairs
        States at t_cut, the first of all pairs and then the second, shape (2n, *event), float64.
    points
        Number of images in a strip.

    Returns
    -------
    Arrays by name: the denoised strips (points, n, *event), whose ends are those of the denoised pairs; the
    error of the reference, which is the larger of two: the one that it states for the way back, and the
    distance (L2, the largest) by which it missed the pairs.
    """
    start, stop = problem.schedule.start, problem.schedule.stop
    latents = reference(problem, pairs, (stop, start)).x[-1]
    between = mixed(latents, points)
    decoded = reference(problem, between.flatten(0, 1), (start, stop))
    found = denoise(problem, decoded.x[-1], stop).reshape(between.shape)
    ends = torch.stack(denoise(problem, pairs, stop).chunk(2))
    missed = float((found[[0, -1]] - ends).flatten(2).norm(dim=2).max())
    found[[0, -1]] = ends
    return {"strips": found.numpy(), "error": np.array(max(decoded.error, missed))}


def strips(
    session: Session, row: Row, pairs: Tensor, target: Tensor, seen: Features | None
) -> dict[str, Any]:
    """Measure one row: how far the images of its strips are from those of the exact ones.

    Parameters
    ----------
    session
        The run.
    row
        What to measure.
    pairs
        States at t_cut, the first of all pairs and then the second, shape (2n, *event), float64.
    target
        The exact strips, (points, n, *event), float64.
    seen
        Features of images, in which errors are measured too.

    Returns
    -------
    Arrays by name: the L2 errors (points, n), those in features, the strip of the first pair, the NFE of the
    way there, the bill of the way back.
    """
    score, before = session.working, session.working.spent
    latents = row.method.encode(score, row.encode_steps, session.cast(pairs))
    there = score.spent - before
    between = mixed(latents, len(target))
    found = row.method.sample(score, row.steps, between.flatten(0, 1)).double().cpu()
    back = score.spent - before - there
    found = found.reshape(target.shape)
    arrays: dict[str, Any] = {
        "error": (found - target).flatten(2).norm(dim=2).numpy(),
        "strip": found[:, 0].numpy(),
        "encode_nfe": there.nfe,
        **asdict(back),
    }
    if seen is not None:
        apart = seen.of(found.flatten(0, 1)) - seen.of(target.flatten(0, 1))
        arrays["feature_error"] = apart.norm(dim=1).reshape(target.shape[:2]).numpy()
    return arrays


def tabulated(rows: Sequence[Row], results: Sequence[Result], reference_error: float) -> pd.DataFrame:
    """Return the tidy table, a line for every place b of every row."""
    points, samples = results[0].arrays["error"].shape
    bills = ("encode_nfe", "nfe", "jvp", "head")
    table = pd.DataFrame(
        [
            {
                **result.config,
                "nfe_budget": row.budget,
                "b": b,
                **{bill: int(result.arrays[bill]) for bill in bills},
            }
            for row, result in zip(rows, results, strict=True)
            for b in places(points)
        ]
    )
    for measure in ("error", "feature_error"):
        if measure in results[0].arrays:
            interval = Bootstrap(samples).means(np.concatenate([r.arrays[measure] for r in results]))
            table = table.assign(**interval.columns(measure))
    return table.assign(reference_error=reference_error)


def report(table: pd.DataFrame, notes: Sequence[str]) -> None:
    """Print the errors, a line per method and budget, a column per place."""
    looks = plots.looks(list(table["solver"]))
    every = sorted(set(table["b"]))
    printed = {every[round(i)] for i in np.linspace(0, len(every) - 1, min(len(every), COLUMNS))}

    def wide(measure: str) -> pd.DataFrame:
        lines: dict[tuple[int, str], dict[str, str]] = {}
        for _, row in table[table["b"].isin(printed)].sort_values("nfe_budget", kind="stable").iterrows():
            key = row["nfe_budget"], row["solver"]
            line = lines.setdefault(key, {"NFE": f"{key[0]}", "method": looks[key[1]].label})
            cell = tables.cell(row, measure)
            line[f"b = {row['b']:.3g}"] = cell
        return pd.DataFrame(list(lines.values()))

    notes = [*notes, "b = 0 and b = 1 are the pair itself, encoded and decoded"]
    if (table["jvp"] > 0).any():
        notes.append("Jacobian-vector products come on top of the NFE (column jvp)")
    notes.append(f"reference: own error {table['reference_error'][0]:.1e}")
    tables.show("Mean L2 error of interpolated images, NFE each way (95%)", wide("error"), notes)
    if "feature_error" in table:
        title = "The same in the features of the digits classifier, mean (95%)"
        tables.show(title, wide("feature_error"))


def draw(table: pd.DataFrame, rows: Sequence[Row], results: Sequence[Result], exact: Result) -> Figure:
    """Draw, for every budget, the strips of the first pair, the exact one on top, and the errors over b."""
    looks = plots.looks(list(table["solver"]))
    budgets = sorted(set(table["nfe_budget"]))
    points, height = exact.arrays["strips"].shape[0], exact.arrays["strips"].shape[-2]
    shown = [
        {r.solver: result.arrays["strip"] for r, result in zip(rows, results, strict=True) if r.budget == nfe}
        for nfe in budgets
    ]
    with plots.style():
        share = 0.56 * plots.WIDTH / points
        heights = [max(1.5, share * (1 + len(strips)) + 0.4) for strips in shown]
        figure, axes = plots.panels(
            len(budgets),
            2,
            figsize=(plots.WIDTH, 0.4 + sum(heights)),
            width_ratios=[1.9, 1.0],
            height_ratios=heights,
        )
        for (sheet, curve), nfe, strips in zip(axes, budgets, shown, strict=True):
            solvers = [solver for solver in looks if solver in strips]
            labels = ["exact", *(looks[solver].label for solver in solvers)]
            images = np.concatenate([exact.arrays["strips"][:, 0], *(strips[s] for s in solvers)])
            plots.sheet(sheet, images, len(labels), points)
            pitch = height + max(1, height // 16)
            sheet.set_yticks([0.5 * height - 0.5 + i * pitch for i in range(len(labels))], labels)
            sheet.set_xticks(
                [0.5 * height - 0.5 + i * pitch * (points - 1) for i in (0.0, 1.0)], ["$b = 0$", "$b = 1$"]
            )
            sheet.set_title(f"{nfe} NFE each way")
            sheet.tick_params(length=0)
            sheet.grid(visible=False)
            sheet.spines[:].set_visible(False)
            here = table[table["nfe_budget"] == nfe]
            band = ("error_low", "error_high")
            plots.curves(curve, here, "b", "error", band=band, among=list(table["solver"]))
            curve.set(yscale="log", ylabel="mean $L_2$ error")
            curve.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "¼", "½", "¾", "1"])
            curve.set_ylim(0.8 * table["error_low"].min(), 1.25 * table["error_high"].max())
        axes[-1, 1].set_xlabel("$b$")
        plots.legend_below(figure, list(axes[:, 1]))
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("interpolate", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
