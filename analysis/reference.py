"""Reference solutions: the exact flow, to an error that is measured and stated.

An adaptive Taylor method of high order, with steps for each trajectory, in the preconditioned form with the
standard deviation of the mixture's components, in which the flow has no stiff linear part (FORMULAS 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from problems import Mixture, Model, Preconditioned
from solvers.adaptive_taylor import AdaptiveTaylor

CHECKED = 100
"""Number of trajectories on which the error is measured."""


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
        The largest L2 distance in x̄, over the times, of the first hundred trajectories to a solution of
        higher order with a hundredth of the tolerance.
    """

    times: tuple[float, ...]
    x: Tensor
    error: float


def reference(score: Model, x: Tensor, times: Sequence[float], tolerance: float = 5e-12) -> Reference:
    """Return the exact states of the flow through ``x`` at times[0], at every one of ``times``.

    Parameters
    ----------
    score
        The model; must have jets of order 20.
    x
        States at times[0], shape (N, *event), float64.
    times
        Strictly monotone, falling to sample or rising to encode.
    tolerance
        Tolerance of a step, relative to the size of the states. The default keeps the error of the toy's
        end points below 1e-10; 1e-13 keeps it near rounding, for half as much time again.

    Raises
    ------
    ValueError
        If the times are not strictly monotone.
    """
    signs = {a > b for a, b in pairwise(times)}
    if len(signs) > 1 or any(a == b for a, b in pairwise(times)):
        raise ValueError("the times of a reference must be strictly monotone")
    std = score.component_std if isinstance(score, Mixture) else score.data_std
    eq = Preconditioned(score, std)
    states = _solve(AdaptiveTaylor(16, tolerance), eq, x, times)
    check = _solve(AdaptiveTaylor(20, 0.01 * tolerance), eq, x[:CHECKED], times)
    alpha = torch.tensor([score.schedule.alpha(t) for t in times], dtype=torch.float64)
    gap = (states[:, :CHECKED] - check).flatten(2).norm(dim=2) / alpha[:, None]
    return Reference(tuple(times), states, float(gap.max()))


def _solve(solver: AdaptiveTaylor, eq: Preconditioned, x: Tensor, times: Sequence[float]) -> Tensor:
    y = solver.solve(eq, eq.enter(x, times[0]), [eq.s(t) for t in times])
    return torch.stack([eq.leave(states, t) for states, t in zip(y, times, strict=True)])
