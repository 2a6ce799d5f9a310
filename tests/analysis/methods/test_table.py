"""The table of methods: budgets as the paper counts them, and identities between names."""

import functools
from dataclasses import replace

import pytest
import torch

from analysis.measure.problems import PROBLEMS, latents
from analysis.methods import FORMS, GRIDS, METHODS
from problems import VP, AnalyticFirst, Bill, Guided, Table, Tariff, denoise, smooth_mixture, toy_mixture
from problems.images.head import Head, HeadConfig
from problems.images.score import Learned
from problems.images.unet import Config, ScoreNetwork
from solvers.adaptive import Adaptive

# Steps for a budget, without AFS and denoising, with AFS, with denoising, with both: the table of step
# numbers by which the paper's Tables 8-11 are filled (S-PNDM costs N + 1, F-PNDM N + 9).
BUDGETS = {
    ("ddim", 5): (5, 6, 4, 5),
    ("ddim", 25): (25, 26, 24, 25),
    ("ttm2", 10): (10, 11, 9, 10),
    ("euler-maruyama", 10): (10, 11, 9, 10),
    ("s-pndm", 5): (4, 5, 3, 4),
    ("s-pndm", 10): (9, 10, 8, 9),
    ("f-pndm", 15): (6, 7, 5, 6),
    ("f-pndm", 20): (11, 12, 10, 11),
    ("f-pndm", 25): (16, 17, 15, 16),
    ("heun", 10): (5, 5, 4, 5),
}


@pytest.mark.parametrize(("name", "nfe"), BUDGETS)
def test_budgets_are_the_papers(name, nfe):
    toy = toy_mixture()
    factors = [(False, False), (True, False), (False, True), (True, True)]
    steps = [replace(METHODS[name], afs=afs, denoise=d).steps(toy, nfe) for afs, d in factors]
    assert tuple(steps) == BUDGETS[name, nfe]


@pytest.mark.parametrize("nfe", [5, 10])
def test_f_pndm_is_not_available_at_small_budgets(nfe):
    with pytest.raises(ValueError, match=r"needs at least 12 NFE \(3 steps\)"):
        METHODS["f-pndm"].steps(toy_mixture(), nfe)


HEADS = {0.0147: (5, 10, 15, 20, 25), 0.14: (4, 9, 13, 18, 22), 0.144: (4, 9, 13, 17, 22)}
"""Table 5: overheads of CIFAR-10, Bedrooms and Church, and the steps that 5 to 25 NFE then pay for."""


@pytest.mark.parametrize("overhead", HEADS)
def test_the_overhead_of_a_head_is_billed_as_in_the_paper(overhead):
    """N = round(NFE/(1 + overhead))."""
    network = ScoreNetwork(Config(channels=8), VP())
    model = Learned(network, head=Head(HeadConfig(channels=8), 1, 8))
    tariff = Tariff(head=overhead)
    assert tuple(METHODS["genie"].steps(model, nfe, tariff) for nfe in (5, 10, 15, 20, 25)) == HEADS[overhead]


def test_derivatives_at_two_evaluations_a_step_get_half_the_steps():
    """Sec. 5.1: TTM-2 by automatic differentiation, counted as two evaluations."""
    tariff = Tariff(jvp=1.0)
    assert [METHODS["ttm2"].steps(toy_mixture(), nfe, tariff) for nfe in (5, 10, 15, 20, 25)] == [
        2,
        5,
        7,
        10,
        12,
    ]


def test_a_head_is_rehearsed_and_billed():
    model = Learned(ScoreNetwork(Config(channels=8), VP()), head=Head(HeadConfig(channels=8), 1, 8))
    METHODS["genie"].sample(model, 6, latents(model, 3, 0))
    assert model.spent == METHODS["genie"].bill(model, 6) == Bill(nfe=6, head=6)


def test_guidance_halves_the_steps():
    guided = Guided(toy_mixture(), toy_mixture(), 1.0)
    assert METHODS["ddim"].steps(guided, 20) == 10


EXACT = [name for name, method in METHODS.items() if method.form.name != "distilled"]
"""Methods that need no distilled head, which exact problems do not have."""


@pytest.mark.parametrize("name", [n for n in EXACT if not isinstance(METHODS[n].solver, Adaptive)])
@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("denoised", [False, True])
def test_what_is_rehearsed_is_what_is_spent(name, afs, denoised):
    method = replace(METHODS[name], afs=afs, denoise=denoised)
    problem = smooth_mixture()
    method.sample(problem, 6, latents(problem, 3, 0), torch.Generator().manual_seed(0))
    assert problem.spent == method.bill(problem, 6)


@pytest.mark.parametrize("name", EXACT)
def test_every_method_samples_near_the_data(name):
    """At 40 steps every method of the table brings latents to the three Gaussians of the smooth problem."""
    problem = smooth_mixture()
    x = METHODS[name].sample(problem, 40, latents(problem, 400, 1), torch.Generator().manual_seed(2))
    mean, covariance = x.mean(0), x.T.cov()
    # Four standard errors of 400 samples, plus the discretisation error of the crudest method (5%).
    assert (mean - problem.mean).abs().max() < 4 * 0.7 / 20 + 0.05
    assert (covariance - problem.covariance).abs().max() < 4 * 0.6 * 2**0.5 / 20 + 0.05


def test_ideal_derivatives_on_the_ddim_ode_are_ddim():
    problem = toy_mixture()
    x = latents(problem, 50, 0)
    ddim, ideal = (METHODS[n].sample(problem, 10, x) for n in ("ddim", "ttm2-ideal-ddim"))
    assert torch.equal(ddim, ideal)


def test_afs_and_denoise_are_wrapped_around_the_same_march():
    problem = toy_mixture()
    x = latents(problem, 50, 0)
    plain = METHODS["ttm2"].sample(AnalyticFirst(problem, 1.0), 10, x)
    both = replace(METHODS["ttm2"], afs=True, denoise=True).sample(problem, 10, x)
    assert torch.equal(denoise(problem, plain, 1e-3), both)


@functools.cache
def schedule_of(problem):
    return PROBLEMS[problem]().schedule


@pytest.mark.parametrize("grid", GRIDS.values(), ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_grid_spans_the_schedule_of_every_problem(grid, problem):
    """Grids of nodes need a table, whose leading nodes begin below its start; shifts need times in [0, 1]."""
    schedule = schedule_of(problem)
    leading = grid.name.startswith("leading")
    nodes = leading or grid.name in ("trailing", "linspace")
    if nodes != isinstance(schedule, Table) and (nodes or grid.name == "shift3"):
        with pytest.raises(ValueError, match="need"):
            grid.times(7, schedule)
        return
    times = grid.times(7, schedule)
    assert times.dtype == torch.float64
    assert len(times) == 8
    assert times[0] < schedule.start if leading else times[0] == schedule.start
    assert times[-1] == schedule.stop
    assert bool((times.diff() < 0).all())


def test_names_are_the_keys_of_their_tables():
    assert all(name == form.name for name, form in FORMS.items())
    assert all(name == grid.name for name, grid in GRIDS.items())


def test_latents_belong_to_the_seed():
    problem = toy_mixture()
    assert torch.equal(latents(problem, 10, 3), latents(problem, 10, 3))
    assert not torch.equal(latents(problem, 10, 3), latents(problem, 10, 4))
    many = latents(problem, 20_000, 0)
    assert abs(float(many.std()) - 1.0) < 5 / (2 * 40_000) ** 0.5
