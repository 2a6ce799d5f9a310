"""Derivatives of scores, of a mixture and of a network: their cost in evaluations, against nested JVPs."""

from __future__ import annotations

import pytest
import torch

from problems import VP, Autodiff, toy_mixture
from problems.images.score import Learned
from problems.images.unet import Config, ScoreNetwork


@pytest.fixture(scope="module")
def toy():
    problem = toy_mixture()
    return problem, problem.sample(1000, 0.5, torch.Generator().manual_seed(0))


@pytest.mark.benchmark(group="mixture jets, 1,000 toy states")
@pytest.mark.parametrize("derivatives", [0, 1, 2, 4, 8, 16])
def test_series(benchmark, derivatives, toy):
    problem, x = toy
    benchmark.extra_info["derivatives"] = derivatives
    benchmark(problem.jet, x, 0.5, derivatives + 1)


@pytest.mark.benchmark(group="mixture jets, 1,000 toy states")
@pytest.mark.parametrize("derivatives", [1, 2, 3])
def test_nested_jvps(benchmark, derivatives, toy):
    """The peer: forward-mode automatic differentiation of the same ε."""
    problem, x = toy
    autodiff = Autodiff(problem, problem.schedule)
    benchmark.extra_info["derivatives"] = derivatives
    benchmark.pedantic(autodiff.jet, (x, 0.5, derivatives + 1), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="eps at any time, 1,000 toy states")
@pytest.mark.parametrize("t", [1e-3, 1e-2, 0.1, 0.5, 1.0])
def test_eps_costs_the_same_at_any_time(benchmark, t, toy):
    problem, _ = toy
    x = problem.sample(1000, t, torch.Generator().manual_seed(0))
    benchmark.extra_info["t"] = t
    benchmark(problem, x, t)


@pytest.fixture(scope="module")
def network():
    """A U-Net of a million parameters, and 32 images of 32x32x3, float32."""
    torch.manual_seed(0)
    config = Config(size=32, colours=3, channels=32, multipliers=(1, 2, 2), data_std=0.5)
    return Learned(ScoreNetwork(config, VP())), torch.randn(32, 3, 32, 32)


@pytest.mark.benchmark(group="network jets, 32 images of 32x32x3")
@pytest.mark.parametrize("derivatives", [0, 1, 2, 3])
def test_network_series(benchmark, derivatives, network):
    model, x = network
    benchmark.extra_info["derivatives"] = derivatives
    with torch.inference_mode():
        benchmark.pedantic(model.jet, (x, 0.3, derivatives + 1), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="network jets, 32 images of 32x32x3")
@pytest.mark.parametrize("derivatives", [1, 2])
def test_network_nested_jvps(benchmark, derivatives, network):
    """The peer: nested forward-mode automatic differentiation of the same network."""
    model, x = network
    nested = model.nested()
    benchmark.extra_info["derivatives"] = derivatives
    with torch.no_grad():
        benchmark.pedantic(nested.jet, (x, 0.3, derivatives + 1), rounds=3, warmup_rounds=1)
