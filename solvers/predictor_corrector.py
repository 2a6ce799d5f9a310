"""Correctors without evaluations of their own: UniC, and with it UniPC (Zhao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from solvers.clock import Clock, Exact, LogSNR, Measure, as_float, hermite_weights
from solvers.interface import Equation, Node, Past, Scalar, Solver, along


@dataclass(frozen=True)
class PlainLogSNR(LogSNR):
    """The log-SNR with UniPC's B₁(h) = h for two data: a rule with a single quadrature point.

    The mean over the step of a line in λ is its value at s0 plus a share of its rise. UniPC sets the share
    to ½ B(h)/(e^h - 1), with s = γ = exp(-λ), or s = 1/γ = exp(λ) on the data form. With its B₂ = e^h - 1
    the share is ½, as with ``LogSNR``.
    """

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the rule with the single place log(s0/s1)/(2 (s0/s1 - 1))."""
        if min(nodes[0], s1) <= 0.0:
            raise ValueError(f"log s is no variable of a step from s = {nodes[0]:g} to {s1:g}")
        ratio = nodes[0] / s1
        place = math.log(ratio) / (2.0 * (ratio - 1.0))
        return Measure((place,), (1.0,), super().measure(eq, s1, nodes, data).nodes)


@dataclass(frozen=True)
class Pairs(Clock):
    """A clock that treats one or two data differently from more, as UniPC does.

    Parameters
    ----------
    two
        The clock for one and two data.
    more
        The clock for more.
    """

    two: Clock = LogSNR()
    more: Clock = Exact(LogSNR())

    @property
    def limit(self) -> float:
        """The limit of the clock for more than two data."""
        return self.more.limit

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the measure of the clock for this number of data."""
        return (self.two if data <= 2 else self.more).measure(eq, s1, nodes, data)


@dataclass(frozen=True)
class Corrected(Solver):
    """A method whose steps are corrected after the next evaluation: UniC with any solver.

    The slope at s0 is evaluated at the predicted state. Then the last step is repeated by the implicit rule
    that integrates the interpolant through this slope and those of the last q nodes. The method continues
    from the corrected state with the slope at the predicted one. The last step of a march is not corrected.

    ``Corrected(Adams(q, clock), q, clock)`` with ``clock=Pairs()`` is UniPC of order q with B₂, and with
    ``Pairs(PlainLogSNR())`` UniPC with B₁; on the data form it predicts x̂₀, on the DDIM form ε.

    Parameters
    ----------
    solver
        The method.
    q
        Number of past nodes that the corrector uses, at least 1.
    clock
        The variable in which the corrector interpolates.

    Raises
    ------
    ValueError
        If q is not positive, or if the method is random: the repeated step would not contain the noise.
    """

    solver: Solver
    q: int = 1
    clock: Clock = Pairs()

    def __post_init__(self) -> None:
        if self.q < 1:
            raise ValueError(f"a corrector needs one past node or more, not {self.q}")
        if self.solver.random:
            raise ValueError(f"a correction would take away the noise of {self.solver}")

    @property
    def p(self) -> int:
        """Number of derivatives that the method evaluates."""
        return self.solver.p

    @property
    def corrector_order(self) -> int:
        """Order of the corrector: q + 1, or the limit of the clock where that is less."""
        return int(min(self.q + 1, self.clock.limit))

    @property
    def order(self) -> int:
        """The least of the method's local order, the corrector's order and the starting order."""
        return min(self.solver.local_order, self.corrector_order, self.starting_order)

    @property
    def local_order(self) -> int:
        """Local order of the method, or of the corrector where that is less."""
        return min(self.solver.local_order, self.corrector_order + 1)

    @property
    def starting_order(self) -> int:
        """One more than that of the method, at most 3 as one past node is used to correct the first step."""
        return min(self.solver.starting_order + 1, self.corrector_order + 1, 3)

    def well_started(self) -> Corrected:
        """Return the method well started and corrected with all its data only."""
        return _Patient(self.solver.well_started(), self.q, self.clock)

    @property
    def rough_order(self) -> int:
        """One more than that of the method, or ``order`` where that is less."""
        return min(self.solver.rough_order + 1, self.order)

    @property
    def reach(self) -> int:
        """Number of past nodes that the corrector or the method uses, whichever is greater."""
        return max(self.q, self.solver.reach)

    @property
    def coupled(self) -> bool:
        """Whether the method couples the states of a batch."""
        return self.solver.coupled

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Evaluate, correct, step; the node returned has the predicted slope and the corrected state."""
        jet = eq.jet(y, s0, self.p)
        if self._ready(past):
            y = self._correct(eq, as_float(s0), (*past[: self.q], Node(s0, jet)))
        y1, _ = self.solver.step(cast(Equation, _Answered(eq, s0, jet)), y, s0, s1, past)
        return y1, Node(s0, jet, y)

    def _ready(self, past: Past) -> bool:
        """Return whether the last step is corrected: there must have been one."""
        return len(past) > 0

    def _correct(self, eq: Equation, s: float, nodes: Past) -> Tensor:
        """Repeat the step from nodes[0] to s; the last node is s with the slope at the predicted state."""
        begin, y = as_float(nodes[0].s), nodes[0].y
        if y is None:
            raise ValueError("a corrector takes the last step again, so its node needs the state y")
        measure = self.clock.measure(eq, s, [as_float(node.s) for node in nodes], len(nodes))
        for node, (weight,) in zip(nodes, hermite_weights(measure, 1), strict=True):
            y = along(y, (s - begin) * weight, node.jet[0])
        return y


@dataclass(frozen=True)
class _Patient(Corrected):
    """A corrected method whose first steps stay as they are, until the past has all that is used."""

    @property
    def starting_order(self) -> int:
        """That of the method, for its first steps are not corrected."""
        return self.solver.starting_order

    def well_started(self) -> Corrected:
        """Return itself."""
        return self

    def _ready(self, past: Past) -> bool:
        """Return whether the past is complete."""
        return len(past) >= self.q


class _Answered:
    """An equation with a known jet at s0; other jets, and more derivatives at s0, are evaluated."""

    def __init__(self, eq: Equation, s0: Scalar, jet: tuple[Tensor, ...]) -> None:
        self._eq, self._s0, self._jet = eq, s0, jet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._eq, name)

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        known = s is self._s0 and order <= len(self._jet)
        return self._jet[:order] if known else self._eq.jet(y, s, order)
