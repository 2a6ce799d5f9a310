"""Reference solutions: the exact flow, to an error that is measured and stated.

Where derivatives of ε are cheap: an adaptive Taylor method of high order, with steps for each trajectory, in
the preconditioned form with the standard deviation of the mixture's components, in which the flow has no
stiff linear part.

Most trajectories forget small errors; the few that run along the border between two modes magnify them a
thousandfold. Near the border a singularity comes close to the path, and steps are narrow. So the narrowest
trajectories are solved again and again, until two solutions of different order and tolerance agree.

Where they are not, as for networks: an Adams method of order six on steps that are equal in log-SNR, in the
preconditioned form with the standard deviation of the data, with twice as many steps until two agree, for
each trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from problems import Model, Preconditioned
from solvers import RK4, Adams
from solvers.adaptive_taylor import AdaptiveTaylor, Paths
from solvers.interface import Past

REVISED = 1 / 50
"""Share of the trajectories, those with the narrowest steps, that are solved at least twice."""

AGREEMENT = 100.0
"""Two solutions agree where they differ by at most this many times the tolerance."""

REVISIONS = 3
"""How many times a trajectory is solved again, at most."""

LEAVING = 0.25
"""Longest step on the way to t = 1, in proportion to u.

Near the data a mixture of narrow components is one of them to within rounding, and its flow a straight line
that foretells nothing of the others. Their shares grow like exp(-c u²) as u falls: a quarter of u at a time,
they are seen before they matter.
"""

NUMBERS = 2048
"""How many coordinates are solved for at once: few enough for the caches, enough to keep a core busy."""


SERIES = 8
"""Models whose best order of jets is at least this are solved by series."""

SETTLED = 2e-4
"""Distance of two solutions by steps at which the better one is accepted, unless told otherwise."""

STEPS = (64, 1024)
"""Fewest and most steps of the Adams method, on the whole schedule."""


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
        trajectory. The better one is in ``x``, so this is an upper estimate. By series, it is taken over the
        fiftieth of the trajectories (at least 16) that have the narrowest steps and were therefore solved
        again with higher order and a hundredth of the tolerance; otherwise over all.
    """

    times: tuple[float, ...]
    x: Tensor
    error: float


def reference(
    score: Model, x: Tensor, times: Sequence[float], tolerance: float | None = None, order: int | None = None
) -> Reference:
    """Return the exact states of the flow through ``x`` at times[0], at every one of ``times``.

    Parameters
    ----------
    score
        The model. Its derivatives must be exact if it is solved by series.
    x
        States at times[0], shape (N, *event).
    times
        Strictly monotone, falling to sample or rising to encode. A hundred cost little more than one.
    tolerance
        By series (1e-12 by default): bound on the last term of a step, relative to the state. The error of
        most trajectories is of this size; where it is more than a hundred times that, the solution is
        revised. Otherwise (2e-4 by default): the distance of two solutions at which the better one, which is
        some thirty times as good, is accepted; what 1,024 steps cannot reach is left at that.
    order
        Order of the series; the model's ``jet_order`` by default.

    Raises
    ------
    ValueError
        If the times are not strictly monotone.
    """
    if not len(x):
        return Reference(tuple(times), _ready(x, times).expand(len(times), *x.shape).clone(), 0.0)
    if order is not None and order >= SERIES:
        return by_series(score, x, times, tolerance, order)
    way = way_to(score) if order is None else by_steps
    return way(score, x, times, tolerance)


Way = Callable[[Model, Tensor, Sequence[float], float | None], Reference]
"""Solves for the exact states; see ``reference``."""


def way_to(score: Model) -> Way:
    """Return how a model is solved: by series where its derivatives are cheap, else by steps."""
    return by_series if score.jet_order >= SERIES else by_steps


def _ready(x: Tensor, times: Sequence[float]) -> Tensor:
    if len({a > b for a, b in pairwise(times)}) > 1 or any(a == b for a, b in pairwise(times)):
        raise ValueError("the times of a reference must rise or fall strictly: sort them, drop duplicates")
    return x.to(torch.float64)


def by_steps(score: Model, x: Tensor, times: Sequence[float], tolerance: float | None = None) -> Reference:
    """Solve by an Adams method on more and more steps; see ``reference``."""
    x, tolerance = _ready(x, times), SETTLED if tolerance is None else tolerance
    alpha = _alpha(score, times, x)
    places = [math.log(score.schedule.gamma(t)) for t in (score.schedule.start, score.schedule.stop)]
    share = (math.log(score.schedule.gamma(times[0])) - math.log(score.schedule.gamma(times[-1]))) / (
        places[0] - places[1]
    )
    fewest, most = (max(8, math.ceil(n * abs(share))) for n in STEPS)
    states, steps = _adams(score, x, times, fewest), fewest
    error, rough = torch.full((len(x),), math.inf, dtype=x.dtype), torch.arange(len(x))
    while len(rough) and steps < most:
        steps *= 2
        better = _adams(score.part(rough, len(x)), x[rough], times, steps)
        error[rough] = ((better - states[:, rough]).flatten(2).norm(dim=2) / alpha).amax(0)
        states[:, rough] = better
        rough = rough[error[rough] > tolerance]
    return Reference(tuple(times), states, float(error.max()))


def _adams(score: Model, x: Tensor, times: Sequence[float], steps: int) -> Tensor:
    """Solve on ``steps`` steps equal in log-SNR; a time between two of them is stepped to on the side."""
    eq, solver = Preconditioned(score, score.data_std), Adams(6, start=RK4())
    first, last = (math.log(score.schedule.gamma(t)) for t in (times[0], times[-1]))
    ends = [score.schedule.time(math.exp(first + (last - first) * n / steps)) for n in range(1, steps)] + [
        times[-1]
    ]
    past: Past = ()
    found, remaining = [x], list(times[1:])
    t, y = times[0], eq.enter(x, times[0])
    with torch.inference_mode():
        for end in ends:
            while remaining and (remaining[0] - end) * (times[0] - times[-1]) > 0:
                aside, _ = solver.step(eq, y, eq.s(t), eq.s(remaining[0]), past)
                found.append(eq.leave(aside, remaining.pop(0)))
            y, node = solver.step(eq, y, eq.s(t), eq.s(end), past)
            past, t = (node, *past)[: solver.reach], end
            if remaining and remaining[0] == end:
                found.append(eq.leave(y, remaining.pop(0)))
        states = torch.stack(found)
    return states.clone()


def _alpha(score: Model, times: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor([score.schedule.alpha(t) for t in times], dtype=x.dtype, device=x.device)[:, None]


def by_series(
    score: Model,
    x: Tensor,
    times: Sequence[float],
    tolerance: float | None = None,
    order: int | None = None,
) -> Reference:
    """Solve by Taylor series of high order; see ``reference``."""
    x, tolerance = _ready(x, times), 1e-12 if tolerance is None else tolerance
    order = order or score.jet_order
    eq, alpha = Preconditioned(score, score.component_std), _alpha(score, times, x)
    longest = LEAVING if times[-1] > times[0] else math.inf
    states, narrowest = _solve(AdaptiveTaylor(order, tolerance, longest), eq, x, times)
    hard = narrowest.argsort()[: max(16, round(REVISED * len(x)))]
    error = 0.0
    for revision in range(1, REVISIONS + 1):
        finer = order + revision * max(1, order // 8), tolerance * 100.0**-revision
        solver = AdaptiveTaylor(*finer, longest)
        revised = _solve(solver, eq.part(hard, len(x)), x[hard], times).states
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
        paths = []
        for rows in torch.split(torch.arange(len(x)), chunk):
            part = eq.part(rows, len(x))
            paths.append(solver.paths(part, part.enter(x[rows], times[0]), places))
        states = torch.cat([p.states for p in paths], 1)
        data = torch.stack([eq.leave(y, t) for y, t in zip(states, times, strict=True)])
        narrowest = torch.cat([p.narrowest for p in paths])
    return Paths(data.clone(), narrowest.clone())
