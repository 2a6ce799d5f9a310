"""The noun *form*: in which coordinates is the flow of a score model written?

A form turns a model into a differential equation dy/ds = f(y, s) and maps its coordinates (y, s) to those of
the data, (x, t), and back. The error of a method depends on the coordinates, so the form is a factor of every
study.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from problems.bill import Bill
from problems.noise import Drawn, Noise
from problems.schedule import Schedule
from problems.score import Model, align, like
from problems.series import Scalar, Series, T, convolve, sqrt


class Form(ABC):
    """An equation dy = f(y, s) ds, plus noise if it is stochastic, in its own coordinates.

    Parameters
    ----------
    score
        The score model in the equation.
    noise
        The source of noise for stochastic equations and for methods that add noise. A generator stands for
        ``Drawn(generator)``.
    """

    def __init__(self, score: Model, noise: Noise | torch.Generator | None = None) -> None:
        self.score = score
        self.noise = noise if isinstance(noise, Noise) else Drawn(noise)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the model."""
        return self.score.schedule

    @property
    def spent(self) -> Bill:
        """The bill of the model so far."""
        return self.score.spent

    @abstractmethod
    def s(self, t: T) -> T:
        """Return the independent variable at time t."""

    @abstractmethod
    def t(self, s: T) -> T:
        """Return the time at which the independent variable is s."""

    @abstractmethod
    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return the coordinates y of the state x at time t."""

    @abstractmethod
    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return the state x whose coordinates at time t are y."""

    @abstractmethod
    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (f, df/ds, …), ``order`` entries: the derivatives of the solution through (y, s)."""

    def eps(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the noise ε that the model sees in the state."""
        t = align(self.t(s), y)
        return self.score(self.leave(y, t), t)

    def spread(self, s: Scalar) -> Scalar:
        """Return g(s), the factor of dW(s) in the equation; zero for an ODE."""
        return 0.0

    def kick(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the noise g(s0) √|s1 - s0| z of the equation over [s0, s1]; zero for an ODE."""
        g = self.spread(align(s0, y))
        if isinstance(g, float) and g == 0.0:
            return torch.zeros_like(y)
        h = align(s1 - s0, y)
        root = h.abs().sqrt() if isinstance(h, Tensor) else math.sqrt(abs(h))
        return like(g * root, y) * self.normal(y, s0, s1)

    def normal(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the standard normal numbers of [s0, s1]: scaled increments of a Brownian path W(w).

        The path runs in the signal-to-noise ratio w = 1/γ², because in y = x̄/γ² the reverse SDE is
        dy = x̂₀ dw + dW(w), with x̂₀ the denoised state.
        """
        w0, w1 = (self.schedule.gamma(align(self.t(s), y)) ** -2 for s in (s0, s1))
        return self.noise.over(y, w0, w1) if _all_below(w0, w1) else self.noise.over(y, w1, w0)

    def fresh(self, y: Tensor, s: Scalar, stream: int = 1) -> Tensor:
        """Return the standard normal numbers of s, independent of the path and of other streams."""
        return self.noise.at(y, s, stream)

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the equation of some states of a batch; the whole equation is billed in proportion."""
        other = copy.copy(self)
        other.score, other.noise = self.score.part(rows, of), self.noise.part(rows)
        return other


class Flow(Form):
    """The deterministic flow dx̄/dγ = ε in y = scale(s) x̄ and γ = γ(s), with two functions of s to define."""

    @abstractmethod
    def gamma(self, s: T) -> T:
        """Return the noise-to-signal ratio at s."""

    @abstractmethod
    def scale(self, s: T) -> T:
        """Return y/x̄ at s."""

    def t(self, s: T) -> T:
        """Return the time at which the independent variable is s."""
        return self.schedule.time(self.gamma(s))

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return y = scale x/α."""
        t = align(t, x)
        return x * like(self.scale(self.s(t)) / self.schedule.alpha(t), x)

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return x = α y/scale."""
        t = align(t, y)
        return y * like(self.schedule.alpha(t) / self.scale(self.s(t)), y)

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return the derivatives of y from the Taylor coefficients of x̄, which obey dx̄/ds = ε dγ/ds."""
        h = Series.variable(s, order + 1)
        gamma, scale = _series_like(self.gamma(h), y), _series_like(self.scale(h), y)
        slope = gamma.slope().coefficients
        xbar, eps, jet = [y / scale[0]], [], []
        for j, coefficient in zip(range(1, order + 1), self.score.follow(xbar[0], gamma), strict=False):
            eps.append(coefficient)
            xbar.append(torch.as_tensor(convolve(slope, eps, j - 1)) / j)
            jet.append(float(math.factorial(j)) * torch.as_tensor(convolve(scale.coefficients, xbar, j)))
        return tuple(jet)


class DDIM(Flow):
    """The DDIM ODE dx̄/dγ = ε (Eq. 6): y = x̄, s = γ. Euler's method on it is DDIM, TTM-2 is GENIE."""

    def s(self, t: T) -> T:
        """Return γ(t)."""
        return self.schedule.gamma(t)

    def gamma(self, s: T) -> T:
        """Return s."""
        return s

    def scale(self, s: T) -> T:
        """Return 1."""
        return 0.0 * s + 1.0

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return x̄ = x/α."""
        return x / like(self.schedule.alpha(align(t, x)), x)

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return x = α x̄."""
        return y * like(self.schedule.alpha(align(t, y)), y)

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (ε, dε/dγ, …), ``order`` entries."""
        return self.score.flow_jet(y, like(s, y), order)


class Preconditioned(Flow):
    """The preconditioned family: u = (s² + γ²)^(-1/2), y = u x̄, dy/du = x̄ - (s² + γ²)/γ ε.

    ``std=0`` is the data form: y = x/σ, u = 1/γ, and dy/du is the denoised state, as in DPM-Solver++. With
    the standard deviation of Gaussian data, dy/du is constant and every method is exact. With the standard
    deviation of a mixture's components, dy/du is the posterior mean of the component, without a stiff linear
    part.

    Parameters
    ----------
    score
        The model.
    std
        s ≥ 0.
    noise
        See ``Form``.
    """

    def __init__(self, score: Model, std: float = 0.0, noise: Noise | torch.Generator | None = None) -> None:
        super().__init__(score, noise)
        self.std = std

    def s(self, t: T) -> T:
        """Return u(t)."""
        gamma = self.schedule.gamma(t)
        return 1.0 / sqrt(self.std**2 + gamma * gamma)

    def gamma(self, s: T) -> T:
        """Return γ = √(1/u² - s²), factored to reduce cancellation."""
        if self.std == 0.0:
            return 1.0 / s
        root = 1.0 / s
        return sqrt((root - self.std) * (root + self.std))

    def scale(self, s: T) -> T:
        """Return u."""
        return s

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return the derivatives of y, by ``follow_preconditioned`` if the model has it."""
        path = self.score.follow_preconditioned(self.std, y, Series.variable(like(s, y), order + 1))
        if path is None:
            return super().jet(y, s, order)
        return tuple(c if j == 1 else float(math.factorial(j)) * c for j, c in enumerate(path, start=1))


class ProbabilityFlow(Flow):
    """The probability-flow ODE dx/dt (Eq. 4): y = x, s = t."""

    def s(self, t: T) -> T:
        """Return t."""
        return t

    def t(self, s: T) -> T:
        """Return s."""
        return s

    def gamma(self, s: T) -> T:
        """Return γ(t)."""
        return self.schedule.gamma(s)

    def scale(self, s: T) -> T:
        """Return α(t)."""
        return self.schedule.alpha(s)

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return x."""
        return x

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return x."""
        return y


class ReverseSDE(Form):
    """The reverse SDE dx = (α'/α x + g² ε/σ) dt + g dw, solved with dt < 0 (Eq. 3).

    For the paper's schedule the drift is -½β (x - 2ε/σ) and g² = β.
    """

    def s(self, t: T) -> T:
        """Return t."""
        return t

    def t(self, s: T) -> T:
        """Return s."""
        return s

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return x."""
        return x

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return x."""
        return y

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return the drift.

        Raises
        ------
        ValueError
            If ``order`` is greater than 1: paths of an SDE have no derivatives.
        """
        if order > 1:
            raise ValueError("the reverse SDE has no derivatives along its path")
        t = align(s, y)
        eps = self.score.jet(y, t)[0]
        pull = self.schedule.diffusion(t) / self.schedule.sigma(t)
        return (like(self.schedule.drift(t), y) * y + like(pull, y) * eps,)

    def spread(self, s: Scalar) -> Scalar:
        """Return g(t)."""
        return sqrt(self.schedule.diffusion(s))

    def flow(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return y at s1 under dx = -α'/α x dt + g dw, an Ornstein–Uhlenbeck process, exactly in law.

        The stationary distribution of this part of the SDE is N(0, I).

        Raises
        ------
        ValueError
            If the schedule does not preserve variance.
        """
        a0, a1 = (self.schedule.alpha(align(s, y)) for s in (s0, s1))
        variance: Scalar = a0 * a0 + self.schedule.sigma(align(s0, y)) ** 2
        if not bool((torch.as_tensor(abs(variance - 1.0)) < 1e-9).all()):
            raise ValueError("the part that is solved exactly needs a schedule that preserves variance")
        ratio = a0 / a1
        return like(ratio, y) * y + like(sqrt(1.0 - ratio * ratio), y) * self.normal(y, s0, s1)

    def rest(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the drift without the part that ``flow`` solves: 2 α'/α x + g² ε/σ, -β (x - ε/σ) for VP."""
        drift = self.schedule.drift(align(s, y))
        return self.jet(y, s)[0] + like(drift, y) * y


class Localization(Form):
    """The reverse SDE as stochastic localization, dy = x̂₀ dw + dW(w): y = x̄/γ², w = 1/γ² (Montanari 2023).

    There is no linear term: the drift is the denoised state x̂₀, and the noise is additive. The
    Euler–Maruyama method on this form is the ancestral sampling of DDPM with the posterior variance. The
    Adams methods on it are those of SDE-DPM-Solver++.
    """

    def s(self, t: T) -> T:
        """Return w = 1/γ²."""
        gamma = self.schedule.gamma(t)
        return 1.0 / (gamma * gamma)

    def t(self, s: T) -> T:
        """Return the time t at which γ(t) = 1/√w."""
        return self.schedule.time(1.0 / sqrt(s))

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return y = x/(α γ²)."""
        t = align(t, x)
        return x * like(self.s(t) / self.schedule.alpha(t), x)

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return x = α γ² y."""
        t = align(t, y)
        return y * like(self.schedule.alpha(t) / self.s(t), y)

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return the denoised state x̂₀ = x̄ - γ ε.

        Raises
        ------
        ValueError
            If ``order`` is greater than 1: paths of an SDE have no derivatives.
        """
        if order > 1:
            raise ValueError("the reverse SDE has no derivatives along its path")
        u = sqrt(align(s, y))
        return Preconditioned(self.score).jet(y / like(u, y), u)

    def spread(self, s: Scalar) -> Scalar:
        """Return 1."""
        return 1.0


def _series_like(series: Series, x: Tensor) -> Series:
    """Give the coefficients of a series the dtype and device of states; see ``like``."""
    return Series([like(c, x) for c in series.coefficients])


def _all_below(a: Scalar, b: Scalar) -> bool:
    below = a < b
    return bool(below.all()) if isinstance(below, Tensor) else below
