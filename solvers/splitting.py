"""Splitting methods for stochastic equations: the part with an exact solution in halves, around the rest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from solvers.interface import Equation, Node, Past, Scalar, Solver, along


@runtime_checkable
class Split(Equation, Protocol):
    """A stochastic equation that is the sum of a part with an exact solution and of a rest without noise."""

    def flow(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return y after the first part alone over [s0, s1], noise included."""

    def rest(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the drift that the first part leaves out; costs what a drift costs."""


class Splitting(Solver):
    """Half a step of the exact part, a step of the rest, half a step of the exact part."""

    @abstractmethod
    def push(self, eq: Split, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return what the rest alone adds to y over [s0, s1]."""

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step.

        Raises
        ------
        ValueError
            If the equation does not come in two parts.
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
    """The symmetric splitting of CLD as published: Euler's method for the rest, with its begin for the time.

    Dockhorn, Vahdat & Kreis 2022, Algorithm 1, with a score evaluated at (y after the first half, s0). The
    symmetry gives no second order: neither does Euler's method have it, nor is s0 the middle.
    """

    @property
    def order(self) -> int:
        """1, in the weak sense."""
        return 1

    def push(self, eq: Split, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return a step of Euler's method."""
        return (s1 - s0) * eq.rest(y, s0)


@dataclass(frozen=True)
class Strang(Splitting):
    """The splitting of second order: the midpoint method for the rest, the time held in the middle."""

    @property
    def order(self) -> int:
        """2, in the weak sense."""
        return 2

    def push(self, eq: Split, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return a step of the midpoint method; two evaluations."""
        h, middle = s1 - s0, 0.5 * (s0 + s1)
        return h * eq.rest(along(y, 0.5 * h, eq.rest(y, middle)), middle)
