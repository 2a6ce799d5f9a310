"""Exact moments of what a random method does to one Gaussian: no samples, no sampling error.

There ε is affine in the state, so a method whose steps are those of its equation is an affine map of the
state and of its normal numbers. One run without noise is the mean at the end; one run for each source of
variance, with a 1 in one place and zeros in all others, is a column of a square root of the covariance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.methods import Method
from problems import Gaussian
from problems.noise import Noise
from problems.series import Scalar


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of states that are vectors."""

    mean: Tensor
    covariance: Tensor

    def distance(self, other: Moments) -> float:
        """Return √(|Δmean|² + |Δcovariance|²), the latter a Frobenius norm."""
        return math.hypot(*(float((a - b).norm()) for a, b in zip(self, other, strict=True)))


class Units(Noise):
    """Zeros, but the k-th number that a state is asked for is 1 in row ``first`` + k of the batch.

    Parameters
    ----------
    first
        The row of the first number; those before it have no noise.
    """

    def __init__(self, first: int) -> None:
        self.rows = first

    def over(self, like: Tensor, a: Scalar, b: Scalar) -> Tensor:
        """Return the next unit vectors."""
        z = torch.zeros_like(like)
        size = like[0].numel()
        columns = torch.arange(max(0, min(size, len(like) - self.rows)))
        z.view(len(like), size)[self.rows + columns, columns] = 1.0
        self.rows += size
        return z

    def at(self, like: Tensor, place: Scalar, stream: int = 1) -> Tensor:
        """Return the next unit vectors."""
        return self.over(like, place, place)

    def part(self, rows: Tensor) -> Units:
        """Raise a ``ValueError``: a row has its number, and samples that go separate ways no recursion."""
        raise ValueError("no exact recursion of moments for samples that go separate ways")


def law(problem: Gaussian, t: float) -> Moments:
    """Return the moments of the diffused Gaussian at time t."""
    alpha, sigma = problem.schedule.alpha(t), problem.schedule.sigma(t)
    variance = (alpha * problem.std) ** 2 + sigma**2
    return Moments(alpha * problem.mean, variance * torch.eye(len(problem.mean), dtype=torch.float64))


def moments(method: Method, problem: Gaussian, steps: int) -> Moments:
    """Return the moments to which a method brings those of the Gaussian at the start of its schedule.

    Parameters
    ----------
    method
        The method. Exact for all whose steps are affine here: all but those with norms of states in them.
    problem
        The Gaussian, of vectors, float64.
    steps
        Number of steps.
    """
    begin = law(problem, problem.schedule.start)
    first = 1 + len(begin.mean)
    counted = Units(first)
    method.sample(problem, steps, begin.mean[None], counted)
    x = begin.mean.repeat(counted.rows, 1)
    x[1:first] += torch.linalg.cholesky(begin.covariance).T
    ends = method.sample(problem, steps, x, Units(first))
    root = ends[1:] - ends[0]
    return Moments(ends[0], root.T @ root)
