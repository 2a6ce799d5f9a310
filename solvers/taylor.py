"""Truncated Taylor methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from solvers.interface import Equation, LinearRule, Node, Past, Scalar, along


@dataclass(frozen=True)
class Taylor(LinearRule):
    """The truncated Taylor method of order p, y ← Σ_{k≤p} hᵏ/k! y⁽ᵏ⁾ (Eq. 8, App. B.1).

    On the DDIM ODE, p = 1 is DDIM (Euler's method), p = 2 is GENIE with exact derivatives (Eq. 9) and p = 3
    is Eq. 52. The leading local error is hᵖ⁺¹/(p+1)! y⁽ᵖ⁺¹⁾.

    Parameters
    ----------
    p
        The order, at least 1.
    """

    p: int = 1

    def __post_init__(self) -> None:
        if self.p < 1:
            raise ValueError(f"a Taylor method has order 1 or more, not {self.p}")

    @property
    def order(self) -> int:
        """The number of derivatives, p."""
        return self.p

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Evaluate the Taylor polynomial by Horner's rule."""
        jet = eq.jet(y, s0, self.p)
        h = s1 - s0
        slope = jet[-1]
        for k in range(self.p - 1, 0, -1):
            slope = along(jet[k - 1], h / (k + 1), slope)
        return along(y, h, slope), Node(s0, jet, y)

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the weights hᵏ/k! of the derivatives at s0, one row of length p."""
        h = s1 - nodes[0]
        return [[h ** (k + 1) / math.factorial(k + 1) for k in range(self.p)]]
