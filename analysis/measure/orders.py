"""Certificates of orders: the errors of a method with more and more steps, and the slope through them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
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

POINTS = 3
"""Numbers of steps in a fit."""

REFINEMENTS = (1, 4, 16)
"""Multiples of the largest number of steps, tried until a certificate passes."""


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


def ladder(finest: int) -> list[int]:
    """Return the numbers of steps, a factor of √2 apart from the finest down to 8, all even.

    Even ones, for on a grid whose steps alternate the others would end with half a pair.
    """
    rungs = int(2.0 * math.log2(max(finest, 8) / 8.0)) + 1
    return [2 * round(0.5 * finest / 2.0 ** (0.5 * i)) for i in range(rungs)]


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
    Arrays by name: the numbers of steps (m,), the errors (m, samples), whether they stand above the floor
    (m,), the error of the reference. Coarser grids are tried until ``POINTS`` stand, and then finer ones
    while the slope is not that of the order (see ``REFINEMENTS``).
    """
    found: dict[str, Any] = {}
    known = cache(errors)
    for factor in REFINEMENTS:
        finer = _errors(factor * finest, known, reference_error, epsilon)
        if found and finer["stands"].sum() < POINTS:
            break
        found = finer
        if not abs(_slope_of(found) - order) > TOLERANCE:
            break
    return found


def _errors(
    finest: int, errors: Callable[[int], Array], reference_error: float, epsilon: float
) -> dict[str, Any]:
    steps, found, stand = [], [], []
    for n in ladder(finest):
        found.append(errors(n))
        steps.append(n)
        # Every step rounds once; at worst all of them to the same side.
        stand.append(bool(stands(found[-1].mean(), reference_error, n * epsilon)))
        if sum(stand) == POINTS:
            break
    return {
        "steps": np.array(steps),
        "error": np.stack(found),
        "stands": np.array(stand),
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
