"""What derivatives of a network cost: a distilled head and exact jets, in evaluations of the network.

Timed as in App. C.2.5, five passes to warm up and fifty timed ones, but all kinds of passes take turns, so
that what else the machine does is shared among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.statistics import Bootstrap
from analysis.show import plots, tables
from problems import Problem
from problems.console import Parser, UsageError
from problems.images.overhead import passes, timings
from problems.labelled import Labelled

LABELS = {"eps": "ε", "head": "ε and the head", "jet1": "ε, ε'", "jet2": "ε, ε', ε''", "jet3": "ε to ε'''"}


def arguments(p: Parser) -> None:
    """Add the arguments of this command: none."""


def derivative_costs(problem: Case | Problem | str | Path = "digits", samples: int = 128) -> pd.DataFrame:
    """Time evaluations of a network with and without derivatives, in this process; nothing is kept.

    Parameters
    ----------
    problem
        A network; anything that ``Case`` takes, or a case.
    samples
        States in a pass, where ``problem`` is no case. A pass sees ``Case.batch`` states at most.

    Returns
    -------
    A row for each kind of pass, ``what``: ``eps``, ``head`` (where the network has one), ``jet1`` to ``jet3``
    (with so many exact derivatives). Columns ``median_seconds`` per pass and ``ratio``, the mean seconds over
    those of ``eps``, with its 95% interval.

    Raises
    ------
    ValueError
        If the problem is no network.
    """
    case = problem if isinstance(problem, Case) else case_of(problem, samples=samples)
    model = case.working
    if not isinstance(model, Labelled):
        raise ValueError(f"{case.name} is no network; choose one, such as --problem digits")
    found = timings(passes(model, in_a_pass(case)), torch.device(case.device))
    seconds = np.array([t.seconds for t in found.values()])
    ratio = Bootstrap(seconds.shape[1]).ratios(seconds, np.broadcast_to(seconds[0], seconds.shape))
    return pd.DataFrame(
        {
            **case.config,
            "what": list(found),
            "median_seconds": np.median(seconds, axis=1),
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }
    )


def in_a_pass(case: Case) -> int:
    """Return how many states a pass sees."""
    return min(case.samples, case.batch)


def measure(session: Session) -> Outcome:
    """Time what was asked for; nothing is kept, as times belong to the moment."""
    try:
        return Outcome(derivative_costs(session.case))
    except ValueError as error:
        raise UsageError(str(error)) from error


def report(session: Session, outcome: Outcome) -> None:
    """Print one line per kind of pass."""
    lines = [
        {
            "what": LABELS[row["what"]],
            "ms per pass (median)": f"{1e3 * row['median_seconds']:.2f}",
            "evaluations (95%)": tables.cell(row, "ratio"),
        }
        for _, row in outcome.table.iterrows()
    ]
    tables.show(f"Cost of a pass of {in_a_pass(session.case)} samples", pd.DataFrame(lines))


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the cost of each kind of pass, with its interval."""
    table = outcome.table
    with plots.style():
        figure, axes = plots.panels(1, 1)
        ax: Any = axes[0, 0]
        apart = [table["ratio"] - table["ratio_low"], table["ratio_high"] - table["ratio"]]
        ax.bar([LABELS[w] for w in table["what"]], table["ratio"], yerr=apart, color="0.7", capsize=2)
        ax.set_ylabel("evaluations of the network")
        ax.tick_params(axis="x", labelsize="small")
        return figure


EXPERIMENT = Experiment(
    name="overhead",
    title="Cost of derivatives",
    finding="What a distilled head and exact derivatives cost, in evaluations of the network.",
    help=(
        "Cost of the distilled head and of exact derivatives, in evaluations of the network (Tab. 5).\n\n"
        "Every run measures the seconds anew, in this process: --workers and --scheduler are ignored,\n"
        "and nothing is kept in the store."
    ),
    examples=("", "--problem digits --samples 32", "--problem model.py:make"),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=13,
    paper="Table 5; App. C.2.5",
    defaults={"problem": "digits", "samples": 128},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("overhead"))
