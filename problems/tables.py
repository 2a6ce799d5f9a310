"""Discrete noise schedules: tables of β_i, i = 0 … N-1, as most networks of today are trained on.

With ᾱ_i = Π_{j ≤ i} (1 - β_j) a sample at node i is x = √ᾱ_i x₀ + √(1 - ᾱ_i) z. The time t = i is what the
network is told. Between nodes γ follows a smooth curve; see ``problems.curves``.

All is float64. Samplers that keep float32 products of 1 - β differ from this by some 1e-6 in γ, and by more
at the first nodes, where 1 - ᾱ cancels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from problems.curves import Curve, curve
from problems.schedule import Schedule
from problems.series import Scalar, Series, T, expm1, log1p, sqrt

NESTED = 4
"""How many nested derivatives of a table's functions automatic differentiation has."""


SETTLED = 1e-9
"""A step of Newton's method, in nodes, that squared is rounding error."""


@dataclass(frozen=True, repr=False)
class Table(Schedule):
    """A variance-preserving schedule given by numbers β_i, i = 0 … N-1, at the times t = i.

    At the nodes γ_i = √((1 - ᾱ_i)/ᾱ_i), to ``tolerance``. Between them γ follows one increasing curve with
    derivatives of every order, ``curve``: analytic for the usual tables, and for others a spline (see
    ``smooth``). Before node 0 it falls to 0, at t = -1 or a little after. A solver that stops between nodes
    gives the network a fractional time. The step to γ = 0 is ``problems.denoise``, what others call
    ``set_alpha_to_one``; the last node before it is t = 0.

    Attributes
    ----------
    betas
        β_0, …, β_{N-1}, at least two, in (0, 1). The last may be 1: zero terminal signal-to-noise ratio, with
        γ infinite at the last node.
    start
        Where sampling starts; by default the last node at which γ is finite, N-1, or N-2 if β_{N-1} = 1.
    stop
        Where it ends, by default node 0.
    tolerance
        How far γ of the curve may be from that of a node, relative. A table whose numbers were rounded is
        smooth within their rounding only: for numbers from float32 it takes 1e-6 to have a smooth curve.

    Raises
    ------
    ValueError
        If the numbers are no such table, or the ends are not in it.
    """

    betas: tuple[float, ...]
    start: float = math.inf
    stop: float = 0.0
    tolerance: float = 1e-13

    prior_std = 1.0

    def __init__(
        self, betas: Iterable[float], start: float = math.inf, stop: float = 0.0, tolerance: float = 1e-13
    ) -> None:
        values = tuple(float(beta) for beta in betas)
        inner, last = values[:-1], values[-1:]
        if len(values) < 2 or not all(0.0 < b < 1.0 for b in inner) or not all(0.0 < b <= 1.0 for b in last):
            raise ValueError(
                "a table needs two or more betas between 0 and 1, of which only the last may be 1"
            )
        object.__setattr__(self, "betas", values)
        last_node = float(self.last)
        for name, value in {
            "start": last_node if start == math.inf else float(start),
            "stop": float(stop),
            "tolerance": float(tolerance),
        }.items():
            object.__setattr__(self, name, value)
        if not 0.0 <= self.stop < self.start <= last_node:
            raise ValueError(
                f"this table has finite gamma up to node {self.last}: choose start and stop with "
                f"0 <= stop < start <= {self.last}, not {self.start:g} and {self.stop:g}"
            )

    @classmethod
    def linear(cls, first: float = 1e-4, last: float = 0.02, nodes: int = 1000) -> Self:
        """Return the table of equally spaced β (Ho et al. 2020; ``linear`` in diffusers).

        guided-diffusion scales both ends by 1000/N: ``Table.linear(0.1 / n, 20.0 / n, n)``.
        """
        return cls(_linspace(first, last, nodes))

    @classmethod
    def scaled_linear(cls, first: float = 0.00085, last: float = 0.012, nodes: int = 1000) -> Self:
        """Return the table of equally spaced √β (Rombach et al. 2022; ``scaled_linear`` in diffusers)."""
        return cls(root * root for root in _linspace(math.sqrt(first), math.sqrt(last), nodes))

    @classmethod
    def cosine(cls, nodes: int = 1000, most: float = 0.999, offset: float = 0.008) -> Self:
        """Return the squared-cosine table (Nichol & Dhariwal 2021; ``squaredcos_cap_v2`` in diffusers).

        ᾱ_i = cos²φ_{i+1}/cos²φ_0 with φ_i = (i/N + s)/(1 + s)·π/2, and no β above ``most``, which holds for
        the last alone. β_i = sin(φ_{i+1} - φ_i) sin(φ_{i+1} + φ_i)/cos²φ_i has no cancellation.
        """
        rate = 0.5 * math.pi / (1.0 + offset)
        sines = [math.sin(rate * (i / nodes + offset)) for i in range(nodes + 1)]
        cosines = [math.sin(rate * (nodes - i) / nodes) for i in range(nodes + 1)]
        rise = math.sin(rate / nodes)
        return cls(
            min(rise * (sin_a * cos_b + cos_a * sin_b) / cos_a**2, most)
            for (sin_a, sin_b), (cos_a, cos_b) in zip(pairwise(sines), pairwise(cosines), strict=True)
        )

    @classmethod
    def products(cls, alphas: Sequence[float], tolerance: float = 1e-13) -> Self:
        """Return the table of given ᾱ_0 > ᾱ_1 > …, the last of which may be 0.

        β from rounded ᾱ has the rounding of ᾱ divided by β. With float64 numbers it takes a tolerance of
        1e-11 to have a smooth curve; float32 numbers do not determine γ at the first nodes better than 1e-3.
        """
        pairs = pairwise([1.0, *(float(value) for value in alphas)])
        return cls(((a - b) / a for a, b in pairs), tolerance=tolerance)

    def __repr__(self) -> str:
        return (
            f"Table({len(self.betas)} betas {self._digest}, start={self.start!r}, stop={self.stop!r}, "
            f"tolerance={self.tolerance!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def _digest(self) -> str:
        return hashlib.sha256(np.array(self.betas).tobytes()).hexdigest()[:16]

    @property
    def nodes(self) -> int:
        """Number of nodes N."""
        return len(self.betas)

    @property
    def zero_terminal(self) -> bool:
        """Whether ᾱ is zero at the last node; then sampling starts at the node before it."""
        return self.betas[-1] == 1.0

    @property
    def last(self) -> int:
        """The last node at which γ is finite."""
        return self.nodes - 1 - self.zero_terminal

    @cached_property
    def curve(self) -> Curve:
        """The curve through the nodes."""
        return _curve(self.betas, self.tolerance)

    @property
    def smooth(self) -> bool:
        """Whether the curve is analytic; otherwise it is a spline with breaks at the nodes."""
        return self.curve.analytic

    @cached_property
    def _levels(self) -> list[float]:
        """-log ᾱ at the times -1, 0, …, ``last``."""
        return levels(self.betas)[: self.last + 2]

    def alpha(self, t: T) -> T:
        """Return α, on the nodes √ᾱ."""
        return carried(lambda u: self.curve.fade(u)[0], t)

    def sigma(self, t: T) -> T:
        """Return σ = √(1 - α²)."""
        return carried(self._sigma, t)

    def _sigma(self, t: T) -> T:
        alpha, loss, _ = self.curve.fade(t)
        return sqrt(loss * (1.0 + alpha))

    def gamma(self, t: T) -> T:
        """Return γ = √(1 - α²)/α."""
        return carried(self._gamma, t)

    def _gamma(self, t: T) -> T:
        alpha, loss, _ = self.curve.fade(t)
        return sqrt(loss * (1.0 + alpha)) / alpha

    def time(self, gamma: T) -> T:
        """Return the t of γ, by Newton's method on α; beyond the last finite node it is that node.

        Each step on a power series doubles the number of coefficients that are right.
        """
        return carried(self._time, gamma)

    def _time(self, gamma: T) -> T:
        goal = log1p(gamma * gamma)
        if isinstance(goal, Series):
            return self._reverted(goal)
        return self._solved(goal) if isinstance(goal, Tensor) else self._found(goal)

    def _reverted(self, goal: Series) -> Series:
        first = goal[0]
        place = self._solved(first) if isinstance(first, Tensor) else self._found(first)
        t = Series([place, *([0.0] * (len(goal) - 1))])
        for _ in range((len(goal) - 1).bit_length()):
            t = t - self._correction(t, goal)
        return t

    def _correction(self, t: T, goal: T) -> T:
        """Return Newton's correction for α(t) = exp(-goal/2), without cancellation at both ends."""
        alpha, loss, fall = self.curve.fade(t)
        level = log1p(loss * (1.0 + alpha) / (alpha * alpha))
        return alpha * expm1(0.5 * (level - goal)) / fall

    def _found(self, goal: float) -> float:
        """Solve for a float, by Newton's method between two nodes that halves where it would leave them."""
        high = min(max(int(np.searchsorted(self._levels, goal)), 1), self.last + 1) - 1.0
        low = high - 1.0
        if goal >= self._levels[-1]:
            return high
        t = 0.5 * (low + high)
        for _ in range(60):
            step = self._correction(t, goal)
            if abs(step) <= SETTLED:
                return t - step
            low, high = (low, t) if step > 0.0 else (t, high)
            t = t - step if low < t - step < high else 0.5 * (low + high)
        return t

    def _solved(self, goal: Tensor) -> Tensor:
        """Solve for a tensor, as ``_found`` does."""
        known = torch.tensor(self._levels, dtype=goal.dtype, device=goal.device)
        high = torch.searchsorted(known, goal.contiguous()).clamp(1, self.last + 1).to(goal.dtype) - 1.0
        low, top = high - 1.0, high
        t = 0.5 * (low + high)
        tiny = max(SETTLED, 4.0 * self.nodes * torch.finfo(goal.dtype).eps)
        for _ in range(60):
            step = self._correction(t, goal)
            new = t - step
            done = step.abs() <= tiny
            low, high = torch.where(step > 0.0, low, t), torch.where(step > 0.0, t, high)
            t = torch.where(done | ((low < new) & (new < high)), new, 0.5 * (low + high))
            if bool(done.all()):
                break
        return torch.where(goal >= known[-1], top, t)


def carried(f: Callable[[Any], Any], at: T) -> T:
    """Return f(at); under automatic differentiation, as its Taylor polynomial around the value of ``at``.

    The value is that of f, and so are its first ``NESTED`` derivatives. Automatic differentiation goes
    through the polynomial alone, instead of through a recurrence or an iteration once for every level.
    """
    if not isinstance(at, Tensor) or not _differentiated(at):
        result: T = f(at)
        return result
    value, point = torch.func.debug_unwrap(at.detach(), recurse=True), at.detach()
    place: Scalar = float(value) if value.ndim == 0 else point  # A single number is quicker as a float.
    result = torch.zeros_like(at)
    for coefficient in reversed(f(Series.variable(place, NESTED + 1)).coefficients):
        result = coefficient + (at - point) * result
    return result


def _differentiated(x: Tensor) -> bool:
    """Return whether x takes part in automatic differentiation, forward, backward or by ``torch.func``."""
    wrapped = torch.func.debug_unwrap(x, recurse=False) is not x
    return wrapped or x.requires_grad or forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def rescale_betas_zero_snr(betas: Iterable[float]) -> tuple[float, ...]:
    """Return the β whose √ᾱ is shifted to 0 at the last node and scaled to be the same at the first.

    √ᾱ_i becomes (√ᾱ_i - √ᾱ_{N-1}) √ᾱ_0/(√ᾱ_0 - √ᾱ_{N-1}) (Lin et al. 2024, Alg. 1). β_0 stays, β_{N-1} is 1.
    Between them 1 - β_i = (1 - r_i)² with r_i = (√ᾱ_{i-1} - √ᾱ_i)/(√ᾱ_{i-1} - √ᾱ_{N-1}). The numerator is
    √ᾱ_{i-1} β_i/(1 + √(1 - β_i)) and the denominator a sum of such terms, without cancellation.
    """
    values = tuple(betas)
    roots = list(accumulate(values, lambda root, beta: root * math.sqrt(1.0 - beta), initial=1.0))
    falls = [a * beta / (1.0 + math.sqrt(1.0 - beta)) for a, beta in zip(roots, values, strict=False)]
    left = list(accumulate(reversed(falls)))[::-1]
    ratios = [fall / above for fall, above in zip(falls[1:-1], left[1:-1], strict=True)]
    return (values[0], *(r * (2.0 - r) for r in ratios), 1.0)


def levels(betas: Sequence[float]) -> list[float]:
    """Return -log ᾱ at the times -1, 0, …, N-1: sums of -log(1 - β), which begin with 0."""
    falls = [-math.log1p(-beta) if beta < 1.0 else math.inf for beta in betas]
    return list(_sums(falls))


def _sums(numbers: Iterable[float]) -> Iterator[float]:
    """Yield 0 and the sums so far, with the rounding of each addition carried along (Neumaier)."""
    total, lost = 0.0, 0.0
    yield total
    for number in numbers:
        after = total + number
        if math.isfinite(after):
            lost += (total - after) + number if total >= number else (number - after) + total
        total = after
        yield total + lost


def _linspace(first: float, last: float, nodes: int) -> list[float]:
    return [first + (last - first) * i / (nodes - 1) for i in range(nodes)]


@lru_cache(maxsize=32)
def _curve(betas: tuple[float, ...], tolerance: float) -> Curve:
    return curve(np.array(levels(betas)), tolerance)
