"""How far samples end from the circle on which they should: an experiment."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.api import Bootstrap, Case, Cell, Experiment, Method, Outcome, Session, frame, measured
from analysis.command.arguments import add_solvers
from analysis.show import plots, tables
from genie_bench_example.features import norms
from problems.console import Parser, positive


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, ("ddim", "heun", "ralston3"))
    p.add_argument("--steps", nargs="+", type=positive, default=[6, 12, 24], help="numbers of steps")


def radial_error(case: Case, method: Method, steps: int) -> dict[str, Any]:
    """Measure | |x| - |x*| | of every trajectory, x* its exact end; (samples,)."""
    ends, bill = case.sample(method, steps)
    return {"error": (norms(ends) - norms(case.exact().x[-1])).abs().flatten().numpy(), "nfe": bill.nfe}


def measure(session: Session) -> Outcome:
    """Measure every method with every number of steps."""
    cells = [
        Cell(
            {**session.config, "solver": name, "steps": steps},
            radial_error,
            {"case": session.case, "method": method, "steps": steps},
        )
        for name, method in session.methods().items()
        for steps in session.args.steps
    ]
    results = measured(session.study.run("radial", cells))
    mean = Bootstrap(session.case.samples).means(np.stack([r.arrays["error"] for r in results]))
    return Outcome(frame(results, nfe=[int(r.arrays["nfe"]) for r in results], **mean.columns("error")))


def report(session: Session, outcome: Outcome) -> None:
    """Print a line for each method."""
    wide = tables.pivot(
        outcome.table,
        lambda row: {"solver": row["solver"]},
        lambda row: f"{row['steps']} steps",
        lambda row: tables.cell(row, "error"),
    )
    tables.show("Mean radial error at t_cut (95%)", wide)


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the error against evaluations."""
    with plots.style():
        figure, axes = plots.panels(1, 1, figsize=(3.25, 2.6))
        plots.curves(axes[0, 0], outcome.table, "nfe", "error", band=("error_low", "error_high"))
        axes[0, 0].set(xscale="log", yscale="log", xlabel="NFE", ylabel="mean radial error")
        plots.legend_below(figure, [axes[0, 0]], columns=3)
        return figure


RADIAL = Experiment(
    name="radial",
    title="Radial error",
    finding="How far samples end from the circle on which they should.",
    help="Radial error at t_cut against the number of steps.",
    examples=("--samples 200", "--solvers ddim ttm2 --steps 5 10 20"),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    defaults={"problem": "ring"},
)
