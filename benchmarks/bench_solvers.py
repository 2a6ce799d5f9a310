"""Solvers: what a step costs beside the network, and every method as a point of work and precision."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from analysis.measure.problems import PROBLEMS, latents
from analysis.measure.reference import reference
from analysis.methods import METHODS
from problems import DDIM, VP, Problem, Source, toy_mixture
from problems.posterior import Variance
from problems.score import Push
from problems.series import Series
from solvers import Taylor, final, march
from solvers.grids import power

STEPS = 50
STEP_METHODS = [
    name for name, method in METHODS.items() if not method.adaptive and method.form.name != "distilled"
]


class Free(Source):
    """A network that costs nothing, so that what is timed is the solver."""

    def _expand(self, gamma: Series) -> Push:
        return lambda coefficient: coefficient

    @property
    def posterior_variance(self) -> Variance:
        return lambda xbar, gamma: torch.zeros_like(xbar)

    average_variance = posterior_variance


@pytest.fixture
def free() -> Free:
    return Free(VP(), 1.0)


@pytest.fixture
def one() -> Tensor:
    return torch.ones(1, 2, dtype=torch.float64)


@pytest.mark.benchmark(group="50 steps of a free network, batch 1")
@pytest.mark.parametrize("name", STEP_METHODS)
def test_overhead(benchmark, name, free, one):
    method = METHODS[name]
    before = free.spent
    method.sample(free, STEPS, one)
    benchmark.extra_info["nfe"] = (free.spent - before).nfe
    benchmark(method.sample, free, STEPS, one)
    if benchmark.enabled:
        benchmark.extra_info["us_per_step"] = round(1e6 * benchmark.stats["min"] / STEPS, 1)


@pytest.mark.benchmark(group="50 steps of a free network, batch 1")
def test_overhead_of_torchdiffeq_euler(benchmark, one):
    """The peer: torchdiffeq's fixed-grid Euler on the same times, with a right-hand side that is free."""
    times = VP().gamma(power(STEPS))
    benchmark.extra_info["nfe"] = STEPS
    benchmark(lambda: odeint(lambda s, y: y, one, times, method="euler"))
    if benchmark.enabled:
        benchmark.extra_info["us_per_step"] = round(1e6 * benchmark.stats["min"] / STEPS, 1)


@pytest.fixture(scope="module")
def toy():
    problem = toy_mixture()
    x = latents(problem, 1000, seed=1)
    return problem, x, reference(problem, x, [1.0, 1e-3]).x[-1]


def states_of(name: str) -> tuple[Problem, Tensor]:
    problem = PROBLEMS[name]()
    return problem, latents(problem, 1000 if name == "toy" else 100, seed=1).to(problem.dtype)


@pytest.mark.benchmark(group="the loop of DDIM, 50 steps, against bare evaluations")
@pytest.mark.parametrize("name", ["toy", "digits"])
def test_share_of_the_loop(benchmark, name):
    """Fifty steps through the interface, in turn with fifty bare evaluations at the same points."""
    problem, x = states_of(name)
    times = power(STEPS)
    with torch.inference_mode():
        states = list(march(DDIM(problem), Taylor(1), times, x))[:-1]
        points = [(s.x / problem.schedule.alpha(s.t), problem.schedule.gamma(s.t)) for s in states]

    def through_the_interface():
        with torch.inference_mode():
            final(march(DDIM(problem), Taylor(1), times, x))

    def bare():
        with torch.inference_mode():
            for xbar, gamma in points:
                problem.flow_jet(xbar, gamma)

    seconds = {through_the_interface: [], bare: []}
    for _ in range(20 if benchmark.enabled else 1):
        for f, measured in seconds.items():
            began = time.process_time()
            f()
            measured.append(time.process_time() - began)
    benchmark.extra_info["ratio_to_bare_calls"] = min(seconds[through_the_interface]) / min(seconds[bare])
    benchmark.pedantic(through_the_interface, rounds=5)


@pytest.mark.benchmark(group="1,000 toy samples at 20 NFE: a work-precision point per method")
@pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if m.form.name != "distilled"))
def test_work_precision(benchmark, name, toy):
    problem, x, exact = toy
    method = METHODS[name]
    steps = method.steps(problem, 20)
    before = problem.spent
    generator = torch.Generator().manual_seed(0)
    end = method.sample(problem, steps, x, generator)
    bill = problem.spent - before
    benchmark.extra_info.update(steps=steps, nfe=bill.nfe, jvp=bill.jvp)
    if not method.random:
        error = (end - exact).norm(dim=1) / problem.schedule.alpha(1e-3)
        benchmark.extra_info.update(mean_error=float(error.mean()), median_error=float(error.median()))
    benchmark.pedantic(method.sample, (problem, steps, x, generator), rounds=5, warmup_rounds=1)
