"""Methods for stochastic equations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.interface import Equation, Node, Past, Scalar, Solver, along


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """The Euler–Maruyama method, y ← y + h f + noise; weak order 1. On an ODE it is Euler's method."""

    @property
    def order(self) -> int:
        """1, in the weak sense."""
        return 1

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step along the drift and add the noise of the interval."""
        jet = eq.jet(y, s0)
        return along(y, s1 - s0, jet[0]) + eq.kick(y, s0, s1), Node(s0, jet, y)
