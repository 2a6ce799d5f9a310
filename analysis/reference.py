"""Reference solutions: the exact flow, to an error that is measured and stated.

An adaptive Taylor method of high order, with steps for each trajectory, in the preconditioned form with the
standard deviation of the mixture's components, in which the flow has no stiff linear part.

Most trajectories forget small errors; the few that run along the border between two modes magnify them a
thousandfold. Near the border a singularity comes close to the path, and steps are narrow. So the narrowest
trajectories are solved again and again, until two solutions of different order and tolerance agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from problems import Model, Preconditioned
from solvers.adaptive_taylor import AdaptiveTaylor, Paths

REVISED = 1 / 50
"""Share of the trajectories, those with the narrowest steps, that are solved at least twice."""

AGREEMENT = 100.0
"""Two solutions agree where they differ by at most this many times the tolerance."""

REVISIONS = 3
"""How many times a trajectory is solved again, at most."""

NUMBERS = 2048
"""How many coordinates are solved for at once: few enough for the caches, enough to keep a core busy."""


@dataclass(frozen=True)
class Reference:
    """The exact solution at given times.

    Attributes
    ----------
    times
        The times.
    x
        The states, shape (len(times), N, *event), float64.
    error
        The largest L2 distance in x̄ = x/α, at any of the times, between the last two solutions of a
        trajectory, over the fiftieth of the trajectories (at least 16) that have the narrowest steps and were
        therefore solved again with higher order and a hundredth of the tolerance. The better one is in ``x``,
        and errors of the other trajectories are smaller, so this is an upper estimate.
    """

    times: tuple[float, ...]
    x: Tensor
    error: float


def reference(
    score: Model, x: Tensor, times: Sequence[float], tolerance: float = 1e-12, order: int | None = None
) -> Reference:
    """Return the exact states of the flow through ``x`` at times[0], at every one of ``times``.

    Parameters
    ----------
    score
        The model, with exact derivatives.
    x
        States at times[0], shape (N, *event).
    times
        Strictly monotone, falling to sample or rising to encode. A hundred cost little more than one.
    tolerance
        Bound on the last term of the series of a step, relative to the state. The error of most trajectories
        is of this size; where it is more than a hundred times that, the solution is revised.
    order
        Order of the series; the model's ``jet_order`` by default.

    Raises
    ------
    ValueError
        If the times are not strictly monotone, or the derivatives of the model are not those of its ε.
    """
    if len({a > b for a, b in pairwise(times)}) > 1 or any(a == b for a, b in pairwise(times)):
        raise ValueError("the times of a reference must rise or fall strictly: sort them, drop duplicates")
    if order is None:
        order = score.jet_order
    if order < 3:
        raise ValueError(f"a reference needs exact derivatives, which {type(score).__name__} does not give")
    eq = Preconditioned(score, score.component_std)
    x = x.to(torch.float64)
    states, narrowest = _solve(AdaptiveTaylor(order, tolerance), eq, x, times)
    alpha = torch.tensor([score.schedule.alpha(t) for t in times], dtype=x.dtype, device=x.device)[:, None]
    hard = narrowest.argsort()[: max(16, round(REVISED * len(x)))]
    error = 0.0
    for revision in range(1, REVISIONS + 1):
        solver = AdaptiveTaylor(order + revision * max(1, order // 8), tolerance * 100.0**-revision)
        revised = _solve(solver, eq, x[hard], times).states
        gap = ((revised - states[:, hard]).flatten(2).norm(dim=2) / alpha).amax(0)
        states[:, hard] = revised
        differs = gap > AGREEMENT * tolerance
        settled = gap if revision == REVISIONS else gap[~differs]
        error = max([error, *settled.tolist()])
        hard = hard[differs]
        if not len(hard):
            break
    return Reference(tuple(times), states, error)


def _solve(solver: AdaptiveTaylor, eq: Preconditioned, x: Tensor, times: Sequence[float]) -> Paths:
    """Solve for chunks of trajectories, in the coordinates of the data."""
    places = [eq.s(t) for t in times]
    chunk = max(1, NUMBERS // x[0].numel())
    with torch.inference_mode():
        parts = [x[i : i + chunk] for i in range(0, len(x), chunk)]
        paths = [solver.paths(eq, eq.enter(part, times[0]), places) for part in parts]
        states = torch.cat([p.states for p in paths], 1)
        data = torch.stack([eq.leave(y, t) for y, t in zip(states, times, strict=True)])
        narrowest = torch.cat([p.narrowest for p in paths])
    return Paths(data.clone(), narrowest.clone())
