"""Splitting methods for stochastic equations: half a step of an exact part, the rest, the other half."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from solvers.interface import Equation, Node, Past, Scalar, Solver, along


@runtime_checkable
class Split(Equation, Protocol):
    """A stochastic equation that is the sum of an exactly solvable part, with all noise, and of a drift."""

    def flow(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the solution at s1 of the exact part alone from y at s0, noise included."""

    def rest(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the remaining drift; costs one evaluation."""


class Splitting(Solver):
    """Half a step of the exact part, a step of the remaining drift, half a step of the exact part."""

    @abstractmethod
    def push(self, eq: Split, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the increment of y by the remaining drift alone over [s0, s1]."""

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step.

        Raises
        ------
        ValueError
            If the equation has no such parts.
        """
        if not isinstance(eq, Split):
            raise ValueError(
                f"{type(eq).__name__} has no part that is solved exactly, so there is no splitting"
            )
        middle = 0.5 * (s0 + s1)
        y = eq.flow(y, s0, middle)
        push = self.push(eq, y, s0, s1)
        return eq.flow(y + push, middle, s1), Node(s0, (push / (s1 - s0),), y)


@dataclass(frozen=True)
class SSCS(Splitting):
    """The symmetric splitting of CLD as published, with Euler's method for the remaining drift.

    In Algorithm 1 of Dockhorn, Vahdat & Kreis (2022) the score is evaluated at s0, on the state after the
    first half step. The weak order is 1 in spite of the symmetry: Euler's method is of first order, and s0
    is not the middle of the step.
    """

    order = 1

    def push(self, eq: Split, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the increment of one step of Euler's method; one evaluation."""
        return (s1 - s0) * eq.rest(y, s0)


@dataclass(frozen=True)
class Strang(Splitting):
    """Strang splitting, of weak order 2: the midpoint method for the remaining drift, its time frozen."""

    order = 2

    def push(self, eq: Split, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the increment of one step of the midpoint method; two evaluations."""
        h, middle = s1 - s0, 0.5 * (s0 + s1)
        return h * eq.rest(along(y, 0.5 * h, eq.rest(y, middle)), middle)
