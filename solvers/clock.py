"""The noun *clock*: in which variable are the nodes of a method placed?

The weights of a method depend on the positions of its nodes. These may be measured in a variable other than
the variable s of the equation, on a foreign clock. There are two ways to use one. A method may integrate over
the clock as if it were s: constant Adams weights on any grid in PNDM, the log-SNR in DPM-Solver. This limits
it to second order. Or it may extrapolate in the clock and integrate over s exactly (DEIS), which does not
limit the order. Both are one computation of weights with different measures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from solvers.interface import Equation, Scalar

S = TypeVar("S", float, Tensor)


@cache
def gauss(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the nodes and the weights of the Gauss–Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((0.5 + 0.5 * nodes).tolist()), tuple((0.5 * weights).tolist())


def _uniform(data: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return Gauss's rule on [0, 1] that is exact for the interpolating polynomial of ``data`` data."""
    return gauss(data // 2 + 1)


class Measure(NamedTuple):
    """A quadrature rule for one step: Σ weights·q(places) approximates the mean of q over the step in s.

    Attributes
    ----------
    places
        Readings of the clock at the quadrature points, as fractions of the step: 0 at s0, 1 at s1.
    weights
        Quadrature weights, which sum to 1.
    nodes
        Readings of the clock at s0 and at the nodes before it, in the same fractions; the first is 0.
    """

    places: tuple[float, ...]
    weights: tuple[float, ...]
    nodes: tuple[float, ...]


class Clock(ABC):
    """A variable in which the positions of the nodes of a method are measured."""

    @property
    @abstractmethod
    def limit(self) -> float:
        """The highest order of convergence on this clock, on a smooth family of grids."""

    @abstractmethod
    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the measure of the step from nodes[0] to s1.

        Parameters
        ----------
        eq
            The equation, which relates s to the clock.
        s1
            End of the step.
        nodes
            Beginning of the step and the places before it, newest first.
        data
            Number of data to interpolate: nodes times derivatives.
        """


@dataclass(frozen=True)
class Index(Clock):
    """The bare step index: all steps are treated as equal, so the weights are constant (PNDM, iPNDM)."""

    limit = 2

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the measure of equal steps, whatever the grid."""
        return Measure(*_uniform(data), tuple(-float(j) for j in range(len(nodes))))


class Variable(Clock):
    """A clock whose reading is a smooth, monotone function of s."""

    limit: float = 2

    @abstractmethod
    def read(self, eq: Equation, s: S) -> S:
        """Return the reading at s, a float or a tensor of places."""

    @abstractmethod
    def place(self, eq: Equation, reading: float) -> float:
        """Return the s at which the clock shows ``reading``."""

    def between(self, eq: Equation, s0: Scalar, s1: Scalar, fraction: float) -> Scalar:
        """Return the s whose reading is at ``fraction`` of the way from that of s0 to that of s1."""
        u0, u1 = self.read(eq, as_float(s0)), self.read(eq, as_float(s1))
        return self.place(eq, u0 + fraction * (u1 - u0))

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return the measure that is uniform in the clock, as if it were s."""
        u0, length = self.read(eq, nodes[0]), self.read(eq, s1) - self.read(eq, nodes[0])
        return Measure(*_uniform(data), tuple((self.read(eq, s) - u0) / length for s in nodes))


@dataclass(frozen=True)
class Own(Variable):
    """The variable s of the equation itself, as in textbooks; the order is not limited."""

    limit = math.inf

    def read(self, eq: Equation, s: S) -> S:
        """Return s."""
        return s

    def place(self, eq: Equation, reading: float) -> float:
        """Return the reading."""
        return reading


@dataclass(frozen=True)
class Time(Variable):
    """The time t of the diffusion."""

    def read(self, eq: Equation, s: S) -> S:
        """Return t(s)."""
        t: S = eq.t(s)
        return t

    def place(self, eq: Equation, reading: float) -> float:
        """Return s(t)."""
        return float(eq.s(reading))


@dataclass(frozen=True)
class LogSNR(Variable):
    """Half the log-SNR, λ = -log γ: the clock of the DPM-Solver family."""

    def read(self, eq: Equation, s: S) -> S:
        """Return -log γ(t(s))."""
        gamma: S = eq.schedule.gamma(eq.t(s))
        return -(torch.log(gamma) if isinstance(gamma, Tensor) else math.log(gamma))

    def place(self, eq: Equation, reading: float) -> float:
        """Return the s at which -log γ is the reading."""
        return float(eq.s(eq.schedule.time(math.exp(-reading))))


@dataclass(frozen=True)
class Exact(Variable):
    """Extrapolation in another clock, integration over s (DEIS, Zhang & Chen 2023); no limit on the order.

    Parameters
    ----------
    clock
        The variable of extrapolation.
    """

    clock: Variable

    limit = math.inf

    def read(self, eq: Equation, s: S) -> S:
        """Return the reading of the other clock."""
        return self.clock.read(eq, s)

    def place(self, eq: Equation, reading: float) -> float:
        """Return the s at which the other clock shows ``reading``."""
        return self.clock.place(eq, reading)

    def measure(self, eq: Equation, s1: float, nodes: Sequence[float], data: int) -> Measure:
        """Return Gauss's rule over log s, or over s if the step reaches s ≤ 0, read on the clock."""
        s0, (fractions, shares) = nodes[0], gauss(48)
        if min(s0, s1) > 0.0:
            ratio = math.log(s1 / s0)
            places = [s0 * math.exp(ratio * f) for f in fractions]
            weights = [ratio * s / (s1 - s0) * w for s, w in zip(places, shares, strict=True)]
        else:
            places = [s0 + (s1 - s0) * f for f in fractions]
            weights = list(shares)
        u = self.read(eq, torch.tensor([s1, *nodes, *places], dtype=torch.float64))
        _, *found = ((u - u[1]) / (u[0] - u[1])).tolist()
        split = len(nodes)
        return Measure(tuple(found[split:]), tuple(weights), tuple(found[:split]))


@lru_cache(maxsize=4096)
def hermite_weights(measure: Measure, derivatives: int) -> tuple[tuple[float, ...], ...]:
    """Return the weights of the rule that gives the mean over a step of the Hermite interpolant of the past.

    The interpolant matches a function and its first ``derivatives`` - 1 derivatives (on the clock, in
    fractions of the step) at every node. In Newton's form with repeated nodes the weights are the moments of
    the Newton polynomials times the divided differences of unit data. Unlike a Vandermonde system this is
    accurate on grids of any ratio.

    Returns
    -------
    One row per node: the weights of the value and of the derivatives at the node.
    """
    p = derivatives
    z = [node for node in measure.nodes for _ in range(p)]
    n = len(z)
    # In pass d, differences[m] holds the coefficients of f[z_m, …, z_{m+d}] as a linear function of the data.
    differences = [[1.0 if i == m // p * p else 0.0 for i in range(n)] for m in range(n)]
    weights = [0.0] * n
    basis: Sequence[float] = measure.weights
    for d in range(n):
        moment = sum(basis)
        weights = [w + moment * f for w, f in zip(weights, differences[0], strict=True)]
        basis = [b * (place - z[d]) for b, place in zip(basis, measure.places, strict=True)]
        for m in range(n - d - 1):
            gap = z[m + d + 1] - z[m]
            if gap == 0.0:
                datum, value = m // p * p + d + 1, 1.0 / math.factorial(d + 1)
                differences[m] = [value if i == datum else 0.0 for i in range(n)]
            else:
                differences[m] = [
                    (b - a) / gap for a, b in zip(differences[m], differences[m + 1], strict=True)
                ]
    return tuple(tuple(weights[i : i + p]) for i in range(0, n, p))


def as_float(s: Scalar) -> float:
    """Return a place as a float; a tensor must have one entry, as weights belong to one set of places."""
    return float(s.item()) if isinstance(s, Tensor) else s
