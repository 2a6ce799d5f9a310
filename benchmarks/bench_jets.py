"""Derivatives of the mixture's score: their cost in evaluations of ε, at any time, against nested JVPs."""

from __future__ import annotations

import pytest
import torch

from problems import Autodiff, toy_mixture


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
