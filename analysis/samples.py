"""What the samples look like (Figs. 2 and 12), and how many of them are where no data are.

A solver that stops too far from its trajectory leaves samples between the modes. Two shares say how many:
those outside the region that holds 99% of the exact distribution at t_cut (its highest-density region), and
those that end in another mode than the exact trajectory from the same latent. Networks, which have no
modes, get sheets of images and errors alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.command.arguments import add_decoder, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.features import is_image
from analysis.measure.statistics import Bootstrap, share
from analysis.methods import Method, chosen
from analysis.methods.table import Asked
from analysis.show import plots, tables
from analysis.study.cells import Cell, Result, Study, frame, measured
from problems import Mixture, Problem
from problems.console import Parser, UsageError, positive

REGION = 0.99
"""Mass of the highest-density region."""

DRAWS = 20_000
"""Exact samples from which its density threshold is estimated: known to 7% of the mass outside, at 2σ 14%."""

SHOWN = 16
"""Images on a sheet."""

DEFAULT = ("ddim", "ttm2")
STEPS = (5, 10, 15, 20, 25)


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument("--steps", nargs="+", type=positive, default=list(STEPS), help="numbers of solver steps")
    add_solvers(p, DEFAULT)
    add_decoder(p, "the sheets show its images")
    add_factors(p, None, ("quadratic",))
    p.add_argument("--afs", action="store_true", help="analytical first step (saves one NFE)")


def sample_shares(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    steps: Sequence[int] = STEPS,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return how far samples are from where they should be, as a tidy table.

    Parameters
    ----------
    problem
        What is solved; anything that ``Case`` takes, or a case.
    methods
        The methods; see ``analysis.methods.chosen``.
    steps
        Numbers of steps.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    A row for the exact ends (solver ``exact``, 0 steps) and for each method and number of steps: ``error``
    (mean L2 in x at t_cut) and, on mixtures, ``sparse`` (share outside the highest-density region of mass
    ``REGION``) and ``elsewhere`` (share nearest to another mean than the exact end), each with its 95%
    interval.

    Raises
    ------
    ValueError
        If there is no such problem or method, or a method cannot take so few steps.
    """
    case = case_of(problem)
    return _tabulated(case, _measured(case, chosen(methods), steps, study or Study()))


def _measured(case: Case, methods: Mapping[str, Method], steps: Sequence[int], study: Study) -> list[Result]:
    cells = [Cell({**case.config, "solver": "exact", "steps": 0}, exact_ends, {"case": case})] + [
        Cell(
            {**case.config, "solver": name, "steps": n},
            sampled_ends,
            {"case": case, "method": method, "steps": n},
            work=n,
        )
        for name, method in methods.items()
        for n in dict.fromkeys(steps)
    ]
    return measured(study.run("samples", cells))


def _tabulated(case: Case, results: list[Result]) -> pd.DataFrame:
    table = frame(results)
    mean = Bootstrap(case.samples).means(np.stack([r.arrays["error"] for r in results]))
    table["error"], table["error_low"], table["error_high"] = mean.value, mean.low, mean.high
    for column in ("sparse", "elsewhere"):
        if column in results[0].arrays:
            shares = [share(r.arrays[column].sum(), case.samples) for r in results]
            table[column], table[f"{column}_low"], table[f"{column}_high"] = zip(*shares, strict=True)
    return table


def sampled_ends(case: Case, method: Method, steps: int) -> dict[str, Any]:
    """Return where a method brings the latents, and what is to be said of it; see ``described``."""
    return described(case, case.sample(method, steps)[0])


def exact_ends(case: Case) -> dict[str, Any]:
    """Return the exact ends, described in the same way."""
    return described(case, case.exact().x[-1])


def described(case: Case, x: Tensor) -> dict[str, Any]:
    """Return samples and how they compare with the exact ends.

    Parameters
    ----------
    case
        The trajectories.
    x
        Their ends in the coordinates of the data, (samples, *event), float64.

    Returns
    -------
    Arrays by name: the states ``x`` themselves and, (samples,), their L2 distances from the exact ends; on
    mixtures, whether their density is below ``threshold``, and whether they are nearest to another mean than
    the exact end.
    """
    problem, exact, stop = case.problem, case.exact().x[-1], case.problem.schedule.stop
    arrays = {"x": x.numpy(), "error": (x - exact).flatten(1).norm(dim=1).numpy()}
    if isinstance(problem, Mixture):
        pairs = list(zip(torch.split(x, case.batch), torch.split(exact, case.batch), strict=True))
        density = torch.cat([problem.log_prob(part, stop) for part, _ in pairs])
        elsewhere = torch.cat([problem.nearest(part) != problem.nearest(end) for part, end in pairs])
        arrays |= {"sparse": (density < threshold(case)).numpy(), "elsewhere": elsewhere.numpy()}
    return arrays


@lru_cache(maxsize=8)
def threshold(case: Case) -> float:
    """Return the log-density that the share ``REGION`` of exact samples at t_cut exceeds."""
    problem, stop = case.problem, case.problem.schedule.stop
    if not isinstance(problem, Mixture):
        raise TypeError("only mixtures have a density")
    draws = problem.sample(DRAWS, stop, torch.Generator().manual_seed(case.seed))
    densities = torch.cat([problem.log_prob(part, stop) for part in torch.split(draws, case.batch)])
    return float(densities.quantile(1.0 - REGION).item())


def variants(session: Session) -> dict[str, Method]:
    """Return the methods on the forms and grids that were asked for, by names that tell them apart."""
    pairs = session.crossed()
    names = [name for name, _ in pairs]
    return {
        name if names.count(name) == 1 else f"{name}, {method.form.name}, {method.grid.name}": replace(
            method, afs=session.args.afs
        )
        for name, method in pairs
    }


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    decoder, shape = session.decoder, session.problem.event_shape
    if decoder is None and shape.numel() != 2 and not is_image(shape):
        raise UsageError(
            f"{session.case.name} has states of shape {tuple(shape)}, which cannot be shown; type --decode "
            "with a function that makes images of them"
        )
    try:
        results = _measured(session.case, variants(session), session.args.steps, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    table = _tabulated(session.case, results)
    if decoder is not None:
        images = [decoder(torch.from_numpy(r.arrays["x"][:SHOWN])).numpy() for r in results]
        results = [r._replace(arrays={"x": x}) for r, x in zip(results, images, strict=True)]
    return Outcome(table, extra=results)


def report(session: Session, outcome: Outcome) -> None:
    """Print one line per method and number of steps."""
    table = outcome.table

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


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw one panel per cell: a scatter in the plane, a sheet of images otherwise."""
    exact = [r for r in outcome.extra if r.config["solver"] == "exact"]
    rest = [r for r in outcome.extra if r.config["solver"] != "exact"]
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
        for r in exact:
            _panel(axes[0, 0], r.arrays["x"], "0.2", "exact")
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


EXPERIMENT = Experiment(
    name="samples",
    title="Samples",
    finding="What samples look like after few steps, and how many are where no data are or in a wrong mode.",
    help="Samples of the exact distribution and of solvers at few steps (Figs. 2 and 12), with shares.",
    examples=(
        "",
        "--solvers ddim ttm2 ttm3 s-pndm --steps 10 25",
        "--problem digits --samples 100 --solvers ddim ttm2 genie",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=10,
    paper="Figs. 2 and 12",
    defaults={"samples": 5000},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("samples"))
