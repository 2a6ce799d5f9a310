"""Certificates of orders: the errors of a method with more and more steps, and the slope through them.

A slope is that of the last doubling of the steps. It is settled if that of the doubling before is about the
same. While it is not, or is not that of the order, the steps are doubled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from analysis.measure.case import Case
from analysis.measure.fits import stands
from analysis.measure.recursion import law, moments
from analysis.measure.reference import Reference
from analysis.measure.statistics import Array, Bootstrap, Slope, slope
from analysis.methods import Method
from analysis.study.cells import Result
from problems import Gaussian, Problem
from problems.noise import LEAF
from problems.schedule import Schedule

TOLERANCE = 0.25
"""How far a slope may lie from the declared order."""

SETTLED = 0.25
"""How far a slope may move from one doubling of the steps to the next."""

UNEVEN = 1.1
"""Ratio of neighbouring steps beyond which a grid has not become smooth; see ``unevenness``."""

POINTS = 3
"""Numbers of steps that it takes: two for the slope, one more to see whether it has settled."""

COARSEST = 4
"""Smallest number of steps, tried where the errors of more are those of rounding."""

DOUBLINGS = 4
"""How often the largest number of steps is doubled, at most, until a certificate passes."""

INTERIOR = 0.3, 0.1
"""Times between which a smooth problem has no end, where all methods settle within some hundred steps."""


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
    other
        An order that is right too: in dx/dt from the prior that of first steps that are not felt, for whether
        they are depends there on the grid. Otherwise the same.
    """

    name: str
    method: Method
    kind: str
    against: str
    solver_order: float
    order: float
    other: float

    @property
    def unfelt(self) -> float:
        """The order that steps show while a last step of a lower order is too short to be felt."""
        return replace(self.method, last=()).well_started().order if self.method.last else self.order

    def shown(self, slope: float) -> float:
        """Return that of the two orders which is nearer to a slope."""
        return self.other if abs(slope - self.other) < abs(slope - self.order) else self.order


def intervals(schedule: Schedule) -> dict[str, tuple[float, float]]:
    """Return the intervals (start, stop) of a certificate by name: that of sampling, and a part inside it."""
    return {"prior": (schedule.start, schedule.stop), "interior": INTERIOR}


def certificates(name: str, method: Method, schedule: Schedule, start: float) -> list[Certificate]:
    """Return the certificates that a method can have on an interval.

    Parameters
    ----------
    name, method
        The method.
    schedule
        The noise schedule of the problem.
    start
        Time at which the interval begins. At the start of the schedule the order is ``Method.prior_order``.
    """
    prior = start == schedule.start
    order = method.prior_order if prior else method.order
    declared = method.solver.order, order, method.well_started().order if prior else order
    if not method.random:
        return [Certificate(name, method, "ends", method.limit, *declared)]
    strong = method.strong_order, method.strong_order, method.strong_order
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


def ladder(finest: int) -> list[int]:
    """Return the numbers of steps, halves of halves from the finest down to 4, all even.

    Even ones, for on a grid whose steps alternate the others would end with half a pair.
    """
    rungs = int(math.log2(max(finest, COARSEST) / COARSEST)) + 1
    return [2 * round(0.5 * finest / 2.0**i) for i in range(rungs)]


@lru_cache(maxsize=8)
def flow(case: Case) -> Reference:
    """Return the exact flow from samples of the problem at the start of its schedule to the end."""
    ends = case.problem.schedule.start, case.problem.schedule.stop
    return case.way(case.problem, case.data(ends[0]), ends, None)


def by_ends(case: Case, method: Method, order: float, finest: int) -> dict[str, Any]:
    """Measure a certificate by the ends of trajectories against the exact flow; see ``refined``.

    Parameters
    ----------
    case
        The trajectories, which begin with samples of the problem at the start of its schedule.
    method
        The method.
    order
        The declared order.
    finest
        The largest number of steps to begin with.
    """
    return refined(order, finest, end_errors(case, method, flow(case)), flow(case).error, case.epsilon)


def by_paths(case: Case, method: Method, fine: Method, order: float, finest: int) -> dict[str, Any]:
    """Measure a certificate by the ends of trajectories along their Brownian paths; see ``refined``.

    Parameters
    ----------
    case, method, order, finest
        As in ``by_ends``.
    fine
        The method of the solution on the same paths; see ``along_paths``.
    """
    solution = along_paths(case, fine)
    return refined(order, finest, end_errors(case, method, solution), solution.error, case.epsilon)


def by_moments(schedule: Schedule, method: Method, order: float, finest: int) -> dict[str, Any]:
    """Measure a certificate by mean and covariance at the end on one Gaussian; see ``refined``.

    Parameters
    ----------
    schedule
        The noise schedule.
    method, order, finest
        As in ``by_ends``.
    """
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5, schedule)
    errors = moment_errors(method, problem)
    return refined(order, finest, errors, 0.0, torch.finfo(torch.float64).eps)


@lru_cache(maxsize=8)
def along_paths(case: Case, method: Method) -> Reference:
    """Solve along the paths of the samples, in as many steps of equal log-SNR as the paths resolve.

    Parameters
    ----------
    case
        The trajectories, which begin with samples of the problem at the start of its schedule.
    method
        How, in a form of its own, on steps of equal log-SNR.

    Returns
    -------
    The solution at both ends. Its error is a mean over trajectories: the distance to the solution in half
    as many steps, divided by √3. For at order 1 the latter errs by twice as much, and the difference of the
    two depends on what the path does between, which neither has to do with the path at the longer steps nor
    with that within the shorter ones, so that squares add: 2² = 1² + 3.
    """
    problem, schedule = case.problem, case.problem.schedule
    x = case.data(schedule.start)
    ends = schedule.start, schedule.stop
    most = int((math.log(schedule.gamma(ends[0])) - math.log(schedule.gamma(ends[1]))) / LEAF)
    better, other = (method.sample(problem, n, x, case.noise) for n in (most, most // 2))
    error = (better - other).flatten(1).norm(dim=1).mean() / math.sqrt(3.0)
    return Reference(ends, torch.stack([x, better]), float(error))


def end_errors(case: Case, method: Method, solution: Reference) -> Callable[[int], Array]:
    """Return what gives the L2 errors (samples,) at the end of ``solution`` for a number of steps."""
    begin = case.data(case.problem.schedule.start)

    def errors(steps: int) -> Array:
        end, _ = case.sample(method, steps, begin)
        distances: Array = (end - solution.x[-1]).flatten(1).norm(dim=1).numpy()
        return distances

    return errors


def moment_errors(method: Method, problem: Gaussian) -> Callable[[int], Array]:
    """Return what gives the error (1,) of mean and covariance at the end for a number of steps."""
    exact = law(problem, problem.schedule.stop)
    return lambda steps: np.array([moments(method, problem, steps).distance(exact)])


def refined(
    order: float, finest: int, errors: Callable[[int], Array], reference_error: float, epsilon: float
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
    epsilon
        The rounding unit of the precision in which methods run.

    Returns
    -------
    Arrays by name: the numbers of steps (m,), falling, the errors (m, samples), whether they stand above the
    floor (m,), the error of the reference. The steps are halved until ``POINTS`` stand, and doubled while the
    slope of the last is not settled or not that of the order (see ``DOUBLINGS``).
    """
    known: dict[int, tuple[Array, bool]] = {}

    def look(steps: int) -> None:
        found = errors(steps)
        # Every step rounds once; at worst all of them to the same side.
        known[steps] = found, bool(stands(found.mean(), reference_error, steps * epsilon))

    for n in ladder(finest):
        look(n)
        if sum(stand for _, stand in known.values()) == POINTS:
            break
    for doubling in range(1, DOUBLINGS + 1):
        if _decided(_arrays(known, reference_error), order):
            break
        look(finest * 2**doubling)
    return _arrays(known, reference_error)


def _arrays(known: dict[int, tuple[Array, bool]], reference_error: float) -> dict[str, Any]:
    steps = sorted(known, reverse=True)
    return {
        "steps": np.array(steps),
        "error": np.stack([known[n][0] for n in steps]),
        "stands": np.array([known[n][1] for n in steps]),
        "reference_error": np.array(reference_error),
    }


def _decided(arrays: dict[str, Any], order: float) -> bool:
    """Return whether more steps would tell nothing new: the slope is as declared, or cannot be had."""
    if (
        not arrays["stands"][0]
        or arrays["stands"].sum() < POINTS
        or not np.isfinite(arrays["error"][0]).all()
    ):
        return True
    last, before = doublings(arrays)[:2]
    return bool(abs(last - before) <= SETTLED and abs(last - order) <= TOLERANCE)


def doublings(arrays: Mapping[str, Any]) -> Array:
    """Return the slope of mean error from each number of steps that stands to the next, the last first."""
    here = arrays["stands"] > 0
    steps, means = np.log(arrays["steps"][here]), np.log(arrays["error"][here].mean(axis=1))
    slopes: Array = -np.diff(means) / np.diff(steps)
    return slopes


def fitted(result: Result) -> Slope:
    """Return the slope of error against step size over the last doubling whose errors stand.

    Its interval is over the trajectories: moments, which are exact, have none. NaN without a slope.
    """
    here = np.flatnonzero(result.arrays["stands"] > 0)[:POINTS]
    steps, errors = result.arrays["steps"][here], result.arrays["error"][here]
    if len(steps) < POINTS or not np.isfinite(errors).all():
        return Slope(math.nan, math.nan, math.nan)
    return slope(1.0 / steps[:2], errors[:2], Bootstrap(errors.shape[1]))


def unevenness(method: Method, problem: Problem, steps: int) -> float:
    """Return the largest ratio, at least 1, of neighbouring steps in the variable of the form and in log γ.

    On grids whose steps alternate, of steps of the same parity.
    """
    form, times = method.form.make(problem, None), method.grid.times(steps, problem.schedule).tolist()
    places = [[float(form.s(t)) for t in times], [math.log(problem.schedule.gamma(t)) for t in times]]
    sizes = np.log(np.abs(np.diff(places)))
    apart = 1 if method.grid.smooth else 2
    return float(np.exp(np.abs(sizes[:, apart:] - sizes[:, :-apart]).max(initial=0.0)))


def verdict(c: Certificate, problem: Problem, fit: Slope, result: Result) -> str:
    """Return what a slope says of a declared order.

    Returns
    -------
    ``pass`` if it is settled and within 0.25 of the order, ``FAIL`` if it is settled and is not, or if errors
    are not finite; ``unsettled`` if at the largest number of steps it still moves by more than 0.25 from one
    doubling to the next, or if it is not as declared, but its interval reaches what would be, or one last
    step is not yet felt, or neighbouring steps differ by more than a tenth there, so that the grid is none of
    those of which orders are declared; ``rounding`` where fewer than three errors stand above the floor.
    """
    arrays = result.arrays
    if math.isnan(fit.value):
        return "rounding" if np.isfinite(arrays["error"]).all() else "FAIL"
    last, before = doublings(arrays)[:2]
    if abs(last - before) > SETTLED:
        return "unsettled"
    if abs(fit.value - c.shown(fit.value)) <= TOLERANCE:
        return "pass"
    undecided = (
        fit.low <= c.order + TOLERANCE and fit.high >= c.order - TOLERANCE,
        c.order < fit.value <= c.unfelt + TOLERANCE,
        unevenness(c.method, problem, int(arrays["steps"].max())) > UNEVEN,
    )
    return "unsettled" if any(undecided) else "FAIL"
