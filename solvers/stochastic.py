"""Methods for stochastic equations, and methods that add noise to the flow: each wraps a method without."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.interface import Equation, Node, Past, Scalar, Solver
from solvers.taylor import Taylor


class Wrapped(Solver):
    """A solver made of another one, whose past it hands on.

    Attributes
    ----------
    inner
        The other one.
    """

    inner: Solver

    @property
    def p(self) -> int:
        """That of the inner method."""
        return self.inner.p

    @property
    def reach(self) -> int:
        """That of the inner method."""
        return self.inner.reach

    @property
    def random(self) -> bool:
        """Whether the inner method is."""
        return self.inner.random


@dataclass(frozen=True)
class Maruyama(Wrapped):
    """Any method for the drift, and the noise of the equation on top of its step.

    On ``Localization`` Maruyama(Adams(2, clock=LogSNR())) is SDE-DPM-Solver++(2M). On an ODE it is the inner
    method.

    Parameters
    ----------
    inner
        The method for the drift.
    """

    inner: Solver

    @property
    def order(self) -> int:
        """1 for one-step methods, 2 at most for others, on forms whose noise is exact like ``Localization``.

        What a slope misses of the noise of its step, h² in the covariance, a multistep method makes good in
        the steps after, when the slopes that it compares have seen it.
        """
        return min(2 if self.inner.reach else 1, self.inner.order)

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step along the drift and add the noise of the interval."""
        end, node = self.inner.step(eq, y, s0, s1, past)
        return end + eq.kick(y, s0, s1), node


@dataclass(frozen=True)
class EulerMaruyama(Maruyama):
    """The Euler–Maruyama method, y ← y + h f + noise.

    On ``Localization`` it is the ancestral sampling of DDPM, with the posterior variance.
    """

    inner: Solver = Taylor(1)


def moved(eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, noise: Tensor) -> Tensor:
    """Return the coordinates at s1 of what has the coordinates y at s0, with ``noise`` added to x/α."""
    t0, t1 = eq.t(s0), eq.t(s1)
    alpha = eq.schedule.alpha
    return eq.enter(alpha(t1) * (eq.leave(y, t0) / alpha(t0) + noise), t1)


@dataclass(frozen=True)
class Ancestral(Wrapped):
    """A step of the flow to less noise than is wanted, and fresh noise for the rest.

    With DDIM as the inner method it is DDIM(η) (Song et al. 2021, Eq. 16), the same as FastDDIM with κ = η
    (Kong & Ping 2021): y + (√(γ₁² - ς²) - γ₀) ε + ς z with ς = η γ₁ √(1 - γ₁²/γ₀²). η = 1 is the ancestral
    sampling of DDPM. With other inner methods it is what k-diffusion calls ancestral.

    Parameters
    ----------
    inner
        The method for the flow.
    eta
        η, the share of the noise that DDPM adds; 0 is the inner method.

    Raises
    ------
    ValueError
        If η is not in [0, 1].
    """

    inner: Solver = Taylor(1)
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta lies between 0 and 1, which {self.eta} does not")

    @property
    def order(self) -> int:
        """That of the inner method: the exact flow keeps the law right, and so does the noise."""
        return self.inner.order

    @property
    def random(self) -> bool:
        """Whether η > 0, or the inner method is."""
        return self.eta > 0.0 or self.inner.random

    def added(self, eq: Equation, t0: float, t1: float) -> float:
        """Return the standard deviation ς of the noise that is added to x/α."""
        gamma0, gamma1 = eq.schedule.gamma(t0), eq.schedule.gamma(t1)
        return float(self.eta * gamma1 * math.sqrt(1.0 - (gamma1 / gamma0) ** 2))

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step of the flow to γ = √(γ₁² - ς²), and add noise."""
        if self.eta == 0.0:
            return self.inner.step(eq, y, s0, s1, past)
        t0, t1 = eq.t(s0), eq.t(s1)
        gamma0, gamma1 = eq.schedule.gamma(t0), eq.schedule.gamma(t1)
        below = gamma1 * math.sqrt(1.0 - self.eta**2 + (self.eta * gamma1 / gamma0) ** 2)
        middle = eq.s(eq.schedule.time(below))
        y, node = self.inner.step(eq, y, s0, middle, past)
        return moved(eq, y, middle, s1, self.added(eq, t0, t1) * eq.normal(y, s0, s1)), node


@dataclass(frozen=True)
class ReverseDiffusion(Ancestral):
    """The ancestral step with the variance of the step forwards, which is larger than the posterior's.

    That is the variance β of DDPM (its authors' choice; σ̂ in DDIM), and on a variance-exploding schedule the
    reverse diffusion predictor x + (σ₀² - σ₁²) score + √(σ₀² - σ₁²) z (Song et al. 2021b, App. E).
    """

    @property
    def order(self) -> int:
        """At most 1, as variances are h² too large in every step; that of the inner method without noise."""
        return min(1, self.inner.order) if self.eta > 0.0 else self.inner.order

    def added(self, eq: Equation, t0: float, t1: float) -> float:
        """Return (α₀/α₁) √(γ₀² - γ₁²)."""
        ratio = eq.schedule.alpha(t0) / eq.schedule.alpha(t1)
        return float(ratio * math.sqrt(eq.schedule.gamma(t0) ** 2 - eq.schedule.gamma(t1) ** 2))


@dataclass(frozen=True)
class Churn(Wrapped):
    """The stochastic sampler of EDM (Karras et al. 2022, Alg. 2): a step up to more noise, then one down.

    Where γ is in [low, high], noise is added until it is γ (1 + churn), but not beyond the start of the
    schedule, where the model is not known. The paper's churn is min(S_churn/N, √2 - 1), which is the latter
    up to N = 72 steps for its S_churn = 30 and more.

    Parameters
    ----------
    inner
        The method for the flow; Heun's in the paper.
    churn
        By how much noise grows, in proportion.
    low, high
        S_min and S_max. These and S_noise are the paper's for ImageNet.
    noise
        S_noise: by how much the added noise is too large.

    Raises
    ------
    ValueError
        If the churn is negative.
    """

    inner: Solver
    churn: float = math.sqrt(2.0) - 1.0
    low: float = 0.05
    high: float = 50.0
    noise: float = 1.003

    def __post_init__(self) -> None:
        if self.churn < 0.0:
            raise ValueError(f"the churn is not negative, as {self.churn} is")

    @property
    def order(self) -> int:
        """0, as the noise that is added does not become less with the steps; the inner one's without."""
        return 0 if self.churn > 0.0 else self.inner.order

    @property
    def random(self) -> bool:
        """Whether there is churn, or the inner method is."""
        return self.churn > 0.0 or self.inner.random

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Add noise, and step down from there."""
        gamma = eq.schedule.gamma(eq.t(s0))
        raised = min(gamma * (1.0 + self.churn), eq.schedule.gamma(eq.schedule.start))
        if self.low <= gamma <= self.high and raised > gamma:
            size = self.noise * math.sqrt((raised - gamma) * (raised + gamma))
            above = eq.s(eq.schedule.time(raised))
            y, s0 = moved(eq, y, s0, above, size * eq.fresh(y, s0)), above
        return self.inner.step(eq, y, s0, s1, past)


@dataclass(frozen=True)
class LangevinCorrector(Wrapped):
    """Steps of Langevin dynamics at the present noise before each step of a predictor (Song et al. 2021b).

    x/α ← x/α + δ score + √(2δ) z with δ = 2 (snr |z|/|score|)². As in its authors' code, the correction
    comes first, and norms are means over the batch, so that the samples of a batch depend on each other.
    With ``ReverseDiffusion`` on a variance-exploding schedule it is their sampler for VESDE.

    Parameters
    ----------
    inner
        The predictor.
    steps
        Number of corrections, one evaluation each.
    snr
        The ratio that sets their size; 0.16 in the paper.

    Raises
    ------
    ValueError
        If there are no corrections, or they have no size.
    """

    inner: Solver = ReverseDiffusion()
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.snr > 0.0:
            raise ValueError(f"needs steps >= 1 and snr > 0, not {self.steps} and {self.snr}")

    @property
    def order(self) -> int:
        """0: without rejections the corrections are biased by their size, which does not shrink."""
        return 0

    @property
    def random(self) -> bool:
        """True."""
        return True

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Correct the state at s0, and take a step of the predictor."""
        gamma = eq.schedule.gamma(eq.t(s0))
        for stream in range(2, self.steps + 2):  # the first is that of churn
            z, score = eq.fresh(y, s0, stream), eq.eps(y, s0) / -gamma
            delta = 2.0 * (self.snr * _norm(z) / _norm(score)) ** 2
            y = moved(eq, y, s0, s0, delta * score + torch.sqrt(2.0 * delta) * z)
        return self.inner.step(eq, y, s0, s1, past)


def _norm(x: Tensor) -> Tensor:
    """Return the mean over the batch of the norms."""
    return torch.as_tensor(torch.linalg.vector_norm(x.flatten(1), dim=1).mean())
