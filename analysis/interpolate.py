"""Encoding and interpolation (Figs. 8 and 13): images to their latents, along a path between two, and back.

Pairs of images, diffused to t_cut, are sent to t = 1 by a method; the latents z₀ and z₁ are mixed such that
variance is preserved, z_b = √(1-b) z₀ + √b z₁ (Eq. 82); and the mixtures are sent back by the same method
and denoised, at the same cost each way. Every strip of images is compared with the exact one, which is what
the exact flow makes of the pair there and back. At b = 0 and b = 1 that is the pair itself, denoised, so the
error there is that of reconstruction.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from analysis.command.arguments import add_data, add_decoder, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.features import classifier, decoded, is_image
from analysis.measure.given import need_data
from analysis.measure.interpolation import exact_strips, pairs, places, strip_errors
from analysis.measure.named import Decoder
from analysis.measure.rows import Row, plan
from analysis.measure.statistics import Bootstrap
from analysis.methods import Method, chosen
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Cell, Result, Study, measured
from problems import Problem
from problems.console import Parser, UsageError, positive

DEFAULT = ("ddim", "ttm2", "s-pndm")
BUDGETS = (10, 25)

COLUMNS = 5
"""Places b that are printed, at most; all of them are in the table that is written."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, DEFAULT, heads=True)
    p.add_argument("--nfe", nargs="+", type=positive, default=list(BUDGETS), help="budgets of NFE, each way")
    p.add_argument(
        "--points", type=count, default=9, help="images of a strip, at equal distances in b from 0 to 1"
    )
    add_data(p, "images of which pairs are taken")
    add_decoder(p, "strips show its images, in which errors are measured too")


def count(text: str) -> int:
    """Read a number of images that has two ends."""
    value = positive(text)
    if value < 2:
        raise argparse.ArgumentTypeError("a strip has two ends, so at least 2 images")
    return value


class Strips(NamedTuple):
    """What was measured.

    Attributes
    ----------
    table
        The tidy table; see ``strips``.
    rows
        What could be measured within its budget.
    results
        The results of these rows.
    exact
        That of the exact strips.
    notes
        Why some rows are not among them.
    """

    table: pd.DataFrame
    rows: list[Row]
    results: list[Result]
    exact: Result
    notes: list[str]


def strips(
    problem: Case | Problem | str | Path = "digits",
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    points: int = 9,
    study: Study | None = None,
    *,
    decode: str | None = None,
) -> pd.DataFrame:
    """Return the errors of images on the paths between pairs, as a tidy table.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case. Its states must be images, or a decoder makes
        such of them; as many pairs are drawn as the case has samples.
    methods
        The methods; see ``analysis.methods.chosen``.
    nfe
        Budgets of evaluations, each way.
    points
        Images of a strip, at equal distances in b from 0 to 1.
    study
        Where results are kept; nowhere by default.
    decode
        A latent decoder of a user; see ``analysis.measure.named.Decoder``.

    Returns
    -------
    A row for each method, budget and place ``b``. Columns ``error`` (mean L2 from the state of the exact
    strip, both denoised) and ``feature_error`` (the same in decoded images, or in the features of a shipped
    classifier of such images), each with its 95% interval; ``encode_nfe``, and ``nfe``, ``jvp`` and ``head``
    of the way back; ``reference_error``. Methods that a budget does not pay for are left out.

    Raises
    ------
    ValueError
        If states are no images, a method is random or chooses its own steps, or nothing can be measured.
    """
    case = case_of(problem)
    decoder = None if decode is None else Decoder(decode, case.problem.event_shape)
    return _measured(case, chosen(methods), nfe, points, study or Study(), decoder).table


def _measured(
    case: Case,
    methods: Mapping[str, Method],
    budgets: Sequence[int],
    points: int,
    study: Study,
    decoder: Decoder | None = None,
) -> Strips:
    """Measure the exact strips, then those of every method under every budget."""
    if decoder is None and not is_image(case.problem.event_shape):
        raise ValueError(
            f"strips are made of images, which {case.name} has none of; choose another problem, "
            "such as --problem digits, or type --decode with a function that makes images of its states"
        )
    for name, method in methods.items():
        if method.adaptive and not method.random:
            raise ValueError(f"{name} chooses its own steps; leave it out of --solvers")
    planned = plan(case.problem, methods.items(), budgets, denoise="on", encode=True)
    pairs(case)  # says so if the images are not at hand
    rows = [row for row in planned if not row.note]
    features = classifier(case.problem) if decoder is None else decoded(decoder)
    config = {**case.config, "points": points}
    about = {**config, "solver": "exact", "encode_steps": 0, "steps": 0}
    (exact,) = measured(
        study.run("interpolate", [Cell(about, exact_strips, {"case": case, "points": points})])
    )
    cells = [
        Cell(
            {**config, "solver": row.solver, "encode_steps": row.encode_steps, "steps": row.steps},
            strip_errors,
            {
                "case": case,
                "method": row.method,
                "encode_steps": row.encode_steps,
                "steps": row.steps,
                "target": exact.arrays["strips"],
                "features": features,
            },
        )
        for row in rows
    ]
    results = study.run("interpolate", cells)
    kept = {id(result) for result in measured(results)}
    rows = [row for row, result in zip(rows, results, strict=True) if id(result) in kept]
    results = [result for result in results if id(result) in kept]
    notes = [f"N/A: {row.solver} {row.note}" for row in planned if row.note]
    table = tabulated(rows, results, float(exact.arrays["error"]))
    if decoder is not None:
        exact, *results = (_pictured(decoder, result) for result in (exact, *results))
    return Strips(table, rows, results, exact, notes)


def _pictured(decoder: Decoder, result: Result) -> Result:
    """Return a result with the images of its first strip instead of the states."""
    first = result.arrays["strip"] if "strip" in result.arrays else result.arrays["strips"][:, 0]
    images = decoder(torch.from_numpy(first)).numpy()
    return result._replace(arrays={"strip": images, "strips": images[:, None]})


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    session = session.usual(DEFAULT)
    args = session.args
    try:
        need_data(session.case)
        found = _measured(
            session.case, session.methods(), args.nfe, args.points, session.study, session.decoder
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(found.table, extra=found)


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


def report(session: Session, outcome: Outcome) -> None:
    """Print the errors, a line per method and budget, a column per place."""
    table = outcome.table
    looks = plots.looks(list(table["solver"]))
    every = sorted(set(table["b"]))
    printed = {every[round(i)] for i in np.linspace(0, len(every) - 1, min(len(every), COLUMNS))}
    rows = table[table["b"].isin(printed)].sort_values("nfe_budget", kind="stable")

    def wide(measure: str) -> pd.DataFrame:
        return tables.pivot(
            rows,
            lambda row: {"NFE": f"{row['nfe_budget']}", "method": looks[row["solver"]].label},
            lambda row: f"b = {row['b']:.3g}",
            partial(tables.cell, name=measure),
        )

    notes = [*outcome.extra.notes, "b = 0 and b = 1 are the pair itself, encoded and decoded"]
    if (table["jvp"] > 0).any():
        notes.append("Jacobian-vector products come on top of the NFE (column jvp)")
    notes.append(f"reference: own error {table['reference_error'][0]:.1e}")
    decode = session.args.decode
    what = "images" if decode is None else "states, before decoding"
    tables.show(f"Mean L2 error of interpolated {what}, NFE each way (95%)", wide("error"), notes)
    if "feature_error" in table:
        seen = "features of the classifier" if decode is None else "decoded images"
        tables.show(f"The same in the {seen}, mean (95%)", wide("feature_error"))


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw, for every budget, the strips of the first pair, the exact one on top, and the errors over b."""
    table, rows, results, exact, _ = outcome.extra
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


EXPERIMENT = Experiment(
    name="interpolate",
    title="Interpolation",
    finding="How well images and those on the path between two survive encoding, mixing and decoding.",
    help="Interpolation of latents (Eq. 82; Figs. 8 and 13): pairs of images are encoded, mixed and decoded.",
    examples=(
        "",
        "--samples 10 --points 5 --nfe 5 --solvers ddim ttm2",
        "--problem digits-mixture --solvers ddim ttm2 ttm3 ab2 --nfe 15",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=17,
    paper="Figs. 8 and 13; Eq. 82",
    defaults={"problem": "digits", "samples": 50},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("interpolate"))
