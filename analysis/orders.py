"""The order certificate: the order that every method declares, and the order that it shows.

Every solver runs on every form and grid with more and more steps, and the slope of its mean error at the end
against the size of its steps is fitted where it has settled. A certificate passes if the slope lies within
0.25 of the declared order. The default problem is smooth and its interval short, so that all methods settle
within some hundred steps and none of them reaches rounding; order is a local matter, and needs no more.
Where the start of a method is of a lower order than the rest, it shows late: a certificate that would fail
is measured with more steps before it does.

A random method gets two certificates. Its order is that of the law at the end, so it is measured by mean
and covariance on one Gaussian, which an affine recursion has exactly (``analysis.recursion``). Its strong
order is that of the end of every trajectory, and is measured like that of a method without noise: all are on
the same Brownian paths, and the solution there is one of many more steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.orders import (
    POINTS,
    TOLERANCE,
    Certificate,
    by_ends,
    by_moments,
    by_paths,
    certificates,
    fitted,
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
from analysis.show import plots, tables
from analysis.show.published import CLAIMS
from analysis.study.cells import Cell, Study, frame
from problems import Problem, smooth_mixture
from problems.console import Parser, UsageError, positive

FINE = replace(METHODS["sde-dpm-solver++2m"], grid=GRIDS["log-snr"])
"""The method of the solution to which methods for the reverse SDE are compared on their paths."""

INTERVAL = 0.3, 0.1
"""Times at which the certified interval begins and ends."""

CERTIFIED_GRIDS = ("linear", "quadratic", "log-snr", "edm", "rough")
FAILED = 3
"""Exit code if a certificate fails."""


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    smooth = smooth_mixture()
    add_solvers(p, [name for name, method in METHODS.items() if not obstacle(method, smooth)])
    add_factors(p, FLOWS, CERTIFIED_GRIDS)
    p.add_argument("--start", type=float, default=INTERVAL[0], help="time at which the interval begins")
    p.add_argument("--stop", type=float, default=INTERVAL[1], help="time at which it ends")
    p.add_argument("--finest", type=positive, default=96, help="largest number of steps")


def certify(
    methods: Asked | Sequence[Asked] | Mapping[str, Method],
    problem: Case | Problem | str | Path = "smooth",
    *,
    interval: tuple[float, float] = INTERVAL,
    forms: Sequence[str | Coordinates] = FLOWS,
    grids: Sequence[str | Grid] = CERTIFIED_GRIDS,
    finest: int = 96,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return order certificates as a tidy table: a row for each method, form, grid and kind.

    Parameters
    ----------
    methods
        A solver, a method, a name, several of them, or methods by name.
    problem
        What is solved; anything that ``Case`` takes, with 256 samples, or a case.
    interval
        Times at which it begins and ends.
    forms, grids
        With which methods are crossed; one of an ideal or a stochastic form keeps it.
    finest
        The largest number of steps to begin with.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    Columns ``order`` (declared, on this form and grid), ``slope`` with its 95% interval, ``verdict``:
    ``pass`` if the slope lies within 0.25 of the order, ``FAIL``, or ``rounding`` where there is no slope.

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
    interval: tuple[float, float],
    finest: int,
    study: Study,
) -> pd.DataFrame:
    """Return the certificates of methods on their forms and grids; see ``certify``."""
    if len(ladder(finest)) < POINTS:
        raise ValueError(f"--finest {finest} leaves no room for a fit; type --finest 16 or more")
    try:
        part = case.between(*interval)
    except ValueError as error:
        raise ValueError(f"--start and --stop are out of range: {error}") from None
    wanted = [c for name, method in methods for c in certificates(name, method)]
    results = study.run("orders", [_cell(part, c, finest) for c in wanted])
    found = [(c, r) for c, r in zip(wanted, results, strict=True) if not r.failure]
    if not found:
        raise ArithmeticError(f"nothing could be measured: {results[0].failure}")
    fits = [fitted(r) for _, r in found]
    return frame(
        [r for _, r in found],
        solver_order=[c.solver_order for c, _ in found],
        order=[c.order for c, _ in found],
        slope=[fit.value for fit in fits],
        slope_low=[fit.low for fit in fits],
        slope_high=[fit.high for fit in fits],
        coarsest=[int(r.arrays["steps"].min()) for _, r in found],
        error=[float(r.arrays["error"][0].mean()) for _, r in found],
        verdict=[verdict(c.order, fit, r) for (c, r), fit in zip(found, fits, strict=True)],
        reference_error=[float(r.arrays["reference_error"]) for _, r in found],
    )


def _cell(case: Case, c: Certificate, finest: int) -> Cell:
    """Return the cell of a certificate."""
    schedule = case.problem.schedule
    about = {
        **case.config,
        "solver": c.name,
        "form": c.method.form.name,
        "grid": c.method.grid.name,
        "kind": c.kind,
        "against": c.against,
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
        interval = args.start, args.stop
        if args.solvers is None:
            part = session.case.between(*interval).problem
            reasons = {name: obstacle(method, part) for name, method in METHODS.items()}
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
    """Print the certificates, a line per solver and form, then what forms and grids do to orders."""
    table, left_out = outcome.table, outcome.extra
    ends = table["kind"] == "ends"
    _certified("Certificates: slope of mean L2 error at the end against step size (95%)", table[ends])
    _certified(
        "Certificates of random methods: slope of the error of moments on a Gaussian, and along paths (95%)",
        table[~ends],
    )
    changed = table[table["order"] != table["solver_order"]]
    claimed = claims(table)
    if len(claimed):
        tables.show("Published claim against measured order, on smooth grids", claimed)
    groups: list[tuple[str, pd.DataFrame]] = [
        ("Where the form or the grid changes the order of the solver", changed),
        ("Certificates that FAIL", table[table["verdict"] == "FAIL"]),
    ]
    for title, part in groups:
        if len(part):
            listed = [
                {
                    "solver": row["solver"],
                    "form": row["form"],
                    "grid": row["grid"],
                    "kind": row["kind"],
                    "order of the solver": f"{row['solver_order']:g}",
                    "order here": f"{row['order']:g}",
                    "slope (95%)": _slope(row),
                }
                for _, row in part.iterrows()
            ]
            tables.show(title, pd.DataFrame(listed))
    if left_out:
        tables.show("Not certified", pd.DataFrame(left_out))


def _certified(title: str, table: pd.DataFrame) -> None:
    """Show certificates, a line per solver and form and kind; nothing if there are none."""
    if table.empty:
        return
    frame = tables.pivot(
        table,
        lambda row: {
            **{name: row[name] for name in ("solver", "form", "kind", "against")},
            "order": f"{row['solver_order']:g}",
        },
        lambda row: row["grid"],
        lambda row: _slope(row) + (f" ({row['order']:g})" if row["order"] != row["solver_order"] else ""),
    )
    passed, settled = (table["verdict"] == "pass").sum(), table["verdict"].isin(["pass", "FAIL"]).sum()
    notes = [
        f"{passed} of {settled} certificates pass: the slope lies within {TOLERANCE:g} of the order",
        f"reference: own error {table['reference_error'].max():.1e}",
    ]
    if (table["order"] != table["solver_order"]).any():
        notes.append("(n): on this form or grid the order is n, and n is what is certified; see below")
    if (table["verdict"] == "rounding").any():
        notes.append("rounding: errors too near those of rounding, or of the reference, to have a slope")
    constant = [name for name in ("kind", "against") if len(set(frame[name])) == 1]
    tables.show(title, frame.drop(columns=constant), notes)


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return published claims beside what was measured on smooth grids, a line per solver with a claim.

    The least slope over the forms and grids of the table is what a user can rely on; of random methods, that
    of the law. A row speaks for all names of its solver.
    """
    smooth = table[table["grid"].map(lambda name: GRIDS[name].smooth) & table["slope"].notna()]
    smooth = smooth[smooth["kind"] != "paths"]
    solvers = smooth["solver"].map(_steps)
    lines = [
        {
            "solver": name,
            "claimed": claim.order,
            "declared": int(rows["order"].min()),
            "measured": f"{rows['slope'].min():.2f} to {rows['slope'].max():.2f}",
            "verdict": "as claimed" if rows["order"].min() >= claim.order else f"MISMATCH: {claim.remark}",
            "source of the claim": claim.source,
        }
        for name, claim in CLAIMS.items()
        if len(rows := smooth[solvers == _steps(name)])
    ]
    return pd.DataFrame(lines)


def _steps(name: str) -> str:
    """Return how a method takes its steps, whatever its grid and its form, if that is exact."""
    return repr((METHODS[name].solver, METHODS[name].last, METHODS[name].form.exact))


def _slope(row: Any) -> str:
    if row["verdict"] == "rounding":
        return "rounding"
    text = f"{row['slope']:.2f}"
    if row["kind"] != "moments":
        text += f" [{row['slope_low']:.2f}, {row['slope_high']:.2f}]"
    return text if row["verdict"] == "pass" else f"{text} FAIL"


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw measured orders, a line per solver; grey is what the certificate allows.

    There is a panel for each form of the flow, one for the laws of random methods and one for their paths.
    """
    table = outcome.table
    rows = table[table["slope"].notna()]
    forms = rows["form"].str.removeprefix("ideal-")
    rows = rows.assign(panel=forms.where(rows["kind"] == "ends", rows["kind"]))
    looks = plots.looks(list(table["grid"]))
    solvers = plots.looks(list(table["solver"]))
    panels = list(dict.fromkeys(rows["panel"])) or [""]
    with plots.style():
        size = (plots.WIDTH, 1.0 + 0.3 * len(solvers))
        figure, axes = plots.panels(1, len(panels), figsize=size, sharex=True, sharey=True)
        for ax, panel in zip(axes[0], panels, strict=True):
            for i, (grid, look) in enumerate(looks.items()):
                part = rows[(rows["panel"] == panel) & (rows["grid"] == grid)]
                y = part["solver"].map(list(solvers).index) + 0.76 * ((i + 0.5) / len(looks) - 0.5)
                ax.hlines(
                    y, part["order"] - TOLERANCE, part["order"] + TOLERANCE, color="0.87", linewidth=2.6
                )
                # Without a spread they differ by rounding.
                interval = [
                    (part[a] - part[b]).clip(lower=0.0)
                    for a, b in (("slope", "slope_low"), ("slope_high", "slope"))
                ]
                ax.errorbar(
                    part["slope"],
                    y,
                    xerr=interval,
                    linestyle="",
                    marker=look.marker,
                    color=look.colour,
                    elinewidth=0.6,
                    label=f"{look.label} grid",
                )
                failed = part["verdict"] == "FAIL"
                ax.plot(part["slope"][failed], y[failed], "o", color="red", fillstyle="none", markersize=6)
            ax.set_title(panel)
            ax.set_xlabel("measured")
            ax.grid(visible=False, axis="y")
        orders = range(1, int(table["order"].max()) + 1)
        ax.set_xticks(list(orders))
        ax.set_yticks(range(len(solvers)), [look.label for look in solvers.values()])
        ax.set_ylim(len(solvers) - 0.5, -0.5)
        axes[0, 0].plot([], [], color="0.87", linewidth=2.6, label=f"declared order ± {TOLERANCE:g}")
        if (rows["verdict"] == "FAIL").any():
            axes[0, 0].plot([], [], "o", color="red", fillstyle="none", markersize=6, label="FAIL")
        plots.legend_below(figure, list(axes.flat), columns=4)
        return figure


EXPERIMENT = Experiment(
    name="orders",
    title="Certificate of orders",
    finding="Whether every solver, on every form and grid, has the order of convergence that it declares.",
    help="Order certificate: declared against measured order of every solver on every form and grid.\n"
    "Exit code 3 if a certificate fails.",
    examples=(
        "",
        "--solvers s-pndm f-pndm ab4 adams22 --forms ddim --grids quadratic",
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
