"""Adaptive methods with steps for each trajectory: known flows, the bill counted independently, places."""

import functools
import math

import numpy as np
import pytest
import torch

from analysis.measure.problems import latents
from analysis.measure.reference import reference
from analysis.methods import METHODS
from problems import (
    DDIM,
    VP,
    Autodiff,
    Brownian,
    Gaussian,
    Preconditioned,
    ProbabilityFlow,
    Source,
    smooth_mixture,
    toy_mixture,
)
from problems.series import convolve
from solvers import RK45, DormandPrince, TaylorSteps, final, march
from solvers.adaptive_taylor import AdaptiveTaylor
from tests.conftest import distance, fitted_order

F64 = torch.float64
FORMS = {
    "ddim": DDIM,
    "pf": ProbabilityFlow,
    "data": Preconditioned,
    "preconditioned": lambda score: Preconditioned(score, 0.65),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_way = pytest.mark.parametrize("ends", [(1.0, 1e-3), (1e-3, 1.0)], ids=["sampling", "encoding"])


def dormand_prince(tolerance):
    return DormandPrince(tolerance, tolerance)


def taylor(tolerance):
    return TaylorSteps(AdaptiveTaylor(6, tolerance))


every_method = pytest.mark.parametrize("method", [dormand_prince, taylor])


class Watched:
    """An equation that writes down where it is evaluated, and for how many states."""

    def __init__(self, inner, seen=None):
        self.inner, self.seen = inner, [] if seen is None else seen

    def jet(self, y, s, order=1):
        self.seen.append((len(y), order, torch.as_tensor(s, dtype=F64).flatten()))
        return self.inner.jet(y, s, order)

    def part(self, rows, of):
        return Watched(self.inner.part(rows, of), self.seen)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Placed(Source):
    """Point i of a batch belongs to the Gaussian N(means[i], std² I): ε = γ (x̄ - means[i])/(std² + γ²)."""

    positional = True

    def __init__(self, means, std):
        super().__init__(VP(), std)
        self.means, self.std = means, std

    def _expand(self, gamma):
        share, distances = gamma / (self.std**2 + gamma * gamma), []

        def push(coefficient):
            distances.append(coefficient if distances else coefficient - self.means)
            return convolve(share.coefficients, distances, len(distances) - 1)

        return push

    def part(self, rows, of):
        other = super().part(rows, of)
        other.means = self.means[rows]
        return other


@functools.cache
def toy_in_company(n, seed):
    """Return latents of the toy and where they come to."""
    x = latents(toy_mixture(), n, seed)
    return x, reference(toy_mixture(), x, (1.0, 1e-3)).x[-1]


@functools.cache
def smooth_in_company(n, seed):
    """Return latents of the smooth mixture and where they come to."""
    x = latents(smooth_mixture(), n, seed)
    return x, reference(smooth_mixture(), x, (1.0, 1e-3)).x[-1]


@every_method
@every_form
@every_way
def test_one_gaussian_is_solved_to_the_tolerance(method, form, ends):
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5)
    x = problem.sample(40, ends[0], torch.Generator().manual_seed(0))
    exact = problem.solution(x, *ends)
    for tolerance in (1e-3, 1e-6):
        end = final(march(form(problem), method(tolerance), ends, x)).x
        # Of some ten to fifty steps each adds an error of the size of the tolerance at most; encoding, in
        # which distances grow by γ's ratio and shrink by α's, doubles them.
        assert distance(end, exact) < 100 * tolerance


@pytest.mark.parametrize(
    ("method", "form"), [*((dormand_prince, form) for form in FORMS.values()), (taylor, Preconditioned)]
)
def test_the_error_falls_in_proportion_to_the_tolerance(method, form):
    problem, (x, exact) = smooth_mixture(), smooth_in_company(50, 3)
    tolerances = 10.0 ** -np.arange(3, 10)
    ends = [final(march(form(problem), method(tol), (1.0, 1e-3), x)).x for tol in tolerances]
    errors = [distance(end, exact) for end in ends]
    # Error per step: of order p for a local error of order p + 1, so a power between 5/6 and 1, and that
    # on average over six decades in which the number of steps is whole.
    assert 0.75 < np.polyfit(np.log(tolerances), np.log(errors), 1)[0] < 1.25
    assert errors[-1] < 1e-6


def test_dormand_prince_is_of_fifth_order():
    """Error against evaluations, at the steps that the controller chooses."""
    problem, (x, exact) = smooth_mixture(), smooth_in_company(50, 3)
    states = [
        final(march(DDIM(problem), dormand_prince(tol), (1.0, 1e-3), x)) for tol in np.logspace(-6, -11, 6)
    ]
    assert fitted_order([s.nfe for s in states], [distance(s.x, exact) for s in states]) > 4.5


@every_method
@every_form
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("ends", [(1.0, 1e-3), (1e-3, 1.0), (1.0, 0.999), (2e-3, 1e-3), (1e-3, 1.1e-3)])
def test_nothing_is_evaluated_outside(method, form, dtype, ends):
    problem = smooth_mixture()
    eq = Watched(form(problem))
    x = problem.sample(5, ends[0], torch.Generator().manual_seed(0)).to(dtype)
    end = final(march(eq, method(1e-2), ends, x)).x
    low, high = sorted(eq.s(t) for t in ends)
    places = torch.cat([s for _, _, s in eq.seen])
    assert low <= places.min()
    assert places.max() <= high
    assert end.isfinite().all()
    assert end.dtype == dtype


@every_method
@every_way
@pytest.mark.parametrize("problem", [smooth_mixture(), toy_mixture()], ids=["smooth", "toy"])
def test_the_bill_is_the_mean_of_what_was_evaluated(method, ends, problem):
    eq = Watched(Preconditioned(problem))
    x = problem.sample(30, ends[0], torch.Generator().manual_seed(1))
    before = problem.spent
    state = final(march(eq, method(1e-6), ends, x))
    bill = problem.spent - before
    assert bill.nfe == state.nfe == pytest.approx(sum(n for n, _, _ in eq.seen) / 30, rel=1e-12)
    assert bill.jvp == pytest.approx(sum(n * (order - 1) for n, order, _ in eq.seen) / 30, rel=1e-12)
    sizes = [n for n, _, _ in eq.seen]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 30  # some take longer than others, and those that are done are no longer asked for


def test_one_trajectory_costs_two_and_six_per_attempt():
    problem = toy_mixture()
    for seed in range(5):
        before = problem.spent.nfe
        final(march(DDIM(problem), dormand_prince(1e-4), (1.0, 1e-3), latents(problem, 1, seed)))
        assert (problem.spent.nfe - before) % 6 == 2


@every_method
@every_form
def test_a_trajectory_does_not_depend_on_its_batch(method, form):
    problem = toy_mixture()
    x = latents(problem, 12, 5)
    together = final(march(form(problem), method(1e-4), (1.0, 1e-3), x)).x
    some = (0, 3, 7, 11)
    alone = [final(march(form(problem), method(1e-4), (1.0, 1e-3), x[i : i + 1])).x for i in some]
    # To rounding, which is magnified between two modes.
    assert torch.allclose(torch.cat(alone), together[list(some)], rtol=0, atol=1e-9)


@every_method
@every_way
def test_models_that_depend_on_the_place_of_a_state(method, ends):
    """Gaussians of their own, near and far, so that trajectories end at different times."""
    generator = torch.Generator().manual_seed(0)
    means = torch.logspace(-2, 2, 9, dtype=F64)[:, None] * torch.ones(2, dtype=F64)
    score = Placed(means, 0.5)
    x = score.schedule.alpha(ends[0]) * means + 0.7 * torch.randn((9, 2), generator=generator, dtype=F64)
    gamma = [score.schedule.gamma(t) for t in ends]
    growth = math.sqrt((0.25 + gamma[1] ** 2) / (0.25 + gamma[0] ** 2))
    alpha = [score.schedule.alpha(t) for t in ends]
    exact = alpha[1] * (means + growth * (x / alpha[0] - means))
    end = final(march(DDIM(score), method(1e-7), ends, x)).x
    # Tolerances are relative, and states up to a hundred.
    assert distance(end, exact) < 100 * 1e-7 * 150


def test_references_follow_models_that_depend_on_the_place(monkeypatch):
    monkeypatch.setattr(Placed, "jet_order", 3)  # so that it is solved by steps
    means = torch.logspace(-2, 1, 7, dtype=F64)[:, None] * torch.ones(2, dtype=F64)
    score = Placed(means, 0.5)
    x = latents(Gaussian(means[0], 0.5), 7, 1)
    gamma = [score.schedule.gamma(t) for t in (1.0, 1e-3)]
    alpha = [score.schedule.alpha(t) for t in (1.0, 1e-3)]
    growth = math.sqrt((0.25 + gamma[1] ** 2) / (0.25 + gamma[0] ** 2))
    exact = alpha[1] * (means + growth * (x / alpha[0] - means))
    found = reference(score, x, (1.0, 1e-3), tolerance=1e-5)
    assert distance(found.x[-1], exact) < 1e-5


@pytest.mark.parametrize("form", ["ddim", "preconditioned"])
def test_fewer_evaluations_than_a_shared_step_at_the_same_worst_error(form):
    """At most three quarters of torchdiffeq's, whose steps are those of the whole batch."""
    problem, (x, exact) = toy_mixture(), toy_in_company(400, 77)
    shared = final(march(FORMS[form](problem), RK45(1e-5, 1e-5), (1.0, 1e-3), x))
    own = [
        final(march(FORMS[form](problem), dormand_prince(tol), (1.0, 1e-3), x))
        for tol in np.logspace(-4, -6, 5)
    ]
    as_good = [s.nfe for s in own if distance(s.x, exact) <= distance(shared.x, exact)]
    assert min(as_good) < 0.75 * shared.nfe


def test_steps_that_shrink_to_nothing_are_told():
    score = Autodiff(lambda x, t: x * math.nan, VP())
    with pytest.raises(ArithmeticError, match="shrink to nothing"):
        final(march(DDIM(score), DormandPrince(), (1.0, 1e-3), torch.ones(2, 2, dtype=F64)))


ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_ends_at_nan_and_the_others_where_they_do_without_it(name, bad):
    problem, method, places = toy_mixture(), METHODS[name], [0, 1, 3]
    x = latents(problem, 4, 5)
    x[2, 0] = bad
    end = method.sample(problem, 1, x, Brownian(0))
    assert end[2].isnan().all()
    assert end[places].isfinite().all()
    if not method.random:
        alone = method.sample(problem, 1, x[places])
        assert torch.allclose(end[places], alone, rtol=0, atol=1e-9)


class Breaking(Placed):
    """The same, NaN below γ = 1 for Gaussians that are far away."""

    def _expand(self, gamma):
        push = super()._expand(gamma)
        gone = (torch.as_tensor(gamma[0]) < 1.0) & (self.means > 10.0)
        return lambda coefficient: push(coefficient).masked_fill(gone, math.nan)


@every_method
def test_a_row_that_becomes_nan_on_its_way_leaves_the_batch(method):
    means = torch.tensor([[0.5, 0.5], [20.0, 20.0], [-1.0, -1.0]], dtype=F64)
    x = torch.tensor([[0.3, 0.2], [0.7, 0.1], [-0.5, 0.1]], dtype=F64)
    ends = [
        final(march(DDIM(kind(means, 0.5)), method(1e-6), (1.0, 1e-3), x)).x for kind in (Breaking, Placed)
    ]
    assert ends[0][1].isnan().all()
    assert torch.allclose(ends[0][[0, 2]], ends[1][[0, 2]], rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"rtol": 0.0}, {"atol": -1.0}, {"safety": 1.0}, {"growth": 1.0}])
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match="needs positive tolerances"):
        DormandPrince(**wrong)


def test_an_empty_interval_is_no_step():
    problem = smooth_mixture()
    x = latents(problem, 3, 0)
    assert torch.equal(DormandPrince().step(DDIM(problem), x, 1.0, 1.0, ())[0], x)
