"""How far the law of samples is from the one they should have, sample size and chance allowed for.

Errors of mean and covariance and the energy distance are estimated through their squares, of which unbiased
estimates are known (U-statistics); these may be below zero, which is reported as 0. Total variation and
sliced Wasserstein distance are those of so many samples. They are above zero for exact samples too, so a
table of them has to state that floor. Intervals are bootstrap ones, centred at the estimate: resampling moves
the mean of a statistic by as much again as it was moved already, and only the spread is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from analysis.measure.statistics import LEVEL, Bootstrap

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

ROWS = 1024
"""Samples whose distances from all others are held at once."""

MEASURES = {
    "mean": "Error of the mean, in x",
    "covariance": "Error of the covariance, in proportion",
    "occupancy": "Total variation of the occupancy of components",
    "sliced": "Sliced 2-Wasserstein distance, in x",
    "energy": "Energy distance",
}
"""The distances of ``Law.compare`` by name, each with the title of its table."""


class Statistic(NamedTuple):
    """A statistic of samples.

    Attributes
    ----------
    value
        Its value.
    resampled
        Its values on bootstrap resamples, (B,), up to a common shift.
    squared
        Whether it is the square of what is reported.
    """

    value: float
    resampled: Array
    squared: bool

    def interval(self, spread: float) -> Array:
        """Return the estimate and the ends of its interval, its width multiplied by ``spread``."""
        tail = 50.0 * (1.0 - LEVEL)
        ends = np.percentile(self.resampled, [tail, 100.0 - tail]) - self.resampled.mean()
        found = np.maximum(0.0, self.value + spread * np.array([0.0, *ends]))
        return np.sqrt(found) if self.squared else found


class Law:
    """A distribution, known by exact samples of it.

    Parameters
    ----------
    y
        The samples, (m, d), float64; many more than those to be compared with them.
    labels
        The component that each is nearest to, (m,), if there are components.
    components
        How many there are.
    directions
        Number of directions of the sliced Wasserstein distance.
    seed
        Seed of the directions.
    """

    def __init__(
        self,
        y: Array,
        labels: Labels | None = None,
        components: int = 0,
        directions: int = 32,
        seed: int = 0,
    ) -> None:
        self.y, self._labels, self._components = y, labels, components
        normal = np.random.default_rng(seed).standard_normal((directions, y.shape[1]))
        self.directions: Array = normal / np.linalg.norm(normal, axis=1, keepdims=True)

    def compare(self, x: Array, bootstrap: Bootstrap, labels: Labels | None = None) -> dict[str, Array]:
        """Return the distances of samples, each with its 95% interval, as arrays (value, low, high).

        ``mean`` is the norm of the error of the mean, ``covariance`` the Frobenius norm of that of the
        covariance in proportion to the covariance's own, ``occupancy`` the total variation distance of the
        frequencies of the components (with labels only), ``sliced`` the 2-Wasserstein distance in the root
        mean square over directions, and ``energy`` the energy distance,
        √(2 E|X - Y| - E|X - X′| - E|Y - Y′|). Where a sample is not finite all are infinite.

        Parameters
        ----------
        x
            The samples, (n, d), float64, n a divisor of m and at least 2.
        bootstrap
            Resampling of n samples.
        labels
            The component that each is nearest to, (n,).

        Raises
        ------
        ValueError
            If the number of samples does not divide that of the exact ones.
        """
        n, m = len(x), len(self.y)
        if n < 2 or m % n:
            raise ValueError(f"{n} samples cannot be compared with {m} exact ones")
        measures = {
            "mean": self._mean_error,
            "covariance": self._covariance_error,
            "sliced": self._sliced,
            "energy": self._energy,
        }
        if not np.isfinite(x).all():
            names = [*measures, *(["occupancy"] if labels is not None else [])]
            return {name: np.full(3, math.inf) for name in names}
        weights = bootstrap.weights()
        found = {name: measure(x, weights) for name, measure in measures.items()}
        if labels is not None:
            found["occupancy"] = self._occupancy(labels, weights)
        # The exact samples are subject to chance too, n/m of that of the others.
        return {name: s.interval(math.sqrt(1.0 + n / m)) for name, s in found.items()}

    @cached_property
    def _mean(self) -> Array:
        mean: Array = self.y.mean(0)
        return mean

    @cached_property
    def _covariance(self) -> tuple[Array, float]:
        """The covariance, and the variance of its estimate from one sample, summed over its entries."""
        return _covariance(self.y)

    @cached_property
    def _frequencies(self) -> Array:
        labels = np.zeros(0, dtype=np.int64) if self._labels is None else self._labels
        return np.bincount(labels, minlength=self._components) / len(self.y)

    @cached_property
    def _sorted(self) -> Array:
        """The exact samples along each direction, sorted, (directions, m)."""
        return np.sort(self.directions @ self.y.T, axis=1)

    @cached_property
    def _own_distance(self) -> float:
        """E|Y - Y′| for different samples."""
        m = len(self.y)
        return math.fsum(float(cdist(part, self.y).sum()) for part in _blocks(self.y)) / (m * (m - 1))

    def _mean_error(self, x: Array, weights: Array) -> Statistic:
        chance = x.var(0, ddof=1).sum() / len(x) + self.y.var(0, ddof=1).sum() / len(self.y)
        value = ((x.mean(0) - self._mean) ** 2).sum() - chance
        return Statistic(float(value), ((weights @ x - self._mean) ** 2).sum(1), True)

    def _covariance_error(self, x: Array, weights: Array) -> Statistic:
        covariance, variance = _covariance(x)
        own, own_variance = self._covariance
        scale = float((own**2).sum())
        value = ((covariance - own) ** 2).sum() - variance / len(x) - own_variance / len(self.y)
        centred = x - x.mean(0)
        products = (centred[:, :, None] * centred[:, None, :]).reshape(len(x), -1)
        means = weights @ centred
        second = weights @ products - (means[:, :, None] * means[:, None, :]).reshape(len(weights), -1)
        return Statistic(float(value) / scale, ((second - own.reshape(-1)) ** 2).sum(1) / scale, True)

    def _occupancy(self, labels: Labels, weights: Array) -> Statistic:
        hits = (labels[:, None] == np.arange(self._components)).astype(np.float64)
        apart = np.abs(np.vstack([hits.mean(0), weights @ hits]) - self._frequencies).sum(1) / 2.0
        return Statistic(float(apart[0]), apart[1:], False)

    def _sliced(self, x: Array, weights: Array) -> Statistic:
        n = len(x)
        # Each of n equal samples faces m/n of the exact ones, at their mean and their variance around it.
        cells = self._sorted.reshape(len(self.directions), n, -1)
        facing, within = cells.mean(2), float(cells.var(2).mean())
        projected = self.directions @ x.T
        order = np.argsort(projected, axis=1)
        counts = np.rint(n * weights).astype(np.int64)
        squares = np.zeros(1 + len(counts))
        for line, ranks, target in zip(projected, order, facing, strict=True):
            ascending = line[ranks]
            squares[0] += ((ascending - target) ** 2).mean()
            for b, count in enumerate(counts, start=1):
                squares[b] += ((np.repeat(ascending, count[ranks]) - target) ** 2).mean()
        distances = np.sqrt(squares / len(self.directions) + within)
        return Statistic(float(distances[0]), distances[1:], False)

    def _energy(self, x: Array, weights: Array) -> Statistic:
        n = len(x)
        between = np.concatenate([cdist(part, self.y).mean(1) for part in _blocks(x)])
        within, resampled = 0.0, 2.0 * weights @ between
        for start in range(0, n, ROWS):
            part = slice(start, start + ROWS)
            distances = cdist(x, x[part])
            within += float(distances.sum())
            resampled -= ((weights @ distances) * weights[:, part]).sum(1)
        value = 2.0 * float(between.mean()) - within / (n * (n - 1)) - self._own_distance
        return Statistic(value, resampled, True)


def _blocks(x: Array) -> Iterator[Array]:
    return (x[i : i + ROWS] for i in range(0, len(x), ROWS))


def _covariance(x: Array) -> tuple[Array, float]:
    """Return the unbiased covariance, and the variance of (x - mean)(x - mean)ᵀ, summed over its entries."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (len(x) - 1)
    return covariance, float(((centred**2).sum(1) ** 2).mean() - (covariance**2).sum())
