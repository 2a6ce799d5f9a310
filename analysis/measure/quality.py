"""How far samples are from data in one space of features, by all measures, with intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.measure.metrics import Manifold, Moments, frechet, influence, kernel_distance
from analysis.measure.statistics import Bootstrap, share

Array = NDArray[np.float64]

NEIGHBOURS = 2000
"""Samples, at most, of which neighbours and kernels are taken: their cost grows like the square."""


class Distance(NamedTuple):
    """The Fréchet distance of samples from the data, and what a change of their weights makes of it.

    Attributes
    ----------
    value
        The distance.
    influence
        The influence of each sample, (n,); see ``metrics.influence``.
    """

    value: float
    influence: Array


class Judge:
    """Compares sets of samples with the same data.

    Parameters
    ----------
    data
        Features of the data, (m, d), float64; or their moments alone, with which there are Fréchet distances
        only.
    bootstrap
        Resampling of the samples, which says how many there are; at least 4, for their neighbours.
    moments
        Moments that stand for the data in Fréchet distances; by default those of ``data``.
    """

    def __init__(self, data: Array | Moments, bootstrap: Bootstrap, moments: Moments | None = None) -> None:
        self._bootstrap = bootstrap
        if isinstance(data, Moments):
            self.moments, self._few = moments or data, None
            return
        self.moments = moments or Moments.of(data)
        self._few = data[: min(bootstrap.samples, NEIGHBOURS)]
        self._near = Manifold.of(self._few)

    def __call__(self, x: Array) -> dict[str, float]:
        """Return the quality of samples (n, d) by name; see ``quality_of``."""
        return self.of(x, self.distance(x))

    def distance(self, x: Array) -> Distance:
        """Return the Fréchet distance of samples (n, d)."""
        return Distance(frechet(Moments.of(x), self.moments), influence(x, self.moments))

    def of(self, x: Array, distance: Distance) -> dict[str, float]:
        """Return the quality of samples (n, d) whose distance is known; see ``quality_of``."""
        value, ends = distance.value, self._bootstrap.means(distance.influence[None])
        found = {
            "frechet": value,
            "frechet_low": max(0.0, value + float(ends.low[0])),
            "frechet_high": value + float(ends.high[0]),
            **of_fewer(x, self.moments),
        }
        if self._few is None:
            nothing = (f"{name}{end}" for name in ("precision", "recall") for end in ("", "_low", "_high"))
            return {**found, "kernel": math.nan, **dict.fromkeys(nothing, math.nan)}
        few = x[:NEIGHBOURS]
        found["kernel"] = kernel_distance(few, self._few)
        inside = {"precision": self._near.holds(few), "recall": Manifold.of(few).holds(self._few)}
        for name, hits in inside.items():
            found[name], found[f"{name}_low"], found[f"{name}_high"] = share(float(hits.sum()), len(hits))
        return found

    def gap(self, one: Distance, other: Distance) -> dict[str, float]:
        """Return how much farther the first samples are from the data than the second, by name.

        Both sets have the same latents, or are independent of each other; sample i of the one is resampled
        with sample i of the other. So what both share cancels, the bias of few samples included.

        Returns
        -------
        ``gap``, the difference of the Fréchet distances, with its 95% interval, ``gap_low`` to ``gap_high``.
        """
        ends = self._bootstrap.means((one.influence - other.influence)[None])
        value = one.value - other.value
        return {"gap": value, "gap_low": value + float(ends.low[0]), "gap_high": value + float(ends.high[0])}


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
