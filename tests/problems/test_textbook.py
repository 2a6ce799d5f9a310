"""One Gaussian, whose flow is known in closed form: the truth for every solver and every order."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from problems import DDIM, EDM, VE, VP, CosineVP, Gaussian, Preconditioned, ProbabilityFlow
from solvers import (
    RK4,
    RK45,
    Adams,
    EulerMaruyama,
    Exact,
    Heun,
    Index,
    LogSNR,
    Midpoint,
    Taylor,
    Time,
    final,
    grids,
    march,
)
from tests.conftest import distance, relative_errors

F64 = torch.float64
MEAN = torch.tensor([0.3, -1.2], dtype=F64)
STD = 0.5

SOLVERS = {
    "DDIM": Taylor(1),
    "TTM-2": Taylor(2),
    "TTM-3": Taylor(3),
    "TTM-8": Taylor(8),
    "AB2": Adams(2),
    "AB3": Adams(3, start=RK4()),
    "AB4": Adams(4, start=RK4()),
    "Adams(2, 2)": Adams(2, 2, start=Taylor(3)),
    "Adams(3, 2)": Adams(3, 2, start=Taylor(5)),
    "S-PNDM": Adams(2, clock=Index(), start=Heun()),
    "F-PNDM": Adams(4, clock=Index(), start=RK4(Time())),
    "DPM++(2M)": Adams(2, clock=LogSNR()),
    "tAB-DEIS3": Adams(4, clock=Exact(Time())),
    "Heun": Heun(),
    "midpoint": Midpoint(),
    "DPM-2": Midpoint(LogSNR()),
    "RK4": RK4(),
    "Euler-Maruyama": EulerMaruyama(),
    "RK45": RK45(1e-6, 1e-6),
}


def x_at_start(n=6, seed=0):
    return torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def end(form, solver, times, x):
    return final(march(form, solver, times, x)).x


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow, Preconditioned, lambda g: Preconditioned(g, 0.2)])
def test_every_solver_converges_to_the_closed_solution(name, form):
    """Four times the steps divide the error by at least 3, whatever the order, and 320 steps reach 2%.

    RK45 chooses its own steps inside of these, so that two and eight do.
    """
    problem, x = Gaussian(MEAN, STD), x_at_start()
    exact = problem.solution(x, 0.95, 0.01)
    errors = [
        distance(end(form(problem), SOLVERS[name], grids.log_snr(n, VP(), 0.95, 0.01), x), exact)
        for n in ((2, 8) if name == "RK45" else (80, 320))
    ]
    assert errors[1] <= max(errors[0] / 3, 1e-5 if name == "RK45" else 1e-11)
    assert errors[1] <= 0.02


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_is_exact_in_the_form_made_for_the_data(name):
    """With s the data's standard deviation y moves on a straight line, which every consistent method follows.

    The higher derivatives vanish up to rounding, which the step, of length 6 u, multiplies by 6ᵖ.
    """
    problem, solver, x = Gaussian(MEAN, STD), SOLVERS[name], x_at_start()
    value = end(Preconditioned(problem, STD), solver, [0.5, 1e-3], x)
    p = getattr(getattr(solver, "start", None) or solver, "p", 1)
    assert distance(value, problem.solution(x, 0.5, 1e-3)) <= 1e-14 * 6 ** (p + 1)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_point_mass_is_exact_on_the_ddim_ode(name, steps):
    """s = 0: ε does not change along the flow, so DDIM in one step is exact, and so is every other method.

    A stage at the end of the step divides the rounding error of x̄ by γ, ten times smaller there.
    """
    problem, x = Gaussian(MEAN, 0.0), x_at_start()
    value = end(DDIM(problem), SOLVERS[name], grids.power(steps, start=0.5, stop=0.1), x)
    assert distance(value, problem.solution(x, 0.5, 0.1)) <= 1e-12


def test_ddim_reaches_a_point_mass_in_one_step_from_pure_noise():
    problem, x = Gaussian(MEAN, 0.0), x_at_start()
    value = end(DDIM(problem), Taylor(1), [1.0, 1e-3], x)
    assert distance(value, problem.solution(x, 1.0, 1e-3)) <= 1e-15 * 152 * 4


@pytest.mark.parametrize("direction", ["sampling", "encoding"])
def test_ddim_is_not_exact_for_a_wide_gaussian(direction):
    """App. B.2 says otherwise; its claim holds for a point mass only."""
    problem, x = Gaussian(MEAN, STD), x_at_start()
    ends = [1.0, 1e-3] if direction == "sampling" else [1e-3, 1.0]
    assert distance(end(DDIM(problem), Taylor(1), ends, x), problem.solution(x, *ends)) > 0.01


@given(t=st.floats(1e-3, 1.0), std=st.floats(0.05, 2.0))
def test_derivatives_in_closed_form(t, std):
    """ε = γ(x̄ - μ)/v, dε/dγ = s²(x̄ - μ)/v², d²ε/dγ² = -3 s² γ (x̄ - μ)/v³ with v = s² + γ².

    Series add terms of the size of ε/γʲ, which bounds their rounding error.
    """
    problem, x = Gaussian(MEAN, std), x_at_start(3)
    gamma = problem.schedule.gamma(t)
    d, v = x / problem.schedule.alpha(t) - MEAN, std**2 + gamma**2
    exact = (gamma * d / v, std**2 * d / v**2, -3 * std**2 * gamma * d / v**3)
    for j, (value, truth) in enumerate(zip(problem.jet(x, t, 3), exact, strict=True)):
        assert (value - truth).norm() <= 1e-14 * exact[0].norm() / gamma**j + 1e-13 * truth.norm()


@pytest.mark.parametrize("gamma", [0.01, 0.5, 3.0])
def test_derivatives_of_high_order(gamma):
    """Against the Taylor coefficients of the closed solution, √(s² + γ²), at |ε| j!/γʲ's rounding error."""
    problem = Gaussian(MEAN, STD)
    xbar = torch.tensor([[2.0, 1.0]], dtype=F64)
    growth = mpmath.taylor(lambda g: mp.sqrt(mpf(STD) ** 2 + g**2), mpf(gamma), 13)
    for j, value in enumerate(problem.flow_jet(xbar, gamma, 12)):
        factor = growth[j + 1] / growth[0] * mp.factorial(j + 1)
        exact = np.array([[factor * mpf(c) for c in (xbar - MEAN)[0].tolist()]])
        natural = max(
            float((gamma**2 / (STD**2 + gamma**2)) * abs(growth[0] / growth[j + 1])) / gamma ** (j + 1), 1
        )
        assert relative_errors([value[0]], exact)[0] <= 1e-14 * natural * (j + 1)


@pytest.mark.parametrize("schedule", [VP(), CosineVP(), VE(), EDM()])
def test_solution_obeys_the_equation(schedule):
    """The closed solution's rate of change in γ is ε, by central differences of order 2."""
    problem = Gaussian(MEAN, STD, schedule)
    t = schedule.time(0.8)
    x = x_at_start()
    h = 1e-5

    def xbar(gamma):
        other = schedule.time(gamma)
        return problem.solution(x, t, other) / schedule.alpha(other)

    slope = (xbar(0.8 + h) - xbar(0.8 - h)) / (2 * h)
    assert torch.allclose(slope, problem(x, t), rtol=1e-8)


def test_solution_is_a_group():
    problem, x = Gaussian(MEAN, STD), x_at_start()
    assert torch.allclose(problem.solution(x, 0.7, 0.7), x, rtol=1e-15)
    via = problem.solution(problem.solution(x, 1.0, 0.3), 0.3, 1e-3)
    assert torch.allclose(via, problem.solution(x, 1.0, 1e-3), rtol=1e-13, atol=1e-14)
    back = problem.solution(problem.solution(x, 1.0, 1e-3), 1e-3, 1.0)
    assert torch.allclose(back, x, rtol=1e-11)


@pytest.mark.parametrize("t", [None, 0.3])
def test_samples_have_the_exact_moments(t):
    """50,000 samples, each moment within 5 of its standard errors; the flow carries p_t into p_s."""
    problem, n = Gaussian(MEAN, STD), 50_000
    alpha, sigma = (1.0, 0.0) if t is None else (problem.schedule.alpha(t), problem.schedule.sigma(t))
    x = problem.sample(n, t, torch.Generator().manual_seed(0))
    variance = (alpha * STD) ** 2 + sigma**2
    assert ((x.mean(0) - alpha * MEAN).abs() <= 5 * (variance / n) ** 0.5).all()
    assert ((x.var(0) - variance).abs() <= 5 * variance * (2 / n) ** 0.5).all()


def test_states_of_any_shape_dtype_and_time():
    image = Gaussian(torch.zeros(1, 4, 4, dtype=F64), STD)
    assert image.event_shape == (1, 4, 4)
    assert image.sample(3).shape == (3, 1, 4, 4)
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    for value in (*image.jet(x, t, 3), image.solution(x, t, 0.01), image.solution(x, 0.9, t)):
        assert value.dtype == torch.float32
        assert value.shape == x.shape
    jet = image.jet(x.double(), t, 3)
    for i in range(3):
        for a, b in zip(jet, image.jet(x[i].double(), t[i].item(), 3), strict=True):
            assert torch.allclose(a[i], b, rtol=1e-9, atol=1e-13)
