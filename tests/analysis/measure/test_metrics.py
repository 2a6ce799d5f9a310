"""Distances between samples: closed forms, exact merging, and torchmetrics on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from analysis.measure.metrics import Manifold, Moments, frechet, frechet_of_few, influence, kernel_distance


class Same(torch.nn.Module):
    """Features that are the images themselves."""

    num_features = 24

    def forward(self, x):
        return x.flatten(1)


def samples(n, d=24, shift=0.0, seed=0):
    source = np.random.default_rng(seed)
    return source.standard_normal((n, d)) @ source.standard_normal((d, d)) / d**0.5 + shift


def moments(mean, covariance, n=1000):
    return Moments(n, np.asarray(mean, dtype=float), (n - 1) * np.asarray(covariance, dtype=float))


def test_frechet_distance_of_commuting_gaussians_is_known():
    """For diagonal covariances it is |μ_a - μ_b|² + Σ (√a_i - √b_i)²."""
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.01])
    found = frechet(moments([1, 0, 0], np.diag(a)), moments([0, 2, 0], np.diag(b)))
    assert found == pytest.approx(1 + 4 + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-13)


def test_frechet_distance_of_point_masses_is_their_squared_distance():
    zero = np.zeros((3, 3))
    assert frechet(moments([0, 0, 0], zero), moments([1, 2, 2], zero)) == pytest.approx(9.0, rel=1e-14)


def test_frechet_distance_of_gaussians_in_two_dimensions_is_known():
    """tr (AB)^(1/2) = (tr AB + 2 √(det AB))^(1/2) for 2×2 matrices."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    root = (np.trace(a @ b) + 2 * np.linalg.det(a @ b) ** 0.5) ** 0.5
    expected = np.trace(a) + np.trace(b) - 2 * root
    assert frechet(moments([0, 0], a), moments([0, 0], b)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("rank", [1, 7, 23])
def test_frechet_distance_keeps_its_digits_where_covariances_are_singular(rank):
    """Rotated diagonal covariances commute, so the distance is known; that of the square root is lost."""
    d = 24
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    a, b = np.linspace(1, 3, d), np.linspace(2, 0.5, d)
    a[rank:] = 0.0
    b[: d - rank] = 0.0
    covariances = [rotation * values @ rotation.T for values in (a, b)]
    found = frechet(*(moments(np.zeros(d), c) for c in covariances))
    assert found == pytest.approx(((a**0.5 - b**0.5) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(300, 500), (10, 15), (10, 500), (24, 25)])
def test_frechet_distance_agrees_with_torchmetrics(n, m):
    x, y = samples(n), samples(m, shift=0.3, seed=1)
    metric = FrechetInceptionDistance(feature=Same(), normalize=True, input_img_size=(1, 4, 6)).set_dtype(
        torch.float64
    )
    metric.update(torch.tensor(x).reshape(n, 1, 4, 6), real=True)
    metric.update(torch.tensor(y).reshape(m, 1, 4, 6), real=False)
    found = frechet(Moments.of(x), Moments.of(y))
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)
    assert found == pytest.approx(frechet_of_few(x, y), rel=1e-9)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    x, y = samples(400), samples(300, shift=0.1, seed=2)
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.trace(scipy.linalg.sqrtm(a @ b).real)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_features_that_are_always_zero_change_nothing():
    x, y = samples(400), samples(300, shift=0.1, seed=2)
    wider = [np.hstack([z, np.zeros((len(z), 5))]) for z in (x, y)]
    found = frechet(*(Moments.of(z) for z in wider))
    assert found == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-9)


def test_moments_of_shards_are_those_of_the_whole_in_any_order():
    x = samples(501, shift=5.0)
    whole = Moments.of(x)
    shards = [Moments.of(part) for part in np.split(x, [3, 4, 200, 390])]
    for order in (shards, shards[::-1]):
        merged = sum(order[1:], start=order[0])
        assert merged.n == whole.n
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-10, atol=1e-13)


def test_weights_count_samples_as_often_as_they_say():
    x = samples(6)
    weights = np.array([2.0, 0.0, 1.0, 3.0, 0.0, 1.0])
    again = Moments.of(np.repeat(x, weights.astype(int), axis=0))
    weighted = Moments.of(x, weights)
    assert weighted.n == again.n == 7
    np.testing.assert_allclose(weighted.covariance, again.covariance, rtol=1e-12, atol=1e-14)


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least two samples"):
        _ = Moments.of(samples(1)).covariance


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
def test_kernel_distance_agrees_with_torchmetrics_over_all_pairs():
    x, y = samples(60), samples(60, shift=0.3, seed=1)
    metric = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=60, normalize=True)
    metric.update(torch.tensor(x).reshape(60, 1, 4, 6), real=True)
    metric.update(torch.tensor(y).reshape(60, 1, 4, 6), real=False)
    assert kernel_distance(x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_kernel_distance_is_unbiased():
    """Its mean over small samples is its value on the whole population: here, all pairs of two points."""
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])

    def kernel(u, v):
        return (u * v + 1.0) ** 3

    def mean(a, b):
        return np.mean([kernel(u, v) for u in a.ravel() for v in b.ravel()])

    population = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    draws = [np.array([[a], [b]]) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    others = [np.array([[a], [b]]) for a in (0.0, 2.0) for b in (0.0, 2.0)]
    means = np.mean([kernel_distance(u, v) for u in draws for v in others])
    assert means == pytest.approx(population, rel=1e-13)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_agree_with_nearest_neighbours_of_scikit_learn(k):
    x, y = samples(1500, d=5), samples(700, d=5, seed=1)
    neighbours = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(x)
    radii = neighbours.kneighbors(x)[0][:, k]
    inside = np.array([(np.linalg.norm(x - z, axis=1) <= radii).any() for z in y])
    found = Manifold.of(x, k).holds(y)
    assert 0.02 < inside.mean() < 0.99
    assert (found == inside).all()


def test_samples_are_in_their_own_manifold_and_far_ones_are_not():
    x = samples(200, d=5)
    assert Manifold.of(x).holds(x).all()
    assert not Manifold.of(x).holds(x + 1e3).any()


def test_a_manifold_needs_more_samples_than_neighbours():
    with pytest.raises(ValueError, match="more than 3 samples, not 3"):
        Manifold.of(samples(3))


def test_influences_are_the_derivative_of_the_distance():
    """More weight for one sample, and less for the others, by differences of the distance itself."""
    x, reference = samples(80, d=6), Moments.of(samples(300, d=6, shift=0.5, seed=3))
    found = influence(x, reference)

    def distance(weights):
        mean = weights @ x
        centred = (x - mean) * weights[:, None] ** 0.5
        return frechet(Moments(10**9, mean, (10**9 - 1) * centred.T @ centred), reference)

    even = np.full(80, 1 / 80)
    for i in (0, 17, 79):
        towards = np.eye(80)[i] - even
        change = (distance(even + 1e-5 * towards) - distance(even - 1e-5 * towards)) / 2e-5
        assert found[i] == pytest.approx(change, rel=1e-5)
    assert abs(found.mean()) < 1e-12


def test_influences_give_the_spread_of_the_distance():
    """Over 300 independent sets of 400 samples, within the 4% (one sigma) to which 300 sets know it."""
    source = np.random.default_rng(0)
    reference = moments(np.zeros(3), np.diag([1.0, 2.0, 0.5]))
    sets = source.standard_normal((300, 400, 3)) * [1.5, 1.0, 1.0] + [0.3, 0.0, 0.0]
    spread = np.std([frechet(Moments.of(x), reference) for x in sets])
    said = np.mean([np.mean(influence(x, reference) ** 2) ** 0.5 / 400**0.5 for x in sets[:50]])
    assert said == pytest.approx(spread, rel=0.12)
