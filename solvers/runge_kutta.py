"""Explicit Runge–Kutta methods, on any clock."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from solvers.clock import Own, Variable
from solvers.interface import Equation, Node, Past, Scalar, Solver, along


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge–Kutta method.

    Stage i is placed at the fraction cᵢ of the step on the clock, and its state is reached along a weighted
    mean of the slopes before it. With ``Own()`` this is the method of textbooks. RK4 with its stages in t
    gives the pseudo-numerical steps of F-PNDM; the midpoint rule on the log-SNR is DPM-Solver-2.

    Parameters
    ----------
    clock
        The variable in which the fractions cᵢ are measured.
    """

    clock: Variable = Own()

    @property
    @abstractmethod
    def stages(self) -> tuple[tuple[float, ...], ...]:
        """The rows aᵢⱼ of the tableau for the stages after the first; row i sums to cᵢ."""

    @property
    @abstractmethod
    def weights(self) -> tuple[float, ...]:
        """The weights bᵢ, one per stage."""

    @property
    @abstractmethod
    def classical_order(self) -> int:
        """The order of the tableau on its own clock."""

    @property
    def order(self) -> int:
        """The order of the tableau; at most 2 on a foreign clock."""
        return self.classical_order if isinstance(self.clock, Own) else min(self.classical_order, 2)

    def on_own_clock(self) -> RungeKutta:
        """Return the same tableau on ``Own()``."""
        return replace(self, clock=Own())

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Evaluate the stages and combine them; the node returned is the first stage."""
        slopes = [eq.jet(y, s0)[0]]
        for row in self.stages:
            c = sum(row)
            s = s1 if c == 1.0 else self.clock.between(eq, s0, s1, c)
            slopes.append(eq.jet(advance(y, (s - s0) / c, row, slopes), s)[0])
        return advance(y, s1 - s0, self.weights, slopes), Node(s0, (slopes[0],), y)


def advance(y: Tensor, h: Scalar, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Return y + h Σ weights·slopes."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            y = along(y, weight * h, slope)
    return y


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (improved Euler), the sampler of EDM without churn; order 2, two evaluations."""

    stages = ((1.0,),)
    weights = (0.5, 0.5)
    classical_order = 2


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint rule; order 2, two evaluations. On the log-SNR clock it is DPM-Solver-2."""

    stages = ((0.5,),)
    weights = (0.0, 1.0)
    classical_order = 2


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's method, with the least error bound of two-stage methods; order 2, two evaluations."""

    stages = ((2 / 3,),)
    weights = (1 / 4, 3 / 4)
    classical_order = 2


@dataclass(frozen=True)
class RK3(RungeKutta):
    """Kutta's third-order method; three evaluations."""

    stages = ((0.5,), (-1.0, 2.0))
    weights = (1 / 6, 2 / 3, 1 / 6)
    classical_order = 3


@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's third-order method; three evaluations."""

    stages = ((1 / 3,), (0.0, 2 / 3))
    weights = (1 / 4, 0.0, 3 / 4)
    classical_order = 3


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge–Kutta method; order 4, four evaluations."""

    stages = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    classical_order = 4
