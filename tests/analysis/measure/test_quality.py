"""The quality of samples in features, as functions of arrays."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.measure.metrics import Manifold, Moments, frechet, kernel_distance
from analysis.measure.quality import Judge, of_fewer, quality_of
from analysis.measure.statistics import Bootstrap


def samples(n, seed, shift=0.0, d=2):
    return shift + np.random.default_rng(seed).standard_normal((n, d))


def test_quality_is_made_of_the_measures_of_one_space():
    x, data = samples(120, 0, 0.5), samples(300, 1)
    found = quality_of(x, data)
    assert found["frechet"] == frechet(Moments.of(x), Moments.of(data))
    assert found["kernel"] == kernel_distance(x, data[:120])
    assert found["precision"] == Manifold.of(data[:120]).holds(x).mean()
    assert found["recall"] == Manifold.of(x).holds(data[:120]).mean()
    for name in ("frechet", "precision", "recall"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
        assert found[f"{name}_low"] < found[f"{name}_high"]
    assert Judge(data, Bootstrap(120))(x) == found


def test_the_interval_of_the_distance_covers_it():
    """That of N(μ, 1) from N(0, 1) is |μ|²; the bias, 5/n, is a fifth of the standard error."""
    data = samples(20_000, 1)
    hits = 0
    for seed in range(40):
        found = quality_of(samples(400, (seed, 0), 0.5), data)
        hits += found["frechet_low"] <= 0.5 <= found["frechet_high"]
    assert hits >= stats.binom.ppf(1e-3, 40, 0.93)


def test_what_infinitely_many_samples_would_give_is_extrapolated():
    """The mean distance of n exact samples is near c/n: halves have twice that, quarters four times."""
    reference = Moments.of(samples(200_000, 0, d=3))
    found = [of_fewer(samples(240, (seed, 1), d=3), reference) for seed in range(40)]
    mean = {name: np.mean([f[name] for f in found]) for name in found[0]}
    assert mean["frechet_quarter"] == pytest.approx(2 * mean["frechet_half"], rel=0.1)
    assert abs(mean["frechet_infinite"]) < 0.1 * mean["frechet_half"]
    assert all(math.isnan(value) for value in of_fewer(samples(7, 0), Moments.of(samples(9, 1))).values())


def test_too_few_samples_have_no_neighbours():
    with pytest.raises(ValueError, match="more than 3 samples, not 3"):
        quality_of(samples(3, 0), samples(100, 1))
