"""Noise schedules: the signal α(t) and the noise σ(t) in a sample, x_t = α x_0 + σ z.

Every function maps a float, a float tensor or a ``Series`` to the same kind; on a series it gives exact
derivatives of any order. The formulas avoid cancellation: in float64 the relative error of γ is a few units
in the last place over the whole domain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from problems.series import Scalar, T, atan, derivative, exp, expm1, log, log1p, sin, sqrt


class Schedule(ABC):
    """A noise schedule on [stop, start]; sampling runs from ``start`` (noise) to ``stop`` (data)."""

    start: float
    stop: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.stop < self.start < math.inf:
            raise ValueError(
                "a schedule runs from start, where all is noise, down to stop: 0 <= stop < start must hold, "
                f"which stop = {self.stop:g}, start = {self.start:g} do not"
            )

    @abstractmethod
    def alpha(self, t: T) -> T:
        """Return the signal coefficient α(t)."""

    @abstractmethod
    def gamma(self, t: T) -> T:
        """Return the noise-to-signal ratio γ(t) = σ/α, increasing in t (Eq. 6)."""

    @abstractmethod
    def time(self, gamma: T) -> T:
        """Return the time t at which the noise-to-signal ratio is ``gamma``."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of x at ``start``, where the contribution of the data is negligible."""

    def sigma(self, t: T) -> T:
        """Return the noise coefficient σ(t) = α γ."""
        return self.alpha(t) * self.gamma(t)

    def log_snr(self, t: T) -> T:
        """Return the logarithmic signal-to-noise ratio log(α²/σ²) = -2 log γ."""
        return -2.0 * log(self.gamma(t))

    def alpha_rate(self, t: Scalar) -> Scalar:
        """Return dα/dt, by series arithmetic like all rates."""
        return derivative(self.alpha, t)

    def sigma_rate(self, t: Scalar) -> Scalar:
        """Return dσ/dt."""
        return derivative(self.sigma, t)

    def gamma_rate(self, t: Scalar) -> Scalar:
        """Return dγ/dt."""
        return derivative(self.gamma, t)

    def log_snr_rate(self, t: Scalar) -> Scalar:
        """Return d log(α²/σ²)/dt."""
        return derivative(self.log_snr, t)

    def drift(self, t: Scalar) -> Scalar:
        """Return f(t) = α'/α, the linear drift of the forward SDE dx = f x dt + g dw; -β/2 for VP."""
        return self.alpha_rate(t) / self.alpha(t)

    def diffusion(self, t: Scalar) -> Scalar:
        """Return g²(t) = α² dγ²/dt, the squared diffusion coefficient of the forward SDE; β for VP."""
        alpha, gamma = self.alpha(t), self.gamma(t)
        return 2.0 * alpha * alpha * gamma * self.gamma_rate(t)


class LinearBeta(Schedule):
    """A schedule on L(t) = ∫β = β_min t + ½(β_max - β_min) t², from β(t) = β_min + (β_max - β_min) t."""

    beta_min: float
    beta_max: float

    def _integral(self, t: T) -> T:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t

    def _root(self, integral: T) -> T:
        """Return the t at which L is ``integral``, without cancellation at small ones."""
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + sqrt(self.beta_min**2 + 2.0 * slope * integral))

    def beta(self, t: T) -> T:
        """Return β(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: T) -> T:
        """Return α = exp(-L/2)."""
        return exp(-0.5 * self._integral(t))


@dataclass(frozen=True)
class VP(LinearBeta):
    """The variance-preserving schedule of the paper, β(t) = β_min + (β_max - β_min) t (Song et al. 2021).

    With L(t) = ∫β = β_min t + ½(β_max - β_min) t²: α = exp(-L/2), σ² = 1 - exp(-L), γ² = exp(L) - 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1.0
    stop: float = 1e-3
    prior_std = 1.0

    def sigma(self, t: T) -> T:
        """Return σ = √(1 - exp(-L))."""
        return sqrt(-expm1(-self._integral(t)))

    def gamma(self, t: T) -> T:
        """Return γ = √(exp(L) - 1)."""
        return sqrt(expm1(self._integral(t)))

    def time(self, gamma: T) -> T:
        """Return the root of the quadratic L(t) = log(1 + γ²), without cancellation at small γ."""
        return self._root(log1p(gamma * gamma))


@dataclass(frozen=True)
class SubVP(LinearBeta):
    """The sub-variance-preserving schedule (Song et al. 2021): α = exp(-L/2), σ = 1 - exp(-L), L as for VP.

    Its variance α² + σ² is less than 1 between the ends. γ = (1 - e^(-L)) e^(L/2) = 2 sinh(L/2).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1.0
    stop: float = 1e-3
    prior_std = 1.0

    def sigma(self, t: T) -> T:
        """Return σ = 1 - exp(-L)."""
        return -expm1(-self._integral(t))

    def gamma(self, t: T) -> T:
        """Return γ = 2 sinh(L/2) = (e^L - 1) e^(-L/2)."""
        integral = self._integral(t)
        return expm1(integral) * exp(-0.5 * integral)

    def time(self, gamma: T) -> T:
        """Return the root of the quadratic L(t) = 2 arsinh(γ/2), without cancellation at small γ."""
        half = 0.5 * gamma
        square = half * half
        return self._root(2.0 * log1p(half + square / (1.0 + sqrt(1.0 + square))))


@dataclass(frozen=True)
class CosineVP(Schedule):
    """The cosine schedule, α = cos φ / cos φ₀ with φ = (t + s)/(1 + s)·π/2 (Nichol & Dhariwal 2021).

    γ² = cos²φ₀/cos²φ - 1 is computed as sin(φ - φ₀) sin(φ + φ₀)/cos²φ, without cancellation at both ends.
    γ is infinite at t = 1; sampling starts at 0.9946 (Lu et al. 2022). ``offset=0`` is α = cos(πt/2).
    """

    offset: float = 0.008
    start: float = 0.9946
    stop: float = 1e-3
    prior_std = 1.0

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    def alpha(self, t: T) -> T:
        """Return α = cos φ / cos φ₀, with the numerator as sin(π/2 - φ)."""
        return sin(self._rate * (1.0 - t)) / math.cos(self._rate * self.offset)

    def sigma(self, t: T) -> T:
        """Return σ = √(sin(φ - φ₀) sin(φ + φ₀)) / cos φ₀."""
        rate = self._rate
        product = sin(rate * t) * sin(rate * (t + 2.0 * self.offset))
        return sqrt(product) / math.cos(rate * self.offset)

    def gamma(self, t: T) -> T:
        """Return γ = √(sin(φ - φ₀) sin(φ + φ₀)) / cos φ."""
        rate = self._rate
        product = sin(rate * t) * sin(rate * (t + 2.0 * self.offset))
        return sqrt(product) / sin(rate * (1.0 - t))

    def time(self, gamma: T) -> T:
        """Return t from the tangent of φ - φ₀, without cancellation."""
        phi0 = self._rate * self.offset
        root = sqrt(gamma * gamma + math.sin(phi0) ** 2)
        rise = gamma * gamma / (math.cos(phi0) * (root + math.sin(phi0)))
        return atan(rise / (1.0 + math.tan(phi0) / math.cos(phi0) * root)) / self._rate


@dataclass(frozen=True)
class VE(Schedule):
    """The geometric variance-exploding schedule, α = 1, σ = σ_min (σ_max/σ_min)^t (Song et al. 2021)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    start: float = 1.0
    stop: float = 1e-5

    def alpha(self, t: T) -> T:
        """Return α = 1."""
        return 0.0 * t + 1.0

    def gamma(self, t: T) -> T:
        """Return γ = σ."""
        return self.sigma_min * exp(math.log(self.sigma_max / self.sigma_min) * t)

    def time(self, gamma: T) -> T:
        """Return t = log(γ/σ_min)/log(σ_max/σ_min)."""
        return log(gamma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    @property
    def prior_std(self) -> float:
        """Return σ_max."""
        return self.sigma_max


@dataclass(frozen=True)
class EDM(Schedule):
    """The schedule of Karras et al. (2022): α = 1, σ = t."""

    start: float = 80.0
    stop: float = 0.002

    def alpha(self, t: T) -> T:
        """Return α = 1."""
        return 0.0 * t + 1.0

    def gamma(self, t: T) -> T:
        """Return γ = t."""
        return t

    def time(self, gamma: T) -> T:
        """Return t = γ."""
        return gamma

    @property
    def prior_std(self) -> float:
        """Return σ at the start of the schedule."""
        return self.start


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """The straight paths of flow matching, x_t = (1 - t) x_0 + t z: α = 1 - t, σ = t, γ = t/(1 - t).

    t = 1 is noise (Liu et al. 2023; Lipman et al. 2023; Esser et al. 2024); where a network is told the time
    the other way round, it sees 1 - t. At t = 1 the state is pure noise and γ is infinite, so sampling starts
    at 1 - 1e-3, γ = 999, where a millionth of the variance is that of the data: the prior that is left out
    is closer to the truth than that of the paper's schedule, whose γ is 152. A later start is a value of
    one's own. A sample at the start has the standard deviation σ = t of its noise.
    """

    start: float = 0.999
    stop: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 <= self.stop < self.start < 1.0:
            raise ValueError(
                f"flow matching runs inside 0 <= stop < start < 1, for gamma is infinite at 1: choose other "
                f"ends than {self.stop:g} and {self.start:g}"
            )

    def alpha(self, t: T) -> T:
        """Return α = 1 - t."""
        return 1.0 - t

    def sigma(self, t: T) -> T:
        """Return σ = t."""
        return t

    def gamma(self, t: T) -> T:
        """Return γ = t/(1 - t)."""
        return t / (1.0 - t)

    def time(self, gamma: T) -> T:
        """Return t = γ/(1 + γ)."""
        return gamma / (1.0 + gamma)

    @property
    def prior_std(self) -> float:
        """Return σ at the start of the schedule."""
        return self.start
