"""Correctors that cost no evaluation: UniC, and with it UniPC (Zhao et al. 2023)."""

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
    """The log-SNR with UniPC's B₁(h) = h for two data: the mean is the value at one place.

    With s = γ = exp(-λ), or s = 1/γ = exp(λ) on the data form, a line rises over the step by a share of its
    slope that UniPC sets to ½ B(h)/(e^h - 1), which is ½ with its B₂ = e^h - 1, what ``LogSNR`` believes.
    """

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the rule with the one place log(s0/s1)/(2 (s0/s1 - 1))."""
        ratio = nodes[0] / s1
        place = math.log(ratio) / (2.0 * (ratio - 1.0))
        return Measure((place,), (1.0,), super().measure(eq, s1, nodes, data).nodes)


@dataclass(frozen=True)
class Pairs(Clock):
    """A clock on which two data are integrated in a way of their own, as in UniPC.

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
        """That of the clock for more data."""
        return self.more.limit

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the measure of the clock for so many data."""
        return (self.two if data <= 2 else self.more).measure(eq, s1, nodes, data)


@dataclass(frozen=True)
class Corrected(Solver):
    """A method whose steps are corrected when the next evaluation is there: UniC after any solver.

    The slope at s0 is evaluated at the state that was predicted. Then the last step is taken once more by the
    implicit rule, the interpolant through this slope and those of the last q nodes integrated over it, and
    from there the method goes on, with the slope it has. The last step of a march is not corrected.

    ``Corrected(Adams(q, clock), q, clock)`` with ``clock=Pairs()`` is UniPC of order q with B₂, and with
    ``Pairs(PlainLogSNR())`` that with B₁ (on the data form; on the DDIM form where it predicts ε).

    Parameters
    ----------
    solver
        The method.
    q
        How many past nodes the corrector looks back on, at least 1.
    clock
        The variable in which it interpolates.

    Raises
    ------
    ValueError
        If q is not positive, or the method is random: the step that is taken once more has no noise.
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
        """That of the method."""
        return self.solver.p

    @property
    def corrector_order(self) -> int:
        """q + 1, where the clock allows it."""
        return int(min(self.q + 1, self.clock.limit))

    @property
    def order(self) -> int:
        """One more than that of the method, where corrector and start allow it."""
        return min(self.solver.local_order, self.corrector_order, self.starting_order)

    @property
    def local_order(self) -> int:
        """That of the method, where the corrector allows it."""
        return min(self.solver.local_order, self.corrector_order + 1)

    @property
    def starting_order(self) -> int:
        """One more than that of the method, at most 3: the first step is corrected with one past node."""
        return min(self.solver.starting_order + 1, self.corrector_order + 1, 3)

    @property
    def rough_order(self) -> int:
        """One more than that of the method, where corrector and start allow it."""
        return min(self.solver.rough_order + 1, self.order)

    @property
    def reach(self) -> int:
        """As far as the corrector or the method."""
        return max(self.q, self.solver.reach)

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Evaluate, correct, go on; the node remembered has the predicted slope and the corrected state."""
        jet = eq.jet(y, s0, self.p)
        if past:
            y = self._correct(eq, as_float(s0), (*past[: self.q], Node(s0, jet)))
        y1, _ = self.solver.step(cast(Equation, _Answered(eq, s0, jet)), y, s0, s1, past)
        return y1, Node(s0, jet, y)

    def _correct(self, eq: Equation, s: float, nodes: Past) -> Tensor:
        """Take the step from nodes[0] to s, with the slope at s among the nodes."""
        begin, y = as_float(nodes[0].s), nodes[0].y
        if y is None:
            raise ValueError("a corrector takes the last step again, so its node needs the state y")
        measure = self.clock.measure(eq, s, [as_float(node.s) for node in nodes], len(nodes))
        for node, (weight,) in zip(nodes, hermite_weights(measure, 1), strict=True):
            y = along(y, (s - begin) * weight, node.jet[0])
        return y


class _Answered:
    """An equation that has been asked for its jet at s0; for more derivatives it is asked again."""

    def __init__(self, eq: Equation, s0: Scalar, jet: tuple[Tensor, ...]) -> None:
        self._eq, self._s0, self._jet = eq, s0, jet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._eq, name)

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        known = s is self._s0 and order <= len(self._jet)
        return self._jet[:order] if known else self._eq.jet(y, s, order)
