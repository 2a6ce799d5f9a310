"""Multistep rules whose published weights differ from those of their derivation.

They are in use, so they are implemented as published. The rules of the derivations are ``Adams``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from solvers.adams import Adams
from solvers.clock import Clock, Exact, LogSNR
from solvers.interface import Equation, Solver
from solvers.taylor import Taylor


@dataclass(frozen=True)
class DPMSolver3M(Adams):
    """The multistep DPM-Solver-3; on the data form DPM-Solver++(3M).

    The authors' code and its descendants have x ← … - σ φ₃ D₂, where D₂ is the second divided difference in
    λ, which approximates m″/2. The φ₃ there belongs to m″, so half of the quadratic term is missing. The
    error is h³ m″/12 per step, and the order is 2 instead of 3. ``Adams(3, clock=Exact(LogSNR()))`` is the
    rule of the derivation.
    """

    k: int = 3
    clock: Clock = Exact(LogSNR())
    start: Solver | None = Adams(2, clock=LogSNR())

    local_order = 3

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the exact weights minus half the second moment times the second divided difference."""
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
    slopes. Three expressions are misprinted:

    - temp₁ has a bracket in the wrong place.
    - temp₂ has the same misplaced bracket, and a + for a -. On equal steps it is 11/24 instead of 9/24.
    - The last coefficient of the third difference has h₁/h₂ for h₂/h₃, so the weights sum to 1 only if the
      ratios of steps are equal.

    On a smooth family of grids the ratios are equal up to O(h²), and the order is 2. Where they are equal it
    is 3, if the start allows. Where steps stay unequal the method does not converge. ``Adams(4)`` is the rule
    of the derivation.
    """

    k: int = 4

    local_order = 3
    rough_order = 0

    @property
    def geometric_order(self) -> int:
        """3, for the weights then sum to 1; less where the starting steps are felt."""
        return min(3, self.starting_order)

    def well_started(self) -> VariableIPNDM:
        """Return the same method started by Taylor(3)."""
        return replace(self, start=Taylor(3))

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the published weights; for one and two nodes they are those of ``Adams``."""
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
