"""Local truncation error: the error of a single step against its size (Figs. 3, top, and 10).

Every trajectory starts on the exact solution at time t and takes one step of Δt. Multistep methods are
handed the exact past at t + Δt, t + 2Δt, …, so they are compared like for like. Where a method is a linear
rule in past derivatives, the leading term of its error is known from the exact next derivative and drawn
beside the measurement.
"""

from __future__ import annotations

import math
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
from analysis.reference import Reference, reference
from analysis.statistics import Bootstrap, Slope, medians, slope
from analysis.study import Cell, frame, run
from problems import Form
from problems.console import Parser, UsageError, positive
from solvers import LinearRule, Node

DEFAULT = ("ddim", "ttm2", "ttm3", "s-pndm", "f-pndm", "ab2", "heun")
FLOOR = 100.0
"""A measured error counts where it is this many times the error of the reference."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "lte",
        "Local truncation error of single steps, on the exact solution (Figs. 3 and 10 of the paper).",
        "  python -m analysis.lte --t 0.1 0.2 0.5\n"
        "  python -m analysis.lte --t 0.3 --solvers ddim ttm2 adams22 rk4\n"
        "  python -m analysis.lte --problem digits-mixture --samples 200 --points 9",
    )
    p.add_argument("--t", nargs="+", type=float, default=[0.1, 0.2, 0.5], help="times at which steps begin")
    p.add_argument("--points", type=positive, default=25, help="step sizes per time, from 1e-4 to t - t_cut")
    add_solvers(p, DEFAULT)
    return p


def step_sizes(t: float, stop: float, points: int) -> list[float]:
    """Return the step sizes Δt: logarithmic, from 1e-4 (or a tenth of what there is) to t - stop."""
    longest = t - stop
    shortest = min(1e-4, 0.1 * longest)
    sizes: list[float] = np.geomspace(shortest, longest, points).tolist()
    sizes[-1] = longest
    return sizes


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    args, schedule = session.args, session.problem.schedule
    for t in args.t:
        if not schedule.stop < t <= schedule.start:
            raise UsageError(
                f"--t {t:g} is outside ({schedule.stop:g}, {schedule.start:g}], where the steps can begin"
            )
    methods = session.methods()
    for name, method in methods.items():
        if method.adaptive or method.random:
            raise UsageError(f"{name} has no single deterministic step; leave it out of --solvers")

    plan = [
        (name, t, dt)
        for t in dict.fromkeys(args.t)
        for dt in step_sizes(t, schedule.stop, args.points)
        for name, method in methods.items()
        if t + method.solver.reach * dt <= schedule.start
    ]

    @cache
    def exact() -> tuple[Reference, dict[float, int]]:
        reach = max(m.solver.reach for m in methods.values())
        times = {schedule.start}
        for t in args.t:
            for dt in step_sizes(t, schedule.stop, args.points):
                times |= {_end(t, dt, schedule.stop), *(t + j * dt for j in range(reach + 1))}
        ordered = sorted((t for t in times if t <= schedule.start), reverse=True)
        return reference(session.problem, session.latents(), ordered, tolerance=1e-13), {
            t: i for i, t in enumerate(ordered)
        }

    def measure(name: str, t: float, dt: float) -> dict[str, Any]:
        solution, index = exact()
        return single_step(session, methods[name], solution, index, t, dt)

    cells = [
        Cell(
            {**session.config, "solver": name, "t": t, "dt": dt},
            (*methods[name].parts, *session.parts, single_step),
            partial(measure, name, t, dt),
        )
        for name, t, dt in plan
    ]
    results = run("lte", cells, session.store, fresh=args.fresh)

    bootstrap = Bootstrap(args.samples)
    errors = np.stack([r.arrays["error"] for r in results])
    mean, median = bootstrap.means(errors), medians(errors)
    alpha = [schedule.alpha(_end(r.config["t"], r.config["dt"], schedule.stop)) for r in results]
    nfe = [int(r.arrays["nfe"]) for r in results]
    theory = [float(r.arrays["theory"].mean()) if "theory" in r.arrays else math.nan for r in results]
    table = frame(
        results,
        nfe=nfe,
        jvp=[int(r.arrays["jvp"]) for r in results],
        error=mean.value,
        error_low=mean.low,
        error_high=mean.high,
        median=median.value,
        median_low=median.low,
        median_high=median.high,
        error_xbar=mean.value / np.array(alpha),
        theory=theory,
        dt_per_nfe=[r.config["dt"] / n for r, n in zip(results, nfe, strict=True)],
        error_per_nfe=mean.value / np.array(nfe),
        reference_error=[float(r.arrays["reference_error"]) for r in results],
    )
    report(table, errors, methods, bootstrap, torch.finfo(session.dtype).eps)
    return session.save(table, draw(table))


def _end(t: float, dt: float, stop: float) -> float:
    """Return the end of a step; the longest ends at the cut-off, to the last bit."""
    return stop if math.isclose(t - dt, stop, rel_tol=1e-9) else t - dt


def single_step(
    session: Session, method: Method, solution: Reference, index: dict[float, int], t: float, dt: float
) -> dict[str, Any]:
    """Measure one cell: the error of one step of every trajectory, in data space.

    Parameters
    ----------
    session
        The run.
    method
        The method; its grid does not matter.
    solution, index
        The exact solution, and where in it each time is.
    t, dt
        Begin and size of the step.

    Returns
    -------
    Arrays by name: the L2 errors (samples,), the bill, the error of the reference and, for linear rules, the
    norm of the leading term of the error (samples,).
    """
    end = _end(t, dt, session.problem.schedule.stop)
    eq = method.form.make(session.working, None)
    state = {j: session.cast(solution.x[index[t + j * dt]]) for j in range(method.solver.reach + 1)}
    y, s0, s1 = eq.enter(state[0], t), eq.s(t), eq.s(end)
    past: list[Node] = []
    for j in range(1, method.solver.reach + 1):
        # A step of the method itself, for the node that it would remember there.
        time = t + j * dt
        past.append(method.solver.step(eq, eq.enter(state[j], time), eq.s(time), s0, ())[1])
    before = eq.spent
    stepped, _ = method.solver.step(eq, y, s0, s1, tuple(past))
    bill = eq.spent - before
    arrays = {
        "error": _norm(eq.leave(stepped, end).double().cpu() - solution.x[index[end]]),
        "nfe": np.array(bill.nfe),
        "jvp": np.array(bill.jvp),
        "reference_error": np.array(solution.error),
    }
    if isinstance(method.solver, LinearRule) and method.form.exact:
        arrays["theory"] = leading_term(method.solver, eq, y, end, [s0, *(node.s for node in past)])
    return arrays


def leading_term(solver: LinearRule, eq: Form, y: Tensor, end: float, nodes: list[Any]) -> Any:
    """Return the norm of the leading error of a linear rule, (samples,), in data space.

    A rule Σ cⱼᵢ f⁽ⁱ⁾(sⱼ) for ∫ f ds errs by Σₘ Eₘ f⁽ᵐ⁾/m! at s0, with Eₘ its error on (s - s0)ᵐ. All terms up
    to m = order are kept: a rule with weights for equal steps errs at lower m too, by little.
    """
    s0, s1 = nodes[0], eq.s(end)
    h = s1 - s0
    jet = eq.jet(y, s0, solver.local_order)
    weights = solver.weights(eq, s1, nodes)
    error = torch.zeros_like(y)
    for m in range(solver.local_order):
        quadrature = sum(
            c * math.perm(m, i) * (s - s0) ** (m - i)
            for s, row in zip(nodes, weights, strict=True)
            for i, c in enumerate(row)
            if i <= m
        )
        error = error + ((h ** (m + 1) / (m + 1) - quadrature) / math.factorial(m)) * jet[m]
    return _norm(eq.leave(error, end).double().cpu())


def _norm(x: Tensor) -> Any:
    return x.flatten(1).norm(dim=1).numpy()


def asymptotic(rows: pd.DataFrame, rounding: float, decade: float = 6.0) -> pd.Series[bool]:
    """Mark the asymptotic range: the smallest steps whose error stands above reference and rounding."""
    above = rows["error"] > FLOOR * rows["reference_error"].clip(lower=rounding)
    first = rows["dt"].where(above).min()
    chosen: pd.Series[bool] = above & (rows["dt"] <= decade * first)
    return chosen


def fitted(rows: pd.DataFrame, errors: Any, bootstrap: Bootstrap, rounding: float) -> Slope | None:
    """Fit the slope of error against Δt over the asymptotic range; None where that has no two points."""
    chosen = asymptotic(rows, rounding)
    if chosen.sum() < 2:
        return None
    return slope(rows["dt"][chosen].to_numpy(), errors[rows.index[chosen]], bootstrap)


def report(
    table: pd.DataFrame, errors: Any, methods: dict[str, Method], bootstrap: Bootstrap, rounding: float
) -> None:
    """Print one line per time and method."""
    lines = []
    for t, name in dict.fromkeys(zip(table["t"], table["solver"], strict=True)):
        rows = table[(table["t"] == t) & (table["solver"] == name)]
        chosen = asymptotic(rows, rounding)
        fit = fitted(rows, errors, bootstrap, rounding)
        near = rows.loc[(np.log(rows["dt"]) - math.log(0.05 * t)).abs().idxmin()]
        ratio = (rows["theory"] / rows["error"])[chosen]
        lines.append(
            {
                "t": f"{t:g}",
                "solver": name,
                "NFE": int(near["nfe"]),
                "slope (95%)": "-" if fit is None else f"{fit.value:.3f} [{fit.low:.3f}, {fit.high:.3f}]",
                "declared": methods[name].solver.local_order if methods[name].form.exact else 2,
                "theory/error": "-" if ratio.isna().all() else f"{ratio.iloc[0]:.4f}",
                "Δt": f"{near['dt']:.3g}",
                "mean error (95%)": tables.cell(near, "error"),
                "median": f"{near['median']:.2e}",
                "error per NFE": f"{near['error_per_nfe']:.2e}",
            }
        )
    tables.show(
        "Local truncation error of one step in x (mean L2 over trajectories)",
        pd.DataFrame(lines),
        [
            "slope: of log error against log Δt over the smallest steps that the reference resolves",
            "theory/error: leading term from the exact next derivative, at the smallest of those steps",
            f"reference: own error {table['reference_error'].max():.1e}",
        ],
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw Fig. 3 (top) and 10: error against Δt, and below it against time advanced per evaluation."""
    starts = list(dict.fromkeys(table["t"]))
    band, names = ("error_low", "error_high"), list(dict.fromkeys(table["solver"]))
    with plots.style():
        figure, axes = plots.panels(2, len(starts), figsize=(plots.WIDTH, 4.6), sharey="row")
        for column, t in enumerate(starts):
            rows = table[(table["t"] == t) & (table["error"] > table["reference_error"])]
            top, bottom = axes[0, column], axes[1, column]
            plots.curves(top, rows, "dt", "error", band=band, among=names)
            limits = 0.5 * table["reference_error"].max(), 3 * rows["error_high"].max()
            for name in dict.fromkeys(rows["solver"][rows["theory"].notna()]):
                part = rows[rows["solver"] == name].sort_values("dt")
                top.plot(part["dt"], part["theory"], color="0.25", linestyle=":", linewidth=0.8)
            top.set_ylim(*limits)
            plots.curves(bottom, rows, "dt_per_nfe", "error", band=band, among=names)
            top.set_title(f"$t = {t:g}$")
            top.set_xlabel(r"step size $\Delta t$")
            bottom.set_xlabel(r"$\Delta t$ per evaluation (NFE)")
            for ax in (top, bottom):
                ax.set(xscale="log", yscale="log")
        for ax in axes[:, 0]:
            ax.set_ylabel("mean $L_2$ error of a step")
        axes[0, 0].plot([], [], color="0.25", linestyle=":", linewidth=0.8, label="leading term (theory)")
        plots.legend_below(figure, list(axes.flat), columns=5)
        return figure


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("lte", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
