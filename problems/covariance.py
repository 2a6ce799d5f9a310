"""Forms whose steps add the uncertainty of the data: covariances of Bao et al. (2022a, 2022b).

A large step of DDIM or DDPM puts the posterior mean of x₀ in the place of x₀. What it leaves out is the
covariance of x₀ given the state, and here it is added to the noise: its average over states (Analytic-DPM),
or its diagonal at each state (optimal covariance). In the latter case mean and variance of every coordinate
after a step, given the state before it, are exact whatever the size of the step; on one Gaussian that is all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from problems.forms import DDIM, Localization
from problems.noise import Noise
from problems.posterior import Variance
from problems.score import Model, align, like
from problems.series import Scalar, sqrt


class UncertainDDIM(DDIM):
    """The DDIM ODE, with the noise by which a step of DDIM errs.

    Given x₀, x̄(γ₁) = (1 - γ₁/γ₀) x₀ + (γ₁/γ₀) x̄(γ₀) (DDIM, which has no noise of its own, is λ = 0 in
    Bao et al.), so the variance is (1 - γ₁/γ₀)² Var(x₀ | x̄).

    Parameters
    ----------
    score, noise
        As in ``Form``.
    variance
        Var(x₀ | x̄): ``score.average_variance`` or ``score.posterior_variance``.
    """

    def __init__(
        self, score: Model, variance: Variance, noise: Noise | torch.Generator | None = None
    ) -> None:
        super().__init__(score, noise)
        self._variance = variance

    def kick(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return (1 - γ₁/γ₀) √Var(x₀ | x̄) z with z standard normal."""
        share = like(align(1.0 - s1 / s0, y), y)
        return share * self._variance(y, align(s0, y)).sqrt() * self.normal(y, s0, s1)


class UncertainLocalization(Localization):
    """The generative SDE dy = x̂₀ dw + dW(w), with the noise by which a step of DDPM errs.

    Given x₀, y is Brownian motion with drift x₀, so a step of length Δw needs the variance
    Δw + Δw² Var(x₀ | x̄).

    Parameters
    ----------
    score, variance, noise
        As in ``UncertainDDIM``.
    """

    def __init__(
        self, score: Model, variance: Variance, noise: Noise | torch.Generator | None = None
    ) -> None:
        super().__init__(score, noise)
        self._variance = variance

    def kick(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return √(Δw + Δw² Var(x₀ | x̄)) z with z standard normal."""
        s0, length = align(s0, y), like(align(s1 - s0, y), y)
        variance = self._variance(y / like(s0, y), 1.0 / sqrt(s0))
        return (length + length * length * variance).sqrt() * self.normal(y, s0, s1)
