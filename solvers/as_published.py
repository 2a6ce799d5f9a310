"""Multistep rules in circulation whose weights are not those that their derivation gives.

Users run them, so they are here as they are published; the exact rules are ``Adams``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from solvers.adams import Adams
from solvers.clock import Clock, Exact, LogSNR
from solvers.interface import Equation, Solver


@dataclass(frozen=True)
class DPMSolver3M(Adams):
    """The multistep DPM-Solver-3; on the data form DPM-Solver++(3M).

    Its authors' code, and what was made of it, has x ← … - σ φ₃ D₂ with D₂ the second divided difference in
    λ, which stands for m″/2, beside a φ₃ that belongs to m″. So the quadratic term is taken half, an error of
    h³ m″/12 in each step, and the order is 2 instead of 3. ``Adams(3, clock=Exact(LogSNR()))`` is the
    rule that was meant.
    """

    k: int = 3
    clock: Clock = Exact(LogSNR())
    start: Solver | None = Adams(2, clock=LogSNR())

    @property
    def local_order(self) -> int:
        """3."""
        return 3

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the exact weights, less half the second moment times the second divided difference."""
        rows = super().weights(eq, s1, nodes)
        measure = self.clock.measure(eq, s1, nodes, 3)
        half = 0.5 * (s1 - nodes[0])
        half *= sum(w * place**2 for w, place in zip(measure.weights, measure.places, strict=True))
        a, b, c = measure.nodes
        difference = (1.0 / ((a - b) * (a - c)), 1.0 / ((b - a) * (b - c)), 1.0 / ((c - a) * (c - b)))
        return [[w - half * d] for (w,), d in zip(rows, difference, strict=True)]


@dataclass(frozen=True)
class VariableIPNDM(Adams):
    """iPNDM_v, "the variable-step version of the Adams–Bashforth methods", of the diff-sampler repository.

    Its weights are those of AB2, plus temp₁ times the second and temp₂ times the third difference of the
    slopes. Both factors and the third difference are misprinted: temp₁ has a bracket in the wrong place;
    temp₂ has the same one and a + for a -, which makes 11/24 of 9/24 on equal steps; the last coefficient has
    h₁/h₂ for h₂/h₃, so that the weights do not even sum to 1 unless the ratios of steps are equal. On a
    smooth family of grids the ratios are so up to O(h²), and order 2 is left; where steps stay unequal, none.
    ``Adams(4)`` is the rule that was meant.
    """

    k: int = 4

    @property
    def local_order(self) -> int:
        """3."""
        return 3

    @property
    def rough_order(self) -> int:
        """0."""
        return 0

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the published weights; those for one and two nodes are right."""
        if len(nodes) < 3:
            return super().weights(eq, s1, nodes)
        h, h1, h2, *more = (b - a for b, a in pairwise((s1, *nodes)))
        r = h1 / h2
        second = 0.5 * (1.0 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2)))
        weights = [1.0 + 0.5 * h / h1 + second, -0.5 * h / h1 - (1.0 + r) * second, r * second, 0.0]
        for h3 in more:
            third = 0.5 * (1.0 - h / (3 * (h + h1))) + (1.0 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
            third *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            q = h1 * (h1 + h2) / (h2 * (h2 + h3))
            difference = (1.0, -(1.0 + r + q), r + q * (1.0 + h2 / h3), -q * r)
            weights = [w + third * d for w, d in zip(weights, difference, strict=True)]
        return [[h * w] for w in weights[: len(nodes)]]
