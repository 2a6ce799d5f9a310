"""Any ordinary differential equation y' = f(s, y) as an ``Equation``, without a diffusion model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from solvers.interface import Scalar

Slope = Callable[[Tensor, Tensor], Tensor]
"""Takes s, 0-dimensional or broadcastable against the states, and states y; returns y' in their shape."""


Jets = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Identity:
    """The schedule of an equation in a variable of its own: γ(t) = t, α = 1. The log-SNR is -2 log s."""

    start = math.inf

    def alpha(self, t: Any) -> Any:
        """Return 1."""
        return 1.0

    def gamma(self, t: Any) -> Any:
        """Return t."""
        return t

    def time(self, gamma: Any) -> Any:
        """Return γ."""
        return gamma


class Evaluations:
    """A bill that counts evaluations of f per state."""

    nfe = 0.0


class ODE:
    """The equation y' = f(s, y), its time t being s.

    Parameters
    ----------
    f
        The right-hand side, written in operations that ``torch.func.jvp`` differentiates, in s too, without
        ``detach`` or ``item``. Derivatives along solutions are exact, by forward mode nested in itself: the
        k-th costs some 2ᵏ evaluations, which are not counted.
    """

    def __init__(self, f: Slope) -> None:
        self.f = f
        self.schedule = Identity()
        self.spent = Evaluations()
        self._share = 1.0

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (f, df/ds, …), the first ``order`` derivatives of the solution through (y, s)."""
        self.spent.nfe += self._share
        place = torch.as_tensor(s, dtype=y.dtype, device=y.device)
        jets: Jets = self._slope
        for _ in range(order - 1):
            jets = self._longer(jets)
        return jets(place, y)

    def _slope(self, s: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (self.f(s, y),)

    def _longer(self, jets: Jets) -> Jets:
        """Return the jets with one derivative more, dg/ds = ∂g/∂s + ∂g/∂y f of their last entry g."""

        def longer(s: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            rate = torch.ones_like(s), self.f(s, y)
            found, along = torch.func.jvp(jets, (s, y), rate)[:2]
            return (*found, along[-1])

        return longer

    def eps(self, y: Tensor, s: Scalar) -> Tensor:
        """Raise a ``ValueError``: there is no noise to predict."""
        raise ValueError("a plain ODE has no ε; this method needs a diffusion model")

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the equation of some of ``of`` states, on the same bill in proportion."""
        other = copy.copy(self)
        other._share = self._share * len(rows) / of
        return other

    def s(self, t: Any) -> Any:
        """Return t."""
        return t

    def t(self, s: Any) -> Any:
        """Return s."""
        return s

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return x."""
        return x

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return y."""
        return y


def ode(f: Slope) -> ODE:
    """Return y' = f(s, y) as an equation that every method without noise solves.

    Parameters
    ----------
    f
        Takes the variable s and states y, shape (n, *event), to their slopes; see ``ODE``.

    Examples
    --------
    The end of y' = -y at s = 1 by the method of Runge and Kutta in ten steps:

    >>> import torch
    >>> from solvers import RK4, final, march, ode
    >>> grid = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    >>> end = final(march(ode(lambda s, y: -y), RK4(), grid, torch.ones(1, 1, dtype=torch.float64)))
    >>> f"{end.x.item():.6f} after {end.nfe:g} evaluations"
    '0.367880 after 40 evaluations'
    """
    return ODE(f)
