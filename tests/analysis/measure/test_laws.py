"""Distances of samples from a law: closed forms on Gaussians, intervals that cover as often as they say."""

import math

import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial.distance import cdist

from analysis.measure.laws import MEASURES, Law
from analysis.measure.statistics import Bootstrap

N, M = 200, 4000
BOOTSTRAP = Bootstrap(N, 200)


def normal(n, seed, shift=(0.0, 0.0), scale=1.0):
    return np.array(shift) + scale * np.random.default_rng(seed).standard_normal((n, len(shift)))


def energy_of_shifted_normals(shift):
    """√(2 E|X - Y| - 2 E|X - X′|) in the plane: |X - Y| has Rice's distribution, of mean √π L_½(-|μ|²/4)."""
    q = shift**2 / 4
    laguerre = math.exp(-q / 2) * ((1 + q) * special.i0(q / 2) + q * special.i1(q / 2))
    return math.sqrt(2 * math.sqrt(math.pi) * (laguerre - 1))


def test_the_energy_distance_is_its_definition():
    x, y = normal(50, 0), normal(100, 1, (0.5, 0.0))
    off = [z.sum() / (len(z) * (len(z) - 1)) for z in (cdist(x, x), cdist(y, y))]
    expected = math.sqrt(2 * cdist(x, y).mean() - sum(off))
    assert Law(y).compare(x, Bootstrap(50, 20))["energy"][0] == pytest.approx(expected, rel=1e-12)


def test_the_energy_distance_is_scipys_on_a_line():
    """Whose pairs include those of a sample with itself."""
    x, y = normal(60, 0, (0.0,)), normal(120, 1, (0.7,))
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    extra = sum(cdist(z, z).sum() / len(z) ** 2 / (len(z) - 1) for z in (x, y))
    value = Law(y).compare(x, Bootstrap(60, 20))["energy"][0]
    assert value == pytest.approx(math.sqrt(biased - extra), rel=1e-10)


def test_the_sliced_distance_is_its_definition():
    """Each sample is as good as m/n equal ones, which the optimal plan pairs in their order."""
    x, y = normal(40, 0), normal(120, 1, (0.5, 0.2))
    law = Law(y, directions=5)
    assert np.linalg.norm(law.directions, axis=1) == pytest.approx(np.ones(5))
    squares = [((np.sort(np.repeat(x @ v, 3)) - np.sort(y @ v)) ** 2).mean() for v in law.directions]
    value = law.compare(x, Bootstrap(40, 20))["sliced"][0]
    assert value == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-12)


def test_moments_and_occupancy_are_their_definitions():
    """The squares of errors, less the variance that chance gives them."""
    x, y = normal(40, 0, scale=2.0), normal(80, 1, (0.5, 0.2))
    labels, exact = (x[:, 0] > 0).astype(np.int64), np.repeat([0, 1, 2, 0], 20)
    found = Law(y, exact, 3).compare(x, Bootstrap(40, 20), labels)
    variance = sum(np.trace(np.cov(z.T)) / len(z) for z in (x, y))
    error = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert found["mean"][0] == pytest.approx(math.sqrt(max(0.0, error - variance)))
    chance = 0.0
    for z in (x, y):
        products = [np.outer(d, d) for d in z - z.mean(0)]
        chance += (np.mean([(p**2).sum() for p in products]) - (np.cov(z.T) ** 2).sum()) / len(z)
    scale = np.linalg.norm(np.cov(y.T))
    error = ((np.cov(x.T) - np.cov(y.T)) ** 2).sum()
    assert found["covariance"][0] == pytest.approx(math.sqrt(error - chance) / scale)
    shares = np.bincount(labels, minlength=3) / 40
    assert found["occupancy"][0] == pytest.approx(0.5 * np.abs(shares - [0.5, 0.25, 0.25]).sum())


@pytest.fixture(scope="module")
def repeated():
    """Samples of N((2, 0), I) and of N(0, 1.5² I) against those of N(0, I), many times."""
    found = []
    for seed in range(40):
        y = normal(M, (seed, 0))
        law = Law(y, (y[:, 0] > 0).astype(np.int64), 2, directions=6)
        runs = {}
        for name, x in {
            "shifted": normal(N, (seed, 1), (2.0, 0.0)),
            "wide": normal(N, (seed, 2), scale=1.5),
            "exact": normal(N, (seed, 3)),
        }.items():
            runs[name] = law.compare(x, BOOTSTRAP, (x[:, 0] > 0).astype(np.int64))
        runs["projected"] = {"sliced": math.sqrt(((2.0 * law.directions[:, 0]) ** 2).mean())}
        found.append(runs)
    return found


TRUTHS = {
    ("shifted", "mean"): 2.0,
    ("shifted", "energy"): energy_of_shifted_normals(2.0),
    ("shifted", "occupancy"): stats.norm.cdf(2.0) - 0.5,
    ("shifted", "covariance"): 0.0,
    ("wide", "covariance"): 1.25,
    ("wide", "sliced"): 0.5,
    ("wide", "mean"): 0.0,
    ("exact", "mean"): 0.0,
    ("exact", "covariance"): 0.0,
    ("exact", "energy"): 0.0,
}


@pytest.mark.parametrize(("case", "measure"), TRUTHS, ids=str)
def test_intervals_cover_the_truth(case, measure, repeated):
    """At least as often as 93% of 40 allow at a significance of 1e-3."""
    truth = TRUTHS[case, measure]
    hits = sum(run[case][measure][1] <= truth <= run[case][measure][2] for run in repeated)
    assert hits >= stats.binom.ppf(1e-3, len(repeated), 0.93)


def test_the_interval_covers_the_sliced_distance_of_a_shift(repeated):
    """√(mean (θ·μ)²) for these directions."""
    hits = sum(
        r["shifted"]["sliced"][1] <= r["projected"]["sliced"] <= r["shifted"]["sliced"][2] for r in repeated
    )
    assert hits >= stats.binom.ppf(1e-3, len(repeated), 0.93)


def test_intervals_are_not_wide(repeated):
    """The mean of n samples has standard error 1/√n: half widths of 1.96 of these, on average."""
    widths = [r["shifted"]["mean"][2] - r["shifted"]["mean"][1] for r in repeated]
    expected = 2 * 1.96 / math.sqrt(N) * math.sqrt(1 + N / M)
    assert np.mean(widths) == pytest.approx(expected, rel=0.05)


def test_samples_that_are_not_finite_are_infinitely_far():
    x = normal(N, 0)
    x[3, 1] = math.nan
    found = Law(normal(M, 1), np.zeros(M, dtype=np.int64), 1).compare(
        x, BOOTSTRAP, np.zeros(N, dtype=np.int64)
    )
    assert set(found) == set(MEASURES)
    assert all(np.isposinf(v).all() for v in found.values())


@pytest.mark.parametrize("n", [1, 3])
def test_numbers_of_samples_that_do_not_divide(n):
    with pytest.raises(ValueError, match="cannot be compared"):
        Law(normal(10, 0)).compare(normal(n, 1), Bootstrap(n, 20))
