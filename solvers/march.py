"""The one loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.interface import Equation, Past, Solver


class State(NamedTuple):
    """Where a march stands.

    Attributes
    ----------
    t
        Time.
    x
        The states at that time, in the data's coordinates.
    nfe
        Score evaluations per sample since the march began; on average, where samples go separate ways.
    """

    t: float
    x: Tensor
    nfe: float


def march(
    eq: Equation, solver: Solver | Sequence[Solver], times: Tensor | Sequence[float], x: Tensor
) -> Iterator[State]:
    """Step through ``times`` and yield the state at each of them, the first included.

    Parameters
    ----------
    eq
        The equation to solve.
    solver
        The method, or one for each step.
    times
        At least one time, in the order in which they are visited: falling to sample, rising to encode.
    x
        The state at the first of them.
    """
    stops: list[float] = torch.as_tensor(times, dtype=torch.float64).tolist()
    before = eq.spent.nfe
    y = eq.enter(x, stops[0])
    past: Past = ()
    yield State(stops[0], x, 0)
    places = [eq.s(t) for t in stops]
    steps = [solver] * (len(stops) - 1) if isinstance(solver, Solver) else solver
    reach = max((step.reach for step in steps), default=0)
    for step, t, (s0, s1) in zip(steps, stops[1:], pairwise(places), strict=True):
        y, node = step.step(eq, y, s0, s1, past)
        past = (node, *past)[:reach]
        yield State(t, eq.leave(y, t), eq.spent.nfe - before)


def final(states: Iterator[State]) -> State:
    """Run a march to its end and return the last state."""
    state = next(states)
    for state in states:  # noqa: B007
        pass
    return state
