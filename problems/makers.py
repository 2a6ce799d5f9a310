"""The named mixtures of the suite, each made by one function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from problems.mixture import Mixture
from problems.schedule import Schedule


def toy_mixture(schedule: Schedule | None = None) -> Mixture:
    """Return the paper's 2-D toy (App. E, Eqs. 73-74): 8 clusters of 8 narrow Gaussians, float64.

    The 64 means are 0.9 μᵢ + 0.18 μⱼ with μ the eight unit vectors at multiples of 45°, in the paper's
    order. The standard deviation of every component is 0.01. The mixture has mean 0 and variance 0.4213 per
    dimension.
    """
    h = 1.0 / math.sqrt(2.0)
    unit = [(1, 0), (-1, 0), (0, 1), (0, -1), (h, h), (h, -h), (-h, h), (-h, -h)]
    mu = torch.tensor(unit, dtype=torch.float64)
    means = 0.9 * mu[:, None] + 0.9 * 0.2 * mu[None, :]
    return Mixture(means.reshape(64, 2), 0.01, schedule=schedule)


def digits_mixture(std: float = 0.05, schedule: Schedule | None = None) -> Mixture:
    """Return a mixture of 1,797 Gaussians at the handwritten 8x8 digits of scikit-learn, float64.

    The images are scaled to [-1, 1], events have shape (1, 8, 8), and the standard deviation of every
    component is ``std``.
    """
    return Mixture(digits()[0], std, schedule=schedule)


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits: images, (1797, 1, 8, 8) in [-1, 1], float64, and labels, (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float64) / 8.0 - 1.0
    return images[:, None], torch.as_tensor(data.target, dtype=torch.int64)


def smooth_mixture(schedule: Schedule | None = None) -> Mixture:
    """Return three wide, unequal Gaussians in the plane, on which orders show at few steps."""
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [-0.2, -0.7]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return Mixture(means, 0.4, weights, schedule)


def digits_gaussians(schedule: Schedule | None = None, std: float = 0.05) -> Mixture:
    """Return one Gaussian per class of the digits, a distribution that a small network can learn, float64.

    The ten components have the weights, means and covariances of the classes; ``std``² I is added to each
    covariance.
    """
    images, labels = digits()
    flat = images.flatten(1)
    classes = [flat[labels == k] for k in range(10)]
    eye = std**2 * torch.eye(flat.shape[1], dtype=flat.dtype)
    return Mixture.full(
        torch.stack([c.mean(0) for c in classes]).reshape(-1, *images.shape[1:]),
        torch.stack([torch.cov(c.T, correction=0) + eye for c in classes]),
        torch.tensor([len(c) / len(flat) for c in classes], dtype=flat.dtype),
        schedule,
    )
