"""An adaptive Taylor method in which every trajectory has steps of its own: the source of references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.interface import Equation


@dataclass(frozen=True)
class AdaptiveTaylor:
    """The Taylor method of a fixed high order with a step size for each trajectory (Jorba & Zou 2005).

    A step is as long as the last three terms of the series allow, as one or two of them can be small by
    chance. Its polynomial is the solution over the whole step, so output at many times is nearly free.

    Parameters
    ----------
    order
        Order of the series, at least 4.
    tolerance
        Bound on the last terms of a step, relative to the size of the solution.
    """

    order: int = 16
    tolerance: float = 1e-14

    def solve(self, eq: Equation, y: Tensor, places: Sequence[float]) -> Tensor:
        """Return the solution through (y, places[0]) at every one of ``places``.

        Parameters
        ----------
        eq
            The equation; deterministic.
        y
            States, shape (N, *event), float64.
        places
            Strictly monotone values of s.

        Returns
        -------
        Tensor of shape (len(places), N, *event).
        """
        outputs = torch.tensor(places, dtype=torch.float64, device=y.device)
        end, ahead = outputs[-1], 1.0 if places[-1] > places[0] else -1.0
        solution = torch.empty(len(places), *y.shape, dtype=y.dtype, device=y.device)
        solution[0] = y
        active = torch.arange(len(y), device=y.device)
        s = outputs[0].expand(len(y))
        column = (-1,) + (1,) * (y.ndim - 1)
        while len(active):
            jet = eq.jet(y, s.reshape(column), self.order)
            series = [y, *(d / float(math.factorial(k)) for k, d in enumerate(jet, start=1))]
            step = torch.minimum(self._step(series), (end - s).abs())
            following = torch.where(step < (end - s).abs(), s + ahead * step, end)
            covered = ((outputs - s[:, None]) * ahead > 0) & ((following[:, None] - outputs) * ahead >= 0)
            who, which = covered.nonzero(as_tuple=True)
            solution[which, active[who]] = _evaluate(series, who, (outputs[which] - s[who]).reshape(column))
            everyone = torch.arange(len(active), device=y.device)
            y, s = _evaluate(series, everyone, (following - s).reshape(column)), following
            left = s != end
            if not bool(left.all()):
                active, y, s = active[left], y[left], s[left]
        return solution

    def _step(self, series: list[Tensor]) -> Tensor:
        size = _size(series[0]).clamp(min=1.0)
        steps = [
            (self.tolerance * size / _size(series[k]).clamp(min=1e-300)) ** (1.0 / k)
            for k in range(self.order - 2, self.order + 1)
        ]
        return torch.stack(steps).amin(0)


def _size(x: Tensor) -> Tensor:
    return x.flatten(1).abs().amax(1)


def _evaluate(series: list[Tensor], rows: Tensor, h: Tensor) -> Tensor:
    value = series[-1][rows]
    for c in series[-2::-1]:
        value = torch.addcmul(c[rows], h, value)
    return value
