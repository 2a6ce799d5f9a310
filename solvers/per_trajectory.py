"""Adaptive methods for ODEs in which every trajectory has steps of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from solvers.adaptive import Adaptive, Values, accept, column, each_trajectory, require_longer
from solvers.adaptive_taylor import AdaptiveTaylor
from solvers.interface import Equation, Node, Past, Scalar, along
from solvers.runge_kutta import advance

_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Rows of the tableau for the stages after the first; the last row also gives the solution of order five."""

_PLACES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)

_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Weights of the difference between the solutions of orders five and four."""


@dataclass(frozen=True)
class DormandPrince(Adaptive):
    """Dormand–Prince 5(4) with step-size control for each trajectory.

    The last stage of a step is the first of the next. A trajectory therefore costs two evaluations, one of
    them for the choice of its first step (Hairer, Nørsett & Wanner, Sec. II.4), and six for every attempt.
    A step is accepted if the root mean square of the estimated error over the coordinates of the sample is
    at most atol + rtol times that of the sample. The next step size follows from the last two errors by
    Gustafsson's PI control with exponents 0.7/5 and 0.4/5. Nothing is evaluated outside [s0, s1].

    Flows of diffusion models are nearly straight for long and bend over a short interval. The usual limits,
    a step at most ten times and at least a fifth of the one before, cause many rejections there. Here a
    rejected step is at most halved. A step that would leave a remainder shorter than itself is half of what
    is left.

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance.
    safety
        Factor by which steps are shorter than the control suggests.
    growth
        Largest ratio of a step to the one before.

    Raises
    ------
    ValueError
        If a tolerance is not positive, safety is not in (0, 1) or growth is not above 1.
    """

    rtol: float = 1e-2
    atol: float = 1e-2
    safety: float = 0.8
    growth: float = 5.0

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0 and 0.0 < self.safety < 1.0 < self.growth):
            raise ValueError(f"needs positive tolerances and safety < 1 < growth, not {self}")

    order = 5

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Integrate from s0 to s1 in as many steps as each trajectory needs.

        Raises
        ------
        ArithmeticError
            If the steps shrink to nothing.
        """
        start, stop = float(s0), float(s1)
        first = eq.jet(y, start)[0]
        if start == stop:
            return y, Node(s0, (first,), y)
        h = self._first(eq, y, first, start, stop)

        def attempt(part: Equation, _: Tensor, values: Values) -> tuple[Values, Tensor]:
            y, slope, s, h, before = values
            left = (stop - s).abs()
            finishing = h >= left * (1.0 - 1e-9)
            h = torch.where(finishing, left, torch.minimum(h, 0.5 * left))
            following = torch.where(finishing, stop, s + h.copysign(stop - s))
            step = column(following - s, y)
            slopes, state = [slope], y
            for row, place in zip(_STAGES, _PLACES, strict=True):
                state = advance(y, step, row, slopes)
                at = following if place == 1.0 else s + place * (following - s)
                slopes.append(part.jet(state, column(at, y))[0])
            size = torch.maximum(_rms(y), _rms(state))
            gap = h * _rms(advance(torch.zeros_like(y), 1.0, _ERROR, slopes))
            error = (gap / (self.atol + self.rtol * size)).clamp(min=1e-10)
            accepted = error <= 1.0
            factor = self.safety * error**-0.14 * before**0.08
            h = h * factor.clamp(0.5, self.growth)
            require_longer(h, 1e-14 * abs(stop - start), s)
            new, old = (state, slopes[-1], following, error.clamp(1e-4)), (y, slope, s, before)
            y, slope, s, before = accept(accepted, new, old)
            return (y, slope, s, h, before), accepted & finishing

        values = (y, first, torch.full_like(h, start), h, torch.ones_like(h))
        return each_trajectory(eq, attempt, values), Node(s0, (first,), y)

    def _first(self, eq: Equation, y: Tensor, slope: Tensor, start: float, stop: float) -> Tensor:
        """Return the size of each trajectory's first step, shape (n,), float64."""
        whole, ahead = abs(stop - start), math.copysign(1.0, stop - start)
        scale = self.atol + self.rtol * _rms(y)
        size, speed = _rms(y) / scale, _rms(slope) / scale
        little = torch.full_like(size, 1e-6)
        h = torch.where((size < 1e-5) | (speed < 1e-5), little, 0.01 * size / speed).clamp(max=whole)
        step = column(ahead * h, y)
        probe = eq.jet(along(y, step, slope), start + step)[0]
        bend = torch.maximum(speed, _rms(probe - slope) / scale / h)
        return torch.minimum(100.0 * h, (0.01 / bend.clamp(min=1e-15)) ** 0.2).clamp(max=whole)


def _rms(x: Tensor) -> Tensor:
    """Return the root mean square over the coordinates of each sample, shape (n,), float64."""
    return x.flatten(1).double().square().mean(1).sqrt()


@dataclass(frozen=True)
class TaylorSteps(Adaptive):
    """A Taylor method with steps for each trajectory; each step costs one evaluation and p - 1 derivatives.

    Parameters
    ----------
    series
        Order, tolerance and step-size control.
    longest
        Largest step size relative to |s|, when encoding and wherever |s| falls. Near the data the series does
        not contain the mixture components other than the nearest one. Far from s = 0 a series of few terms
        does not detect the singularities around s = 0.
    """

    series: AdaptiveTaylor = AdaptiveTaylor(6, 1e-3)
    longest: float = 0.25

    @property
    def order(self) -> int:
        """Order of the series."""
        return self.series.order

    @property
    def p(self) -> int:
        """Number of derivatives in the series."""
        return self.series.order

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Integrate from s0 to s1 in as many steps as each trajectory needs; see ``AdaptiveTaylor.paths``."""
        start, stop = float(s0), float(s1)
        series = self.series
        if eq.t(stop) > eq.t(start) or abs(stop) < abs(start):
            series = replace(series, longest=min(self.longest, series.longest))
        return series.solve(eq, y, (start, stop))[-1], Node(s0, (), y)
