"""Weak errors: how far the law of what a method makes is from the law of the data, against its cost.

Where a method adds noise, the end of a trajectory has no right place, but the samples have a right law. So
samples of every method, random or not, are compared with many exact samples of p_{t_cut} (denoised ones
with those of p_0): in mean, covariance and occupancy of the components, in sliced Wasserstein and energy
distance. As many exact samples, drawn anew, show the floor below which chance rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, add_factors, add_solvers, main, parser
from analysis.laws import Law
from analysis.rows import (
    BUDGETS,
    WHOLE,
    Row,
    add_budget,
    common,
    interval_of,
    plan,
    reasons,
    titled,
    varying,
    wide,
    word,
)
from analysis.statistics import Bootstrap
from analysis.study import Cell, run
from problems import Mixture
from problems.console import Parser, UsageError

DEFAULT = (
    "ddim",
    "ttm2",
    "dpm-solver++2m",
    "euler-maruyama",
    "ddpm",
    "ddim-eta0.5",
    "sde-dpm-solver++2m",
    "sde-dpm-solver++3m",
    "edm-churn",
    "adaptive-sde",
)

EXACT = 10_000
"""Exact samples, at least, with which samples are compared."""

RESAMPLES = 400

MEASURES = {
    "mean": "Error of the mean, in x",
    "covariance": "Error of the covariance, in proportion",
    "occupancy": "Total variation of the occupancy of components",
    "sliced": "Sliced 2-Wasserstein distance, in x",
    "energy": "Energy distance",
}


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "weak",
        "Weak errors of samples (moments, occupancy, sliced Wasserstein and energy distance) against NFE.",
        "  python -m analysis.weak\n"
        "  python -m analysis.weak --problem toy --solvers ddim ddpm sde-dpm-solver++2m --nfe 5 10 25 50\n"
        "  python -m analysis.weak --problem toy-ve --solvers ddpm-beta vesde-pc --grids linear\n"
        "  python -m analysis.weak --problem digits-mixture --samples 1000 --denoise on --grids log-snr",
    )
    add_solvers(p, DEFAULT)
    add_factors(p, None, ("quadratic",))
    add_budget(p)
    p.set_defaults(samples=2000)
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write tables and figure."""
    args = session.args
    if args.samples < 4:
        raise UsageError(f"{args.samples} samples say little of a law; type --samples 4 or more")
    rows = plan(session, args.steps or args.nfe or BUDGETS)
    measured = [i for i, row in enumerate(rows) if not row.note]
    floors = list(dict.fromkeys(rows[i].method.denoise for i in measured))
    laws = {denoised: Target(session, denoised) for denoised in floors}
    results = run("weak", _cells(session, [rows[i] for i in measured], laws), session.store, fresh=args.fresh)

    unit = "steps" if args.steps else "nfe"
    names = [name for name in MEASURES if name in results[0].arrays]
    columns: dict[str, Any] = {
        bill: [float(r.arrays[bill]) for r in results] for bill in ("nfe", "jvp", "head")
    }
    for name in names:
        for i, end in enumerate(("", "_low", "_high")):
            columns[name + end] = [float(r.arrays[name][i]) for r in results]
    lines: list[dict[str, Any]] = [
        {"solver": "exact", "form": "-", "grid": "-", "afs": False, "denoise": d, "billed": False, "note": ""}
        for d in floors
    ]
    lines += [
        {
            **row.factors,
            "random": row.method.random,
            f"{unit}_budget": row.budget,
            "steps": row.steps or None,
            "note": row.note,
        }
        for row in rows
    ]
    index = [*range(len(floors)), *(len(floors) + i for i in measured)]
    about = pd.DataFrame([{**session.config, **line} for line in lines])
    table = about.join(pd.DataFrame(columns, index=index))
    report(table, names, f"{unit}_budget", args.samples)
    return session.save(table, draw(table, names, bool(args.forms)))


@dataclass(frozen=True)
class Target:
    """The law that samples should have.

    Attributes
    ----------
    session
        The run.
    denoised
        Whether it is that of the data; else that of p_{t_cut}.
    """

    session: Session
    denoised: bool

    def draw(self, n: int, stream: int) -> Tensor:
        """Return exact samples, (n, *event), float64; another stream gives others."""
        entropy = (self.session.args.seed % 2**64, stream)
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
        )
        problem = self.session.problem
        return problem.sample(n, None if self.denoised else problem.schedule.stop, generator).double()

    def labels(self, x: Tensor) -> NDArray[np.int64] | None:
        """Return the components of a mixture that states are nearest to."""
        problem = self.session.problem
        if not isinstance(problem, Mixture) or not bool(torch.isfinite(x).all()):
            return None
        alpha = 1.0 if self.denoised else problem.schedule.alpha(problem.schedule.stop)
        parts = [problem.nearest(x[i : i + 1024] / alpha) for i in range(0, len(x), 1024)]
        return torch.cat(parts).numpy()

    @cached_property
    def law(self) -> Law:
        """The law, by a multiple of the number of samples."""
        n, problem = self.session.args.samples, self.session.problem
        y = self.draw(n * math.ceil(EXACT / n), 1)
        components = len(problem.weights) if isinstance(problem, Mixture) else 0
        return Law(y.flatten(1).numpy(), self.labels(y), components)

    def compare(self, x: Tensor) -> dict[str, Any]:
        """Return the distances of samples (samples, *event) from the law; see ``Law.compare``."""
        bootstrap = Bootstrap(len(x), RESAMPLES)
        found: dict[str, Any] = self.law.compare(x.flatten(1).numpy(), bootstrap, self.labels(x))
        if isinstance(self.session.problem, Mixture):
            found.setdefault("occupancy", np.full(3, math.inf))
        return found


def _cells(session: Session, rows: Sequence[Row], laws: dict[bool, Target]) -> list[Cell]:
    """Return the cells: one of exact samples for each law, then one for each row."""

    def exact(target: Target) -> dict[str, Any]:
        return {"nfe": 0, "jvp": 0, "head": 0, **target.compare(target.draw(session.args.samples, 2))}

    parts = (*session.parts, Bootstrap, Law, Target, made)
    floors = [
        Cell({**session.config, "solver": "exact", "denoise": denoised}, parts, partial(exact, target))
        for denoised, target in laws.items()
    ]
    return floors + [
        Cell(
            {**session.config, **row.factors, "steps": row.steps},
            (*row.method.parts, *parts),
            partial(made, session, row, laws[row.method.denoise]),
        )
        for row in rows
    ]


def made(session: Session, row: Row, target: Target) -> dict[str, Any]:
    """Measure one row: the bill, and the distances of the samples from the law that they should have.

    Parameters
    ----------
    session
        The run.
    row
        What to measure.
    target
        The law.
    """
    before = session.working.spent
    x = row.method.sample(session.working, row.steps, session.cast(session.latents()), session.noise())
    bill = session.working.spent - before
    return {**asdict(bill), **target.compare(x.double().cpu())}


def report(table: pd.DataFrame, names: Sequence[str], budget: str, samples: int) -> None:
    """Print a table for each measure, and one of the methods that choose their own steps.

    Parameters
    ----------
    table
        The tidy table.
    names
        The measures.
    budget
        The column of the budget.
    samples
        How many samples there are.
    """
    unit = "NFE" if budget == "nfe_budget" else "steps"
    floors, rows = table[table["solver"] == "exact"], table[table["solver"] != "exact"]
    given, own = rows[rows[budget].notna()], rows[rows[budget].isna()]
    if len(given):
        notes = [f"N/A: {solver} {note}" for solver, note in reasons(given)]
        if (given["jvp"] > 0).any():
            spent = ", ".join(dict.fromkeys(given["solver"][given["jvp"] > 0]))
            notes.append(f"{spent}: Jacobian-vector products come on top of the NFE (column jvp)")
        for name in names:
            floor = [
                f"exact samples{', denoised' if row['denoise'] else ''}: {interval_of(name)(row)}"
                for _, row in floors.iterrows()
            ]
            title = f"{MEASURES[name]}, {samples} samples (95%){common(given)}"
            tables.show(title, wide(given, budget, unit, interval_of(name)), [*floor, *notes])
    if len(own):
        lines = [
            {
                "solver": row["solver"],
                **{f: word(row[f]) for f in varying(own)},
                "NFE": f"{row['nfe']:.4g}",
                **{name: interval_of(name)(row) for name in names},
            }
            for _, row in own.iterrows()
        ]
        title = f"Methods that choose their own steps, {samples} samples (95%){common(own)}"
        tables.show(title, pd.DataFrame(lines))


def draw(table: pd.DataFrame, names: Sequence[str], forms: bool) -> Figure:
    """Draw every measure against NFE: a column of panels per grid, a row per measure and factor.

    Parameters
    ----------
    table
        The tidy table.
    names
        The measures.
    forms
        Whether forms are crossed.
    """
    factors = [*(["form"] if forms else []), "afs", "denoise", "billed"]
    floors = table[table["solver"] == "exact"].set_index("denoise")
    rows = table[(table["note"] == "") & (table["solver"] != "exact")]
    grids = [g for g in dict.fromkeys(rows["grid"]) if g != WHOLE.name] or [WHOLE.name]
    lines = [(v, name) for _, v in rows[factors].drop_duplicates().iterrows() for name in names]
    with plots.style():
        size = (plots.WIDTH, 0.8 + 1.8 * len(lines))
        figure, axes = plots.panels(len(lines), len(grids), figsize=size, sharex=True, sharey="row")
        for line, (variant, name) in zip(axes, lines, strict=True):
            here = rows[(rows[factors] == variant).all(axis=1) & np.isfinite(rows[name])]
            floor = floors.loc[variant["denoise"]]
            for ax, grid in zip(line, grids, strict=True):
                shown = here[here["grid"].isin([grid, WHOLE.name])]
                band = (f"{name}_low", f"{name}_high")
                plots.curves(ax, shown, "nfe", name, band=band, among=list(rows["solver"]))
                low, high = floor[f"{name}_low"], floor[f"{name}_high"]
                ax.axhspan(low, high, color="0.4", alpha=0.25, linewidth=0, label="exact samples")
                ax.set(xscale="log", yscale="log", title=titled(grid, variant))
                ax.set_ylim(bottom=0.5 * high)
                ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
                ax.set_xticks([], minor=True)
                ax.set_xlim(0.9 * rows["nfe"].min(), 1.1 * rows["nfe"].max())
            line[0].set_ylabel(name)
        for ax in axes[-1]:
            ax.set_xlabel("NFE")
        plots.legend_below(figure, list(axes.flat), columns=4)
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("weak", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
