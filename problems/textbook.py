"""Problems with a solution in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from problems.schedule import VP, Schedule
from problems.score import Push, Source, align, like
from problems.series import Scalar, Series, convolve, sqrt


class Gaussian(Source):
    """One Gaussian N(μ, s²I): ε = γ (x̄ - μ)/(s² + γ²), and the flow is known in closed form.

    With s = 0 (a single data point) DDIM is exact.

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
    def event_shape(self) -> torch.Size:
        """Shape of one sample."""
        return self.mean.shape

    def _expand(self, gamma: Series) -> Push:
        gain = gamma / (self.std**2 + gamma * gamma)
        path: list[Tensor] = []

        def push(coefficient: Tensor) -> Tensor:
            path.append(coefficient - self.mean.to(coefficient) if not path else coefficient)
            return torch.as_tensor(convolve(gain.coefficients, path, len(path) - 1))

        return push

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
        """Return the exact state at t1 of the flow that is at ``x`` at t0.

        x̄(γ) = μ + (x̄_0 - μ) √((s² + γ²)/(s² + γ_0²)).
        """
        t0, t1 = align(t0, x), align(t1, x)
        g0, g1 = self.schedule.gamma(t0), self.schedule.gamma(t1)
        mean, variance = self.mean.to(x), self.std**2
        growth = like(sqrt((variance + g1 * g1) / (variance + g0 * g0)), x)
        alpha0, alpha1 = like(self.schedule.alpha(t0), x), like(self.schedule.alpha(t1), x)
        return alpha1 * (mean + (x / alpha0 - mean) * growth)
