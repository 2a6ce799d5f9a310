"""The order certificate: the order that every method declares, and the order that it shows.

Every solver runs on every form and grid with more and more steps, and the slope of its mean error at the end
against the size of its steps is taken over the last doubling. A certificate passes if the slope has settled,
which means that it moves by at most 0.25 from one doubling to the next, and lies within 0.25 of the declared
order. One that would not pass is measured with up to sixteen times as many steps. A slope that has
not settled by then is shown with its range; it is no failure, and says nothing of the order.

There are two intervals. ``prior`` is that on which people sample, the whole schedule, [1, 0.001];
``interior`` is [0.3, 0.1], from states inside the flow. First steps of a low order are felt on the latter. At
t = 1 they are not, as ε(x, t) is x up to 4e-6 and they are all but exact (but for the form dx/dt), so that
the order declared there is that of the other steps.

A random method gets two certificates. Its order is that of the law at the end, so it is measured by mean
and covariance on one Gaussian, which an affine recursion has exactly (``analysis.recursion``). Its strong
order is that of the end of every trajectory, and is measured like that of a method without noise: all are on
the same Brownian paths, and the solution there is one of many more steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.orders import (
    INTERIOR,
    POINTS,
    SETTLED,
    TOLERANCE,
    Certificate,
    by_ends,
    by_moments,
    by_paths,
    certificates,
    doublings,
    fitted,
    intervals,
    ladder,
    obstacle,
    verdict,
)
from analysis.methods import (
    FLOWS,
    GRIDS,
    METHODS,
    Coordinates,
    Grid,
    Method,
    chosen,
    chosen_forms,
    chosen_grids,
    crossed,
)
from analysis.methods.table import Asked
from analysis.show import certificates as certificates_of
from analysis.show import tables
from analysis.show.published import CLAIMS
from analysis.study.cells import Cell, Study, frame
from problems import Problem, smooth_mixture
from problems.console import Parser, UsageError, positive

FINE = replace(METHODS["sde-dpm-solver++2m"], grid=GRIDS["log-snr"])
"""The method of the solution to which methods for the reverse SDE are compared on their paths."""

CERTIFIED_GRIDS = ("linear", "quadratic", "log-snr", "edm", "rough")
UNSETTLED = (
    f"the slope still moves by more than {SETTLED:g}, or its interval reaches the order, or a last step is "
    "not felt yet, or neighbouring steps still differ; from, to: its range"
)
"""What is said below slopes that have not settled."""

FAILED = 3
"""Exit code if a certificate fails."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    smooth = smooth_mixture()
    add_solvers(p, [name for name, method in METHODS.items() if not obstacle(method, smooth)])
    add_factors(p, FLOWS, CERTIFIED_GRIDS)
    p.add_argument(
        "--start",
        type=float,
        help="time at which a single interval begins, in the place of both (0.3 with --stop alone)",
    )
    p.add_argument("--stop", type=float, help="time at which it ends (0.1 with --start alone)")
    p.add_argument("--finest", type=positive, default=96, help="largest number of steps")


def certify(
    methods: Asked | Sequence[Asked] | Mapping[str, Method],
    problem: Case | Problem | str | Path = "smooth",
    *,
    interval: tuple[float, float] | None = None,
    forms: Sequence[str | Coordinates] = FLOWS,
    grids: Sequence[str | Grid] = CERTIFIED_GRIDS,
    finest: int = 96,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return order certificates as a tidy table: a row for each method, form, grid, interval and kind.

    Parameters
    ----------
    methods
        A solver, a method, a name, several of them, or methods by name.
    problem
        What is solved; anything that ``Case`` takes, with 256 samples, or a case.
    interval
        Times at which a single interval begins and ends; by default there are two, ``prior``, which is the
        whole schedule, and ``interior``, [0.3, 0.1].
    forms, grids
        With which methods are crossed; one of an ideal or a stochastic form keeps it.
    finest
        The largest number of steps to begin with.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    Columns ``interval``, ``order`` (declared, on this form, grid and interval), ``slope`` with its 95%
    interval, ``verdict``: ``pass`` if the slope has settled and lies within 0.25 of the order, ``FAIL`` if it
    has and does not, ``unsettled`` if it has not, with its range over the doublings of the steps in the
    columns ``least`` and ``most``, ``rounding`` where there is no slope.

    Raises
    ------
    ValueError
        If a method has no order that could be seen, or the interval or ``finest`` makes no sense.
    """
    case = problem if isinstance(problem, Case) else case_of(problem, samples=256)
    for name, method in chosen(methods).items():
        if reason := obstacle(method, case.problem):
            raise ValueError(f"{name} cannot be certified: {reason}")
    pairs = crossed(chosen(methods), chosen_forms(forms), chosen_grids(grids))
    return certified(case, pairs, interval, finest, study or Study())


def certified(
    case: Case,
    methods: Sequence[tuple[str, Method]],
    interval: tuple[float, float] | None,
    finest: int,
    study: Study,
) -> pd.DataFrame:
    """Return the certificates of methods on their forms and grids; see ``certify``."""
    if len(ladder(finest)) < POINTS:
        raise ValueError(f"--finest {finest} leaves no room for a fit; type --finest 16 or more")
    schedule = case.problem.schedule
    chosen = {f"{interval[0]:g} to {interval[1]:g}": interval} if interval else intervals(schedule)
    try:
        parts = {name: case.between(*ends) for name, ends in chosen.items()}
    except ValueError as error:
        raise ValueError(f"--start and --stop are out of range: {error}") from None
    wanted = [
        (span, c)
        for name, method in methods
        for span, (start, _) in chosen.items()
        for c in certificates(name, method, schedule, start)
    ]
    results = study.run("orders", [_cell(parts[span], c, span, finest) for span, c in wanted])
    found = [(*asked, r) for asked, r in zip(wanted, results, strict=True) if not r.failure]
    if not found:
        raise ArithmeticError(f"nothing could be measured: {results[0].failure}")
    fits = [fitted(r) for *_, r in found]
    slopes = [doublings(r.arrays) for *_, r in found]
    return frame(
        [r for *_, r in found],
        solver_order=[c.solver_order for _, c, _ in found],
        order=[c.shown(fit.value) for (_, c, _), fit in zip(found, fits, strict=True)],
        slope=[fit.value for fit in fits],
        slope_low=[fit.low for fit in fits],
        slope_high=[fit.high for fit in fits],
        least=[min(s, default=math.nan) for s in slopes],
        most=[max(s, default=math.nan) for s in slopes],
        steps=[int(r.arrays["steps"].max()) for *_, r in found],
        error=[float(r.arrays["error"][0].mean()) for *_, r in found],
        verdict=[
            verdict(c, parts[span].problem, fit, r) for (span, c, r), fit in zip(found, fits, strict=True)
        ],
        reference_error=[float(r.arrays["reference_error"]) for *_, r in found],
    )


def _cell(case: Case, c: Certificate, interval: str, finest: int) -> Cell:
    """Return the cell of a certificate."""
    schedule = case.problem.schedule
    about = {
        **case.config,
        "solver": c.name,
        "form": c.method.form.name,
        "grid": c.method.grid.name,
        "kind": c.kind,
        "against": c.against,
        "interval": interval,
        "start": schedule.start,
        "stop": schedule.stop,
        "finest": finest,
    }
    common = {"method": c.method, "order": c.order, "finest": finest}
    if c.kind == "moments":
        return Cell(about, by_moments, {"schedule": schedule, **common})
    if c.against == "flow":
        return Cell(about, by_ends, {"case": case, **common})
    own = replace(METHODS.get(c.name, c.method), grid=FINE.grid)
    return Cell(about, by_paths, {"case": case, "fine": own if c.against == "its own" else FINE, **common})


def measure(session: Session) -> Outcome:
    """Certify what was asked for; all that can be, if nothing was."""
    args, problem = session.args, session.problem
    left_out = []
    try:
        given = args.start is not None or args.stop is not None
        ends = (
            INTERIOR[0] if args.start is None else args.start,
            INTERIOR[1] if args.stop is None else args.stop,
        )
        interval = ends if given else None
        if args.solvers is None:
            reasons = {name: obstacle(method, problem) for name, method in METHODS.items()}
            left_out = [{"solver": name, "because": reason} for name, reason in reasons.items() if reason]
            session = session.choosing([name for name, reason in reasons.items() if not reason])
        for name, method in session.methods().items():
            if reason := obstacle(method, problem):
                raise UsageError(f"{name} cannot be certified: {reason}; leave it out of --solvers")
        table = certified(session.case, session.crossed(), interval, args.finest, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(table, extra=left_out, code=FAILED if (table["verdict"] == "FAIL").any() else 0)


def report(session: Session, outcome: Outcome) -> None:
    """Print the certificates, a line per solver and form, then what changes orders, and what has none."""
    table, left_out = outcome.table, outcome.extra
    ends = table["kind"] == "ends"
    certificates_of.show(
        "Certificates: slope of mean L2 error at the end against step size", table[ends], TOLERANCE
    )
    certificates_of.show(
        "Certificates of random methods: slope of the error of moments on a Gaussian, and along paths",
        table[~ends],
        TOLERANCE,
    )
    claimed = claims(table)
    if len(claimed):
        tables.show("Published claim against measured order, on smooth grids", claimed)
    changed = table[(table["order"] != table["solver_order"]) & (table["verdict"] == "pass")]
    groups: list[tuple[str, pd.DataFrame, list[str]]] = [
        (
            "Where the form, the grid or a first step that is not felt changes the order of the solver",
            certificates_of.together(changed),
            [],
        ),
        (
            "Unsettled: no order is read off them",
            certificates_of.listed(table[table["verdict"] == "unsettled"]),
            [UNSETTLED],
        ),
        ("Certificates that FAIL", certificates_of.listed(table[table["verdict"] == "FAIL"]), []),
    ]
    for title, lines, notes in groups:
        if len(lines):
            tables.show(title, lines, notes)
    if left_out:
        tables.show("Not certified", pd.DataFrame(left_out))


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return published claims beside what was measured on smooth grids, a line per solver with a claim.

    The least slope over the forms and grids of the table is what a user can rely on; of random methods, that
    of the law. A row speaks for all names of its solver. Slopes that have not settled speak for none.
    """
    smooth = table[
        table["grid"].map(lambda name: GRIDS[name].smooth) & table["verdict"].isin(["pass", "FAIL"])
    ]
    smooth = smooth[(smooth["kind"] != "paths") & smooth["slope"].notna()]
    solvers = smooth["solver"].map(_steps)
    lines = []
    for name, claim in CLAIMS.items():
        rows = smooth[solvers == _steps(name)]
        if rows.empty:
            continue
        line = {"solver": name, "claimed": claim.order}
        short = []
        for interval in table["interval"].unique():
            part = rows[rows["interval"] == interval]
            if part.empty:
                continue
            declared = int(part["order"].min())
            line[f"declared, {interval}"] = declared
            line[f"measured, {interval}"] = certificates_of.spread(part["slope"])
            short += [str(interval)] if declared < claim.order else []
        told = f"MISMATCH on {' and '.join(short)}: {claim.remark}" if short else "as claimed"
        lines.append({**line, "verdict": told, "claimed in": claim.source})
    return pd.DataFrame(lines).fillna("")


def _steps(name: str) -> str:
    """Return how a method takes its steps, whatever its grid and its form, if that is exact."""
    return repr((METHODS[name].solver, METHODS[name].last, METHODS[name].form.exact))


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw measured orders, a line per solver; grey is what the certificate allows."""
    return certificates_of.drawn(outcome.table, TOLERANCE)


EXPERIMENT = Experiment(
    name="orders",
    title="Certificate of orders",
    finding="Whether solvers have the orders they declare, on every form and grid, from t = 1 and t = 0.3.",
    help="Order certificate: declared against measured order of every solver on every form and grid,\n"
    "on the whole schedule (prior) and from t = 0.3 to 0.1 (interior).\n"
    "Exit code 3 if a certificate fails.",
    examples=(
        "",
        "--solvers s-pndm f-pndm ab4 adams22 --forms ddim --grids quadratic",
        "--solvers lms unipc3 --forms ddim --grids log-snr",
        "--problem toy --start 0.3 --stop 0.2 --finest 512 --solvers ddim ttm2",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=3,
    # What can be certified depends on the problem.
    defaults={"problem": "smooth", "samples": 256, "solvers": None},
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("orders"))
