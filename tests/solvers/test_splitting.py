"""Splitting on the reverse SDE of a variance-preserving schedule; that on Langevin is in test_langevin."""

import itertools
import math

import numpy as np
import pytest
import torch

from analysis import weak
from analysis.methods import METHODS
from problems import DDIM, VE, VP, CosineVP, Gaussian, ReverseSDE, smooth_mixture
from solvers.splitting import SSCS, Strang
from tests.conftest import fitted_order

F64 = torch.float64
MEAN, STD = 0.7, 0.5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t", [1e-3, 0.2, 1.0])
def test_the_two_parts_add_up(t):
    """For VP the drift is ½βx + what is left, which is -β(x - ε/σ)."""
    problem = smooth_mixture()
    x = problem.sample(5, t, rng())
    beta, eq = 0.1 + 19.9 * t, ReverseSDE(problem)
    rest = eq.rest(x, t)
    assert torch.allclose(rest, -beta * (x - problem(x, t) / VP().sigma(t)), rtol=1e-10, atol=1e-11)
    assert torch.allclose(0.5 * beta * x + rest, eq.jet(x, t)[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("schedule", [VP(), CosineVP(offset=0.0)])
def test_the_exact_part_is_an_ornstein_uhlenbeck_process(schedule):
    """x e^(-½∫β) and the noise that keeps N(0, I), in one step as in two: a semigroup."""
    eq = ReverseSDE(smooth_mixture(schedule), rng())
    t0, t1 = 0.6, 0.4
    decay = schedule.alpha(t0) / schedule.alpha(t1)
    n = 200_000
    end = eq.flow(eq.flow(torch.full((n, 1), 1.5, dtype=F64), t0, 0.5), 0.5, t1)
    variance = 1 - decay**2
    assert float(end.mean()) == pytest.approx(1.5 * decay, abs=5 * math.sqrt(variance / n))
    assert float(end.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


def rest(t):
    """-β (x - ε/σ) on N(μ, s²), as g x + k."""
    beta, alpha, sigma = 0.1 + 19.9 * t, VP().alpha(t), VP().sigma(t)
    variance = (alpha * STD) ** 2 + sigma**2
    return -beta * (1 - 1 / variance), -beta * alpha * MEAN / variance


def euler(t0, t1):
    gain, shift = rest(t0)
    return 1 + (t1 - t0) * gain, (t1 - t0) * shift


def midpoint(t0, t1):
    (gain, shift), h = rest((t0 + t1) / 2), t1 - t0
    return 1 + h * gain * (1 + h * gain / 2), h * (gain * h / 2 * shift + shift)


SOLVERS = {"SSCS": (SSCS(), euler), "Strang": (Strang(), midpoint)}
every_solver = pytest.mark.parametrize("name", SOLVERS)


@every_solver
def test_orders_by_the_recursion_of_moments(name):
    """Mean and variance on one Gaussian from exact ones at t = 0.9 to 0.05; a step is checked first."""
    solver, push = SOLVERS[name]

    def step(t0, t1, mean, variance):
        middle = (t0 + t1) / 2
        for a, b in ((t0, middle), (middle, t1)):
            decay = VP().alpha(a) / VP().alpha(b)
            mean, variance = decay * mean, decay**2 * variance + 1 - decay**2
            if b == middle:
                slope, shift = push(t0, t1)
                mean, variance = slope * mean + shift, slope**2 * variance
        return mean, variance

    n, eq = 200_000, ReverseSDE(Gaussian(torch.full((1,), MEAN, dtype=F64), STD), rng(1))
    end = solver.step(eq, torch.full((n, 1), -0.3, dtype=F64), 0.6, 0.5, ())[0]
    mean, variance = step(0.6, 0.5, -0.3, 0.0)
    assert float(end.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(end.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))

    def exact(t):
        return VP().alpha(t) * MEAN, (VP().alpha(t) * STD) ** 2 + VP().sigma(t) ** 2

    steps, errors = [200, 400, 800], []
    for count in steps:
        moments = exact(0.9)
        for t0, t1 in itertools.pairwise(np.linspace(0.9, 0.05, count + 1)):
            moments = step(t0, t1, *moments)
        errors.append(max(abs(a - b) for a, b in zip(moments, exact(0.05), strict=True)))
    assert fitted_order(steps, errors) == pytest.approx(solver.order, abs=0.1)


def test_a_splitting_needs_parts():
    with pytest.raises(ValueError, match="no part that is solved exactly"):
        SSCS().step(DDIM(smooth_mixture()), torch.ones(1, 2), 2.0, 1.0, ())
    with pytest.raises(ValueError, match="preserves variance"):
        Strang().step(ReverseSDE(smooth_mixture(VE())), torch.ones(1, 2), 1.0, 0.5, ())


@pytest.mark.parametrize("budget", ["--nfe", "--steps"])
def test_a_schedule_without_such_parts_is_a_mistake_in_the_arguments(budget, tmp_path, capsys):
    arguments = ["--problem", "toy-ve", "--solvers", "sde-sscs", "--samples", "4", budget, "4"]
    with pytest.raises(SystemExit, match="2"):
        weak.command([*arguments, "--out", str(tmp_path)])
    assert "sde-sscs cannot solve toy-ve: the part that is solved exactly" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "cost"), [("sde-sscs", 1), ("sde-strang", 2)])
def test_methods_pay_for_the_rest_only(name, cost):
    problem = smooth_mixture()
    assert METHODS[name].steps(problem, 10) == 10 // cost
    METHODS[name].sample(problem, 3, torch.ones(2, 2, dtype=F64), rng())
    assert problem.spent.nfe == 3 * cost
