"""Distances between samples, beside the usual way to compute them, and the store beside its file."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from analysis.measure.metrics import Manifold, Moments, frechet, frechet_of_few, kernel_distance
from analysis.study import Cell, Store, run

DIMENSIONS = 2048


def features(n: int, seed: int) -> np.ndarray:
    """Correlated features with a spectrum that falls like that of networks."""
    source = np.random.default_rng(seed)
    scales = np.arange(1, DIMENSIONS + 1) ** -0.75
    rotation = np.linalg.qr(source.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
    return (source.standard_normal((n, DIMENSIONS)) * scales) @ rotation


@pytest.fixture(scope="module")
def many():
    return [Moments.of(features(6000, seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def few():
    return [features(500, seed) for seed in (0, 1)]


def by_square_root(a: Moments, b: Moments) -> float:
    """The distance as pytorch-fid computes it."""
    root = np.trace(scipy.linalg.sqrtm(a.covariance @ b.covariance).real)
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def by_eigenvalues(a: Moments, b: Moments) -> float:
    """The distance as torchmetrics computes it."""
    tensors = [torch.from_numpy(v) for v in (a.mean, a.covariance, b.mean, b.covariance)]
    return float(_compute_fid(*tensors))


@pytest.mark.benchmark(group="Fréchet distance, 2,048 dimensions, 6,000 samples")
@pytest.mark.parametrize("compute", [frechet, by_eigenvalues, by_square_root], ids=lambda f: f.__name__)
def test_frechet(benchmark, compute, many):
    exact = frechet(*many)
    found = benchmark.pedantic(compute, many, rounds=2, iterations=1)
    benchmark.extra_info["apart from ours"] = abs(found - exact) / exact


@pytest.mark.benchmark(group="Fréchet distance, 2,048 dimensions, 500 samples")
@pytest.mark.parametrize("compute", [frechet_of_few, frechet, by_square_root], ids=lambda f: f.__name__)
def test_frechet_of_few(benchmark, compute, few):
    exact = frechet_of_few(*few)
    given = few if compute is frechet_of_few else [Moments.of(x) for x in few]
    found = benchmark.pedantic(compute, given, rounds=2, iterations=1)
    benchmark.extra_info["apart from ours"] = abs(found - exact) / exact


@pytest.mark.benchmark(group="kernel distance and neighbours, 2,000 samples, 64 dimensions")
@pytest.mark.parametrize("what", ["kernel", "neighbours"])
def test_all_pairs(benchmark, what):
    x, y = (features(2000, seed)[:, :64].copy() for seed in (0, 1))
    actions = {"kernel": lambda: kernel_distance(x, y), "neighbours": lambda: Manifold.of(x).holds(y)}
    benchmark.pedantic(actions[what], rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="the store, 100 cells of 250 x 64 numbers")
@pytest.mark.parametrize("what", ["write", "read"])
def test_store(benchmark, what, tmp_path):
    arrays = {"x": np.zeros((250, 64))}
    store = Store(tmp_path / "store.sqlite")
    cells = [Cell({"n": n}, (), lambda: arrays) for n in range(100)]
    run("bench", cells, store)
    benchmark.extra_info["cells"] = 100
    benchmark.pedantic(run, ("bench", cells, store), {"fresh": what == "write"}, rounds=3)
    store.close()
