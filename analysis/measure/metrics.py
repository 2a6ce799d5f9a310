"""How far apart two distributions are, from features of their samples.

Nothing here knows what the features are. A distance on other features than Inception's is no FID, so a table
of distances has to name its features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg import lapack

Array = NDArray[np.float64]

ROWS = 1024
"""Samples that are compared with all others at once."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of samples: all that the Fréchet distance needs, and exact to merge.

    Attributes
    ----------
    n
        Number of samples.
    mean
        Their mean, (d,).
    scatter
        Σ (x - mean)(x - mean)ᵀ, (d, d).
    """

    n: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, x: Array, weights: Array | None = None) -> Self:
        """Return the moments of samples (n, d), float64, each counted as often as ``weights`` (n,) says."""
        if weights is None:
            mean = x.mean(0)
            centred = x - mean
            n = len(x)
        else:
            n = round(float(weights.sum()))
            mean = weights @ x / n
            centred = np.sqrt(weights)[:, None] * (x - mean)
        # A product of a matrix with its own transpose takes half the operations (syrk).
        found = cls(n, mean, centred.T @ centred)
        if 1 < n <= x.shape[1]:
            vars(found)["factor"] = centred / math.sqrt(n - 1)  # instead of d eigenvectors
        return found

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of samples together (Chan, Golub & LeVeque 1983)."""
        n = self.n + other.n
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.n * other.n / n * np.outer(apart, apart)
        return Moments(n, self.mean + other.n / n * apart, scatter)

    @property
    def covariance(self) -> Array:
        """The unbiased covariance, (d, d).

        Raises
        ------
        ValueError
            If there are fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two samples, not {self.n}")
        return self.scatter / (self.n - 1)

    @cached_property
    def factor(self) -> Array:
        """F, (r, d), with Fᵀ F the covariance: r is its numerical rank, or n where that is at most d."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        factor: Array = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
        return factor


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance of the two Gaussians with these moments (Heusel et al. 2017).

    |μ_a - μ_b|² + tr A + tr B - 2 tr (A B)^(1/2). With A = Fᵀ F and B = Gᵀ G the last trace is the sum of
    the singular values of F Gᵀ. Where A and B have full rank these come from a symmetric eigenvalue problem.
    Where one has not, eigenvalues near zero would be rounding noise, of which the square root is a
    millionfold; there the factors are cut to the rank, and singular values are taken themselves.

    Parameters
    ----------
    a, b
        The moments of two sets of samples, of the same dimension.
    """
    one, two = a.covariance, b.covariance
    apart = a.mean - b.mean
    middle = _eigenvalue_trace(one, two) if min(a.n, b.n) > len(one) else None
    if middle is None:
        middle = _nuclear(a.factor @ b.factor.T)
    return max(0.0, float(apart @ apart + np.trace(one) + np.trace(two) - 2.0 * middle))


def influence(x: Array, reference: Moments) -> Array:
    """Return how the Fréchet distance of samples changes with the weight of each: its influence function.

    The distance moves by the mean of these numbers when samples are drawn anew or resampled, to first order,
    which is what intervals and paired differences are made of. With T the map that takes the covariance A to
    the reference's B, T A T = B, and d = x - μ, it is 2 (μ - μ_r)ᵀ d + dᵀ (1 - T) d - tr (1 - T) A, as the
    derivative of tr (A B)^(1/2) with respect to A is T/2.

    Parameters
    ----------
    x
        The samples, (n, d).
    reference
        What they are compared with.

    Returns
    -------
    The influences, (n,), of mean zero. Directions in which the samples do not vary are left out.
    """
    mean = x.mean(0)
    centred = x - mean
    if len(x) > x.shape[1]:
        values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    else:
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        values, vectors = singular**2 / len(x), axes.T
    kept = values > 1e-10 * max(values.max(), np.finfo(np.float64).tiny)
    root, basis = np.sqrt(values[kept]), vectors[:, kept]
    middle = root[:, None] * (basis.T @ reference.covariance @ basis) * root
    squares, axes = np.linalg.eigh(middle)
    half = (basis / root) @ axes
    mapped = np.sqrt(np.clip(squares, 0.0, None)) * (centred @ half)  # dᵀ T d = Σ √λ (dᵀ A^(-1/2) v)²
    raw = 2.0 * centred @ (mean - reference.mean) + (centred**2).sum(1) - (mapped * (centred @ half)).sum(1)
    change: Array = raw - raw.mean()
    return change


def frechet_of_few(x: Array, y: Array) -> float:
    """Return what ``frechet`` does for samples (n, d) and (m, d) that are fewer than d, at less cost."""
    apart = x.mean(0) - y.mean(0)
    one, two = (z - z.mean(0) for z in (x, y))
    one, two = one / math.sqrt(len(x) - 1), two / math.sqrt(len(y) - 1)
    return max(0.0, float(apart @ apart + (one**2).sum() + (two**2).sum() - 2.0 * _nuclear(one @ two.T)))


def _eigenvalue_trace(one: Array, two: Array) -> float | None:
    """Return tr (A B)^(1/2) by the eigenvalues of Lᵀ B L, A = L Lᵀ; None where they would be inaccurate."""
    lower, failed = lapack.dpotrf(one, lower=1)
    pivots = np.diagonal(lower)
    if failed or pivots.min() ** 2 < 1e-10 * pivots.max() ** 2:
        return None
    # Half the work of two products, as only half of the result is made.
    product, _ = lapack.dsygst(two, lower, itype=2, lower=1)
    values = scipy.linalg.eigvalsh(product, lower=True, overwrite_a=True, check_finite=False, driver="evd")
    if values[0] < 1e-12 * values[-1]:
        return None
    return float(np.sqrt(values).sum())


def _nuclear(matrix: Array) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def kernel_distance(x: Array, y: Array) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel (uᵀv/d + 1)³: KID.

    Bińkowski et al. (2018), Eq. 4, over all pairs instead of random subsets; may be below zero.

    Parameters
    ----------
    x, y
        Samples (n, d) and (m, d), at least two each, float64.
    """
    within = [
        (_kernel_sum(z, z) - float(_kernel_diagonal(z).sum())) / (len(z) * (len(z) - 1)) for z in (x, y)
    ]
    return within[0] + within[1] - 2.0 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: Array, y: Array) -> float:
    return math.fsum(float(((part @ y.T / x.shape[1] + 1.0) ** 3).sum()) for part in _blocks(x))


def _kernel_diagonal(x: Array) -> Array:
    diagonal: Array = ((x * x).sum(1) / x.shape[1] + 1.0) ** 3
    return diagonal


@dataclass(frozen=True)
class Manifold:
    """Balls around samples that reach to their k-th nearest neighbours (Kynkäänniemi et al. 2019).

    Attributes
    ----------
    x
        The samples, (n, d).
    radii
        The squared radii, (n,).
    """

    x: Array
    radii: Array

    @classmethod
    def of(cls, x: Array, k: int = 3) -> Self:
        """Return the manifold of samples (n, d), n > k."""
        if len(x) <= k:
            raise ValueError(f"the {k}-th neighbours need more than {k} samples, not {len(x)}")
        distances = (_squares(part, x) for part in _blocks(x))
        # The nearest one is the sample itself.
        return cls(x, np.concatenate([np.partition(d, k, axis=1)[:, k] for d in distances]))

    def holds(self, y: Array) -> NDArray[np.bool_]:
        """Return which of the samples (m, d) are in one of the balls, (m,)."""
        return np.concatenate([(_squares(part, self.x) <= self.radii).any(1) for part in _blocks(y)])


def _blocks(x: Array) -> Iterator[Array]:
    return (x[i : i + ROWS] for i in range(0, len(x), ROWS))


def _squares(x: Array, y: Array) -> Array:
    """Return the squared distances of all pairs, (n, m)."""
    squares: Array = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * (x @ y.T)
    return squares
