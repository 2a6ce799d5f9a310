"""Forms with the variance of the data in the noise of a step, after Bao et al. (2022a, 2022b).

A step of DDIM or DDPM replaces x₀ by its posterior mean and neglects the covariance of x₀ given the state.
Here this covariance is added to the noise: its average over states (Analytic-DPM), or its diagonal at each
state (optimal covariance). With the diagonal, the mean and the variance of every coordinate after a step,
given the state before it, are exact for any step size. On isotropic Gaussian data the law is exact.
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
    """The DDIM ODE, with noise of the variance that a step of DDIM neglects.

    Given x₀, x̄(γ₁) = (1 - γ₁/γ₀) x₀ + (γ₁/γ₀) x̄(γ₀), which is λ = 0 in Bao et al. So the neglected variance
    is (1 - γ₁/γ₀)² Var(x₀ | x̄).

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
    """The reverse SDE dy = x̂₀ dw + dW(w), with noise of the variance that a step of DDPM neglects.

    Given x₀, y is Brownian motion with drift x₀, so the variance of a step of length Δw is
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
