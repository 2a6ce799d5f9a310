"""A problem whose flow is known in closed form: one Gaussian."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from problems.posterior import Variance
from problems.schedule import VP, Schedule
from problems.score import Problem, Push, Source, align, like
from problems.series import Scalar, Series, convolve, sqrt


class Gaussian(Source, Problem):
    """One Gaussian N(μ, s²I): ε = γ (x̄ - μ)/(s² + γ²), with the flow in closed form.

    For s = 0, a single data point, DDIM is exact.

    Parameters
    ----------
    mean
        μ, shape (*event).
    std
        s ≥ 0.
    schedule
        The noise schedule; the paper's by default.
    """

    def __init__(self, mean: Tensor, std: float, schedule: Schedule | None = None) -> None:
        super().__init__(schedule or VP(), std)
        self.mean = mean
        self.std = std

    @property
    def component_std(self) -> float:
        """Half of s: preconditioned with s, the flow is a straight line and its series is rounding error."""
        return 0.5 * self.std

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one sample."""
        return self.mean.shape

    @property
    def posterior_variance(self) -> Variance:
        """The variance s²γ²/(s² + γ²) of x₀ given x̄, the same in all coordinates."""

        def variance(xbar: Tensor, gamma: Scalar) -> Tensor:
            square = torch.as_tensor(gamma, dtype=torch.float64).square()
            return (self.std**2 * square / (self.std**2 + square)).to(xbar)

        return variance

    def _expand(self, gamma: Series) -> Push:
        gain = gamma / (self.std**2 + gamma * gamma)
        path: list[Tensor] = []

        def push(coefficient: Tensor) -> Tensor:
            path.append(coefficient - self.mean.to(coefficient) if not path else coefficient)
            return torch.as_tensor(convolve(gain.coefficients, path, len(path) - 1))

        return push

    def _follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        # x̄ = μ + c √(s² + γ²), so ε = c γ/√(s² + γ²) and dε/dγ = c s² (s² + γ²)^(-3/2).
        variance = self.std**2 + gamma * gamma
        root = sqrt(variance)
        slope = self.std**2 / (variance * root)
        c = (xbar - self.mean.to(xbar)) / root[0]
        yield c * (gamma[0] / root[0])
        rate = gamma.slope().coefficients
        for j in range(1, len(gamma)):
            yield c * (convolve(rate, slope.coefficients, j - 1) / j)

    def _follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor]:
        # y = u μ + c √(1 + (s² - std²) u²), a straight line for std = s.
        growth = sqrt(1.0 + (self.std**2 - std**2) * (u * u))
        mean = self.mean.to(y)
        c = (y - u[0] * mean) / growth[0]
        return (u[j] * mean + growth[j] * c for j in range(1, len(u)))

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` exact samples of p_t, shape (n, *event); t = None is the data distribution."""
        normal = torch.randn(
            (n, *self.mean.shape), generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        if t is None:
            return self.mean + self.std * normal
        alpha, gamma = self.schedule.alpha(t), self.schedule.gamma(t)
        return alpha * (self.mean + sqrt(self.std**2 + gamma * gamma) * normal)

    def to(self, like: Tensor) -> Gaussian:
        """Return the same problem with its mean in the dtype and on the device of ``like``."""
        return Gaussian(self.mean.to(like), self.std, self.schedule)

    def solution(self, x: Tensor, t0: Scalar, t1: Scalar) -> Tensor:
        """Return the exact state at t1 of the trajectory through ``x`` at t0.

        x̄(γ) = μ + (x̄(γ₀) - μ) √((s² + γ²)/(s² + γ₀²)).
        """
        t0, t1 = align(t0, x), align(t1, x)
        g0, g1 = self.schedule.gamma(t0), self.schedule.gamma(t1)
        mean, variance = self.mean.to(x), self.std**2
        growth = like(sqrt((variance + g1 * g1) / (variance + g0 * g0)), x)
        alpha0, alpha1 = like(self.schedule.alpha(t0), x), like(self.schedule.alpha(t1), x)
        return alpha1 * (mean + (x / alpha0 - mean) * growth)
