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
from matplotlib.figure import Figure

from analysis import plots, tables
from analysis.cli import Session, main, parser
from analysis.statistics import Bootstrap
from problems.console import Parser, UsageError
from problems.images.overhead import passes, timings
from problems.images.score import Learned

LABELS = {"eps": "ε", "head": "ε and the head", "jet1": "ε, ε'", "jet2": "ε, ε', ε''", "jet3": "ε to ε'''"}


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "overhead",
        "Cost of the distilled head and of exact derivatives, in evaluations of the network (Tab. 5).",
        "  python -m analysis.overhead\n  python -m analysis.overhead --problem digits --samples 32",
    )
    p.set_defaults(problem="digits", samples=128)
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Time, then write table and figure; nothing is kept, as times belong to the moment."""
    model = session.working
    if not isinstance(model, Learned):
        raise UsageError(f"{session.args.problem} is no network; choose one, such as --problem digits")
    found = timings(passes(model, session.args.samples), session.cast(session.latents()[:1]).device)
    seconds = np.array([t.seconds for t in found.values()])
    ratio = Bootstrap(seconds.shape[1]).ratios(seconds, np.broadcast_to(seconds[0], seconds.shape))
    table = pd.DataFrame(
        {
            **session.config,
            "what": list(found),
            "median_seconds": np.median(seconds, axis=1),
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }
    )
    lines = [
        {
            "what": LABELS[row["what"]],
            "ms per pass (median)": f"{1e3 * row['median_seconds']:.2f}",
            "evaluations (95%)": tables.cell(row, "ratio"),
        }
        for _, row in table.iterrows()
    ]
    tables.show(f"Cost of a pass of {session.args.samples} samples", pd.DataFrame(lines))
    return session.save(table, draw(table))


def draw(table: pd.DataFrame) -> Figure:
    """Draw the cost of each kind of pass, with its interval."""
    with plots.style():
        figure, axes = plots.panels(1, 1)
        ax: Any = axes[0, 0]
        apart = [table["ratio"] - table["ratio_low"], table["ratio_high"] - table["ratio"]]
        ax.bar([LABELS[w] for w in table["what"]], table["ratio"], yerr=apart, color="0.7", capsize=2)
        ax.set_ylabel("evaluations of the network")
        ax.tick_params(axis="x", labelsize="small")
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("overhead", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
