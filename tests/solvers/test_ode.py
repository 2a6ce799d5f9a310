"""Plain differential equations: problems of DETEST against DOP853, and the flow of a mixture as one of them.

The problems are A3, A4, B1, B5, D2, E2 of Hull, Enright, Fellen & Sedgwick (1972), in the numbering of
Enright & Pryce (1987), from their initial values.
"""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from problems import DDIM, Gaussian
from solvers import (
    RK4,
    Adams,
    Corrected,
    DormandPrince,
    Exact,
    Heun,
    LogSNR,
    Midpoint,
    Taylor,
    final,
    march,
    ode,
)
from tests.conftest import fitted_order

F64 = torch.float64


def stacked(*rates):
    return torch.stack(rates, -1)


def orbit(s, y):
    p, q, u, v = y.unbind(-1)
    cubed = (p * p + q * q) ** 1.5
    return stacked(u, v, -p / cubed, -q / cubed)


def predators(s, y):
    a, b = y.unbind(-1)
    return stacked(2 * (a - a * b), a * b - b)


def rigid_body(s, y):
    a, b, c = y.unbind(-1)
    return stacked(b * c, -a * c, -0.51 * a * b)


def van_der_pol(s, y):
    a, b = y.unbind(-1)
    return stacked(b, (1 - a * a) * b - a)


DETEST = {
    "A3": (lambda s, y: y * torch.cos(s), (1.0,)),
    "A4": (lambda s, y: y / 4 * (1 - y / 20), (1.0,)),
    "B1": (predators, (1.0, 3.0)),
    "B5": (rigid_body, (0.0, 1.0, 1.0)),
    "D2": (orbit, (0.7, 0.0, 0.0, math.sqrt(1.3 / 0.7))),
    "E2": (van_der_pol, (2.0, 0.0)),
}


def march_on(name, solver, steps, end):
    """Return the solution at equally spaced places from 0 to ``end``, (steps + 1, D)."""
    f, begin = DETEST[name]
    places = torch.linspace(0.0, end, steps + 1, dtype=F64)
    return torch.cat([s.x for s in march(ode(f), solver, places, torch.tensor([begin], dtype=F64))])


def exact(name, steps, end):
    """Return the same by SciPy's DOP853."""
    f, begin = DETEST[name]

    def slope(s, y):
        return f(torch.tensor(s, dtype=F64), torch.tensor(y)).numpy()

    places = torch.linspace(0.0, end, steps + 1, dtype=F64).numpy()
    return torch.tensor(solve_ivp(slope, (0.0, end), begin, "DOP853", places, rtol=1e-13, atol=1e-13).y.T)


CERTIFIED = [(RK4(), (100, 200)), (Adams(2), (200, 400)), (Adams(4, start=RK4()), (200, 400))]


@pytest.mark.parametrize("name", DETEST)
def test_orders_on_detest(name):
    """At s = 5, a quarter of the interval; derivatives, which are dear, on one system only."""
    end = exact(name, 1, 5.0)[-1]
    for solver, steps in [*CERTIFIED, *([(Taylor(3), (25, 50))] if name == "B5" else [])]:
        errors = [float((march_on(name, solver, n, 5.0)[-1] - end).norm()) for n in steps]
        assert fitted_order(steps, errors) == pytest.approx(solver.order, abs=0.25)


def test_the_end_of_b5_is_no_place_to_read_an_order_off():
    """AB4 shows less than 1.5 there from 100 to 200 steps, whatever starts it: its error is near 0 at 100.

    At s = 20 the terms of h⁴ and h⁵ have opposite signs and cancel at about h = 0.2. Along the path they do
    not, and at the end neither once steps are small: from 400 steps on both show order 4.
    """
    counts = [100, 200, 400, 800]
    solution = exact("B5", 800, 20.0)
    for start in (RK4(), Taylor(4)):
        ends, most = [], []
        for n in counts if start == RK4() else counts[:2]:
            gaps = (march_on("B5", Adams(4, start=start), n, 20.0) - solution[:: 800 // n]).norm(dim=-1)
            ends.append(float(gaps[-1]))
            most.append(float(gaps.max()))
        assert fitted_order(counts[:2], ends[:2]) < 1.5
        assert fitted_order(counts[:2], most[:2]) > 3.0
        assert most[0] > 5.0 * ends[0]
        if len(ends) == 4:
            assert fitted_order(counts[2:], ends[2:]) == pytest.approx(4.0, abs=0.25)
            assert fitted_order(counts[2:], most[2:]) == pytest.approx(4.0, abs=0.25)


@pytest.mark.parametrize(
    "solver",
    [Heun(), Midpoint(LogSNR()), Adams(3, clock=Exact(LogSNR())), Corrected(Adams(2), 2), Taylor(3)],
    ids=repr,
)
def test_the_flow_of_a_gaussian_is_one_of_them(solver):
    """dx̄/dγ = γ (x̄ - m)/(s² + γ²): the steps of the DDIM form, with derivatives and clocks."""
    m = torch.tensor([0.3, -0.2], dtype=F64)
    form = DDIM(Gaussian(m, 0.5))
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    times = [0.6, 0.5, 0.45, 0.3, 0.2]
    expected = final(march(form, solver, times, x))
    equation = ode(lambda s, y: s * (y - m) / (0.25 + s * s))
    found = final(march(equation, solver, [form.s(t) for t in times], form.enter(x, times[0])))
    assert torch.allclose(form.leave(found.x, times[-1]), expected.x, rtol=1e-11, atol=0.0)
    assert found.nfe == expected.nfe


def test_trajectories_with_steps_of_their_own():
    """Of the logistic equation, with its closed form 20/(1 + (20/y - 1) e^(-s/4)); billed by the mean."""
    equation = ode(DETEST["A4"][0])
    y = torch.tensor([[1.0], [5.0], [19.0]], dtype=F64)
    end = final(march(equation, DormandPrince(1e-9, 1e-9), [0.0, 10.0], y))
    assert torch.allclose(end.x, 20.0 / (1.0 + (20.0 / y - 1.0) * math.exp(-2.5)), rtol=1e-8)
    assert end.nfe == equation.spent.nfe > 6
    assert 3 * end.nfe == pytest.approx(round(3 * end.nfe))


def test_there_is_no_noise_to_predict():
    with pytest.raises(ValueError, match="a plain ODE has no ε"):
        ode(lambda s, y: y).eps(torch.ones(1), 0.0)
