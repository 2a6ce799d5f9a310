"""Methods that choose their own steps: RK45 for a whole batch, and the loop for steps of each trajectory."""

from __future__ import annotations

import math
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
        """Integrate from s0 to s1 in as many steps as the tolerance requires.

        States that are not finite stay so, and have no part in the choice of the steps.

        Raises
        ------
        ArithmeticError
            If the steps shrink to nothing.
        """
        rows = y.flatten(1).isfinite().all(1).nonzero()[:, 0]
        if not 0 < len(rows) < len(y):
            return self._solved(eq, y, s0, s1)
        end, node = self._solved(eq.part(rows, len(y)), y[rows], s0, s1)
        whole = [torch.full_like(y, math.nan).index_copy(0, rows, part) for part in (end, *node.jet)]
        return whole[0], Node(s0, tuple(whole[1:]), y)

    def _solved(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar) -> tuple[Tensor, Node]:
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
        try:
            path: Tensor = odeint(
                f, y, ends, rtol=self.rtol, atol=self.atol, method="dopri5", options=options
            )
        except AssertionError as error:
            raise ArithmeticError(f"the steps shrink to nothing ({error})") from error
        return path[1], Node(s0, (first[0],), y)


def each_trajectory(
    eq: E, attempt: Callable[[E, Tensor, Values], tuple[Values, Tensor]], values: Values
) -> Tensor:
    """Integrate a batch in which every trajectory has steps of its own.

    Only trajectories under way are evaluated: one that has reached its end leaves the batch, and so does one
    of which a value is no longer finite; it ends at NaN.

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

    Raises
    ------
    ArithmeticError
        If no trajectory stays finite.
    """
    n, lost = len(values[0]), 0
    ends, index, part = torch.empty_like(values[0]), torch.arange(n, device=values[0].device), eq
    while len(index):
        values, done = attempt(part, index, values)
        sums = [value.reshape(len(index), -1).sum(1, dtype=torch.float64) for value in values]
        broken = ~torch.stack(sums).sum(0).isfinite()
        if bool(broken.any()):
            ended = values[0].masked_fill(column(broken, values[0]), math.nan)
            values, done, lost = (ended, *values[1:]), done | broken, lost + int(broken.sum())
            if lost == n:
                raise ArithmeticError("the steps shrink to nothing, as no trajectory stays finite")
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
    """Raise an ArithmeticError if a step at s is not longer than ``least``; one that is NaN is let pass."""
    short = steps <= least
    if bool(short.any()):
        raise ArithmeticError(f"the steps shrink to nothing at s = {s[short][0].item():.6g}")


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number per trajectory, shape (n,), such that it broadcasts against states."""
    return numbers.reshape(-1, *(1 for _ in like.shape[1:]))
