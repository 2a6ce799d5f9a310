"""How far samples are from data in one space of features, by all measures, with intervals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from analysis.measure.metrics import Manifold, Moments, frechet, influence, kernel_distance
from analysis.measure.statistics import Bootstrap, share

Array = NDArray[np.float64]

NEIGHBOURS = 2000
"""Samples, at most, of which neighbours and kernels are taken: their cost grows like the square."""


class Judge:
    """Compares sets of samples with the same data.

    Parameters
    ----------
    data
        Features of the data, (m, d), float64.
    bootstrap
        Resampling of the samples, which says how many there are; at least 4, for their neighbours.
    """

    def __init__(self, data: Array, bootstrap: Bootstrap) -> None:
        self._bootstrap = bootstrap
        self._moments = Moments.of(data)
        self._few = data[: min(bootstrap.samples, NEIGHBOURS)]
        self._near = Manifold.of(self._few)

    def __call__(self, x: Array) -> dict[str, float]:
        """Return the quality of samples (n, d) by name; see ``quality_of``."""
        value = frechet(Moments.of(x), self._moments)
        ends = self._bootstrap.means(influence(x, self._moments)[None])
        few = x[:NEIGHBOURS]
        found = {
            "frechet": value,
            "frechet_low": max(0.0, value + float(ends.low[0])),
            "frechet_high": value + float(ends.high[0]),
            **of_fewer(x, self._moments),
            "kernel": kernel_distance(few, self._few),
        }
        inside = {"precision": self._near.holds(few), "recall": Manifold.of(few).holds(self._few)}
        for name, hits in inside.items():
            found[name], found[f"{name}_low"], found[f"{name}_high"] = share(float(hits.sum()), len(hits))
        return found


def quality_of(x: Array, data: Array) -> dict[str, float]:
    """Return the distances of samples from data in features, with 95% intervals, by name.

    Parameters
    ----------
    x
        Features of the samples, (n, d), float64, n at least 4.
    data
        Features of the data, (m, d), m at least 4. Precision, recall and kernel distance take the first n.

    Returns
    -------
    ``frechet``, the Fréchet distance with the interval of the bootstrap of its influence function;
    ``frechet_half``, ``frechet_quarter`` and ``frechet_infinite``, see ``of_fewer``; ``kernel``, the unbiased
    kernel distance; ``precision`` and ``recall`` with Wilson's intervals. An interval ends at ``NAME_low``
    and ``NAME_high``.

    Raises
    ------
    ValueError
        If there are too few samples for their third neighbours.
    """
    return Judge(data, Bootstrap(len(x)))(x)


def of_fewer(x: Array, reference: Moments) -> dict[str, float]:
    """Return mean Fréchet distances of halves and of quarters of the samples, and a of the fit a + b/n.

    The bias of the distance falls like 1/n, so a is that of infinitely many samples (Chong & Forsyth 2020).

    Parameters
    ----------
    x
        The samples, (n, d); NaN where a quarter of them are fewer than two.
    reference
        Moments of the data.
    """
    sets = {parts: np.array_split(x, parts) for parts in (1, 2, 4)}
    if len(sets[4][-1]) < 2:
        return dict.fromkeys(("frechet_half", "frechet_quarter", "frechet_infinite"), math.nan)
    found = {k: [frechet(Moments.of(part), reference) for part in parts] for k, parts in sets.items()}
    inverse = np.array([1.0 / len(part) for parts in sets.values() for part in parts])
    distances = np.array([d for values in found.values() for d in values])
    return {
        "frechet_half": float(np.mean(found[2])),
        "frechet_quarter": float(np.mean(found[4])),
        "frechet_infinite": float(np.polyfit(inverse, distances, 1, w=inverse**-0.5)[1]),
    }
