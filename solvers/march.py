"""The loop over the steps of a grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.interface import Equation, Past, Solver


class State(NamedTuple):
    """The states at one time of a march.

    Attributes
    ----------
    t
        Time.
    x
        The states at that time, in the coordinates of the data.
    nfe
        Score evaluations per sample since the march began; a mean over the batch where samples differ.
    """

    t: float
    x: Tensor
    nfe: float


def march(
    eq: Equation, solver: Solver | Sequence[Solver], times: Tensor | Sequence[float], x: Tensor
) -> Iterator[State]:
    """Solve an equation step by step and yield the states at each of ``times``, the first included.

    Parameters
    ----------
    eq
        The equation to solve.
    solver
        The method, or one for each step.
    times
        At least one time, in the order of the steps: falling to sample, rising to encode.
    x
        The states at the first time, in the coordinates of the data.
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
    """Run a march to its end and return its last entry."""
    return deque(states, maxlen=1).pop()
