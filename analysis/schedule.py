"""Schedules fitted to a problem: where should so many steps lie, what is gained, and does it transfer?

Two fits, for each method and budget, on trajectories of their own:

- Dynamic programming (Watson et al. 2021) over the exact cost of every step between candidate times. The
  cost is the local error in x̄ of the step from the exact state, times the growth of a small error in its
  direction on the way to the end, at most the size of the data (whoever lands at another mode is no further
  away than that), averaged over trajectories: to first order a path's sum bounds its mean error at the end.
  The cost of a step of a multistep method depends on the steps before it, which a sum over steps cannot know:
  it is given an exact past with steps as long, in log-SNR, as the one it takes. That is a proxy.
- A search over ρ in t_n = (1 - c n/N)^ρ, by sampling.

Both are judged by sampling latents that neither has seen, against quadratic striding on the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, add_solvers, main, parser
from analysis.methods import GRIDS, Grid, Method, grid_of
from analysis.problems import latents
from analysis.reference import SERIES, reference
from analysis.statistics import Bootstrap
from analysis.study import Arrays, Cell, run
from problems import Problem
from problems.console import Parser, UsageError, positive
from solvers import Node
from solvers.grids import log_snr, power

DEFAULT = ("ddim", "ttm2", "ab2", "dpm-solver++2m")
RHOS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 7.0, 10.0)
SMALL = 1e-6
"""Size of the error whose growth is measured."""

APART = 10_000
"""How far the seed of the trajectories that are fitted to is from that of those that judge."""

Array = NDArray[np.float64]


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "schedule",
        "Schedules by dynamic programming and by a search over ρ, their gain over quadratic striding.",
        "  python -m analysis.schedule\n"
        "  python -m analysis.schedule --solvers ddim ttm2 --nfe 10 --transfer digits-mixture\n"
        "  python -m analysis.schedule --problem smooth --candidates 96",
    )
    add_solvers(p, DEFAULT)
    p.add_argument("--nfe", nargs="+", type=positive, default=[5, 10, 20], help="budgets of evaluations")
    p.add_argument("--candidates", type=positive, default=48, help="steps of the mesh, equal in log-SNR")
    p.add_argument("--fitted", type=positive, default=200, help="number of trajectories to fit to")
    p.add_argument("--transfer", nargs="+", default=[], metavar="PROBLEM", help="judge on these as well")
    return p


def best_paths(cost: Array, most: int) -> list[list[int]]:
    """Return the cheapest path from the first candidate to the last in 1, 2, …, ``most`` steps.

    Parameters
    ----------
    cost
        cost[i, j] is that of the step from i to j, for i < j; shape (M + 1, M + 1).
    most
        At most M.
    """
    ahead = np.where(np.triu(np.ones_like(cost), 1) > 0, cost, np.inf)
    total, origins = ahead[0], [np.zeros(len(cost), dtype=int)]
    for _ in range(1, most):
        sums = total[:, None] + ahead
        origins.append(sums.argmin(0))
        total = sums.min(0)
    paths = []
    for steps in range(1, most + 1):
        path = [len(cost) - 1]
        for origin in reversed(origins[:steps]):
            path.append(int(origin[path[-1]]))
        paths.append(path[::-1])
    return paths


def step_costs(problem: Problem, method: Method, x: Tensor, times: Sequence[float]) -> Array:
    """Return the mean cost of the step between any two times, shape (len(times),) * 2; see the module.

    Parameters
    ----------
    problem
        An exact problem.
    method
        The method; its grid does not matter.
    x
        Latents, float64.
    times
        The candidates, from the start of the schedule to its end.
    """
    exact, last = reference(problem, x, times).x, len(times) - 1
    eq, solver = method.form.make(problem, None), method.solver
    alpha = [problem.schedule.alpha(t) for t in times]
    places = [eq.s(t) for t in times]
    states = [eq.enter(state, t) for state, t in zip(exact, times, strict=True)]
    nodes = [
        Node(s, eq.jet(y, s, solver.p) if i < last else (), y)
        for i, (s, y) in enumerate(zip(places, states, strict=True))
    ]

    def error(i: int, j: int) -> Tensor:
        before = range(i - (j - i), -1, i - j)
        past = tuple(nodes[k] for k in before)[: solver.reach]
        y, _ = solver.step(eq, states[i], places[i], places[j], past)
        return (eq.leave(y, times[j]) - exact[j]) / alpha[j]

    cost = np.zeros((last + 1, last + 1))
    size = 2.0 * problem.data_std * x[0].numel() ** 0.5
    for j in range(1, last + 1):
        growth = torch.ones(len(x), dtype=x.dtype)
        if j < last:
            way = error(j - 1, j).flatten(1)
            way = SMALL * way / way.norm(dim=1, keepdim=True).clamp(min=1e-300)
            beside = exact[j] + alpha[j] * way.reshape(x.shape)
            end = reference(problem, beside, (times[j], times[-1])).x[-1]
            growth = (end - exact[-1]).flatten(1).norm(dim=1) / (alpha[-1] * SMALL)
        for i in range(j):
            each = (error(i, j).flatten(1).norm(dim=1) * growth).nan_to_num(nan=size)
            cost[i, j] = each.clamp(max=size).mean()
    return cost


def end_errors(problem: Problem, method: Method, grid: Grid, steps: int, x: Tensor, end: Tensor) -> Array:
    """Return the distance in x of every trajectory's end from the exact one."""
    sample = replace(method, grid=grid).sample(problem, steps, x)
    errors: Array = (sample - end).flatten(1).norm(dim=1).numpy()
    return errors


def striding(rho: float) -> Grid:
    """Return the power grid with any ρ."""
    return Grid(f"rho{rho:g}", lambda n, schedule: power(n, rho, schedule.start, schedule.stop))


def text_of(times: Sequence[float]) -> str:
    """Return times as ``--grids`` takes them, with six digits."""
    return ",".join(f"{t:.6g}" for t in times)


def experiment(session: Session) -> Sequence[Path]:
    """Fit, judge, and write tables and figure."""
    args = session.args
    budgets = list(dict.fromkeys(args.nfe))
    problems = {name: session.on(name) for name in dict.fromkeys([args.problem, *args.transfer])}
    for name, other in problems.items():
        if other.problem.jet_order < SERIES:
            raise UsageError(f"{name} has no exact trajectories; choose an exact problem, such as toy")
        if (other.problem.schedule.start, other.problem.schedule.stop) != (
            session.problem.schedule.start,
            session.problem.schedule.stop,
        ):
            raise UsageError(f"{name} has another schedule than {args.problem}; nothing can be transferred")
    if args.samples < 2 or args.fitted < 2:
        raise UsageError("intervals need at least two trajectories; type larger --samples and --fitted")
    rows = _rows(session, budgets)

    @cache
    def known(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
        problem = problems[name].problem
        x = latents(problem, count, seed)
        return x, reference(problem, x, (problem.schedule.start, problem.schedule.stop)).x[-1]

    @cache
    def paths(method: Method) -> list[list[float]]:
        schedule = session.problem.schedule
        mesh = log_snr(args.candidates, schedule, schedule.start, schedule.stop).tolist()
        x = known(args.problem, args.fitted, args.seed + APART)[0]
        cost = step_costs(session.problem, method, x, mesh)
        most = max(steps for _, m, _, steps in rows if m == method)
        return [[mesh[i] for i in path] for path in best_paths(cost, most)]

    def fit(method: Method, steps: int) -> Arrays:
        x, end = known(args.problem, args.fitted, args.seed + APART)
        tried = [end_errors(session.problem, method, striding(r), steps, x, end).mean() for r in RHOS]
        return {"dp": np.array(paths(method)[steps - 1]), "rho": np.array(RHOS[int(np.argmin(tried))])}

    def cell(on: Session, name: str, method: Method, what: Any, measure: Callable[[], Arrays]) -> Cell:
        config = {**on.config, "fitted_to": args.problem, "fitted": args.fitted, "solver": name}
        parts = (*method.parts, *on.parts, *session.parts, step_costs, power)
        return Cell({**config, "candidates": args.candidates, **what}, parts, measure)

    fits = run(
        "schedule-fit",
        [
            cell(session, name, method, {"nfe": nfe, "steps": steps}, partial(fit, method, steps))
            for name, method, nfe, steps in rows
        ],
        session.store,
        fresh=args.fresh,
    )

    def judge(on: str, method: Method, grid: Grid, steps: int) -> Arrays:
        x, end = known(on, args.samples, args.seed)
        return {"error": end_errors(problems[on].problem, method, grid, steps, x, end)}

    plan: list[tuple[dict[str, Any], Cell]] = []
    for (name, method, nfe, steps), found in zip(rows, fits, strict=True):
        grids = {
            "quadratic": GRIDS["quadratic"],
            "dp": grid_of(text_of(found.arrays["dp"].tolist())),
            "rho": striding(float(found.arrays["rho"])),
        }
        for on, other in problems.items():
            for schedule, grid in grids.items():
                times = text_of(grid.times(steps, session.problem.schedule).tolist())
                about = {
                    "solver": name,
                    "nfe": nfe,
                    "steps": steps,
                    "judged_on": on,
                    "schedule": schedule,
                    "grid": grid.name if schedule == "rho" else schedule,
                    "times": times,
                }
                measure = partial(judge, on, method, grid, steps)
                what = {"nfe": nfe, "schedule": schedule, "times": times}
                plan.append((about, cell(other, name, method, what, measure)))
    results = run("schedule", [c for _, c in plan], session.store, fresh=args.fresh)
    errors = np.stack([r.arrays["error"] for r in results])
    base = errors[[i - i % 3 for i in range(len(errors))]]  # quadratic is the first of three
    bootstrap = Bootstrap(args.samples)
    table = pd.DataFrame([about for about, _ in plan]).assign(
        fitted_to=args.problem,
        **bootstrap.means(errors).columns("error"),
        **bootstrap.ratios(base, errors).columns("gain"),
    )
    report(table, args.problem)
    return session.save(table, draw(table, session))


def _rows(session: Session, budgets: Sequence[int]) -> list[tuple[str, Method, int, int]]:
    """Return name, method, budget and steps of everything to be fitted."""
    rows = []
    for name, method in session.methods().items():
        if method.adaptive or method.random or not method.form.exact:
            raise UsageError(f"{name} takes no deterministic steps of a grid; leave it out of --solvers")
        for nfe in budgets:
            try:
                rows.append((name, method, nfe, method.steps(session.problem, nfe)))
            except ValueError as error:
                raise UsageError(f"{name} {error}; type a larger --nfe") from error
    most = max(steps for *_, steps in rows)
    if most > session.args.candidates:
        raise UsageError(
            f"{most} steps need at least as many candidates; type --candidates {2 * most} or more"
        )
    return rows


def report(table: pd.DataFrame, fitted_to: str) -> None:
    """Print errors and gains, on the problem itself and on others, and the schedules."""
    for on, judged in table.groupby("judged_on", sort=False):
        lines = []
        for (solver, nfe), group in judged.groupby(["solver", "nfe"], sort=False):
            found = group.set_index("schedule")
            lines.append(
                {
                    "solver": solver,
                    "NFE": f"{nfe}",
                    "quadratic": tables.cell(found.loc["quadratic"], "error"),
                    "gain by DP": tables.cell(found.loc["dp"], "gain"),
                    "best ρ": found.loc["rho", "grid"],
                    "gain by ρ": tables.cell(found.loc["rho"], "gain"),
                }
            )
        where = "" if on == fitted_to else f", of schedules fitted to {fitted_to}"
        tables.show(
            f"Mean L2 error at t_cut on {on}{where}, and by what it is divided (95%)",
            pd.DataFrame(lines),
            ["gain: quadratic striding's mean error over the schedule's, on latents not fitted to"],
        )
    own = table[(table["judged_on"] == fitted_to) & (table["schedule"] == "dp")]
    lines = [
        {"solver": row["solver"], "NFE": f"{row['nfe']}", "times": row["times"]} for _, row in own.iterrows()
    ]
    tables.show("Schedules by dynamic programming, as --grids takes them", pd.DataFrame(lines))


def draw(table: pd.DataFrame, session: Session) -> Figure:
    """Draw the schedules of the largest budget, log-SNR against the step, a panel per method; and gains."""
    schedule, largest = session.problem.schedule, table["nfe"].max()
    solvers = list(dict.fromkeys(table["solver"]))
    colours = {"quadratic": "#7F7F7F", "dp": "#D55E00", "rho": "#0072B2"}
    with plots.style():
        size = (plots.WIDTH, 3.8)
        figure, axes = plots.panels(2, len(solvers), figsize=size, sharey="row")
        for column, solver in zip(axes.T, solvers, strict=True):
            own = table[(table["solver"] == solver) & (table["judged_on"] == session.args.problem)]
            for _, row in own[own["nfe"] == largest].iterrows():
                snr = [schedule.log_snr(float(t)) for t in row["times"].split(",")]
                column[0].plot(snr, color=colours[row["schedule"]], marker=".", label=row["schedule"])
            column[0].set(title=f"{plots.looks([solver])[solver].label}, {largest} NFE", xlabel="step")
            for name in ("dp", "rho"):
                rows = own[own["schedule"] == name]
                spread = [rows["gain"] - rows["gain_low"], rows["gain_high"] - rows["gain"]]
                column[1].errorbar(rows["nfe"], rows["gain"], np.abs(spread), color=colours[name], marker=".")
            column[1].axhline(1.0, color=colours["quadratic"], linewidth=0.8)
            column[1].set(xlabel="NFE")
        axes[0][0].set_ylabel("log-SNR")
        axes[1][0].set_ylabel("gain over quadratic")
        plots.legend_below(figure, list(axes.flat), columns=3)
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("schedule", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
