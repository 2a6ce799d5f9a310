"""Exponential Taylor methods: the solution's slope as a polynomial in log s, integrated exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from solvers.clock import as_float, gauss
from solvers.interface import Equation, LinearRule, Node, Past, Scalar, along


@dataclass(frozen=True)
class ExponentialTaylor(LinearRule):
    """DPM-Solver-p with exact derivatives: the Taylor polynomial of f in τ = log(s/s₀), integrated over ds.

    On the DDIM form τ is the step in -λ and f is ε. On the data form τ is the step in λ and f is the denoised
    state. The linear part of the flow is integrated exactly, and the prediction is expanded in the log-SNR
    (Lu et al. 2022, Eq. 3.6, before its derivatives are replaced by differences). On both forms p = 1 is the
    Euler method in s, which is DDIM.

    With (s d/ds)ʲ = Σᵢ S(j, i) sⁱ dⁱ/dsⁱ, S the Stirling numbers of the second kind, the polynomial is
    Σⱼ τʲ/j! Σᵢ S(j, i) s₀ⁱ f⁽ⁱ⁾, and ds = s₀ exp(τ) dτ.

    Parameters
    ----------
    p
        Number of terms, at least 1.

    Raises
    ------
    ValueError
        If p is not positive, or if a step begins or ends at s ≤ 0.
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p < 1:
            raise ValueError(f"an exponential Taylor method has order 1 or more, not {self.p}")

    @property
    def order(self) -> int:
        """The number of terms, p."""
        return self.p

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the weights of the derivatives at s0, one row of length p."""
        if min(nodes[0], s1) <= 0.0:
            raise ValueError(f"log s is no variable of a step from s = {nodes[0]:g} to {s1:g}")
        moments = _moments(math.log(s1 / nodes[0]), self.p)
        return [
            [
                nodes[0] ** (i + 1) * sum(_stirling(j, i) * moments[j] for j in range(i, self.p))
                for i in range(self.p)
            ]
        ]

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Evaluate p derivatives at s0 and add them to y with their weights."""
        jet = eq.jet(y, s0, self.p)
        end = y
        for weight, derivative in zip(self.weights(eq, as_float(s1), [as_float(s0)])[0], jet, strict=True):
            end = along(end, weight, derivative)
        return end, Node(s0, jet, y)


@lru_cache(maxsize=4096)
def _moments(length: float, p: int) -> list[float]:
    """Return ∫₀ᴸ τʲ/j! exp(τ) dτ for j < p by Gauss's rule; the recurrence in j loses digits at small L."""
    rule = list(zip(*gauss(48), strict=True))
    return [
        math.fsum(w * math.exp(length * f) * f**j for f, w in rule) * length ** (j + 1) / math.factorial(j)
        for j in range(p)
    ]


def _stirling(j: int, i: int) -> int:
    """Return S(j, i), the Stirling number of the second kind."""
    if j == 0 or i == 0:
        return int(i == j)
    return i * _stirling(j - 1, i) + _stirling(j - 1, i - 1)
