"""What the samples look like (Figs. 2 and 12), and how many of them are where no data are.

A solver that stops too far from its trajectory leaves samples between the modes. Two shares say how many:
those outside the region that holds 99% of the exact distribution at t_cut (its highest-density region), and
those that end in another mode than the exact trajectory from the same latent. Networks, which have no
modes, get sheets of images and errors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, add_solvers, main, parser
from analysis.methods import Method
from analysis.reference import reference
from analysis.statistics import Bootstrap, share
from analysis.study import Cell, Result, frame, run
from problems import Mixture
from problems.console import Parser, positive

REGION = 0.99
"""Mass of the highest-density region."""

DRAWS = 20_000
"""Exact samples from which its density threshold is estimated: known to 7% of the mass outside, at 2σ 14%."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "samples",
        "Samples of the exact distribution and of solvers at few steps (Figs. 2 and 12), with shares.",
        "  python -m analysis.samples\n"
        "  python -m analysis.samples --solvers ddim ttm2 ttm3 s-pndm --steps 10 25\n"
        "  python -m analysis.samples --problem digits --samples 100 --solvers ddim ttm2 genie",
    )
    p.set_defaults(samples=5000)
    p.add_argument(
        "--steps", nargs="+", type=positive, default=[5, 10, 15, 20, 25], help="numbers of solver steps"
    )
    add_solvers(p, ("ddim", "ttm2"))
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    args, problem = session.args, session.problem
    methods = session.methods()
    stop = problem.schedule.stop

    @cache
    def start() -> Tensor:
        return session.latents()

    @cache
    def exact() -> Tensor:
        return reference(problem, start(), (problem.schedule.start, stop)).x[-1]

    @cache
    def threshold(problem: Mixture) -> float:
        generator = torch.Generator().manual_seed(args.seed)
        draws = torch.split(problem.sample(DRAWS, stop, generator), 1000)
        densities = torch.cat([problem.log_prob(part, stop) for part in draws])
        return float(densities.quantile(1.0 - REGION).item())

    def describe(x: Tensor) -> dict[str, Any]:
        x = x.double().cpu()
        arrays = {"x": x.numpy(), "error": (x - exact()).flatten(1).norm(dim=1).numpy()}
        if isinstance(problem, Mixture):
            arrays["sparse"] = (problem.log_prob(x, stop) < threshold(problem)).numpy()
            arrays["elsewhere"] = (problem.nearest(x) != problem.nearest(exact())).numpy()
        return arrays

    def sample(method: Method, steps: int) -> dict[str, Any]:
        return describe(method.sample(session.working, steps, session.cast(start()), session.noise()))

    parts = (*session.parts, describe)
    cells = [Cell({**session.config, "solver": "exact", "steps": 0}, parts, lambda: describe(exact()))] + [
        Cell(
            {**session.config, "solver": name, "steps": steps},
            (*method.parts, *parts),
            partial(sample, method, steps),
        )
        for name, method in methods.items()
        for steps in dict.fromkeys(args.steps)
    ]
    results = run("samples", cells, session.store, fresh=args.fresh)
    table = frame(results)
    mean = Bootstrap(args.samples).means(np.stack([r.arrays["error"] for r in results]))
    table["error"], table["error_low"], table["error_high"] = mean.value, mean.low, mean.high
    for column in ("sparse", "elsewhere"):
        if column in results[0].arrays:
            shares = [share(r.arrays[column].sum(), args.samples) for r in results]
            table[column], table[f"{column}_low"], table[f"{column}_high"] = zip(*shares, strict=True)
    report(table)
    return session.save(table, draw(results))


def report(table: pd.DataFrame) -> None:
    """Print one line per method and number of steps."""

    def percent(row: Any, column: str) -> str:
        low, high = 100 * row[f"{column}_low"], 100 * row[f"{column}_high"]
        return f"{100 * row[column]:.2f} [{low:.2f}, {high:.2f}]"

    shares = {"sparse": "% outside the data (95%)", "elsewhere": "% in another mode (95%)"}
    known = {column: title for column, title in shares.items() if column in table}
    lines = [
        {
            "solver": row["solver"],
            "steps": row["steps"] or "-",
            "mean error (95%)": tables.cell(row, "error"),
            **{title: percent(row, column) for column, title in known.items()},
        }
        for _, row in table.iterrows()
    ]
    notes = [
        f"outside the data: below the density that holds {REGION:.0%} of the exact distribution at t_cut",
        "in another mode: nearest to another mean than the exact trajectory from the same latent",
    ]
    tables.show(
        "Samples, and how far from the exact ends they are", pd.DataFrame(lines), notes if known else []
    )


def draw(results: list[Result]) -> Figure:
    """Draw one panel per cell: a scatter in the plane, a sheet of images otherwise."""
    exact, *rest = results
    solvers = list(dict.fromkeys(r.config["solver"] for r in rest))
    steps = list(dict.fromkeys(r.config["steps"] for r in rest))
    looks = plots.looks(solvers)
    with plots.style():
        columns = len(steps) + 1
        figure, axes = plots.panels(
            len(solvers), columns, figsize=(plots.WIDTH, plots.WIDTH / columns * len(solvers) + 0.2)
        )
        for ax in axes.flat:
            ax.set_axis_off()
        _panel(axes[0, 0], exact.arrays["x"], "0.2", "exact")
        for r in rest:
            look = looks[r.config["solver"]]
            ax = axes[solvers.index(r.config["solver"]), 1 + steps.index(r.config["steps"])]
            _panel(ax, r.arrays["x"], look.colour, f"{look.label}, {r.config['steps']}")
        return figure


def _panel(ax: Any, x: Any, colour: str, title: str) -> None:
    ax.set_title(title)
    if x[0].size == 2:
        ax.scatter(x[:, 0], x[:, 1], s=0.4, color=colour, linewidths=0, rasterized=True)
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
        return
    plots.sheet(ax, x, 4, 4)


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("samples", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
