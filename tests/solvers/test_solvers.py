import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from problems import DDIM, VP, Gaussian, Preconditioned, ProbabilityFlow, ReverseSDE, smooth_mixture
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
    Node,
    Own,
    Taylor,
    Time,
    final,
    grids,
    march,
)
from solvers.adaptive_taylor import AdaptiveTaylor
from tests.conftest import distance, fitted_order

F64 = torch.float64
FORMS = {
    "DDIM": DDIM,
    "probability flow": ProbabilityFlow,
    "data": Preconditioned,
    "preconditioned": lambda m: Preconditioned(m, 0.4),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def start(n=4, seed=0):
    return torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Watched:
    """An equation that notes where it was evaluated."""

    def __init__(self, eq):
        self.eq, self.places = eq, []

    def __getattr__(self, name):
        return getattr(self.eq, name)

    def jet(self, y, s, order=1):
        self.places.append(float(s))
        return self.eq.jet(y, s, order)


# --- single steps, typed


def test_taylor_is_the_taylor_polynomial():
    eq, y, s, h = DDIM(smooth_mixture()), 3.0 * start(), 2.0, -0.3
    jet = eq.jet(y, s, 5)
    expected = y + sum(h**k / math.factorial(k) * d for k, d in enumerate(jet, start=1))
    value, node = Taylor(5).step(eq, y, s, s + h, ())
    assert torch.allclose(value, expected, rtol=1e-14)
    assert node.s == s
    assert all(torch.equal(a, b) for a, b in zip(node.jet, jet, strict=True))


TABLEAUS = {
    "Heun": (Heun(), [[], [1.0]], [0.5, 0.5]),
    "midpoint": (Midpoint(), [[], [0.5]], [0.0, 1.0]),
    "RK4": (RK4(), [[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}


@pytest.mark.parametrize("name", TABLEAUS)
@every_form
def test_runge_kutta_is_its_tableau(name, form):
    solver, a, b = TABLEAUS[name]
    eq = form(smooth_mixture())
    y, s0, s1 = eq.enter(start(), 0.5), eq.s(0.5), eq.s(0.4)
    h, slopes = s1 - s0, []
    for row in a:
        stage = y + h * sum(w * k for w, k in zip(row, slopes, strict=True)) if row else y
        slopes.append(eq.jet(stage, s0 + sum(row) * h)[0])
    expected = y + h * sum(w * k for w, k in zip(b, slopes, strict=True))
    value, node = solver.step(eq, y, s0, s1, ())
    assert torch.allclose(value, expected, rtol=1e-13, atol=1e-14)
    assert torch.equal(node.jet[0], slopes[0])


@pytest.mark.parametrize("clock", [Time(), LogSNR()])
@every_form
def test_the_stages_of_a_foreign_clock_lie_on_it(clock, form):
    """The midpoint is that of the clock, in every form; the last stage is at the end, to the last bit."""
    eq = Watched(form(smooth_mixture()))
    RK4(clock).step(eq, eq.enter(start(), 0.5), eq.s(0.5), eq.s(0.4), ())
    times = [eq.t(s) for s in eq.places]
    middle = 0.45 if clock == Time() else VP().time(math.sqrt(VP().gamma(0.5) * VP().gamma(0.4)))
    assert times == pytest.approx([0.5, middle, middle, 0.4], rel=1e-12)
    assert eq.places[-1] == eq.s(0.4)


def test_euler_maruyama_on_an_ode_is_eulers_method():
    eq, times = DDIM(smooth_mixture()), grids.power(9)
    euler = final(march(eq, Taylor(1), times, start())).x
    assert torch.allclose(final(march(eq, EulerMaruyama(), times, start())).x, euler, rtol=1e-14)


def test_euler_maruyama_adds_the_kick():
    def eq():
        return ReverseSDE(smooth_mixture(), torch.Generator().manual_seed(0))

    y = start()
    expected = y - 0.1 * eq().jet(y, 0.5)[0] + eq().kick(y, 0.5, 0.4)
    assert torch.allclose(EulerMaruyama().step(eq(), y, 0.5, 0.4, ())[0], expected, rtol=1e-14)


# --- multistep methods: start, past, refusals


@pytest.mark.parametrize("k", [2, 3, 4])
def test_without_a_starting_method_the_order_ramps_up(k):
    """Step n uses min(n, k) nodes."""
    eq, times = DDIM(smooth_mixture()), grids.power(5)
    s = [eq.s(t) for t in times.tolist()]
    y, past = eq.enter(start(), 1.0), ()
    for n, (s0, s1) in enumerate(itertools.pairwise(s), start=1):
        y, node = Adams(min(n, k)).step(eq, y, s0, s1, past)
        past = (node, *past)
    assert torch.allclose(final(march(eq, Adams(k), times, start())).x, eq.leave(y, 1e-3), rtol=1e-13)


def test_a_starting_method_takes_the_first_steps():
    eq, times = DDIM(smooth_mixture()), grids.power(3, start=0.9, stop=0.1)
    alone = final(march(eq, RK4(), times, start())).x
    assert torch.equal(final(march(eq, Adams(4, start=RK4()), times, start())).x, alone)


def test_only_the_newest_nodes_count():
    """More past than a method looks back on changes nothing."""
    eq, y = DDIM(smooth_mixture()), start()
    past = tuple(Node(s, eq.jet(s * y, s)) for s in (3.0, 4.0, 5.0, 6.0))
    a = Adams(2).step(eq, y, 2.0, 1.5, past)[0]
    assert torch.equal(a, Adams(2).step(eq, y, 2.0, 1.5, past[:1])[0])


def test_a_past_with_too_few_derivatives_is_refused():
    """A start that remembers slopes only cannot feed a method that needs their derivatives."""
    eq, times = DDIM(smooth_mixture()), grids.power(5)
    with pytest.raises(ValueError, match="zip"):
        final(march(eq, Adams(2, 2, start=Heun()), times, start()))


def test_a_past_with_more_derivatives_is_welcome():
    """Taylor(3) remembers three; two are used."""
    eq, times = DDIM(smooth_mixture()), grids.power(2, start=0.9, stop=0.5)
    s = [eq.s(t) for t in times.tolist()]
    y0 = eq.enter(start(), 0.9)
    y1, node = Taylor(3).step(eq, y0, s[0], s[1], ())
    expected = Adams(2, 2).step(eq, y1, s[1], s[2], (Node(node.s, node.jet[:2]),))[0]
    value = final(march(eq, Adams(2, 2, start=Taylor(3)), times, start())).x
    assert torch.allclose(value, eq.leave(expected, 0.5), rtol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Taylor(0),
        lambda: Adams(0),
        lambda: Adams(2, 0),
        lambda: Adams(2, 2, clock=Index()),
        lambda: Adams(2, 2, clock=Exact(Time())),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match=r"order|needs|must be"):
        make()


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Taylor(1), 1),
        (Taylor(7), 7),
        (Adams(1, 3), 3),
        (Adams(1, clock=Index()), 1),
        (Adams(2), 2),
        (Adams(3), 2),  # the first step, by Euler's method, holds it back
        (Adams(3, start=Heun()), 3),
        (Adams(4, start=RK4()), 4),
        (Adams(4, start=Heun()), 3),
        (Adams(2, 2), 3),
        (Adams(2, 2, start=Taylor(3)), 4),
        (Adams(3, 2, start=Taylor(5)), 6),
        (Adams(4, clock=Index(), start=RK4(Time())), 2),
        (Adams(2, clock=LogSNR()), 2),
        (Adams(4, clock=Exact(Time()), start=RK4()), 4),
        (Heun(), 2),
        (Midpoint(LogSNR()), 2),
        (RK4(), 4),
        (RK4(Time()), 2),
        (RK45(), 5),
        (EulerMaruyama(), 1),
    ],
    ids=repr,
)
def test_declared_orders(solver, order):
    """Those of the textbooks; test_orders.py measures them."""
    assert solver.order == order


def test_solvers_are_values():
    assert Adams(2, clock=Index(), start=Heun()) == Adams(2, clock=Index(), start=Heun())
    assert Adams(2) != Adams(2, clock=Index())
    assert len({Taylor(2), Taylor(2), Heun(), Heun(Time())}) == 3
    assert Exact(Time()) == Exact(Time())
    assert dataclasses.replace(Adams(4), k=2) == Adams(2)
    assert Own() != Time()


# --- RK45


@pytest.mark.parametrize(
    "ends",
    [(1.0, 1e-3), (1e-3, 1.0), (1.0, 0.999), (2e-3, 1e-3), (1.001e-3, 1e-3), (1e-3, 1.1e-3), (0.5, 0.4999)],
)
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@every_form
def test_rk45_stays_inside(ends, tolerance, dtype, form):
    """No evaluation outside [s0, s1] in either direction, also where the whole interval is a tiny one.

    A float32 state may see the ends rounded to float32 at most.
    """
    eq = Watched(form(smooth_mixture()))
    if dtype == torch.float32 and tolerance == 1e-8:
        tolerance = 1e-5
    x = smooth_mixture().sample(4, ends[0], torch.Generator().manual_seed(0)).to(dtype)
    value = final(march(eq, RK45(tolerance, tolerance), ends, x)).x
    low, high = sorted(eq.s(t) for t in ends)
    assert min(eq.places) >= low
    assert max(eq.places) <= high
    assert value.isfinite().all()
    assert value.dtype == dtype


def test_rk45_stays_inside_every_interval_of_a_grid():
    eq, times = Watched(ProbabilityFlow(smooth_mixture())), grids.power(10)
    for t0, t1 in itertools.pairwise(times.tolist()):
        eq.places.clear()
        x = smooth_mixture().sample(4, t0, torch.Generator().manual_seed(0))
        RK45().step(eq, x, t0, t1, ())
        assert t1 <= min(eq.places)
        assert max(eq.places) <= t0


@functools.cache
def solution(ends, n, seed):
    """Return n states at the first time and where the smooth mixture brings them, to 1e-13."""
    mixture = smooth_mixture()
    x = mixture.sample(n, ends[0], torch.Generator().manual_seed(seed))
    return x, final(march(DDIM(mixture), Taylor(12), grids.log_snr(100, VP(), *ends), x)).x


@every_form
@pytest.mark.parametrize("ends", [(0.9, 0.05), (0.05, 0.9)])
def test_rk45_converges_with_its_tolerance(form, ends):
    """The error stays within a hundred times the tolerance, and falls with it."""
    eq, (x, exact) = form(smooth_mixture()), solution(ends, 6, 0)
    errors = [distance(final(march(eq, RK45(tol, tol), ends, x)).x, exact) for tol in (1e-4, 1e-6, 1e-8)]
    assert errors[0] < 1e-2
    assert errors[1] < 1e-4
    assert errors[2] < 1e-6
    assert errors[2] < errors[0] / 50


def test_rk45_is_of_fifth_order():
    """Error against evaluations, at the steps that the controller chooses: order 5, at first even more."""
    mixture, x = smooth_mixture(), start(1, 2)
    exact = final(march(DDIM(mixture), Taylor(12), grids.log_snr(100, VP(), 0.9, 0.05), x)).x
    tolerances = np.logspace(-6, -11, 6)
    states = [final(march(ProbabilityFlow(mixture), RK45(tol, tol), (0.9, 0.05), x)) for tol in tolerances]
    assert fitted_order([s.nfe for s in states], [distance(s.x, exact) for s in states]) > 4.75


@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow])
def test_rk45_agrees_with_scipy(form):
    """Both within their tolerance of the truth, hence of each other."""
    mixture = smooth_mixture()
    eq, x = form(mixture), mixture.sample(5, 0.9, torch.Generator().manual_seed(0))
    value = final(march(eq, RK45(1e-8, 1e-8), (0.9, 0.05), x)).x

    def f(s, y):
        return eq.jet(torch.as_tensor(y).reshape(5, 2), float(s))[0].flatten().numpy()

    y0 = eq.enter(x, 0.9).flatten().numpy()
    path = solve_ivp(f, (eq.s(0.9), eq.s(0.05)), y0, method="DOP853", rtol=1e-10, atol=1e-10)
    assert distance(value, eq.leave(torch.as_tensor(path.y[:, -1]).reshape(5, 2), 0.05)) < 1e-5


def test_rk45_remembers_the_first_slope():
    eq, x = ProbabilityFlow(smooth_mixture()), start()
    _, node = RK45().step(eq, x, 0.5, 0.4, ())
    assert torch.equal(node.jet[0], eq.jet(x, 0.5)[0])


# --- the adaptive Taylor method


@pytest.mark.parametrize("std", [0.0, 0.2])
@pytest.mark.parametrize("direction", [1, -1])
def test_adaptive_taylor_on_the_closed_solution(std, direction):
    """Every requested place of a Gaussian's flow, in either direction."""
    problem = Gaussian(torch.tensor([0.3, -1.2], dtype=F64), 0.5)
    eq, times = Preconditioned(problem, std), grids.power(7).tolist()[::direction]
    x = problem.sample(5, times[0], torch.Generator().manual_seed(0))
    path = AdaptiveTaylor().solve(eq, eq.enter(x, times[0]), [eq.s(t) for t in times])
    assert path.shape == (8, 5, 2)
    for y, t in zip(path, times, strict=True):
        exact = problem.solution(x, times[0], t)
        assert distance(eq.leave(y, t), exact) < 1e-11


def test_adaptive_taylor_on_a_mixture():
    """Against Taylor-12 on a fine grid; a trajectory alone has the steps that it has in company."""
    mixture = smooth_mixture()
    eq, x = Preconditioned(mixture, 0.4), start(6)
    s = [eq.s(1.0), eq.s(1e-3)]
    exact = final(march(DDIM(mixture), Taylor(12), grids.log_snr(200, VP()), x)).x
    y = AdaptiveTaylor().solve(eq, eq.enter(x, 1.0), s)[-1]
    assert distance(eq.leave(y, 1e-3), exact) < 1e-11
    alone = AdaptiveTaylor().solve(eq, eq.enter(x[2:3], 1.0), s)[-1]
    assert distance(alone, y[2:3]) < 1e-12


@pytest.mark.parametrize("order", [6, 12, 20])
def test_adaptive_taylor_keeps_its_tolerance(order):
    mixture = smooth_mixture()
    eq, x = Preconditioned(mixture, 0.4), start(6)
    s = [eq.s(1.0), eq.s(1e-3)]
    exact = AdaptiveTaylor(24, 1e-15).solve(eq, eq.enter(x, 1.0), s)[-1]
    for tolerance in (1e-6, 1e-10):
        y = AdaptiveTaylor(order, tolerance).solve(eq, eq.enter(x, 1.0), s)[-1]
        assert distance(y, exact) < 1e3 * tolerance
