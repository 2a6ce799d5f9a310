"""Power series of functions of one variable along a path, f(x₀ + x₁h + x₂h² + …), one coefficient at a time.

With u = x₁h + x₂h² + … and the Taylor coefficients aₖ = f⁽ᵏ⁾(x₀)/k! of f at x₀, coefficient j is the sum over
k = 1, …, j of aₖ times coefficient j of uᵏ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from problems.series import Series, erf, exp, sigmoid

aten = torch.ops.aten

Term = Callable[[int, Tensor], Tensor]
"""Takes k ≥ 1 and y; returns aₖ y as a new tensor."""

Expanded = Callable[[Tensor], tuple[Tensor, Term]]
"""Takes x₀; returns f(x₀) and the products with the other Taylor coefficients of f there.

These coefficients are computed again for each product, because memory is slower than arithmetic.
"""


class Composed:
    """The Taylor coefficients of f along a path.

    Parameters
    ----------
    expanded
        The function.
    """

    def __init__(self, expanded: Expanded) -> None:
        self._expanded = expanded
        self._term: Term
        self._path: list[Tensor] = []
        self._powers: dict[tuple[int, int], Tensor] = {}

    def push(self, x: Tensor) -> Tensor:
        """Take the next coefficient of x, any shape; return that of f."""
        j = len(self._path)
        self._path.append(x)
        if j == 0:
            value, self._term = self._expanded(x)
            return value
        total = self._term(1, x)
        for k in range(2, j):
            total.add_(self._term(k, self._power(k, j)))
        if j > 1:
            total.addcmul_(self._term(j, self._path[1]), self._lower(j - 1, j - 1))
        return total

    def _power(self, k: int, j: int) -> Tensor:
        """Return coefficient j of uᵏ, k ≥ 2."""
        total = self._path[1] * self._lower(k - 1, j - 1)
        for i in range(2, j - k + 2):
            total.addcmul_(self._path[i], self._lower(k - 1, j - i))
        return total

    def _lower(self, k: int, j: int) -> Tensor:
        """Return coefficient j of uᵏ, which is kept because later coefficients are made of it too."""
        if k == 1:
            return self._path[j]
        if (k, j) not in self._powers:
            self._powers[k, j] = self._power(k, j)
        return self._powers[k, j]


def series_terms(slope: Callable[[Series], Series], x: Tensor) -> Term:
    """Return the products with the Taylor coefficients at x of a function with this derivative."""

    def term(k: int, y: Tensor) -> Tensor:
        rate = slope(Series.variable(x, k))[k - 1]
        return y * rate if k == 1 else (y * rate).div_(k)

    return term


def silu(x: Tensor) -> tuple[Tensor, Term]:
    """f = x s, s = sigmoid(x): f' = s + x w, f'' = w (2 + x (1 - 2s)), f''' = w (3 (1 - 2s) + x (1 - 6w)).

    Here w = s' = s (1 - s); torch's kernel for the backward pass of the sigmoid multiplies by it.
    """
    s = torch.sigmoid(x)

    def term(k: int, y: Tensor) -> Tensor:
        if k > 3:
            return general(k, y)
        rise: Tensor = aten.sigmoid_backward(y, s)
        if k == 1:
            return rise.mul_(x).addcmul_(y, s)
        if k == 2:
            return rise.addcmul_(rise, torch.addcmul(x, x, s, value=-2.0), value=0.5)
        w = torch.addcmul(s, s, s, value=-1.0)
        return torch.addcmul(x, x, w, value=-6.0).add_(s, alpha=-6.0).add_(3.0).mul_(rise).div_(6.0)

    general = series_terms(_silu_slope, x)
    return x * s, term


def _silu_slope(x: Series) -> Series:
    s = sigmoid(x)
    return s + x * (s - s * s)


def gelu(x: Tensor) -> tuple[Tensor, Term]:
    """f = x Φ(x): f' = Φ + x φ, f'' = φ (2 - x²), f''' = φ x (x² - 4), with the standard normal Φ and φ."""

    def term(k: int, y: Tensor) -> Tensor:
        if k == 1:
            first: Tensor = aten.gelu_backward(y, x)
            return first
        if k > 3:
            return general(k, y)
        square = x * x
        density = torch.rsub(square, -0.5 * math.log(2.0 * math.pi), alpha=0.5).exp_()
        if k == 2:
            return density.addcmul_(density, square, value=-0.5).mul_(y)
        return square.sub_(4.0).mul_(density).mul_(x).mul_(y).div_(6.0)

    general = series_terms(_gelu_slope, x)
    return functional.gelu(x), term


def _gelu_slope(x: Series) -> Series:
    density = exp(-0.5 * (x * x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return 0.5 * erf(x * math.sqrt(0.5)) + 0.5 + x * density


_LINE, _CUBE = math.sqrt(8.0 / math.pi), 0.044715 * math.sqrt(8.0 / math.pi)


def gelu_by_tanh(x: Tensor) -> tuple[Tensor, Term]:
    """f = ½ x (1 + tanh ½v) = x s, s = sigmoid(v), v = √(8/π) (x + 0.044715 x³).

    The sigmoid costs a third of the hyperbolic tangent. With w = s (1 - s), s' = w v',
    s'' = s' (1 - 2s) v' + w v'' and s''' = s' ((1 - 6w) v'² + 3 (1 - 2s) v'') + w v'''.
    """
    s = (x * x).mul_(_CUBE).add_(_LINE).mul_(x).sigmoid_()

    def term(k: int, y: Tensor) -> Tensor:
        if k > 3:
            return general(k, y)
        rate = (x * x).mul_(3.0 * _CUBE).add_(_LINE)
        w: Tensor = aten.sigmoid_backward(y, s)
        first = w * rate
        if k == 1:
            return first.mul_(x).addcmul_(y, s)
        turn = torch.addcmul(rate, rate, s, value=-2.0)
        second = (turn * first).addcmul_(w, x, value=6.0 * _CUBE)
        if k == 2:
            return first.addcmul_(second, x, value=0.5)
        # s''' y, where (1 - 2s) v' is ``turn``.
        third = (rate * rate).addcmul_(torch.addcmul(s, s, s, value=-1.0), rate * rate, value=-6.0)
        third.mul_(first)
        third.addcmul_(turn.mul_(w), x, value=18.0 * _CUBE).add_(w, alpha=6.0 * _CUBE)
        return second.mul_(0.5).addcmul_(third, x, value=1.0 / 6.0)

    general = series_terms(_gelu_by_tanh_slope, x)
    return x * s, term


def _gelu_by_tanh_slope(x: Series) -> Series:
    square = x * x
    s = sigmoid(x * (_LINE + _CUBE * square))
    return s + x * (s - s * s) * (_LINE + 3.0 * _CUBE * square)
