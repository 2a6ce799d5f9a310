"""Smooth curves through a table of ᾱ: signal coefficients α(t) with derivatives of every order.

The nodes are t = 0 … N-1, and t = -1, where α = 1. What is smooth at t = -1 is L = -2 log α. log γ is not: it
is like ½ log(t + 1), which changes much from node to node at the first of them. So the curves interpolate L.

The usual tables are values of analytic functions: -log(1 - β_i) is smooth in i, and the sum of a smooth
function is smooth (Euler and Maclaurin), on the scale of the whole table. ``Analytic`` recovers it from the
nodes by least squares, in some ten to thirty numbers. Its derivatives hold over long steps, which Taylor
methods need. A spline meets the nodes as well, but its derivatives of order k are those of one interval: over
a step of m nodes they carry m^k times the rounding of the table.

Where nothing smooth meets the nodes, ``Spline`` does, with continuous derivatives of fourth order if that
increases, and of first order otherwise. Methods of higher order than that lose it where a step crosses nodes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline, make_interp_spline
from torch import Tensor

from problems.series import Series, T, exp, expm1, sin

Array = NDArray[np.float64]


class Kind(NamedTuple):
    """How a table begins and ends: whether it vanishes at the end, and whether it was shifted to."""

    vanishing: bool
    shifted: bool


KINDS = (Kind(False, False), Kind(True, False), Kind(True, True))

DEGREES = (4, 8, 12, 16, 20, 24, 32, 40)
"""Degrees of the polynomials that are tried, from the lowest."""

SHARPNESS = 32.0
"""κ of exp(-κ d²), which is 1e-14 of its height at the distance of one node."""

PROBES = 16
"""Places in every interval at which a curve is checked to fall."""


class Curve(ABC):
    """A decreasing curve α(t) with α(-1) = 1."""

    analytic: bool

    @abstractmethod
    def fade(self, t: T) -> tuple[T, T, T]:
        """Return α, 1 - α without cancellation, and -dα/dt > 0."""


@dataclass(frozen=True)
class Analytic(Curve):
    """α = r(t) exp(-½ ((t + 1) q(t) + o)) + c exp(-κ (T - t)²) with a polynomial q.

    r is 1, or cos(½π (t + 1)/(T + 1)) for a table that ends in α = 0, or would if its last β were not
    bounded. The last term is the remainder α(T) of such a β, as high as that and one node wide. o is 0, but
    for a table that was shifted to vanish at its end: then the smooth curve is 1 a little after t = -1.

    Attributes
    ----------
    coefficients
        Chebyshev coefficients of q on [-1, T], at least two.
    last
        T, the last node.
    vanishing
        Whether r vanishes at T.
    offset, remainder
        o and c.
    """

    coefficients: tuple[float, ...]
    last: float
    vanishing: bool
    offset: float = 0.0
    remainder: float = 0.0

    analytic = True

    @cached_property
    def _slopes(self) -> tuple[float, ...]:
        return tuple((chebyshev.chebder(self.coefficients) * (2.0 / (self.last + 1.0))).tolist())

    def fade(self, t: T) -> tuple[T, T, T]:
        """Return α, 1 - α and -dα/dt."""
        place = t + 1.0
        inside = 2.0 / (self.last + 1.0) * place - 1.0
        mean = _chebyshev(self.coefficients, inside)
        depth = -0.5 * (place * mean + self.offset)
        decay = exp(depth)
        if not self.vanishing:
            return decay, -expm1(depth), 0.5 * decay * (mean + place * _chebyshev(self._slopes, inside))
        rate = 0.5 * math.pi / (self.last + 1.0)
        half, distance = sin(0.5 * rate * place), self.last - t
        alpha = sin(rate * distance) * decay
        loss = 2.0 * half * half * decay - expm1(depth)
        fall = rate * sin(rate * place) * decay + 0.5 * alpha * (
            mean + place * _chebyshev(self._slopes, inside)
        )
        if self.remainder == 0.0:
            return alpha, loss, fall
        rest = self.remainder * exp(-SHARPNESS * distance * distance)
        return alpha + rest, loss - rest, fall - 2.0 * SHARPNESS * distance * rest


@dataclass(frozen=True)
class Spline(Curve):
    """L = -2 log α as a polynomial in each interval between two nodes.

    Attributes
    ----------
    pieces
        The Taylor coefficients of L at t = -1, 0, …, N-2, each tuple one order.
    """

    pieces: tuple[tuple[float, ...], ...]

    analytic = False

    @cached_property
    def _tensor(self) -> Tensor:
        return torch.tensor(self.pieces, dtype=torch.float64)

    def fade(self, t: T) -> tuple[T, T, T]:
        """Return α, 1 - α and -dα/dt."""
        at: Any = t[0] if isinstance(t, Series) else t
        most = len(self.pieces[0]) - 1
        if isinstance(at, Tensor):
            index = (at.detach().floor().long() + 1).clamp(0, most)
            pieces: Any = self._tensor.to(at)[:, index]
            begin: Any = index.to(at.dtype) - 1.0
        else:
            number = min(max(math.floor(at) + 1, 0), most)
            pieces, begin = [order[number] for order in self.pieces], number - 1.0
        u = t - begin
        level, slope = 0.0 * u + pieces[-1], 0.0 * u
        for coefficient in reversed(pieces[:-1] if isinstance(pieces, list) else pieces[:-1].unbind()):
            slope = level + u * slope
            level = coefficient + u * level
        alpha = exp(-0.5 * level)
        return alpha, -expm1(-0.5 * level), 0.5 * alpha * slope


def curve(levels: Array, tolerance: float) -> Curve:
    """Return the smoothest curve through a table.

    Parameters
    ----------
    levels
        L = -log ᾱ at the times -1, 0, …, N-1, increasing from 0; the last may be infinite.
    tolerance
        How far γ may be from the nodes, relative, for a curve to be taken for theirs.
    """
    for kind in KINDS:
        for degree in DEGREES:
            if degree + 3 < len(levels) and (kind.vanishing or np.isfinite(levels[-1])):
                found = fitted(levels, degree, kind)
                if _meets(found, levels, tolerance):
                    return found
    return through(levels[np.isfinite(levels)])


def fitted(levels: Array, degree: int, kind: Kind) -> Analytic:
    """Return the least-squares fit of one degree in relative errors of γ; see ``Analytic``."""
    last = len(levels) - 2.0
    place, known = np.arange(1.0, len(levels)), levels[1:]
    if kind.vanishing:
        place, known = place[:-1], known[:-1]
        angle = 0.5 * np.pi * place / (last + 1.0)
        near, far = np.log1p(-(np.sin(angle) ** 2)), 2.0 * np.log(np.sin(0.5 * np.pi - angle))
        known = known + np.where(angle < 0.5, near, far)
    # d log γ = ½ (1 + 1/γ²) dL.
    weight = -0.5 / np.expm1(-levels[1 : len(place) + 1])
    basis = place[:, None] * chebyshev.chebvander(2.0 * place / (last + 1.0) - 1.0, degree)
    if kind.shifted:
        basis = np.concatenate([basis, np.ones((len(place), 1))], 1)
    weighted = basis * weight[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    solution = np.zeros(basis.shape[1])
    for _ in range(3):  # The second and the third take out the rounding of the first.
        rest = (known - basis @ solution) * weight
        solution = solution + np.linalg.lstsq(weighted / scale, rest, rcond=None)[0] / scale
    numbers = tuple(solution.tolist())
    return Analytic(
        numbers[: degree + 1],
        last,
        kind.vanishing,
        numbers[-1] if kind.shifted else 0.0,
        math.exp(-0.5 * float(levels[-1])) if kind.vanishing else 0.0,
    )


def through(levels: Array) -> Spline:
    """Return the spline of degree 5 through L, or of degree 3 where that does not increase.

    The latter has harmonic means of neighbouring differences for slopes, with which it always increases
    (Fritsch & Butland 1984).
    """
    knots = np.arange(-1.0, len(levels) - 1.0)
    if len(levels) > 6:
        smooth = _pieces(make_interp_spline(knots, levels, k=5), levels, 5)
        if _falls(smooth, len(levels)):
            return smooth
    steps = np.diff(levels)
    inner = 2.0 * steps[1:] * steps[:-1] / (steps[1:] + steps[:-1])
    slopes = np.concatenate([steps[:1], inner, steps[-1:]])
    return _pieces(CubicHermiteSpline(knots, levels, slopes), levels, 3)


def _pieces(spline: Any, levels: Array, degree: int) -> Spline:
    knots = np.arange(-1.0, len(levels) - 2.0)
    orders = [spline(knots, nu) / math.factorial(nu) for nu in range(1, degree + 1)]
    return Spline(tuple(tuple(order.tolist()) for order in (levels[:-1], *orders)))


def _meets(found: Curve, levels: Array, tolerance: float) -> bool:
    finite = levels[1:][np.isfinite(levels[1:])]
    alpha, loss, _ = found.fade(torch.arange(len(finite), dtype=torch.float64))
    gamma = torch.sqrt(loss * (1.0 + alpha)) / alpha
    errors = (gamma / torch.expm1(torch.from_numpy(finite)).sqrt() - 1.0).abs()
    return bool((errors <= tolerance).all()) and _falls(found, len(finite) + 1)


def _falls(found: Curve, knots: int) -> bool:
    t = torch.linspace(-1.0, knots - 2.0, PROBES * (knots - 1) + 1, dtype=torch.float64)
    return bool((found.fade(t)[2] > 0.0).all())


def _chebyshev(coefficients: tuple[float, ...], x: T) -> T:
    """Evaluate Σ cⱼ Tⱼ(x) by Clenshaw's recurrence."""
    ahead, far = 0.0 * x + coefficients[-1], 0.0 * x
    for c in reversed(coefficients[1:-1]):
        ahead, far = 2.0 * x * ahead - far + c, ahead
    return x * ahead - far + coefficients[0] if len(coefficients) > 1 else ahead
