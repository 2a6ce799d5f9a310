"""Published samplers, typed from their papers, and what they are in this suite: the same to rounding."""

import itertools
import math

import numpy as np
import pytest
import torch

from problems import DDIM, EDM, VP, Preconditioned, digits_mixture, smooth_mixture, toy_mixture
from solvers import RK4, Adams, Exact, Heun, Index, LogSNR, Midpoint, Taylor, Time, final, grids, march

F64 = torch.float64
VP_ = VP()
GRIDS = {
    "linear": grids.power(12, 1.0),
    "quadratic": grids.power(12),
    "log-SNR": grids.log_snr(12, VP_),
    "EDM": grids.edm(12, VP_),
}
every_grid = pytest.mark.parametrize("times", GRIDS.values(), ids=GRIDS)
PROBLEMS = {"toy": toy_mixture, "smooth": smooth_mixture, "digits": lambda: digits_mixture(0.1)}


def start(mixture, n=6, seed=0):
    return torch.randn(n, *mixture.event_shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def assert_same(eq, solver, times, x, published, tolerance=1e-12):
    """Every state of the march is that of the published sampler."""
    for state, expected in zip(march(eq, solver, times, x), published, strict=True):
        assert (state.x - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def pairs(times):
    return itertools.pairwise(times.tolist())


# --- DDIM and PNDM (Song et al. 2021; Liu et al. 2022, Eq. 11)


def abar(t):
    """ᾱ = α²."""
    return VP_.alpha(t) ** 2


def transfer(x, t, s, e):
    """PNDM's φ(x, ε, t, s): from time t to s with a given ε, in their own form."""
    a, b = abar(t), abar(s)
    root = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
    return math.sqrt(b / a) * x - (b - a) / root * e


def ddim(score, times, x):
    yield x
    for t, s in pairs(times):
        a, b = abar(t), abar(s)
        e = score(x, t)
        denoised = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        x = math.sqrt(b) * denoised + math.sqrt(1 - b) * e
        yield x


def s_pndm(score, times, x):
    """PNDM's s-PNDM: an improved Euler step, whose second slope is discarded; then (3e - e')/2."""
    yield x
    history = []
    for t, s in pairs(times):
        e = score(x, t)
        slope = (3 * e - history[-1]) / 2 if history else (e + score(transfer(x, t, s, e), s)) / 2
        history.append(e)
        x = transfer(x, t, s, slope)
        yield x


def f_pndm(score, times, x):
    """PNDM's f-PNDM: three pseudo Runge-Kutta steps, midpoints in t; then Adams-Bashforth weights."""
    yield x
    history = []
    for t, s in pairs(times):
        e1 = score(x, t)
        if len(history) < 3:
            middle = (t + s) / 2
            e2 = score(transfer(x, t, middle, e1), middle)
            e3 = score(transfer(x, t, middle, e2), middle)
            e4 = score(transfer(x, t, s, e3), s)
            slope = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            slope = (55 * e1 - 59 * history[-1] + 37 * history[-2] - 9 * history[-3]) / 24
        history.append(e1)
        x = transfer(x, t, s, slope)
        yield x


def ipndm(score, times, x):
    """iPNDM: Adams-Bashforth weights of growing order from the first step on."""
    rows = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    yield x
    history = []
    for t, s in pairs(times):
        history = [score(x, t), *history][:4]
        x = transfer(x, t, s, sum(w * e for w, e in zip(rows[len(history) - 1], history, strict=True)))
        yield x


@every_grid
@pytest.mark.parametrize("problem", PROBLEMS)
def test_ddim_is_taylor_1(times, problem):
    mixture = PROBLEMS[problem]()
    x = start(mixture)
    assert_same(DDIM(mixture), Taylor(1), times, x, ddim(mixture, times, x))


PNDM = {
    "s-PNDM": (s_pndm, Adams(2, clock=Index(), start=Heun())),
    "f-PNDM": (f_pndm, Adams(4, clock=Index(), start=RK4(Time()))),
    "iPNDM": (ipndm, Adams(4, clock=Index())),
}


@every_grid
@pytest.mark.parametrize("name", PNDM)
@pytest.mark.parametrize("problem", ["toy", "smooth"])
def test_pndm(times, name, problem):
    """On any striding."""
    published, solver = PNDM[name]
    mixture = PROBLEMS[problem]()
    x = start(mixture)
    assert_same(DDIM(mixture), solver, times, x, published(mixture, times, x))


# --- GENIE (Dockhorn et al. 2022)


@every_grid
def test_genie_is_taylor_2(times):
    """Eq. 9: x̄ + Δγ ε + ½ Δγ² dε/dγ."""
    mixture = toy_mixture()
    x = start(mixture)

    def genie(x):
        yield x
        for t, s in pairs(times):
            eps, slope = mixture.jet(x, t, 2)
            step = VP_.gamma(s) - VP_.gamma(t)
            x = VP_.alpha(s) * (x / VP_.alpha(t) + step * eps + 0.5 * step**2 * slope)
            yield x

    assert_same(DDIM(mixture), Taylor(2), times, x, genie(x), 1e-10)


@every_grid
@pytest.mark.parametrize("p", [1, 2, 5])
def test_adams_with_one_node_is_taylor(times, p):
    mixture = smooth_mixture()
    x = start(mixture)
    for a, b in zip(
        march(DDIM(mixture), Adams(1, p), times, x), march(DDIM(mixture), Taylor(p), times, x), strict=True
    ):
        assert (a.x - b.x).norm() <= 1e-10 * b.x.norm()


# --- DPM-Solver (Lu et al. 2022) and DPM-Solver++ (Lu et al. 2022)


def half_log_snr(t):
    return math.log(VP_.alpha(t) / VP_.sigma(t))


def dpm_solver_2(score, times, x):
    """Algorithm 1 with r₁ = 1/2."""
    yield x
    for t, s in pairs(times):
        h = half_log_snr(s) - half_log_snr(t)
        middle = VP_.time(math.exp(-(half_log_snr(t) + h / 2)))
        a = VP_.alpha(t)
        u = VP_.alpha(middle) / a * x - VP_.sigma(middle) * math.expm1(h / 2) * score(x, t)
        x = VP_.alpha(s) / a * x - VP_.sigma(s) * math.expm1(h) * score(u, middle)
        yield x


def dpm_solver_pp_2m(score, times, x):
    """Algorithm 2: D = (1 + 1/(2r)) x₀ - 1/(2r) x₀', x ← (σ_s/σ_t) x - α_s (e^{-h} - 1) D."""
    yield x
    previous = previous_h = None
    for t, s in pairs(times):
        h = half_log_snr(s) - half_log_snr(t)
        denoised = (x - VP_.sigma(t) * score(x, t)) / VP_.alpha(t)
        d = denoised
        if previous is not None:
            r = previous_h / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
        x = VP_.sigma(s) / VP_.sigma(t) * x - VP_.alpha(s) * math.expm1(-h) * d
        previous, previous_h = denoised, h
        yield x


@every_grid
def test_dpm_solver_2_is_midpoint_on_the_log_snr(times):
    mixture = toy_mixture()
    x = start(mixture)
    assert_same(DDIM(mixture), Midpoint(LogSNR()), times, x, dpm_solver_2(mixture, times, x), 1e-11)


@every_grid
def test_dpm_solver_pp_2m_is_adams_on_the_data_form(times):
    mixture = toy_mixture()
    x = start(mixture)
    solver = Adams(2, clock=LogSNR())
    assert_same(Preconditioned(mixture), solver, times, x, dpm_solver_pp_2m(mixture, times, x), 1e-11)


# --- EDM (Karras et al. 2022) and k-diffusion, in their σ = γ


def edm_heun(score, sigmas, x):
    """Algorithm 1 without the last step to σ = 0: d = (x - D)/σ, trapezoidal correction."""

    def denoiser(x, sigma):
        return x - sigma * score(x, sigma)

    yield x
    for a, b in pairs(sigmas):
        d = (x - denoiser(x, a)) / a
        ahead = x + (b - a) * d
        x = x + (b - a) * 0.5 * (d + (ahead - denoiser(ahead, b)) / b)
        yield x


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_edm_heun(rho):
    schedule = EDM()
    mixture = toy_mixture(schedule)
    sigmas = grids.edm(17, schedule, rho, schedule.start, schedule.stop)
    x = 80.0 * start(mixture)
    assert_same(DDIM(mixture), Heun(), sigmas, x, edm_heun(mixture, sigmas, x))


def test_edm_heun_on_the_papers_schedule():
    """The same sampler in x̄ on the noise levels γ of the VP schedule."""
    vp, edm = toy_mixture(), toy_mixture(EDM())
    times = grids.edm(17, VP_)
    gammas = torch.tensor([VP_.gamma(t) for t in times.tolist()], dtype=F64)
    x = start(vp)
    published = edm_heun(edm, gammas, x / VP_.alpha(1.0))
    expected = (VP_.alpha(t) * xbar for t, xbar in zip(times.tolist(), published, strict=True))
    assert_same(DDIM(vp), Heun(), times, x, expected, 1e-11)


def test_lms_is_adams_4():
    """k-diffusion's LMS of order 4: the Lagrange basis in σ, multiplied out and integrated term by term."""
    schedule = EDM()
    mixture = toy_mixture(schedule)
    sigmas = grids.edm(14, schedule, start=80.0, stop=0.02)
    x = 80.0 * start(mixture)

    def coefficient(nodes, j, a, b):
        others = [n for m, n in enumerate(nodes) if m != j]
        basis = np.poly1d(others, r=True) / math.prod(nodes[j] - n for n in others)
        integral = basis.integ()
        return float(integral(b) - integral(a))

    def lms(x):
        yield x
        slopes, nodes = [], []
        for a, b in pairs(sigmas):
            slopes, nodes = [mixture(x, a), *slopes][:4], [a, *nodes][:4]
            x = x + sum(coefficient(nodes, j, a, b) * d for j, d in enumerate(slopes))
            yield x

    assert_same(DDIM(mixture), Adams(4), sigmas, x, lms(x), 1e-9)


def test_uniform_adams_bashforth():
    """On equal steps of s the own clock and the index clock are the same method."""
    mixture = smooth_mixture(EDM())
    times = torch.linspace(40.0, 2.0, 20, dtype=F64)
    x = 40.0 * start(mixture)
    for k in (2, 3, 4):
        a = final(march(DDIM(mixture), Adams(k), times, x)).x
        b = final(march(DDIM(mixture), Adams(k, clock=Index()), times, x)).x
        assert (a - b).norm() <= 1e-12 * a.norm()


# --- DEIS (Zhang & Chen 2023)


@every_grid
def test_two_node_tab_deis(times):
    """tAB-DEIS 1: ε extrapolated linearly in t, against dγ; by parts ∫ t dγ is t γ minus ∫ γ dt."""
    mixture = toy_mixture()
    x = start(mixture)
    nodes, weights = np.polynomial.legendre.leggauss(100)

    def integral_of_t(a, b):
        middle, half = 0.5 * (a + b), 0.5 * (b - a)
        values = VP_.gamma(torch.as_tensor(middle + half * nodes)).numpy()
        return b * VP_.gamma(b) - a * VP_.gamma(a) - half * float(weights @ values)

    def deis(x):
        yield x
        before = None
        for t, s in pairs(times):
            eps = mixture(x, t)
            step = VP_.gamma(s) - VP_.gamma(t)
            slope = 0.0 if before is None else (eps - before[1]) / (t - before[0])
            xbar = x / VP_.alpha(t) + step * eps + (integral_of_t(t, s) - t * step) * slope
            before = t, eps
            x = VP_.alpha(s) * xbar
            yield x

    assert_same(DDIM(mixture), Adams(2, clock=Exact(Time())), times, x, deis(x), 1e-10)
