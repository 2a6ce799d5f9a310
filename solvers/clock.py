"""The noun *clock*: in which variable does a method believe its steps to be laid?

A method built on the places of its nodes may read those places on a clock other than the variable s of the
equation. It then either believes that clock wholly, as if it were the variable of integration (constant
Adams weights on any grid in PNDM; log-SNR in DPM-Solver), which limits it to second order, or it only
extrapolates in it and integrates over s exactly (DEIS), which does not. Both are the same computation of
weights with another measure.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from solvers.interface import Equation, Scalar

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_NODES, _WEIGHTS = 0.5 * (1.0 + _NODES), 0.5 * _WEIGHTS


class Measure(NamedTuple):
    """A quadrature rule for one step: Σ weights·q(places) stands for the integral of q over the step in s.

    Attributes
    ----------
    places
        Readings of the clock at the quadrature points, as fractions of the step (0 at s0, 1 at s1).
    weights
        Weights, which sum to s1 - s0.
    nodes
        Readings of the clock at s0 and at the nodes before it, in the same fractions: 0, then the past.
    """

    places: Array
    weights: Array
    nodes: Array


class Clock(ABC):
    """A variable in which the nodes of a multistep method are laid."""

    @property
    @abstractmethod
    def limit(self) -> float:
        """The highest order that a method can keep on this clock, on a smooth family of grids."""

    @abstractmethod
    def measure(self, eq: Equation, s1: float, nodes: Sequence[float]) -> Measure:
        """Return the measure of the step from nodes[0] to s1, with the nodes (newest first) on the clock."""


@dataclass(frozen=True)
class Index(Clock):
    """The bare step index: steps are believed equal, so the weights are constant (PNDM, iPNDM)."""

    @property
    def limit(self) -> float:
        """2."""
        return 2

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float]) -> Measure:
        """Equal steps, whatever the grid."""
        return Measure(_NODES, (s1 - nodes[0]) * _WEIGHTS, -np.arange(float(len(nodes))))


class Variable(Clock):
    """A clock that is a smooth function of s, believed wholly."""

    @abstractmethod
    def read(self, eq: Equation, s: float) -> float:
        """Return the reading at s."""

    @abstractmethod
    def place(self, eq: Equation, reading: float) -> float:
        """Return the s at which the clock shows ``reading``."""

    @property
    def limit(self) -> float:
        """2."""
        return 2

    def between(self, eq: Equation, s0: Scalar, s1: Scalar, fraction: float) -> Scalar:
        """Return the s that lies ``fraction`` of the step from s0 to s1 on this clock."""
        u0, u1 = self.read(eq, as_float(s0)), self.read(eq, as_float(s1))
        return self.place(eq, u0 + fraction * (u1 - u0))

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float]) -> Measure:
        """Integrate over the clock as if it were s."""
        u = np.array([self.read(eq, s) for s in nodes])
        u1 = self.read(eq, s1)
        return Measure(_NODES, (s1 - nodes[0]) * _WEIGHTS, (u - u[0]) / (u1 - u[0]))


@dataclass(frozen=True)
class Own(Variable):
    """The variable of the equation itself: the textbook's choice, no belief needed."""

    @property
    def limit(self) -> float:
        """Unlimited."""
        return math.inf

    def read(self, eq: Equation, s: float) -> float:
        """Return s."""
        return s

    def place(self, eq: Equation, reading: float) -> float:
        """Return the reading."""
        return reading


@dataclass(frozen=True)
class Time(Variable):
    """The time t of the diffusion."""

    def read(self, eq: Equation, s: float) -> float:
        """Return t(s)."""
        return float(eq.t(s))

    def place(self, eq: Equation, reading: float) -> float:
        """Return s(t)."""
        return float(eq.s(reading))


@dataclass(frozen=True)
class LogSNR(Variable):
    """Half the log-SNR, λ = -log γ: the clock of the DPM-Solver family."""

    def read(self, eq: Equation, s: float) -> float:
        """Return -log γ(t(s))."""
        return -math.log(eq.schedule.gamma(eq.t(s)))

    def place(self, eq: Equation, reading: float) -> float:
        """Return the s at which -log γ is the reading."""
        return float(eq.s(eq.schedule.time(math.exp(-reading))))


@dataclass(frozen=True)
class Exact(Clock):
    """Extrapolate in another clock, but integrate over s exactly (DEIS, Zhang & Chen 2023): full order.

    Parameters
    ----------
    clock
        The variable of extrapolation.
    """

    clock: Variable

    @property
    def limit(self) -> float:
        """Unlimited."""
        return math.inf

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float]) -> Measure:
        """Quadrature over log s (over s where the step reaches 0 or below), read on the clock."""
        s0 = nodes[0]
        if min(s0, s1) > 0.0:
            ratio = math.log(s1 / s0)
            s = s0 * np.exp(ratio * _NODES)
            weights = ratio * s * _WEIGHTS
        else:
            s = s0 + (s1 - s0) * _NODES
            weights = (s1 - s0) * _WEIGHTS
        u = np.array([self.clock.read(eq, v) for v in nodes])
        u1 = self.clock.read(eq, s1)
        places = np.array([self.clock.read(eq, float(v)) for v in s])
        return Measure((places - u[0]) / (u1 - u[0]), weights, (u - u[0]) / (u1 - u[0]))


def hermite_weights(measure: Measure, derivatives: int) -> Array:
    """Return the weights of the rule that integrates the Hermite interpolant of the past over a step.

    The interpolant matches a function and its first ``derivatives`` - 1 derivatives (on the clock, in
    fractions of the step) at every node. It is written in Newton's form with repeated nodes, so the weights
    are the moments of the Newton polynomials times the divided differences of unit data, which stays
    accurate on grids of any ratio, where a Vandermonde system would not.

    Returns
    -------
    Array of shape (nodes, derivatives).
    """
    nodes, p = measure.nodes, derivatives
    z = np.repeat(nodes, p)
    n = len(z)
    # Column m holds f[z_m, …, z_{m+d}] for unit data, in pass d; rows are the data, node by node.
    table = np.zeros((n, n))
    for m in range(n):
        table[(m // p) * p, m] = 1.0
    moments = np.empty(n)
    basis = np.ones_like(measure.places)
    differences = np.empty((n, n))
    for d in range(n):
        moments[d] = measure.weights @ basis
        differences[:, d] = table[:, 0]
        basis = basis * (measure.places - z[d])
        following = np.zeros((n, n - d - 1))
        for m in range(n - d - 1):
            if z[m] == z[m + d + 1]:
                following[(m // p) * p + d + 1, m] = 1.0 / math.factorial(d + 1)
            else:
                following[:, m] = (table[:, m + 1] - table[:, m]) / (z[m + d + 1] - z[m])
        table = following
    return (differences @ moments).reshape(len(nodes), p)


def as_float(s: Scalar) -> float:
    """Return a place as a float; a batch of places has no single set of weights."""
    return float(s.item()) if isinstance(s, Tensor) else s
