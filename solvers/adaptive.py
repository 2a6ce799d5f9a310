"""Methods that choose their own steps: RK45 for a whole batch, and the loop for steps of each trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torchdiffeq import odeint

from solvers.interface import Equation, Node, Past, Scalar, Solver

E = TypeVar("E", bound=Equation)
Values = tuple[Tensor, ...]
"""What each trajectory carries from one attempt at a step to the next: its state, and more; shapes (n, …)."""


class Adaptive(Solver):
    """A method that chooses its own steps between the times of a grid."""


@dataclass(frozen=True)
class RK45(Adaptive):
    """Dormand–Prince 5(4) with step-size control for the whole batch, by torchdiffeq.

    By default torchdiffeq steps beyond the end of the interval and interpolates back. Here it gets the end as
    a step point, so the equation is never evaluated outside [s0, s1].

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance; 1e-2 in the paper's run (Sec. 5.1).
    """

    rtol: float = 1e-2
    atol: float = 1e-2

    order = 5
    coupled = True

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Integrate from s0 to s1 in as many steps as the tolerance requires."""
        first: list[Tensor] = []
        low, high = sorted((float(s0), float(s1)))

        def f(s: Tensor, state: Tensor) -> Tensor:
            # The probe that selects the first step may lie outside the interval.
            slope = eq.jet(state, min(max(s.item(), low), high))[0]
            if not first:
                first.append(slope)
            return slope

        ends = torch.tensor([float(s0), float(s1)], dtype=torch.float64, device=y.device)
        options = {"step_t": ends[1:], "dtype": torch.float64}
        path: Tensor = odeint(f, y, ends, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)
        return path[1], Node(s0, (first[0],), y)


def each_trajectory(
    eq: E, attempt: Callable[[E, Tensor, Values], tuple[Values, Tensor]], values: Values
) -> Tensor:
    """Integrate a batch in which every trajectory has steps of its own.

    Only trajectories under way are evaluated: one that has reached its end leaves the batch.

    Parameters
    ----------
    eq
        The equation of the batch.
    attempt
        One attempt at a step by all trajectories under way. It gets their equation, their places in the batch
        and their values, and returns their new values and which of them have reached their end, shape (n,).
    values
        Values at the start, the states first.

    Returns
    -------
    The states at the ends.
    """
    n = len(values[0])
    ends, index, part = torch.empty_like(values[0]), torch.arange(n, device=values[0].device), eq
    while len(index):
        values, done = attempt(part, index, values)
        if bool(done.any()):
            ends[index[done]] = values[0][done]
            going = ~done
            index, values = index[going], tuple(v[going] for v in values)
            part = eq.part(index, n)
    return ends


def accept(accepted: Tensor, new: Values, old: Values) -> Values:
    """Return the new values of trajectories whose step is accepted, and the old values of the others."""
    return tuple(torch.where(column(accepted, a), a, b) for a, b in zip(new, old, strict=True))


def require_longer(steps: Tensor, least: Tensor | float, s: Tensor) -> None:
    """Raise an ArithmeticError unless every step at s is longer than ``least``; NaN is not."""
    if not bool((steps > least).all()):
        raise ArithmeticError(f"the steps shrink to nothing at s = {s[steps.argmin()].item():.6g}")


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number per trajectory, shape (n,), such that it broadcasts against states."""
    return numbers.reshape(-1, *(1 for _ in like.shape[1:]))
