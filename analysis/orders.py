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

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, add_factors, add_solvers, main, parser
from analysis.methods import FLOWS, GRIDS, METHODS, Method
from analysis.problems import PROBLEMS, between
from analysis.recursion import law, moments
from analysis.reference import Reference, reference
from analysis.statistics import Array, Bootstrap, Slope, slope
from analysis.study import Arrays, Cell, Result, frame, run
from problems import Gaussian, Problem
from problems.console import Parser, UsageError, positive
from problems.noise import LEAF

TOLERANCE = 0.25
"""How far a slope may lie from the declared order."""

POINTS = 3
"""Numbers of steps in a fit."""

REFINEMENTS = (1, 4, 16)
"""Multiples of the largest number of steps, tried until a certificate passes."""

FLOOR = 30.0
"""An error counts where it is this many times that of the reference, and rounding, which then bend a slope
over a factor of two by log₂(1 + 1/30) = 0.05 at most."""

FINE = "sde-dpm-solver++2m"
"""The method of the solution to which methods for the reverse SDE are compared on their paths."""


class Claim(NamedTuple):
    """An order of convergence that a publication states for its method.

    Attributes
    ----------
    order
        The order.
    source
        Who states it.
    remark
        Why it is not what is measured, if it is not.
    """

    order: int
    source: str
    remark: str = ""


_RAMP = "the first step is DDIM, h² off"
_HALF = "quadratic term taken half; also starts with DDIM"
_FIRST = "the first step is corrected with two data, h³ off"

CLAIMS = {
    "heun": Claim(2, "Karras et al. 2022"),
    "ttm2": Claim(2, "Dockhorn et al. 2022"),
    "ttm3": Claim(3, "Dockhorn et al. 2022"),
    "s-pndm": Claim(2, "Liu et al. 2022"),
    "f-pndm": Claim(2, "Liu et al. 2022"),
    "fon": Claim(4, "Liu et al. 2022"),
    "ipndm": Claim(4, "Zhang & Chen 2023", _RAMP + "; weights for equal steps"),
    "ipndm-v": Claim(4, "diff-sampler", "wrong weights; also starts with DDIM"),
    "lms": Claim(4, "k-diffusion", _RAMP),
    "log-deis1": Claim(2, "diffusers"),
    "log-deis2": Claim(3, "diffusers", _RAMP),
    "dpm-solver-2": Claim(2, "Lu et al. 2022a"),
    "dpm-solver-3": Claim(3, "Lu et al. 2022a"),
    "dpm-solver-3m": Claim(3, "Lu et al. 2022b", _HALF),
    "dpm-solver++2s": Claim(2, "Lu et al. 2022b"),
    "dpm-solver++3s": Claim(3, "Lu et al. 2022b"),
    "dpm-solver++2m": Claim(2, "Lu et al. 2022b"),
    "dpm-solver++3m": Claim(3, "Lu et al. 2022b", _HALF),
    "unipc1": Claim(2, "Zhao et al. 2023"),
    "unipc2": Claim(3, "Zhao et al. 2023"),
    "unipc2-b1": Claim(3, "Zhao et al. 2023"),
    "unipc3": Claim(4, "Zhao et al. 2023", _FIRST),
    "unipc3-b1": Claim(4, "Zhao et al. 2023", _FIRST),
    "unipc3-lower": Claim(4, "Zhao et al. 2023", "the last step is DDIM, h² off"),
    "sde-dpm-solver++2m": Claim(2, "Lu et al. 2022b"),
}
"""What is claimed for methods, to be held against what they show; 2022a is DPM-Solver, 2022b DPM-Solver++."""


class Certificate(NamedTuple):
    """What is to be certified.

    Attributes
    ----------
    name, method
        The method.
    kind
        What is compared: the end point of each trajectory ("ends"), that on a Brownian path ("paths"), or
        the moments at the end ("moments").
    against
        With what.
    solver_order, order
        The order of the solver, and that of the method on its form and grid, which is certified.
    """

    name: str
    method: Method
    kind: str
    against: str
    solver_order: float
    order: float


def certificates(name: str, method: Method) -> list[Certificate]:
    """Return the certificates that a method can have."""
    declared = method.solver.order, method.order
    if not method.random:
        return [Certificate(name, method, "ends", method.limit, *declared)]
    strong = method.strong_order, method.strong_order
    return [
        Certificate(name, method, "moments", "exact law", *declared),
        Certificate(name, method, "paths", method.limit, *strong),
    ]


def obstacle(method: Method, problem: Problem) -> str:
    """Return why a method has no order that could be seen on a problem; nothing if it has one."""
    if method.adaptive:
        return "it chooses its own steps"
    if method.random and method.solver.order == 0:
        return "the noise of its steps does not vanish with their size, so its order is 0"
    if method.form.name == "distilled":
        return "what is left in the end is the error of its head"
    try:
        method.bill(problem, max(1, method.solver.reach))
    except ValueError as error:
        return str(error)
    return ""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "orders",
        "Order certificate: declared against measured order of every solver on every form and grid.",
        "  python -m analysis.orders\n"
        "  python -m analysis.orders --solvers s-pndm f-pndm ab4 adams22 --forms ddim --grids quadratic\n"
        "  python -m analysis.orders --strict\n"
        "  python -m analysis.orders --problem toy --start 0.3 --stop 0.2 --finest 512 --solvers ddim ttm2",
    )
    add_solvers(p, [name for name, method in METHODS.items() if not obstacle(method, PROBLEMS["smooth"]())])
    # What can be certified depends on the problem.
    p.set_defaults(problem="smooth", samples=256, solvers=None)
    add_factors(p, FLOWS, ("linear", "quadratic", "log-snr", "edm", "rough"))
    p.add_argument("--start", type=float, default=0.3, help="time at which the interval begins")
    p.add_argument("--stop", type=float, default=0.1, help="time at which it ends")
    p.add_argument("--finest", type=positive, default=96, help="largest number of steps")
    p.add_argument("--strict", action="store_true", help="exit with code 1 if a certificate fails")
    return p


def ladder(finest: int) -> list[int]:
    """Return the numbers of steps, a factor of √2 apart from the finest down to 8, all even.

    Even ones, for on a grid whose steps alternate the others would end with half a pair.
    """
    rungs = int(2.0 * math.log2(max(finest, 8) / 8.0)) + 1
    return [2 * round(0.5 * finest / 2.0 ** (0.5 * i)) for i in range(rungs)]


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    args = session.args
    if len(ladder(args.finest)) < POINTS:
        raise UsageError(f"--finest {args.finest} leaves no room for a fit; type --finest 16 or more")
    try:
        session = replace(
            session,
            problem=between(session.problem, args.start, args.stop),
            working=between(session.working, args.start, args.stop),
        )
    except ValueError as error:
        raise UsageError(f"--start and --stop are out of range: {error}") from None
    problem = session.problem
    left_out = []
    if args.solvers is None:
        reasons = {name: obstacle(method, problem) for name, method in METHODS.items()}
        left_out = [{"solver": name, "because": reason} for name, reason in reasons.items() if reason]
        rest = [name for name, reason in reasons.items() if not reason]
        session = replace(session, args=Namespace(**{**vars(args), "solvers": rest}))
    for name, method in session.methods().items():
        if reason := obstacle(method, problem):
            raise UsageError(f"{name} cannot be certified: {reason}; leave it out of --solvers")
    chosen = [c for name, method in session.crossed() for c in certificates(name, method)]
    gaussian = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5, problem.schedule)

    @cache
    def begin() -> Tensor:
        return problem.sample(args.samples, args.start, torch.Generator().manual_seed(args.seed))

    @cache
    def exact(limit: str, name: str) -> Reference:
        if limit == "flow":
            return reference(problem, begin(), (args.start, args.stop))
        return along_paths(session, METHODS[name], begin())

    def measure(c: Certificate) -> Arrays:
        if c.kind == "moments":
            return refined(c.order, args.finest, moment_errors(c.method, gaussian), 0.0, torch.float64)
        solution = exact(c.against, c.name if c.against == "its own" else FINE)
        errors = end_errors(session, c.method, begin(), solution)
        return refined(c.order, args.finest, errors, solution.error, session.dtype)

    sources = refined, moments, Gaussian, METHODS[FINE].solver
    cells = [
        Cell(
            {
                **session.config,
                "solver": c.name,
                "form": c.method.form.name,
                "grid": c.method.grid.name,
                "kind": c.kind,
                "against": c.against,
                "start": args.start,
                "stop": args.stop,
                "finest": args.finest,
            },
            (*c.method.parts, *session.parts, *sources),
            partial(measure, c),
        )
        for c in chosen
    ]
    results = run("orders", cells, session.store, fresh=args.fresh)

    fits = [fitted(r) for r in results]
    table = frame(
        results,
        solver_order=[c.solver_order for c in chosen],
        order=[c.order for c in chosen],
        slope=[fit.value for fit in fits],
        slope_low=[fit.low for fit in fits],
        slope_high=[fit.high for fit in fits],
        coarsest=[int(r.arrays["steps"].min()) for r in results],
        error=[float(r.arrays["error"][0].mean()) for r in results],
        verdict=[verdict(c.order, fit, r) for c, fit, r in zip(chosen, fits, results, strict=True)],
        reference_error=[float(r.arrays["reference_error"]) for r in results],
    )
    report(table)
    if left_out:
        tables.show("Not certified", pd.DataFrame(left_out))
    return session.save(table, draw(table))


def along_paths(session: Session, method: Method, x: Tensor) -> Reference:
    """Solve along the paths of the session, in as many steps of equal log-SNR as the paths resolve.

    Parameters
    ----------
    session
        The run.
    method
        How, in a form of its own.
    x
        States at the start, (samples, *event), float64.

    Returns
    -------
    The solution at both ends. Its error is a mean over trajectories: the distance to the solution in half
    as many steps, divided by √3. For at order 1 the latter errs by twice as much, and the difference of the
    two depends on what the path does between, which neither has to do with the path at the longer steps nor
    with that within the shorter ones, so that squares add: 2² = 1² + 3.
    """
    problem, schedule = session.problem, session.problem.schedule
    ends = schedule.start, schedule.stop
    most = int((math.log(schedule.gamma(ends[0])) - math.log(schedule.gamma(ends[1]))) / LEAF)
    fine = replace(method, grid=GRIDS["log-snr"])
    better, other = (fine.sample(problem, n, x, session.noise()) for n in (most, most // 2))
    error = (better - other).flatten(1).norm(dim=1).mean() / math.sqrt(3.0)
    return Reference(ends, torch.stack([x, better]), float(error))


def end_errors(session: Session, method: Method, x: Tensor, solution: Reference) -> Callable[[int], Array]:
    """Return what gives the L2 errors (samples,) at the end for a number of steps.

    Parameters
    ----------
    session
        The run.
    method
        The method.
    x
        States at the start, (samples, *event), float64.
    solution
        The exact solution from there, the end last.
    """

    def errors(steps: int) -> Array:
        end = method.sample(session.working, steps, session.cast(x), session.noise()).double().cpu()
        distances: Array = (end - solution.x[-1]).flatten(1).norm(dim=1).numpy()
        return distances

    return errors


def moment_errors(method: Method, problem: Gaussian) -> Callable[[int], Array]:
    """Return what gives the error (1,) of mean and covariance at the end for a number of steps."""
    exact = law(problem, problem.schedule.stop)
    return lambda steps: np.array([moments(method, problem, steps).distance(exact)])


def refined(
    order: float, finest: int, errors: Callable[[int], Array], reference_error: float, dtype: torch.dtype
) -> dict[str, Any]:
    """Measure one certificate: the errors at the finest numbers of steps that reference and rounding resolve.

    Parameters
    ----------
    order
        The declared order.
    finest
        The largest number of steps to begin with.
    errors
        Gives the errors (samples,) for a number of steps.
    reference_error
        The error of the solution to which they are distances.
    dtype
        The precision of the steps.

    Returns
    -------
    Arrays by name: the numbers of steps (m,), the errors (m, samples), whether they stand above the floor
    (m,), the error of the reference. Coarser grids are tried until ``POINTS`` stand, and then finer ones
    while the slope is not that of the order (see ``REFINEMENTS``).
    """
    found: dict[str, Any] = {}
    known = cache(errors)
    for factor in REFINEMENTS:
        finer = _errors(factor * finest, known, reference_error, torch.finfo(dtype).eps)
        if found and finer["stands"].sum() < POINTS:
            break
        found = finer
        if not abs(_slope_of(found) - order) > TOLERANCE:
            break
    return found


def _errors(
    finest: int, errors: Callable[[int], Array], reference_error: float, epsilon: float
) -> dict[str, Any]:
    steps, found, stands = [], [], []
    for n in ladder(finest):
        found.append(errors(n))
        steps.append(n)
        # Every step rounds once; at worst all of them to the same side.
        floor = FLOOR * max(reference_error, n * epsilon)
        stands.append(not found[-1].mean() <= floor)
        if sum(stands) == POINTS:
            break
    return {
        "steps": np.array(steps),
        "error": np.stack(found),
        "stands": np.array(stands),
        "reference_error": np.array(reference_error),
    }


def _slope_of(arrays: dict[str, Any]) -> float:
    """Return the slope without its interval; NaN without one."""
    steps, errors = arrays["steps"][arrays["stands"]], arrays["error"][arrays["stands"]].mean(axis=1)
    if len(steps) < 2 or not np.isfinite(errors).all():
        return math.nan
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def fitted(result: Result) -> Slope:
    """Return the slope of error against step size over the numbers of steps that stand; NaN without one.

    Its interval is over the trajectories: moments, which are exact, have none.
    """
    stands = result.arrays["stands"] > 0
    steps, errors = result.arrays["steps"][stands], result.arrays["error"][stands]
    if len(steps) < 2 or not np.isfinite(errors).all():
        return Slope(math.nan, math.nan, math.nan)
    return slope(1.0 / steps, errors, Bootstrap(errors.shape[1]))


def verdict(order: float, fit: Slope, result: Result) -> str:
    """Return ``pass``, ``FAIL``, or ``rounding`` where no slope stands above the floor."""
    if math.isnan(fit.value) and np.isfinite(result.arrays["error"]).all():
        return "rounding"
    return "pass" if abs(fit.value - order) <= TOLERANCE else "FAIL"


def report(table: pd.DataFrame) -> None:
    """Print the certificates, a line per solver and form, then what forms and grids do to orders."""
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


def _certified(title: str, table: pd.DataFrame) -> None:
    """Show certificates, a line per solver and form and kind; nothing if there are none."""
    if table.empty:
        return
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for _, row in table.iterrows():
        line = {name: row[name] for name in ("solver", "form", "kind", "against")}
        line["order"] = f"{row['solver_order']:g}"
        here = f" ({row['order']:g})" if row["order"] != row["solver_order"] else ""
        lines.setdefault((row["solver"], row["form"], row["kind"]), line)[row["grid"]] = _slope(row) + here
    frame = pd.DataFrame(list(lines.values())).fillna("-")
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


def draw(table: pd.DataFrame) -> Figure:
    """Draw measured orders, a line per solver; grey is what the certificate allows.

    There is a panel for each form of the flow, one for the laws of random methods and one for their paths.
    """
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


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    code = main("orders", p, experiment, argv)
    args = p.parse_args(argv)
    if code == 0 and args.strict:
        return int((pd.read_csv(args.out / "orders.csv")["verdict"] == "FAIL").any())
    return code


if __name__ == "__main__":
    raise SystemExit(command())
