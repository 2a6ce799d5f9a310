"""The variance of the data x₀ given a noisy state: its type, and its average over states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from problems.series import Scalar

Variance = Callable[[Tensor, Scalar], Tensor]
"""Takes x̄ and γ; returns the variances of the coordinates of x₀ given x̄, which broadcast against x̄."""

SAMPLES = 2048
"""Samples of an average; its relative standard error is at most a few per cent."""

_BLOCK = 256


class Sampled(Protocol):
    """A score model with data to sample; ``problems.score.Problem`` is one."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model."""

    def to(self, like: Tensor) -> Self:
        """Return the same model in the dtype and on the device of a tensor, with a bill of its own."""

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples of p_t; t = None is the data distribution."""

    def flow_jet(self, xbar: Tensor, gamma: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (ε, dε/dγ, …), ``order`` entries, at the states x̄."""


class Average:
    """The mean of Var(x₀ | x̄) over the coordinates and over p_γ, one number for each γ.

    For an exact ε it is γ² (1 - E|ε|²/d), as in Analytic-DPM (Bao et al. 2022a). Here it is estimated as the
    mean squared error γ² E|z - ε|²/d of the denoised states x̄ - γ ε at x̄ = x₀ + γ z, which has the same
    expectation. At large γ the published formula is the difference of two numbers that agree to 1/γ²: a
    Monte-Carlo estimate of it has no correct digit and must be clipped. The mean squared error needs no
    clipping, and it is the right variance for an inexact ε too.

    The samples are fixed, and each γ is estimated once. These evaluations are not billed: they are done once
    for all runs, like training.

    Parameters
    ----------
    problem
        The model and its data.
    """

    def __init__(self, problem: Sampled) -> None:
        self._problem = problem
        self._known: dict[float, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": {}}

    def __call__(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return the average variance at γ, in the shape of γ and in the dtype and on the device of x̄."""
        places = torch.as_tensor(gamma, dtype=torch.float64)
        values = [self._at(place, xbar.device) for place in places.reshape(-1).tolist()]
        return torch.tensor(values, dtype=torch.float64).reshape(places.shape).to(xbar)

    def _at(self, gamma: float, device: torch.device) -> float:
        if gamma not in self._known:
            self._known[gamma] = self._estimate(gamma, device)
        return self._known[gamma]

    def _estimate(self, gamma: float, device: torch.device) -> float:
        data, score = (
            self._problem.to(torch.empty(0, dtype=self._problem.dtype, device=d)) for d in ("cpu", device)
        )
        generator = torch.Generator().manual_seed(0)
        x0 = data.sample(SAMPLES, generator=generator).double()
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        total = 0.0
        for x, noise in zip(torch.split(x0, _BLOCK), torch.split(z, _BLOCK), strict=True):
            eps = score.flow_jet((x + gamma * noise).to(device), gamma)[0]
            total += float((noise.to(device) - eps).square().sum())
        return gamma**2 * total / x0.numel()
