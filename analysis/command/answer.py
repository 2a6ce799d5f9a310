"""What is to be typed to run the best of a race: lines of this suite, and code for diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis.command.session import Session
from analysis.measure.case import Case
from analysis.measure.rows import Row
from analysis.measure.schedulers import (
    Equal,
    equal_to,
    installed,
    levels_of,
    plain_unet,
    prediction_type,
)
from analysis.methods import FLOWS
from analysis.show import tables, typed
from analysis.study.cells import Study
from problems import Network


class Answer(NamedTuple):
    """What is to be typed to run the best of a budget.

    Attributes
    ----------
    budget
        The budget.
    best
        The best.
    equal
        The best that a scheduler of diffusers is, and that scheduler; None if there is none among the
        finalists, or no diffusers.
    place
        Which of the finalists that is.
    """

    budget: int
    best: Row
    equal: tuple[Row, Equal] | None = None
    place: int = 0


def answered(case: Case, budget: int, rows: Sequence[Row], study: Study) -> Answer:
    """Find the first of the finalists, the best first, that a scheduler of diffusers is."""
    for place, row in enumerate(rows):
        if (equal := equal_to(case, row.method, row.steps, study)) is not None:
            return Answer(budget, rows[0], (row, equal), place)
    return Answer(budget, rows[0])


def to_type(session: Session, answer: Answer, other: Any, title: str) -> None:
    """Print what runs the best: a line and code of this suite, its noise levels, and code for diffusers.

    Parameters
    ----------
    session
        The run.
    answer
        What is the best, and what diffusers has.
    other
        The row of the table of what diffusers has.
    title
        The budget in words.
    """
    problem, typed_problem = session.problem, session.args.problem
    best, method = answer.best, answer.best.method
    name = f"{best.solver}, {method.form.name}, {method.grid.name}"
    line = {
        "problem": typed_problem,
        "plugin": [str(file) for file in session.args.plugin or ()],
        "solvers": best.solver,
        "forms": method.form.name if method.form.name in FLOWS else (),
        "grids": method.grid.name,
        "afs": method.afs,
        "steps": best.steps,
        "samples": 100,
    }
    tables.show_code(f"{title}: {name}, from a terminal", typed.command("samples", line), "sh")
    levels = levels_of(problem, method, best.steps)
    told = "what the network is told there" if isinstance(problem, Network) else "the times there"
    code = typed.library(
        typed_problem, best.solver, method.form.name, method.grid.name, method.afs, best.steps
    )
    where = f"# sigma/alpha at every evaluation and at the end (sigma of EDM and k-diffusion), and {told}"
    listed = typed.levels(levels.sigmas, levels.told)
    tables.show_code(f"{title}: {name}, as a library", f"{code}\n\n{where}\n{listed}", "python")
    if answer.equal is None:
        tables.say(f"{title}: {without(answer)}")
        return
    row, equal = answer.equal
    if answer.place:
        theirs = f"{row.solver}, {row.method.form.name}, {row.method.grid.name}"
        tables.say(
            f"{title}: no scheduler of diffusers is known to end where {name} ends; the best of the race "
            f"of which one does is {theirs}, at "
            f"{tables.cell(other, 'ratio')} times the best (95%)"
        )
    heading = (
        f"{title}: {equal.scheduler.name} of diffusers, whose end points are the same to {equal.apart:.0e}"
    )
    tables.show_code(heading, diffusers_code(session, row, equal), "python")


def without(answer: Answer) -> str:
    """Return why there is no code for diffusers."""
    if not installed():
        return "diffusers is not installed, so no scheduler was run; pip install 'genie-bench[models]'"
    best = answer.best
    name = f"{best.solver}, {best.method.form.name}, {best.method.grid.name}"
    return f"no scheduler of diffusers is known to end where {name} ends, nor where another finalist does"


def diffusers_code(session: Session, row: Row, equal: Equal) -> str:
    """Return the code of a scheduler that is the method of a row."""
    problem, scheduler = session.problem, equal.scheduler
    subfolder = plain_unet(session.args.problem)
    levels = levels_of(problem, row.method, row.steps)
    times = levels.times if subfolder is None else levels.told
    kind = "epsilon" if subfolder is None else prediction_type(problem)
    return typed.diffusers(
        scheduler.name,
        {"prediction_type": kind, **dict(scheduler.options)},
        problem.event_shape,
        problem=session.args.problem,
        subfolder=subfolder,
        double=session.case.dtype == "float64",
        visited=None if scheduler.nodes is not None else (levels.sigmas, times),
        inference=row.steps + (scheduler.nodes or 0),
        raised=scheduler.raised,
    )
