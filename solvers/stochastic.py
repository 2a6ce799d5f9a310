"""Methods for stochastic equations, and methods that add noise to the flow; each wraps another solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.interface import Equation, Node, Past, Scalar, Solver, noisy
from solvers.taylor import Taylor


class Wrapped(Solver):
    """A solver that takes its steps with another one, on the same past.

    Attributes
    ----------
    inner
        The other solver.
    """

    inner: Solver

    @property
    def p(self) -> int:
        """Number of derivatives that the inner method evaluates."""
        return self.inner.p

    @property
    def reach(self) -> int:
        """Number of past nodes that the inner method uses."""
        return self.inner.reach

    @property
    def random(self) -> bool:
        """Whether the inner method adds noise of its own."""
        return self.inner.random

    @property
    def coupled(self) -> bool:
        """Whether the inner method couples the states of a batch."""
        return self.inner.coupled


@dataclass(frozen=True)
class Maruyama(Wrapped):
    """A step of any method along the drift, plus the noise of the equation over the step.

    On ``Localization`` Maruyama(Adams(2, clock=LogSNR())) is SDE-DPM-Solver++(2M). On a flow, whose noise is
    zero, the result is that of the inner method.

    Parameters
    ----------
    inner
        The method for the drift.
    """

    inner: Solver

    @property
    def order(self) -> int:
        """Weak order for additive noise, as in ``Localization``: 1 for one-step methods, else at most 2.

        The slope at the beginning of a step does not contain the noise of the step, an error of h² in the
        covariance. The differences of slopes in a multistep method correct it in the following steps.
        """
        return min(2 if self.inner.reach else 1, self.inner.order)

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step along the drift and add the noise of the interval."""
        end, node = self.inner.step(eq, y, s0, s1, past)
        return end + noisy(eq).kick(y, s0, s1), node


@dataclass(frozen=True)
class EulerMaruyama(Maruyama):
    """The Euler–Maruyama method, y ← y + h f + g √|h| z.

    On ``Localization`` it is the ancestral sampling of DDPM with the posterior variance.
    """

    inner: Solver = Taylor(1)


def moved(eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, noise: Tensor) -> Tensor:
    """Return the coordinates at s1 of the state whose x/α is that of (y, s0) plus ``noise``."""
    t0, t1 = eq.t(s0), eq.t(s1)
    alpha = eq.schedule.alpha
    return eq.enter(alpha(t1) * (eq.leave(y, t0) / alpha(t0) + noise), t1)


@dataclass(frozen=True)
class Ancestral(Wrapped):
    """A step of the flow to a γ below γ₁, and noise that brings the state back up to γ₁.

    With Euler's method on the DDIM form it is DDIM(η) (Song et al. 2021, Eq. 16), the same as FastDDIM with
    κ = η (Kong & Ping 2021): y + (√(γ₁² - ς²) - γ₀) ε + ς z with ς = η γ₁ √(1 - γ₁²/γ₀²). η = 1 is the
    ancestral sampling of DDPM. With other inner methods it is the ancestral sampler of k-diffusion.

    Parameters
    ----------
    inner
        The method for the flow.
    eta
        η, the ratio of the added noise to that of DDPM; with 0 the result is that of the inner method.

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
        """Order of the inner method: the exact flow and the added noise both give the exact law."""
        return self.inner.order

    @property
    def random(self) -> bool:
        """Whether η > 0 or the inner method is random."""
        return self.eta > 0.0 or self.inner.random

    @property
    def follows_sde(self) -> bool:
        """Whether η = 1; then the added noise is, to first order, that of the reverse SDE."""
        return self.eta == 1.0

    def added(self, eq: Equation, t0: float, t1: float) -> float:
        """Return the standard deviation ς of the noise that is added to x/α."""
        gamma0, gamma1 = eq.schedule.gamma(t0), eq.schedule.gamma(t1)
        return float(self.eta * gamma1 * math.sqrt(1.0 - (gamma1 / gamma0) ** 2))

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take a step of the flow to γ = √(γ₁² - ς²), then add noise."""
        if self.eta == 0.0:
            return self.inner.step(eq, y, s0, s1, past)
        t0, t1 = eq.t(s0), eq.t(s1)
        gamma0, gamma1 = eq.schedule.gamma(t0), eq.schedule.gamma(t1)
        below = gamma1 * math.sqrt(1.0 - self.eta**2 + (self.eta * gamma1 / gamma0) ** 2)
        middle = eq.s(eq.schedule.time(below))
        y, node = self.inner.step(eq, y, s0, middle, past)
        return moved(eq, y, middle, s1, self.added(eq, t0, t1) * noisy(eq).normal(y, s0, s1)), node


@dataclass(frozen=True)
class ReverseDiffusion(Ancestral):
    """The ancestral step with the variance of the forward step, which is larger than the posterior variance.

    It is the variance β of DDPM (the choice of its authors; σ̂ in DDIM). On a variance-exploding schedule
    the method is the reverse diffusion predictor x + (σ₀² - σ₁²) score + √(σ₀² - σ₁²) z (Song et al. 2021b,
    App. E).
    """

    @property
    def order(self) -> int:
        """At most 1, as the variance of each step is h² too large; with η = 0 that of the inner method."""
        return min(1, self.inner.order) if self.eta > 0.0 else self.inner.order

    def added(self, eq: Equation, t0: float, t1: float) -> float:
        """Return the standard deviation (α₀/α₁) √(γ₀² - γ₁²) of the noise that is added to x/α."""
        ratio = eq.schedule.alpha(t0) / eq.schedule.alpha(t1)
        return float(ratio * math.sqrt(eq.schedule.gamma(t0) ** 2 - eq.schedule.gamma(t1) ** 2))


@dataclass(frozen=True)
class Churn(Wrapped):
    """The stochastic sampler of EDM (Karras et al. 2022, Alg. 2): noise up to a larger γ, then a step down.

    If γ is in [low, high], noise is added up to γ (1 + churn), but not beyond the start of the schedule,
    where the model is not known. The paper's churn is min(S_churn/N, √2 - 1). For its values of S_churn, 30
    and more, this is √2 - 1 up to N = 72 steps.

    Parameters
    ----------
    inner
        The method for the flow; Heun's in the paper.
    churn
        Relative increase of γ.
    low, high
        S_min and S_max. The defaults of these and of S_noise are those of the paper for ImageNet.
    noise
        S_noise, the factor on the standard deviation of the added noise.

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
        """0, as the added noise does not vanish with the step size; without churn that of ``inner``."""
        return 0 if self.churn > 0.0 else self.inner.order

    @property
    def random(self) -> bool:
        """Whether churn > 0 or the inner method is random."""
        return self.churn > 0.0 or self.inner.random

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Add noise, then take a step of the inner method from the larger γ."""
        gamma = eq.schedule.gamma(eq.t(s0))
        raised = min(gamma * (1.0 + self.churn), eq.schedule.gamma(eq.schedule.start))
        if self.low <= gamma <= self.high and raised > gamma:
            size = self.noise * math.sqrt((raised - gamma) * (raised + gamma))
            above = eq.s(eq.schedule.time(raised))
            y, s0 = moved(eq, y, s0, above, size * noisy(eq).fresh(y, s0)), above
        return self.inner.step(eq, y, s0, s1, past)


@dataclass(frozen=True)
class LangevinCorrector(Wrapped):
    """Steps of Langevin dynamics at fixed γ before each step of a predictor (Song et al. 2021b).

    A correction is x/α ← x/α + δ score + √(2δ) z with δ = 2 (snr |z|/|score|)². As in the authors' code,
    the corrections precede the predictor, and norms are means over the batch, so the samples of a batch
    depend on each other. With ``ReverseDiffusion`` on a variance-exploding schedule it is the authors'
    sampler for VESDE.

    Parameters
    ----------
    inner
        The predictor.
    steps
        Number of corrections per step, at least 1; each costs one evaluation.
    snr
        Signal-to-noise ratio of a correction, which sets δ; 0.16 in the paper.

    Raises
    ------
    ValueError
        If ``steps`` or ``snr`` is not positive.
    """

    inner: Solver = ReverseDiffusion()
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.snr > 0.0:
            raise ValueError(f"needs steps >= 1 and snr > 0, not {self.steps} and {self.snr}")

    # Without rejections the corrections are biased by their step size, which does not vanish.
    order = 0
    random = True
    coupled = True

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Correct the state at s0, then take a step of the predictor."""
        gamma = eq.schedule.gamma(eq.t(s0))
        for stream in range(2, self.steps + 2):  # Churn uses stream 1.
            z, score = noisy(eq).fresh(y, s0, stream), eq.eps(y, s0) / -gamma
            delta = 2.0 * (self.snr * _norm(z) / _norm(score)) ** 2
            y = moved(eq, y, s0, s0, delta * score + torch.sqrt(2.0 * delta) * z)
        return self.inner.step(eq, y, s0, s1, past)


def _norm(x: Tensor) -> Tensor:
    """Return the mean over the batch of the Euclidean norms of the samples."""
    return torch.as_tensor(torch.linalg.vector_norm(x.flatten(1), dim=1).mean())
