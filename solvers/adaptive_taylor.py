"""An adaptive Taylor method with steps for each trajectory, which computes reference solutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.adaptive import Values, column, each_trajectory, require_longer
from solvers.interface import Equation


class Paths(NamedTuple):
    """Solutions at many places.

    Attributes
    ----------
    states
        Shape (len(places), N, *event).
    narrowest
        Shape (N,): the smallest step of each trajectory relative to the size of the solution there. Steps are
        small near a singularity in the complex plane, where small differences grow, so the largest errors are
        expected on the trajectories with the smallest values.
    """

    states: Tensor
    narrowest: Tensor


@dataclass(frozen=True)
class AdaptiveTaylor:
    """The Taylor method of a fixed high order, with steps for each trajectory (Jorba & Zou 2005).

    The radius of convergence is the smallest of three estimates, from the last three terms of the series, as
    one or two of these terms can be small by chance. The step size is the fraction of the radius at which the
    last term is within the tolerance. The series is the solution over the whole step, so output at any
    number of places costs little.

    Parameters
    ----------
    order
        p, the order of the series, at least 3.
    tolerance
        Bound on the last term of a step, relative to the size of the solution or 1, whichever is greater.
    longest
        Largest step size relative to |s|. A term like exp(-s²) and all its derivatives are below rounding at
        large |s|, so the series does not contain it there; short steps find it where it begins to matter. A
        path with this bound does not cross s = 0.

    Raises
    ------
    ValueError
        If the order or the tolerance is too small, or the longest step is not positive.
    """

    order: int = 16
    tolerance: float = 1e-13
    longest: float = math.inf

    def __post_init__(self) -> None:
        if self.order < 3 or self.tolerance <= 0.0:
            raise ValueError(f"needs order >= 3 and tolerance > 0, not {self.order} and {self.tolerance}")
        if not self.longest > 0.0:
            raise ValueError(f"needs longest > 0, not {self.longest}")

    def solve(self, eq: Equation, y: Tensor, places: Sequence[float]) -> Tensor:
        """Return the solution through (y, places[0]) at every one of ``places``; see ``paths``."""
        return self.paths(eq, y, places).states

    def paths(self, eq: Equation, y: Tensor, places: Sequence[float]) -> Paths:
        """Solve for every one of ``places``.

        Parameters
        ----------
        eq
            The equation, without noise.
        y
            States at places[0], shape (N, *event).
        places
            Strictly monotone values of s, rising or falling.

        Raises
        ------
        ValueError
            If the places are not strictly monotone.
        ArithmeticError
            If the steps shrink to nothing, at a singularity or where the series is not finite.
        """
        outputs = torch.tensor(places, dtype=torch.float64, device=y.device)
        ahead = 1.0 if places[-1] >= places[0] else -1.0
        milestones = ahead * outputs
        if not bool((milestones.diff() > 0).all()):
            raise ValueError("places must be strictly monotone")
        end = outputs[-1]
        states = y.new_empty(len(places), *y.shape)
        states[0] = y
        narrowest = y.new_full((len(y),), math.inf, dtype=torch.float64)

        def attempt(part: Equation, index: Tensor, values: Values) -> tuple[Values, Tensor]:
            y, s = values
            jet = part.jet(y, column(s, y), self.order)
            size = _size(y).clamp(min=1.0)
            step = self._step(jet, size)
            if self.longest < math.inf:
                step = torch.minimum(step, self.longest * s.abs())
            require_longer(step, 1e-14 * s.abs(), s)
            narrowest[index] = torch.minimum(narrowest[index], step / size)
            finishing = step >= ahead * (end - s)
            following = torch.where(finishing, end, s + ahead * step)
            # Entry j of rows and which: row rows[j] passes the output place which[j] in this step.
            first = torch.searchsorted(milestones, ahead * s, right=True)
            count = torch.searchsorted(milestones, ahead * following, right=True) - first
            if bool(count.any()):
                rows = torch.arange(len(index), device=y.device).repeat_interleave(count)
                within = torch.arange(len(rows), device=y.device) - (count.cumsum(0) - count)[rows]
                which = first[rows] + within
                at = column(outputs[which] - s[rows], y)
                states[which, index[rows]] = _taylor(y[rows], [d[rows] for d in jet], at)
            return (_taylor(y, jet, column(following - s, y)), following), finishing

        if len(places) > 1:
            each_trajectory(eq, attempt, (y, outputs[0].expand(len(y))))
        return Paths(states, narrowest)

    def _step(self, jet: tuple[Tensor, ...], size: Tensor) -> Tensor:
        """Return the next step sizes: the least radius of convergence times tolerance^(1/p), shape (n,)."""
        radii = [
            (size * float(math.factorial(k)) / _size(jet[k - 1])).pow(1.0 / k)
            for k in range(self.order - 2, self.order + 1)
        ]
        return torch.stack(radii).amin(0) * math.pow(self.tolerance, 1.0 / self.order)


def _size(x: Tensor) -> Tensor:
    return torch.as_tensor(torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64))


def _taylor(y: Tensor, jet: Sequence[Tensor], h: Tensor) -> Tensor:
    """Evaluate the Taylor polynomial y + h f + h²/2 f' + … by Horner's rule."""
    slope, h = jet[-1], h.to(y)
    for k in range(len(jet) - 1, 0, -1):
        slope = torch.addcmul(jet[k - 1], h / (k + 1), slope)
    return torch.addcmul(y, h, slope)
