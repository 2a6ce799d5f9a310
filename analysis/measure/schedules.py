"""What the steps of a method cost, the cheapest paths through them, and the errors of power schedules.

The cost of a step is the local error in x̄ of the step from the exact state, times the growth of a small error
in its direction on the way to the end, at most the size of the data, averaged over trajectories. To first
order the sum over a path bounds the mean error at its end (Watson et al. 2021 minimise such a sum by dynamic
programming).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.measure.case import Case
from analysis.methods import Method, striding
from problems import Model
from solvers import Node
from solvers.grids import log_snr

SMALL, SMALL_OF_NETWORKS = 1e-6, 1e-2
"""Size of the error whose growth is measured: large beside the errors of the two solutions compared."""

SETTLED = 0.1
"""How far two solutions by steps may differ where that growth is measured, in proportion to its size."""

Array = NDArray[np.float64]


def mesh(case: Case, candidates: int) -> list[float]:
    """Return the times among which a schedule is chosen, ``candidates`` steps that are equal in log-SNR."""
    schedule = case.problem.schedule
    times: list[float] = log_snr(candidates, schedule, schedule.start, schedule.stop).tolist()
    return times


def step_costs(case: Case, method: Method, candidates: int) -> dict[str, Any]:
    """Return the mean cost of the step between any two times of ``mesh``; see the module.

    The cost of a step of a multistep method depends on the steps before it, which a sum over steps cannot
    know. It is given an exact past, with steps as long, in log-SNR, as the one that it takes. That is a
    proxy.

    Parameters
    ----------
    case
        The trajectories.
    method
        The method; its grid does not matter.
    candidates
        Steps of the mesh, M.

    Returns
    -------
    ``cost``, shape (M + 1, M + 1): cost[i, j] is that of the step from time i to time j, for i < j; zero
    elsewhere.
    """
    times = mesh(case, candidates)
    exact = case.exact(*times[1:]).x
    with torch.no_grad():
        parts = [
            (len(rows), _costs(case, method, score, exact[:, rows], times))
            for score, rows in case.split(case.samples, case.problem, whole=method.coupled)
        ]
    if len(parts) == 1:
        return {"cost": parts[0][1]}
    return {"cost": sum(n * cost for n, cost in parts) / case.samples}


def _costs(case: Case, method: Method, score: Model, exact: Tensor, times: Sequence[float]) -> Array:
    """Return the mean costs over a batch, whose exact states are (len(times), n, *event)."""
    last, samples = len(times) - 1, exact.shape[1]
    eq, solver = method.form.make(score, None), method.solver
    small, tolerance = (SMALL_OF_NETWORKS, SETTLED * SMALL_OF_NETWORKS) if case.network else (SMALL, None)
    alpha = [score.schedule.alpha(t) for t in times]
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
    size = 2.0 * score.data_std * exact[0, 0].numel() ** 0.5
    for j in range(1, last + 1):
        growth = torch.ones(samples, dtype=exact.dtype)
        if j < last:
            way = error(j - 1, j).flatten(1)
            way = small * way / way.norm(dim=1, keepdim=True).clamp(min=1e-300)
            beside = exact[j] + alpha[j] * way.reshape(exact[j].shape)
            end = case.way(score, beside, (times[j], times[-1]), tolerance).x[-1]
            growth = (end - exact[-1]).flatten(1).norm(dim=1) / (alpha[-1] * small)
        for i in range(j):
            each = (error(i, j).flatten(1).norm(dim=1) * growth).nan_to_num(nan=size)
            cost[i, j] = each.clamp(max=size).mean()
    return cost


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


def rho_errors(case: Case, method: Method, steps: int, rhos: tuple[float, ...]) -> dict[str, Any]:
    """Return the mean L2 error of the end in x on power striding, for every ρ: ``error``, (len(rhos),)."""
    exact = case.exact().x[-1]
    ends = [case.sample(replace(method, grid=striding(rho)), steps)[0] for rho in rhos]
    return {"error": np.array([(end - exact).flatten(1).norm(dim=1).numpy().mean() for end in ends])}
