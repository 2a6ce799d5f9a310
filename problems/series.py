"""Truncated power-series arithmetic, from which every derivative in this package is exact.

A smooth function of one variable h is represented by its first Taylor coefficients c₀ + c₁h + c₂h² + …
Sums, products, quotients and elementary functions of such series follow from short recurrences (Moore 1966;
Griewank & Walther 2008, ch. 13). A formula written with the functions of this module works on floats, on
tensors and on series; evaluated on a series, it yields all its derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Scalar = float | Tensor
"""A real number, or a tensor of numbers, one per trajectory, that broadcasts against the states."""

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
        """Return the series of the identity at ``value``: value + h, with ``length`` coefficients."""
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

    def slope(self) -> Series:
        """Return the derivative, which has one coefficient less."""
        return Series([(i + 1) * self[i + 1] for i in range(len(self) - 1)])


def convolve(a: Sequence[Scalar], b: Sequence[Scalar], j: int) -> Scalar:
    """Return coefficient j of a product, Σ aᵢ b_{j-i}; factors 0.0 and 1.0 cost no operation."""
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


def convolve_states(scalars: Series, states: list[Tensor], j: int, total: Tensor | None = None) -> Tensor:
    """Return coefficient j of a scalar series times a series of states, plus ``total``.

    The sum of ``convolve`` by fused operations; zeros cost no operation.
    """
    for a, state in zip(scalars.coefficients, states[j::-1], strict=False):
        if isinstance(a, float) and a == 0.0:
            continue
        if total is None:
            total = state if isinstance(a, float) and a == 1.0 else a * state
        elif isinstance(a, Tensor):
            total = torch.addcmul(total, a, state)
        else:
            total = torch.add(total, state, alpha=a)
    return torch.zeros_like(states[j]) if total is None else total


def quotient(numerator: Tensor, scalars: Series, before: list[Tensor]) -> Tensor:
    """Return the next coefficient of a series of states divided by a scalar series.

    Parameters
    ----------
    numerator
        The same coefficient of the states.
    scalars
        The divisor.
    before
        The earlier coefficients of the quotient.
    """
    for a, state in zip(scalars.coefficients[1:], reversed(before), strict=False):
        if isinstance(a, Tensor):
            numerator = torch.addcmul(numerator, a, state, value=-1.0)
        elif a != 0.0:
            numerator = torch.sub(numerator, state, alpha=a)
    first = scalars[0]
    return numerator if isinstance(first, float) and first == 1.0 else numerator / first


def integral(state: Tensor, j: int) -> Tensor:
    """Return coefficient j of an integral, given coefficient j - 1 of its integrand."""
    return state if j == 1 else state / j


def _primitive(constant: Scalar, inner: Series, factor: Callable[[list[Scalar], int], Scalar]) -> Series:
    """Solve f' = inner'·w for f with f₀ = constant, where ``factor(f, j)`` is coefficient j of w."""
    f: list[Scalar] = [constant]
    w: list[Scalar] = []
    g = inner.coefficients
    for j in range(1, len(inner)):
        w.append(factor(f, j - 1))
        total: Scalar = 0.0
        for i in range(1, j + 1):
            total = total + i * g[i] * w[j - i]
        f.append(total / j)
    return Series(f)


def exp(x: T) -> T:
    """Return e^x of a float, tensor or series."""
    if isinstance(x, Series):
        return _primitive(exp(x[0]), x, lambda f, j: f[j])
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def expm1(x: T) -> T:
    """Return exp(x) - 1 without cancellation."""
    if isinstance(x, Series):
        return Series([expm1(x[0]), *exp(x).coefficients[1:]])
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def log(x: T) -> T:
    """Return the natural logarithm."""
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
    """Return √x; a series must have a positive constant term."""
    if isinstance(x, Series):
        root: list[Scalar] = [sqrt(x[0])]
        for j in range(1, len(x)):
            inner = sum(root[i] * root[j - i] for i in range(1, j))
            root.append((x[j] - inner) / (2.0 * root[0]))
        return Series(root)
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def sin(x: T) -> T:
    """Return the sine."""
    if isinstance(x, Series):
        return _circular(x)[0]
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def cos(x: T) -> T:
    """Return the cosine."""
    if isinstance(x, Series):
        return _circular(x)[1]
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def atan(x: T) -> T:
    """Return the inverse tangent."""
    if isinstance(x, Series):
        inverse = 1.0 / (1.0 + x * x)
        return _primitive(atan(x[0]), x, lambda _, j: inverse[j])
    return torch.atan(x) if isinstance(x, Tensor) else math.atan(x)


def tanh(x: T) -> T:
    """Return the hyperbolic tangent."""
    if isinstance(x, Series):
        return _primitive(tanh(x[0]), x, lambda f, j: (1.0 if j == 0 else 0.0) - convolve(f, f, j))
    return torch.tanh(x) if isinstance(x, Tensor) else math.tanh(x)


def sigmoid(x: T) -> T:
    """Return the logistic function 1/(1 + e^(-x))."""
    if isinstance(x, Series):
        return _primitive(sigmoid(x[0]), x, lambda f, j: f[j] - convolve(f, f, j))
    return torch.sigmoid(x) if isinstance(x, Tensor) else 0.5 + 0.5 * math.tanh(0.5 * x)


def erf(x: T) -> T:
    """Return the error function."""
    if isinstance(x, Series):
        bell = (2.0 / math.sqrt(math.pi)) * exp(-(x * x))
        return _primitive(erf(x[0]), x, lambda _, j: bell[j])
    return torch.erf(x) if isinstance(x, Tensor) else math.erf(x)


def power(x: T, exponent: float) -> T:
    """Return x to a fixed power, by products where it is a small whole number.

    A series needs a constant term that is not zero for other powers: from x f' = a f x',
    k x₀ f_k = Σ_{i=1..k} (a i - (k - i)) xᵢ f_{k-i}.
    """
    if isinstance(x, Series):
        return _power(x, exponent)
    return torch.pow(x, exponent) if isinstance(x, Tensor) else math.pow(x, exponent)


def _power(x: Series, exponent: float) -> Series:
    if exponent in range(9):
        result = Series([0.0 * x[0] + 1.0, *([0.0] * (len(x) - 1))])
        for _ in range(int(exponent)):
            result = result * x
        return result
    f: list[Scalar] = [power(x[0], exponent)]
    for k in range(1, len(x)):
        total: Scalar = 0.0
        for i in range(1, k + 1):
            total = total + (exponent * i - (k - i)) * x[i] * f[k - i]
        f.append(total / (k * x[0]))
    return Series(f)


def _circular(x: Series) -> tuple[Series, Series]:
    s: list[Scalar] = [sin(x[0])]
    c: list[Scalar] = [cos(x[0])]
    for j in range(1, len(x)):
        s.append(sum(i * x[i] * c[j - i] for i in range(1, j + 1)) / j)
        c.append(-sum(i * x[i] * s[j - i] for i in range(1, j + 1)) / j)
    return Series(s), Series(c)


def taylor(f: Callable[[Series], Series], at: Scalar, length: int) -> Series:
    """Return the first ``length`` Taylor coefficients of f at ``at``."""
    return f(Series.variable(at, length))


def derivative(f: Callable[[Series], Series], at: Scalar) -> Scalar:
    """Return f'(at) by series arithmetic, to rounding."""
    return taylor(f, at, 2)[1]


class Exponential:
    """The exponentials of an array of power series up to one common factor, a coefficient at a time.

    Push the coefficients ℓ₀, ℓ₁, … of the exponents in order; each push returns the same coefficient of
    e = exp(ℓ - max ℓ₀), which from e' = ℓ' e is

        e_j = Σ_{i=1..j} (i/j) ℓ_i e_{j-i}.

    A common factor cancels in a quotient such as Σ e m / Σ e. A common term of the ℓ_j with j > 0 cancels
    there too, but it makes the coefficients e_j grow and costs digits. So the caller should subtract from
    every ℓ_j, j > 0, a value close to those of the largest exponents.

    Parameters
    ----------
    dim
        The axis along which the maximum of ℓ₀ is taken. Values of exp(ℓ₀ - max ℓ₀) far below rounding error
        are raised to a floor; with their derivatives they are set to zero from order 2 on.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._exponents: list[Tensor] = []
        self._values: list[Tensor] = []

    def push(self, exponents: Tensor) -> Tensor:
        """Take the next coefficient of the exponents; the array is kept and may be overwritten."""
        j = len(self._values)
        if j == 0:
            # The floor is far below rounding error and far above the denormal numbers, on which exp and
            # products are several times slower.
            floor = 0.9 * math.log(torch.finfo(exponents.dtype).tiny)
            exponents -= exponents.amax(self._dim, keepdim=True)
            value = exponents.clamp_(min=floor).exp_()
        else:
            if j == 2:
                # Coefficients of a component on the floor would grow with powers of its rate, which can be
                # arbitrarily large.
                floor = math.exp(0.8999 * math.log(torch.finfo(exponents.dtype).tiny))
                torch.threshold_(self._values[0], floor, 0.0)
                torch.mul(self._exponents[1], self._values[0], out=self._values[1])
            value = exponents * self._values[0]
            for i in range(1, j):
                value.addcmul_(self._exponents[i], self._values[j - i], value=i / j)
        self._exponents.append(exponents)
        self._values.append(value)
        return value
