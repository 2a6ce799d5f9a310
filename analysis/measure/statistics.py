"""Means, medians, shares and slopes, each with its 95% interval.

All rows of a study are measured on the same trajectories, so all are resampled together: one matrix of
bootstrap weights serves every row, and the ratio or difference of two rows is a paired comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with the ends of its 95% interval, one entry per row."""

    value: Array
    low: Array
    high: Array

    def columns(self, name: str) -> dict[str, Array]:
        """Return the columns of a tidy table: ``name``, ``name_low`` and ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Bootstrap:
    """Percentile-bootstrap intervals for functions of means over common trajectories.

    Parameters
    ----------
    samples
        Number of trajectories.
    resamples
        Number of bootstrap resamples.
    seed
        Seed of the resampling; the same seed gives the same intervals.
    """

    samples: int
    resamples: int = 2000
    seed: int = 0

    def weights(self) -> Array:
        """Return the weights of the trajectories in each resample, (resamples, samples); rows sum to 1."""
        return _weights(self)

    def means(self, rows: Array) -> Interval:
        """Return the mean of every row, shape (rows, samples) to (rows,), with its interval."""
        low, high = _ends(self.weights() @ rows.T)
        return Interval(rows.mean(-1), low, high)

    def ratios(self, rows: Array, base: Array) -> Interval:
        """Return the ratio of the mean of every row to that of its base row, paired, with its interval."""
        weights = self.weights()
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = _ends((weights @ rows.T) / (weights @ base.T))
            return Interval(rows.mean(-1) / base.mean(-1), low, high)


@lru_cache(maxsize=2)
def _weights(bootstrap: Bootstrap) -> Array:
    n = bootstrap.samples
    counts = np.random.default_rng(bootstrap.seed).multinomial(n, np.full(n, 1.0 / n), bootstrap.resamples)
    weights: Array = counts / n
    weights.flags.writeable = False
    return weights


def _ends(resampled: Array) -> tuple[Array, Array]:
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=0)
    return low, high


def medians(rows: Array) -> Interval:
    """Return the median of every row with the distribution-free interval between two order statistics."""
    n = rows.shape[-1]
    ordered = np.sort(rows, axis=-1)
    rank = int(np.searchsorted(special.bdtr(np.arange(n + 1), n, 0.5), 0.5 * (1.0 - LEVEL)))
    return Interval(
        np.median(rows, axis=-1), ordered[..., max(rank - 1, 0)], ordered[..., min(n - rank, n - 1)]
    )


def share(successes: float, n: int) -> tuple[float, float, float]:
    """Return a proportion with its Wilson interval."""
    z = float(special.ndtri(0.5 * (1.0 + LEVEL)))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    return p, max(0.0, centre - half), min(1.0, centre + half)


class Slope(NamedTuple):
    """A fitted power law error = C hᵖ: the exponent p and its 95% interval."""

    value: float
    low: float
    high: float


def slope(h: Array, errors: Array, bootstrap: Bootstrap) -> Slope:
    """Fit the exponent of mean error against step size by least squares on the logarithms.

    Parameters
    ----------
    h
        Step sizes, shape (m,), m at least 2.
    errors
        Errors, shape (m, samples); the interval comes from resampling the trajectories.
    """
    x = np.log(h) - np.log(h).mean()
    weights = bootstrap.weights()
    fitted = np.log(weights @ errors.T) @ x / (x @ x)
    low, high = _ends(fitted[:, None])
    return Slope(float(np.log(errors.mean(-1)) @ x / (x @ x)), float(low[0]), float(high[0]))
