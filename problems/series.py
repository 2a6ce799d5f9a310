"""Truncated power-series arithmetic: the calculus by which every derivative here is exact.

A smooth function of one variable h is represented by its first Taylor coefficients
c₀ + c₁h + c₂h² + …; sums, products, quotients and elementary functions of such series follow from
short recurrences (Moore 1966; Griewank & Walther 2008, ch. 13). A formula written with the functions
of this module works unchanged on floats, on tensors and on series: evaluated on a series it yields all
its derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Scalar = float | Tensor
"""A real number, or a tensor of them (one per trajectory) that broadcasts against the states."""

T = TypeVar("T", float, Tensor, Scalar, "Series")


class Series:
    """A truncated power series c₀ + c₁h + … + c_{n-1}h^{n-1} with scalar coefficients.

    Parameters
    ----------
    coefficients
        c₀, c₁, …: floats, or float tensors of shapes that broadcast with each other.
    """

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: Sequence[Scalar]) -> None:
        self.coefficients = list(coefficients)

    @classmethod
    def variable(cls, value: Scalar, length: int) -> Series:
        """Return the series of the identity about ``value``: value + h, with ``length`` coefficients."""
        return cls([value, 1.0, *([0.0] * (length - 2))][:length])

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, index: int) -> Scalar:
        return self.coefficients[index]

    def __repr__(self) -> str:
        return f"Series({self.coefficients})"

    def __neg__(self) -> Series:
        return Series([-c for c in self.coefficients])

    def __add__(self, other: Series | Scalar) -> Series:
        if isinstance(other, Series):
            return Series([a + b for a, b in zip(self.coefficients, other.coefficients, strict=True)])
        return Series([self.coefficients[0] + other, *self.coefficients[1:]])

    __radd__ = __add__

    def __sub__(self, other: Series | Scalar) -> Series:
        return self + (-other)

    def __rsub__(self, other: Scalar) -> Series:
        return (-self) + other

    def __mul__(self, other: Series | Scalar) -> Series:
        if isinstance(other, Series):
            a, b = self.coefficients, other.coefficients
            return Series([convolve(a, b, j) for j in range(len(self))])
        return Series([c * other for c in self.coefficients])

    __rmul__ = __mul__

    def __truediv__(self, other: Series | Scalar) -> Series:
        if not isinstance(other, Series):
            return Series([c / other for c in self.coefficients])
        q: list[Scalar] = []
        b = other.coefficients
        for j, c in enumerate(self.coefficients):
            q.append((c - convolve(b[1:], q, j - 1)) / b[0])
        return Series(q)

    def __rtruediv__(self, other: Scalar) -> Series:
        return Series([other, *([0.0] * (len(self) - 1))]) / self


def convolve(a: Sequence[Scalar], b: Sequence[Scalar], j: int) -> Scalar:
    """Return coefficient j of a product, Σ aᵢ b_{j-i}; exact zeros and ones are free."""
    total: Scalar = 0.0
    for x, y in zip(a, b[j::-1] if j >= 0 else (), strict=False):
        if isinstance(y, float):
            x, y = y, x
        if not isinstance(x, float):
            term: Scalar = x * y
        elif x == 0.0 or (isinstance(y, float) and y == 0.0):
            continue
        else:
            term = y if x == 1.0 else x * y
        total = term if isinstance(total, float) and total == 0.0 else total + term
    return total


def _primitive(constant: Scalar, inner: Series, slope: Callable[[list[Scalar], int], Scalar]) -> Series:
    """Solve f' = inner'·w for f with f₀ = constant, where ``slope(f, j)`` is coefficient j of w."""
    f: list[Scalar] = [constant]
    w: list[Scalar] = []
    g = inner.coefficients
    for j in range(1, len(inner)):
        w.append(slope(f, j - 1))
        total: Scalar = 0.0
        for i in range(1, j + 1):
            total = total + i * g[i] * w[j - i]
        f.append(total / j)
    return Series(f)


def exp(x: T) -> T:
    """Exponential of a float, tensor or series."""
    if isinstance(x, Series):
        return _primitive(exp(x[0]), x, lambda f, j: f[j])
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def expm1(x: T) -> T:
    """Return exp(x) - 1 without cancellation."""
    if isinstance(x, Series):
        return Series([expm1(x[0]), *exp(x).coefficients[1:]])
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def log(x: T) -> T:
    """Natural logarithm."""
    if isinstance(x, Series):
        inverse = 1.0 / x
        return _primitive(log(x[0]), x, lambda _, j: inverse[j])
    return torch.log(x) if isinstance(x, Tensor) else math.log(x)


def log1p(x: T) -> T:
    """Return log(1 + x) without cancellation."""
    if isinstance(x, Series):
        inverse = 1.0 / (1.0 + x)
        return _primitive(log1p(x[0]), x, lambda _, j: inverse[j])
    return torch.log1p(x) if isinstance(x, Tensor) else math.log1p(x)


def sqrt(x: T) -> T:
    """Square root; a series must have a positive constant term."""
    if isinstance(x, Series):
        root: list[Scalar] = [sqrt(x[0])]
        for j in range(1, len(x)):
            inner = sum(root[i] * root[j - i] for i in range(1, j))
            root.append((x[j] - inner) / (2.0 * root[0]))
        return Series(root)
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def sin(x: T) -> T:
    """Sine."""
    if isinstance(x, Series):
        return _circular(x)[0]
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def cos(x: T) -> T:
    """Cosine."""
    if isinstance(x, Series):
        return _circular(x)[1]
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def atan(x: T) -> T:
    """Inverse tangent."""
    if isinstance(x, Series):
        inverse = 1.0 / (1.0 + x * x)
        return _primitive(atan(x[0]), x, lambda _, j: inverse[j])
    return torch.atan(x) if isinstance(x, Tensor) else math.atan(x)


def _circular(x: Series) -> tuple[Series, Series]:
    s: list[Scalar] = [sin(x[0])]
    c: list[Scalar] = [cos(x[0])]
    for j in range(1, len(x)):
        s.append(sum(i * x[i] * c[j - i] for i in range(1, j + 1)) / j)
        c.append(-sum(i * x[i] * s[j - i] for i in range(1, j + 1)) / j)
    return Series(s), Series(c)


def taylor(f: Callable[[Series], Series], at: Scalar, length: int) -> Series:
    """Return the first ``length`` Taylor coefficients of f about ``at``."""
    return f(Series.variable(at, length))


def derivative(f: Callable[[Series], Series], at: Scalar) -> Scalar:
    """Return f'(at), exactly."""
    return taylor(f, at, 2)[1]


class Exponential:
    """The exponentials of an array of power series, up to one common factor, a coefficient at a time.

    Push the coefficients ℓ₀, ℓ₁, … of the exponents in order; each push returns the same coefficient of
    e = exp(ℓ - max ℓ₀), which from e' = ℓ' e is

        e_j = Σ_{i=1..j} (i/j) ℓ_i e_{j-i}.

    The common factor is meant to drop out of a quotient such as Σ e m / Σ e, and so would one common to the
    e_j with j > 0: whoever pushes should take a value near the largest exponents off every ℓ_j, or the
    coefficients grow only to cancel.

    Parameters
    ----------
    dim
        The axis along which ℓ₀ is compared. Where exp(ℓ₀) is negligible beside the greatest, so are its
        derivatives, and both are replaced by (almost) nothing.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._exponents: list[Tensor] = []
        self._values: list[Tensor] = []

    def push(self, exponents: Tensor) -> Tensor:
        """Take the next coefficient of the exponents, which is kept and may be overwritten."""
        j = len(self._values)
        if j == 0:
            # Far below every rounding error, yet far above the denormal numbers, on which exp and every
            # later product are several times slower.
            floor = 0.9 * math.log(torch.finfo(exponents.dtype).tiny)
            exponents -= exponents.amax(self._dim, keepdim=True)
            value = exponents.clamp_(min=floor).exp_()
        else:
            if j == 2:
                # A component on the floor may have any rate, with powers of which the floor must not grow.
                floor = math.exp(0.8999 * math.log(torch.finfo(exponents.dtype).tiny))
                torch.threshold_(self._values[0], floor, 0.0)
                torch.mul(self._exponents[1], self._values[0], out=self._values[1])
            value = exponents * self._values[0]
            for i in range(1, j):
                value.addcmul_(self._exponents[i], self._values[j - i], value=i / j)
        self._exponents.append(exponents)
        self._values.append(value)
        return value
