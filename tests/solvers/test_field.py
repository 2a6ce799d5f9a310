"""The deterministic field: identities between methods, and published formulas typed from their papers."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf

from problems import DDIM, EDM, VP, Gaussian, Preconditioned, smooth_mixture, toy_mixture
from solvers import (
    RK3,
    Adams,
    Ancestral,
    Churn,
    Corrected,
    DPMSolver3M,
    Exact,
    ExponentialTaylor,
    Heun,
    Heun3,
    LangevinCorrector,
    LogSNR,
    Maruyama,
    Midpoint,
    Node,
    Own,
    Pairs,
    PlainLogSNR,
    Ralston,
    RungeKutta,
    SingleStep,
    Taylor,
    VariableIPNDM,
    final,
    grids,
    march,
)
from solvers.exponential import _stirling
from tests.conftest import fitted_order

F64 = torch.float64
VP_ = VP()
GRIDS = {
    "linear": grids.power(12, 1.0),
    "quadratic": grids.power(12),
    "log-SNR": grids.log_snr(12, VP_),
    "EDM": grids.edm(12, VP_),
}
every_grid = pytest.mark.parametrize("times", GRIDS.values(), ids=GRIDS)
FORMS = {"ddim": DDIM, "data": Preconditioned}
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def start(mixture, n=6, seed=0):
    return torch.randn(n, *mixture.event_shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def pairs(times):
    return itertools.pairwise(times.tolist())


def lam(t):
    """λ = log(α/σ)."""
    return math.log(VP_.alpha(t) / VP_.sigma(t))


def time_of(value):
    return VP_.time(math.exp(-value))


def assert_same(form, solver, times, published, tolerance=1e-11):
    """Every state of the march on the toy is that of the published sampler, relative to the largest entry."""
    mixture = toy_mixture()
    x = start(mixture)
    for state, expected in zip(march(form(mixture), solver, times, x), published(mixture, x), strict=True):
        assert (state.x - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def assert_equal_methods(form, a, b, times, tolerance=1e-12):
    mixture = toy_mixture()
    assert_same(form, a, times, lambda m, x: (s.x for s in march(form(mixture), b, times, x)), tolerance)


# --- Identities


@every_grid
@both_forms
@pytest.mark.parametrize(
    ("fractions", "twin"),
    [((0.5,), Midpoint()), ((2 / 3,), Ralston()), ((1.0,), Heun()), ((1 / 3, 2 / 3), Heun3())],
)
def test_single_steps_on_their_own_clock_are_runge_kutta(times, form, fractions, twin):
    assert_equal_methods(form, SingleStep(fractions, Own()), twin, times)


@every_grid
@both_forms
def test_dpm_solver_2_is_the_midpoint_on_the_log_snr(times, form):
    assert_equal_methods(form, SingleStep(), Midpoint(LogSNR()), times, 1e-11)


@every_grid
@pytest.mark.parametrize(
    "solver", [Taylor(1), ExponentialTaylor(1), Adams(1, clock=Exact(LogSNR())), SingleStep((), LogSNR())]
)
def test_first_order_is_ddim_on_both_forms(times, solver):
    """DPM-Solver-1, DPM-Solver++1, exponential TTM-1, DEIS-0."""

    def ddim(score, x):
        yield x
        for t, s in pairs(times):
            e = score(x, t)
            x = VP_.alpha(s) * (x - VP_.sigma(t) * e) / VP_.alpha(t) + VP_.sigma(s) * e
            yield x

    for form in FORMS.values():
        assert_same(form, solver, times, ddim)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.7), (0.5, 0.2), (0.01, 0.001)])
def test_gddim_is_ddim_for_vp(t, s):
    """gDDIM's weight of ε, ∫ ½ Ψ(s, τ) β/σ dτ with Ψ = α(s)/α(τ), is that of DDIM (Zhang et al. 2023)."""

    def integrand(tau):
        log_alpha = -(VP_.beta_min * tau + (VP_.beta_max - VP_.beta_min) * tau**2 / 2) / 2
        return VP_.beta(tau) / (2 * mp.exp(log_alpha) * mp.sqrt(-mp.expm1(2 * log_alpha)))

    weight = VP_.alpha(s) * float(mp.quad(integrand, mp.linspace(t, s, 9)))
    assert VP_.alpha(s) * (VP_.gamma(s) - VP_.gamma(t)) == pytest.approx(weight, rel=1e-12)


@every_grid
@both_forms
@pytest.mark.parametrize("k", [2, 3])
def test_unipc_predictors_are_their_multistep_twins(times, form, k):
    """UniP-2 with B₂ is DPM-Solver++(2M), UniP-3 the Adams method on the log-SNR with its start."""
    twin = (
        Adams(2, clock=LogSNR())
        if k == 2
        else Adams(3, clock=Exact(LogSNR()), start=Adams(2, clock=LogSNR()))
    )
    assert_equal_methods(form, Adams(k, clock=Pairs()), twin, times)


@every_grid
def test_a_corrector_goes_with_any_solver(times):
    """UniC after DDIM is UniPC-1, whichever class DDIM is."""
    a, b = Corrected(Taylor(1)), Corrected(Adams(1, clock=Pairs()), 1, Pairs())
    assert_equal_methods(Preconditioned, a, b, times)


# --- DPM-Solver (Lu et al. 2022): Algorithms 4 and 5 of its appendix


@every_grid
@pytest.mark.parametrize("r1", [0.5, 0.3, 0.8])
def test_dpm_solver_2(times, r1):
    def published(score, x):
        yield x
        for t, s in pairs(times):
            h, a = lam(s) - lam(t), VP_.alpha(t)
            m = time_of(lam(t) + r1 * h)
            e = score(x, t)
            u = VP_.alpha(m) / a * x - VP_.sigma(m) * math.expm1(r1 * h) * e
            d = score(u, m) - e
            x = VP_.alpha(s) / a * x - VP_.sigma(s) * math.expm1(h) * (e + d / (2 * r1))
            yield x

    assert_same(DDIM, SingleStep((r1,), LogSNR()), times, published)


@every_grid
@pytest.mark.parametrize(("r1", "r2"), [(1 / 3, 2 / 3), (0.4, 0.7)])
def test_dpm_solver_3(times, r1, r2):
    def published(score, x):
        yield x
        for t, s in pairs(times):
            h, a = lam(s) - lam(t), VP_.alpha(t)
            t1, t2 = time_of(lam(t) + r1 * h), time_of(lam(t) + r2 * h)
            e = score(x, t)
            u1 = VP_.alpha(t1) / a * x - VP_.sigma(t1) * math.expm1(r1 * h) * e
            d1 = score(u1, t1) - e
            second = math.expm1(r2 * h) / (r2 * h) - 1
            u2 = VP_.alpha(t2) / a * x - VP_.sigma(t2) * (math.expm1(r2 * h) * e + r2 / r1 * second * d1)
            d2 = score(u2, t2) - e
            second = math.expm1(h) / h - 1
            x = VP_.alpha(s) / a * x - VP_.sigma(s) * (math.expm1(h) * e + second / r2 * d2)
            yield x

    assert_same(DDIM, SingleStep((r1, r2), Exact(LogSNR())), times, published)


# --- DPM-Solver++ (Lu et al. 2022): Algorithm 1, and the 3M of its authors' code


def denoised(score, x, t):
    return (x - VP_.sigma(t) * score(x, t)) / VP_.alpha(t)


@every_grid
@pytest.mark.parametrize("r1", [0.5, 0.3])
def test_dpm_solver_pp_2s(times, r1):
    def published(score, x):
        yield x
        for t, s in pairs(times):
            h = lam(s) - lam(t)
            m = time_of(lam(t) + r1 * h)
            d0 = denoised(score, x, t)
            u = VP_.sigma(m) / VP_.sigma(t) * x - VP_.alpha(m) * math.expm1(-r1 * h) * d0
            d = (1 - 1 / (2 * r1)) * d0 + 1 / (2 * r1) * denoised(score, u, m)
            x = VP_.sigma(s) / VP_.sigma(t) * x - VP_.alpha(s) * math.expm1(-h) * d
            yield x

    assert_same(Preconditioned, SingleStep((r1,), LogSNR()), times, published)


def three_m(score, x, times, factor):
    """DPM-Solver++(3M) with ``factor`` 1; with 2 the quadratic term is what Taylor's formula says."""
    yield x
    past = []
    for t, s in pairs(times):
        h = lam(s) - lam(t)
        past = [(lam(t), denoised(score, x, t)), *past][:3]
        (l0, d0), *older = past
        x = VP_.sigma(s) / VP_.sigma(t) * x - VP_.alpha(s) * math.expm1(-h) * d0
        phi2 = math.expm1(-h) / h + 1
        if older:
            r0 = (l0 - older[0][0]) / h
            first = (d0 - older[0][1]) / r0
        if len(older) == 1:
            x = x - VP_.alpha(s) * math.expm1(-h) * 0.5 * first
        if len(older) == 2:
            r1 = (older[0][0] - older[1][0]) / h
            second = (older[0][1] - older[1][1]) / r1
            d1 = first + r0 / (r0 + r1) * (first - second)
            d2 = (first - second) / (r0 + r1)
            x = x + VP_.alpha(s) * (phi2 * d1 - factor * (phi2 / h - 0.5) * d2)
        yield x


@every_grid
@pytest.mark.parametrize(
    ("factor", "solver"),
    [(1, DPMSolver3M()), (2, Adams(3, clock=Exact(LogSNR()), start=Adams(2, clock=LogSNR())))],
    ids=["published", "meant"],
)
def test_dpm_solver_pp_3m(times, factor, solver):
    """The published one has half the quadratic term of the exact one."""
    assert_same(Preconditioned, solver, times, lambda score, x: three_m(score, x, times, factor), 1e-9)


# --- UniPC (Zhao et al. 2023): Algorithms 1 to 4, with R_p(h) a = φ_p(h)/B(h)


def unipc(score, x, times, order, b_of, data):
    """Return the predicted states of UniPC, on x₀ or on ε."""
    sign = -1.0 if data else 1.0
    predict = (lambda x, t: denoised(score, x, t)) if data else score
    decay, grow = (VP_.sigma, VP_.alpha) if data else (VP_.alpha, VP_.sigma)

    def step(x, t, s, nodes, halved):
        """Step from t to s with the values at ``nodes``, t first; with two of them, by ½ B(h)."""
        h = lam(s) - lam(t)
        hh = sign * h
        (_, m0), *others = nodes
        r = np.array([(place - lam(t)) / h for place, _ in others])
        end = decay(s) / decay(t) * x - grow(s) * math.expm1(hh) * m0
        if not others:
            return end
        p = len(others)
        if halved:
            a = np.array([0.5])
        else:
            phi, g = math.expm1(hh) / hh - 1, []
            for n in range(1, p + 1):
                g.append(phi * math.factorial(n) / b_of(hh))
                phi = phi / hh - 1 / math.factorial(n + 1)
            a = np.linalg.solve(np.vander(r, p, increasing=True).T, g)
        differences = sum(w / ri * (m - m0) for w, ri, (_, m) in zip(a, r, others, strict=True))
        return end - grow(s) * b_of(hh) * differences

    yield x
    past, corrected, before = [], None, None
    for t, s in pairs(times):
        value = predict(x, t)
        if past:
            q = min(order, len(past))
            x = step(corrected, before, t, [*past[:q], (lam(t), value)], q == 1)
        past, corrected, before = [(lam(t), value), *past][:order], x, t
        x = step(x, t, s, past, len(past) == 2)
        yield x


@every_grid
@pytest.mark.parametrize("data", [False, True], ids=["ε", "x0"])
@pytest.mark.parametrize("b", [math.expm1, float], ids=["B2", "B1"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(times, order, b, data):
    clock = Pairs(LogSNR() if b is math.expm1 else PlainLogSNR())
    solver = Corrected(Adams(order, clock=clock), order, clock)
    form = Preconditioned if data else DDIM
    assert_same(form, solver, times, lambda score, x: unipc(score, x, times, order, b, data), 1e-9)


def test_a_corrector_costs_nothing():
    mixture = toy_mixture()
    state = final(
        march(DDIM(mixture), Corrected(Adams(3, clock=Pairs()), 3), GRIDS["linear"], start(mixture))
    )
    assert state.nfe == 12


def test_a_corrector_of_a_method_with_stages_asks_once_for_each():
    mixture = toy_mixture()
    state = final(march(DDIM(mixture), Corrected(Heun(), 2), GRIDS["linear"], start(mixture)))
    assert state.nfe == 24


# --- Exponential TTM


@every_grid
def test_exponential_ttm_2(times):
    """DPM-Solver-2 before its derivative is replaced: dε/dλ = -γ dε/dγ, φ₂ exactly."""

    def published(score, x):
        yield x
        for t, s in pairs(times):
            h, gamma = lam(s) - lam(t), VP_.gamma(t)
            e, slope = score.jet(x, t, 2)
            x = VP_.alpha(s) / VP_.alpha(t) * x - VP_.sigma(s) * (
                math.expm1(h) * e - (math.expm1(h) - h) * gamma * slope
            )
            yield x

    assert_same(DDIM, ExponentialTaylor(2), times, published, 1e-9)


@pytest.mark.parametrize("length", [3.0, -2.0, 0.1, -1e-3])
@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_exponential_ttm_is_exact_for_polynomials_in_log_s(length, p):
    """∫ log(s/s₀)ʲ ds for j < p, from its derivatives at s₀; log(s₁/s₀) itself is good to 1e-16."""
    s0 = 0.7
    s1 = s0 * math.exp(length)
    row = ExponentialTaylor(p).weights(None, s1, [s0])[0]
    for j in range(p):
        taylor = mpmath.taylor(lambda s, j=j: mp.log(s / mpf(s0)) ** j, mpf(s0), p - 1)
        derivatives = [float(c * math.factorial(i)) for i, c in enumerate(taylor)]
        exact = mp.quad(lambda s, j=j: mp.log(s / mpf(s0)) ** j, [mpf(s0), mpf(s1)])
        value = mp.fsum(mpf(w) * mpf(d) for w, d in zip(row, derivatives, strict=True))
        scale = max(abs(w * d) for w, d in zip(row, derivatives, strict=True))
        assert abs(value - exact) <= (1e-13 + 1e-15 / abs(length)) * scale


def test_stirling_numbers_of_the_second_kind():
    """The table of Abramowitz & Stegun (24.4), rows 0 to 6."""
    table = [[1], [0, 1], [0, 1, 1], [0, 1, 3, 1], [0, 1, 7, 6, 1], [0, 1, 15, 25, 10, 1]]
    table.append([0, 1, 31, 90, 65, 15, 1])
    assert [[_stirling(j, i) for i in range(j + 1)] for j in range(7)] == table
    assert _stirling(2, 3) == 0


def test_log_s_needs_positive_places():
    with pytest.raises(ValueError, match="log s"):
        ExponentialTaylor(2).weights(None, 0.0, [1.0])


# --- iPNDM_v


def test_ipndm_v_as_published():
    """The coefficients of diff-sampler for steps of four sizes, and for three nodes."""
    h, a, b, c = -0.3, -0.5, -0.7, -1.1
    nodes = [0.0, -a, -a - b, -a - b - c]
    one = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
    two = ((1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))) * (
        h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c))
    )
    ratio = a * (a + b) / (b * (b + c))
    expected = [
        (2 + h / a) / 2 + one + two,
        -h / a / 2 - (1 + a / b) * one - (1 + a / b + ratio) * two,
        one * a / b + (a / b + ratio * (1 + b / c)) * two,
        -two * ratio * a / b,
    ]
    rows = VariableIPNDM().weights(None, h, nodes)
    assert [w for (w,) in rows] == pytest.approx([h * w for w in expected], rel=1e-13)
    assert sum(expected) != pytest.approx(1.0, abs=1e-3)  # not even consistent
    three = [(2 + h / a) / 2 + one, -h / a / 2 - (1 + a / b) * one, one * a / b]
    rows = VariableIPNDM().weights(None, h, nodes[:3])
    assert [w for (w,) in rows] == pytest.approx([h * w for w in three], rel=1e-13)


def test_ipndm_v_on_equal_steps():
    """It puts 11/24 of the third difference where Adams and Bashforth put 9/24."""
    rows = VariableIPNDM().weights(None, 1.0, [0.0, -1.0, -2.0, -3.0])
    expected = [57 / 24, -65 / 24, 43 / 24, -11 / 24]
    assert [w for (w,) in rows] == pytest.approx(expected, rel=1e-13)


# --- Orders


def slope(form, solver, problem, x, exact, times, steps):
    """Return the order seen in the mean error at the end, over the numbers of steps."""
    errors = []
    for n in steps:
        end = final(march(form(problem), solver, times(n), x)).x
        errors.append(float((end - exact).norm(dim=-1).mean()))
    return fitted_order(steps, errors)


CLOSED = {
    "Ralston": Ralston(),
    "RK3": RK3(),
    "Heun's third order": Heun3(),
    "DPM-Solver-2": SingleStep((0.3,), LogSNR()),
    "DPM-Solver-2, taylor": SingleStep((0.5,), Exact(LogSNR())),
    "DPM-Solver-3": SingleStep((1 / 3, 2 / 3), Exact(LogSNR())),
    "DPM-Solver-3, other fractions": SingleStep((1 / 3, 0.5), Exact(LogSNR())),
    "DPM-Solver(3M)": DPMSolver3M(start=SingleStep()),
    "the same, exact": Adams(3, clock=Exact(LogSNR()), start=SingleStep()),
    "exponential TTM-3": ExponentialTaylor(3),
    "UniPC-1": Corrected(Taylor(1)),
    "UniPC-2": Corrected(Adams(2, clock=Pairs()), 2),
    "UniC-2 after TTM-2": Corrected(Taylor(2), 2, Own()),
    "UniC-2 after Heun": Corrected(Heun(), 2, Own()),
    "iPNDM_v": VariableIPNDM(),
}


@pytest.mark.parametrize("name", CLOSED)
def test_orders_where_the_solution_is_known(name):
    """One Gaussian N(m, s²) with α = 1: x - m grows with √(s² + γ²)."""
    schedule = EDM()
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5, schedule)
    x = 3.0 * start(problem)
    mean = torch.tensor([0.3, -0.2], dtype=F64)
    exact = mean + (x - mean) * math.sqrt((0.25 + 0.2**2) / (0.25 + 3.0**2))

    def times(n):
        return grids.edm(n, schedule, 3.0, 3.0, 0.2)

    value = slope(DDIM, CLOSED[name], problem, x, exact, times, (100, 200))
    assert value == pytest.approx(CLOSED[name].order, abs=0.2)


def test_the_published_3m_is_of_second_order_whatever_its_start():
    """A finding: 3 is claimed. That both show what they declare is tested above."""
    published, exact = DPMSolver3M(start=SingleStep()), Adams(3, clock=Exact(LogSNR()), start=SingleStep())
    assert (published.order, exact.order) == (2, 3)
    assert (published.local_order, exact.local_order) == (3, 4)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Adams(3, start=Adams(2)), 2),
        (Adams(3, start=Adams(2, start=Heun())), 3),
        (Adams(3, 2, start=Taylor(5)), 6),
        (Adams(2, 3, start=Taylor(5)), 6),
        (Adams(3, 2, start=Taylor(4)), 5),
        (Corrected(Adams(3, clock=Pairs()), 3), 3),
        (Corrected(Adams(2, clock=Pairs()), 2), 3),
        (Corrected(Adams(3, clock=LogSNR()), 3, LogSNR()), 2),
        (Corrected(Taylor(1), 3), 2),
        (SingleStep((1 / 3, 2 / 3), LogSNR()), 2),
        (RK3(LogSNR()), 2),
    ],
    ids=repr,
)
def test_declared_orders(solver, order, short):
    """What starts, clocks and predictors leave, on a short interval, where starts are felt."""
    assert solver.order == order

    def times(n):
        return grids.log_snr(n, short.problem.schedule, short.start, short.stop)

    steps = (20, 40) if order > 3 else (60, 120)
    value = slope(DDIM, solver, short.problem, short.x, short.end, times, steps)
    assert value == pytest.approx(order, abs=0.25)


def test_exact_clocks_do_not_raise_the_order_of_a_tableau():
    assert RK3(Exact(LogSNR())).order == 2
    assert isinstance(RK3(), RungeKutta)
    assert RK3().order == 3


@pytest.mark.parametrize("make", [lambda: Corrected(Taylor(1), 0), lambda: ExponentialTaylor(0)])
def test_mistakes(make):
    with pytest.raises(ValueError, match="or more"):
        make()


def test_a_corrector_needs_a_method_without_noise_and_the_states_of_nodes():
    for solver in (Ancestral(), Churn(Heun()), Maruyama(LangevinCorrector())):
        with pytest.raises(ValueError, match="take away the noise"):
            Corrected(solver)
    eq, y = DDIM(smooth_mixture()), torch.ones(1, 2, dtype=F64)
    with pytest.raises(ValueError, match="needs the state y"):
        Corrected(Taylor(1)).step(eq, y, 1.0, 0.5, (Node(2.0, eq.jet(y, 2.0)),))


def test_a_start_under_a_corrector_has_the_derivatives_it_asks_for():
    """Taylor(3) starts a method that asks for one derivative less; the corrector has that many only."""
    mixture = smooth_mixture()
    x, times = start(mixture), grids.power(1)
    solvers = Corrected(Adams(2, 2, start=Taylor(3)), 1, Own()), Taylor(3)
    a, b = (final(march(DDIM(mixture), solver, times, x)).x for solver in solvers)
    assert torch.equal(a, b)


def test_the_last_step_of_a_corrected_march_is_the_predictors():
    """At one step there is nothing to correct."""
    mixture = smooth_mixture()
    x, times = start(mixture), grids.power(1)
    a, b = (final(march(DDIM(mixture), solver, times, x)).x for solver in (Corrected(Taylor(1)), Taylor(1)))
    assert torch.equal(a, b)
