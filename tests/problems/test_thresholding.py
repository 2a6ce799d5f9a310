"""Bounded data predictions against the samplers of diffusers, and their derivatives against forward mode."""

import pytest
import torch
from diffusers import DDIMScheduler

from problems import VP, Gaussian, Table
from problems.autodiff import Autodiff
from problems.makers import digits_mixture
from problems.score import denoise
from problems.thresholding import Clipped, DynamicallyThresholded

F64 = torch.float64
WIDE = Gaussian(torch.zeros(6, dtype=F64), 1.5, VP())
"""Data that often leave [-1, 1]."""


def states(n=5):
    return 3.0 * torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=F64)


def written(bounded, problem):
    """ε with the bound, as a function of x and t that autograd can differentiate."""

    def eps(x, t):
        alpha, gamma = problem.schedule.alpha(t), problem.schedule.gamma(t)
        data = x / alpha - gamma * (gamma * (x / alpha) / (1.5**2 + gamma**2))
        return (x / alpha - bounded(data)) / gamma

    return Autodiff(eps, problem.schedule)


def dynamic(data):
    s = torch.quantile(data.abs().flatten(1), 0.6, dim=1, keepdim=True).clamp(1.0, 1.4)
    return torch.minimum(torch.maximum(data, -s), s) / s


BOUNDS = {
    "clipped": (Clipped(WIDE), lambda data: data.clamp(-1.0, 1.0)),
    "clipped at 2": (Clipped(WIDE, 2.0), lambda data: data.clamp(-2.0, 2.0)),
    "thresholded": (DynamicallyThresholded(WIDE, 0.6, 1.4), dynamic),
}


@pytest.mark.parametrize(("model", "formula"), BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_derivatives_are_those_of_the_formula(model, formula, gamma):
    x = states()
    expected = written(formula, WIDE).flow_jet(x, gamma, 4)
    assert not torch.allclose(expected[0], WIDE.flow_jet(x, gamma)[0])
    for found, truth in zip(model.flow_jet(x, gamma, 4), expected, strict=True):
        assert torch.allclose(found, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("bounded", "options"),
    [
        (lambda p: Clipped(p, 1.0), {"clip_sample": True}),
        (lambda p: Clipped(p, 0.7), {"clip_sample": True, "clip_sample_range": 0.7}),
        (
            lambda p: DynamicallyThresholded(p, 0.9, 1.5),
            {
                "clip_sample": False,
                "thresholding": True,
                "dynamic_thresholding_ratio": 0.9,
                "sample_max_value": 1.5,
            },
        ),
    ],
    ids=["clip", "clip at 0.7", "thresholding"],
)
def test_one_step_of_ddim_is_that_of_diffusers(bounded, options):
    """The step of DDIM from node 500 to node 400, with ε computed anew of the clipped data."""
    table = Table.linear()
    problem = Gaussian(torch.zeros(1, 2, 3, dtype=F64), 1.5, table)
    x = 2.0 * states(3).view(3, 1, 2, 3)
    scheduler = DDIMScheduler(set_alpha_to_one=False, **options)
    scheduler.alphas_cumprod = torch.tensor([table.alpha(float(i)) ** 2 for i in range(1000)], dtype=F64)
    scheduler.set_timesteps(10)
    theirs = scheduler.step(problem(x, 500.0), 500, x, use_clipped_model_output=True).prev_sample
    eps = bounded(problem)(x, 500.0)
    data = denoise(bounded(problem), x, 500.0)
    ours = table.alpha(400.0) * data + table.sigma(400.0) * eps
    assert not torch.allclose(eps, problem(x, 500.0), rtol=1e-3)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_wide_bound_changes_nothing():
    x = states()
    for model in (Clipped(WIDE, 1e3), DynamicallyThresholded(Gaussian(torch.zeros(6, dtype=F64), 0.1, VP()))):
        inner = model.score
        for found, truth in zip(
            model.flow_jet(0.01 * x, 0.05, 3), inner.flow_jet(0.01 * x, 0.05, 3), strict=True
        ):
            assert torch.allclose(found, truth, rtol=1e-9, atol=1e-12)


def test_it_is_a_problem():
    model = Clipped(digits_mixture())
    assert model.event_shape == (1, 8, 8)
    assert model.to(torch.zeros(()))(torch.zeros(2, 1, 8, 8), 0.5).dtype == torch.float32
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert model.average_variance is None
    model(torch.zeros(2, 1, 8, 8, dtype=F64), 0.5)
    assert model.spent == model.score.spent
    assert model.spent.nfe == 1


@pytest.mark.parametrize("make", [lambda: Clipped(WIDE, 0.0), lambda: DynamicallyThresholded(WIDE, 1.0)])
def test_bounds_that_are_none(make):
    with pytest.raises(ValueError, match="bound"):
        make()
