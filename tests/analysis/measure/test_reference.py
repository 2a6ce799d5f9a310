"""The reference: exact where the solution is known, confirmed by another method where it is not."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from analysis.measure import reference as module
from analysis.measure.problems import latents
from analysis.measure.reference import reference
from analysis.methods import METHODS
from problems import Gaussian, Guided, Mixture, Preconditioned, digits_mixture, smooth_mixture, toy_mixture
from solvers.adaptive_taylor import AdaptiveTaylor, Paths

F64 = torch.float64


@pytest.mark.parametrize("times", [(1.0, 0.5, 0.1, 1e-3), (1e-3, 0.2, 1.0)], ids=["sampling", "encoding"])
def test_closed_form_in_both_directions(times):
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5)
    x = problem.sample(50, times[0], torch.Generator().manual_seed(0))
    solution = reference(problem, x, times)
    for t, state in zip(times, solution.x, strict=True):
        # What the reference promises of its states.
        assert (state - problem.solution(x, times[0], t)).norm(dim=1).max() < 1e-10
    assert solution.error < 1e-9


def test_encoding_sees_the_other_components_before_they_matter():
    """Near the data a digit is the only one there is, to within rounding, and the flow is a straight line.

    A method with narrow steps, which errs by some 1e-7 at t = 1, finds the same latents; and
    sampling, whose trajectories contract towards the components, brings them back.
    """
    problem = digits_mixture()
    x = problem.sample(2, 1e-3, torch.Generator().manual_seed(0))
    encoded = reference(problem, x, (1e-3, 1.0)).x[-1]
    narrow = METHODS["ttm4"].encode(problem, 400, x)
    assert (encoded - narrow).flatten(1).norm(dim=1).max() < 1e-6
    back = reference(problem, encoded, (1.0, 1e-3)).x[-1]
    assert (back - x).flatten(1).norm(dim=1).max() < 1e-9


def test_dop853_confirms_it_trajectory_by_trajectory():
    """SciPy's method of order eight, one trajectory at a time, on those with the narrowest steps too."""
    problem = toy_mixture()
    x = latents(problem, 1000, 7)
    eq = Preconditioned(problem, problem.component_std)
    ends = [eq.s(1.0), eq.s(1e-3)]
    paths = AdaptiveTaylor(16, 1e-12).paths(eq, eq.enter(x, 1.0), ends)
    chosen = torch.cat([paths.narrowest.argsort()[:3], torch.arange(2)])
    states = reference(problem, x, (1.0, 1e-3)).x[-1][chosen]

    def f(s, y):
        return eq.jet(torch.from_numpy(y)[None], float(s))[0][0].numpy()

    for row, begin in zip(states, eq.enter(x, 1.0)[chosen], strict=True):
        y = solve_ivp(f, ends, begin.numpy(), method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
        end = eq.leave(torch.from_numpy(np.ascontiguousarray(y)), 1e-3)
        # Errors of 1e-13 a step, magnified up to a thousandfold along the border between two modes.
        assert (row - end).norm() < 2e-10


def test_the_stated_error_is_honest():
    problem = toy_mixture()
    x = latents(problem, 400, 8)
    solution = reference(problem, x, (1.0, 1e-3))
    eq = Preconditioned(problem, problem.component_std)
    y = AdaptiveTaylor(24, 1e-15).solve(eq, eq.enter(x, 1.0), [eq.s(1.0), eq.s(1e-3)])[-1]
    true = (solution.x[-1] - eq.leave(y, 1e-3)).norm(dim=1).max() / problem.schedule.alpha(1e-3)
    assert true < 1e-10
    assert true < 10 * solution.error + 1e-11
    assert solution.error < 1e-9


def test_many_times_are_the_same_solution_as_few():
    problem = smooth_mixture()
    x = latents(problem, 20, 1)
    times = torch.linspace(1.0, 0.01, 40, dtype=F64).tolist()
    dense, sparse = reference(problem, x, times), reference(problem, x, (times[0], times[7], times[-1]))
    assert torch.allclose(dense.x[7], sparse.x[1], rtol=0, atol=1e-11)
    assert torch.allclose(dense.x[-1], sparse.x[-1], rtol=0, atol=1e-11)
    onward = reference(problem, dense.x[7], times[7:])
    assert torch.allclose(dense.x[-1], onward.x[-1], rtol=0, atol=1e-10)


def test_any_model_has_a_reference():
    """There and back along a guided flow."""
    guided = Guided(smooth_mixture(), toy_mixture(), 0.5)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    there = reference(guided, x, (0.8, 0.3)).x[-1]
    back = reference(guided, there, (0.3, 0.8)).x[-1]
    assert torch.allclose(back, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("times", [(1.0, 0.5, 0.7), (1.0, 0.5, 0.5), (0.1, 0.4, 0.2)])
def test_times_must_be_monotone(times):
    with pytest.raises(ValueError, match="rise or fall strictly"):
        reference(smooth_mixture(), torch.zeros(1, 2, dtype=F64), times)


def test_only_trajectories_that_need_more_steps_get_them(monkeypatch):
    """Steps are doubled for the rough ones alone, and all are as good as was asked for."""
    sizes = []
    solve = module._adams

    def counted(score, x, times, steps):
        sizes.append(len(x))
        return solve(score, x, times, steps)

    monkeypatch.setattr(module, "_adams", counted)
    monkeypatch.setattr(Mixture, "jet_order", 3)
    problem = toy_mixture()
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = reference(problem, x, (1.0, 1e-3), tolerance=1e-6)
    assert sizes[:2] == [40, 40]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 40
    monkeypatch.undo()
    exact = reference(problem, x, (1.0, 1e-3)).x[-1]
    assert (found.x[-1] - exact).norm(dim=1).max() <= max(found.error, 1e-6)


@pytest.mark.parametrize("problem", [toy_mixture, digits_mixture])
@pytest.mark.parametrize("steps", [False, True])
def test_no_trajectories_have_a_reference_too(problem, steps, monkeypatch):
    monkeypatch.setattr(Mixture, "jet_order", 3 if steps else 16)
    model = problem()
    solution = reference(model, torch.empty(0, *model.event_shape), (1.0, 0.5, 1e-3))
    assert solution.x.shape == (3, 0, *model.event_shape)
    assert solution.x.dtype == F64
    assert solution.error == 0.0


def test_a_trajectory_that_is_revised_twice_counts_in_the_stated_error(monkeypatch):
    """Of two trajectories one moves by 1 at its first revision and by 3e-11 at its second, where it settles.

    3e-11 is the larger of what the last two solutions of a trajectory differ by, so it is the error.
    """
    begin = torch.zeros(2, 2, dtype=F64)
    ends = iter([[0.0, 0.0], [1.0, 1e-12], [1.0 + 3e-11]])

    def solve(solver, eq, x, times):
        moved = torch.tensor(next(ends), dtype=F64)[:, None] * torch.tensor([1.0, 0.0], dtype=F64)
        return Paths(torch.stack([x, moved]), torch.ones(len(x), dtype=F64))

    monkeypatch.setattr(module, "_solve", solve)
    problem = toy_mixture()
    found = reference(problem, begin, (1.0, 1e-3))
    assert found.error == pytest.approx(3e-11 / problem.schedule.alpha(1e-3), rel=1e-4)
    assert found.x[-1, 0, 0] == 1.0 + 3e-11
    assert next(ends, None) is None
