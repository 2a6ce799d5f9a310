"""What a mixture needs of its components, whatever kind of covariance they have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from problems.score import Push
from problems.series import Scalar, Series


class Components(Protocol):
    """Components N(mₖ, Σₖ) with weights, diffused to N(mₖ, Σₖ + γ²I); states are flat, shape (N, D).

    Scalars and coefficients of series are floats or tensors of shape () or (N, 1).

    Attributes
    ----------
    std
        Standard deviation in the narrowest direction of any component.
    log_weights
        log wₖ, shape (K,).
    """

    std: float
    log_weights: Tensor

    def expand(self, gamma: Series, like: Tensor) -> Push:
        """Begin an expansion of ε along γ(h), for states like ``like``; see ``Model.expand``."""

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Expand ε along its flow; see ``Model.follow``."""

    def follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        """Expand the preconditioned flow, or return None; see ``Model.follow_preconditioned``."""

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return the log-densities of the diffused components, shape (N, K)."""

    def posterior_variance(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return the diagonal of Cov(x₀ | x̄), shape (N, D)."""

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor:
        """Return Σₖ^(1/2) z for components k, shape (N,), and standard normal z, shape (N, D)."""

    def covariance(self) -> Tensor:
        """Return Σ wₖ Σₖ, shape (D, D)."""

    def to(self, like: Tensor) -> Components:
        """Return the same components in the dtype and on the device of a tensor."""


def responsibilities(components: Components, xbar: Tensor, gamma: Scalar) -> Tensor:
    """Return the responsibilities rₖ = P(component k | x̄), shape (N, K)."""
    return torch.softmax(components.log_densities(xbar, gamma) + components.log_weights.to(xbar), -1)
