"""Stochastic samplers: as their papers have them, on one path; in law, on a Gaussian; along paths."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from analysis.methods import FAMILIES, GRIDS, METHODS
from problems import (
    DDIM,
    EDM,
    VE,
    VP,
    AnalyticFirst,
    Brownian,
    CosineVP,
    Gaussian,
    Localization,
    Preconditioned,
    ProbabilityFlow,
    ReverseSDE,
    smooth_mixture,
    toy_mixture,
)
from solvers import (
    Adams,
    AdaptiveSDE,
    Ancestral,
    Churn,
    DPMSolver3M,
    EulerMaruyama,
    Exact,
    Heun,
    LangevinCorrector,
    LogSNR,
    Maruyama,
    Midpoint,
    ReverseDiffusion,
    Taylor,
    final,
    grids,
    march,
)
from tests.conftest import fitted_order

F64 = torch.float64
SCHEDULES = {"VP": VP(), "CosineVP": CosineVP(), "VE": VE(), "EDM": EDM()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
ETAS = [0.0, 0.3, 1.0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def start(problem, n=6, seed=0):
    x = torch.randn(n, *problem.event_shape, dtype=F64, generator=rng(seed))
    return problem.schedule.prior_std * x


def path(schedule, x, t0, t1, seed=1):
    """The numbers of a step, on the path of ``seed``."""
    w0, w1 = (float(schedule.gamma(t)) ** -2 for t in (t0, t1))
    return Brownian(seed).over(x, w0, w1)


def assert_same(form, solver, times, x, published, tolerance=1e-10):
    """Every state of the march is that of the published sampler."""
    for state, expected in zip(march(form, solver, times, x), published, strict=True):
        assert (state.x - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def pairs(times):
    return itertools.pairwise(times.tolist())


def log_snr_grid(schedule, steps):
    return grids.log_snr(steps, schedule, schedule.start, schedule.stop)


# --- DDPM and DDIM(η)


def ddpm(score, times, x):
    """Ho et al. (2020), Eq. 7: the mean of q(x_s | x_t, x_0) with variance (1 - ᾱ_s)/(1 - ᾱ_t) β_t."""
    yield x
    for t, s in pairs(times):
        a, b = score.schedule.alpha(t) ** 2, score.schedule.alpha(s) ** 2
        alpha, beta = a / b, 1 - a / b
        x0 = (x - math.sqrt(1 - a) * score(x, t)) / math.sqrt(a)
        mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(alpha) * (1 - b) / (1 - a) * x
        x = mean + math.sqrt((1 - b) / (1 - a) * beta) * path(score.schedule, x, t, s)
        yield x


def ddim(score, times, x, eta, hat=False):
    """Song et al. (2021), Eqs. 12 and 16; σ̂ of App. D.3."""
    yield x
    for t, s in pairs(times):
        a, b = score.schedule.alpha(t) ** 2, score.schedule.alpha(s) ** 2
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        e = score(x, t)
        x0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        noise = math.sqrt(1 - a / b) if hat else sigma
        z = path(score.schedule, x, t, s)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * e + noise * z
        yield x


@pytest.mark.parametrize("make", [toy_mixture, smooth_mixture])
@pytest.mark.parametrize("schedule", [VP(), CosineVP()], ids=["VP", "CosineVP"])
@pytest.mark.parametrize("grid", [GRIDS["quadratic"], GRIDS["log-snr"]], ids=str)
def test_euler_maruyama_on_localization_is_ddpm(make, schedule, grid):
    problem = make(schedule)
    times, x = grid.times(9, schedule), start(problem)
    published = list(ddpm(problem, times, x))
    assert_same(Localization(problem, Brownian(1)), EulerMaruyama(), times, x, published)
    assert_same(DDIM(problem, Brownian(1)), Ancestral(), times, x, published)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("schedule", [VP(), CosineVP()], ids=["VP", "CosineVP"])
def test_ancestral_of_ddim_is_ddim_eta(eta, schedule):
    problem = toy_mixture(schedule)
    times, x = grids.power(9, 2.0, schedule.start, schedule.stop), start(problem)
    form = DDIM(problem, Brownian(1))
    assert_same(form, Ancestral(eta=eta), times, x, ddim(problem, times, x, eta))
    assert_same(form, ReverseDiffusion(eta=eta), times, x, ddim(problem, times, x, eta, hat=eta > 0))


def test_ddim_without_noise_is_ddim():
    problem, times = toy_mixture(), grids.power(9)
    ends = [final(march(DDIM(problem), s, times, start(problem))).x for s in (Ancestral(eta=0.0), Taylor(1))]
    assert torch.equal(*ends)
    assert not Ancestral(eta=0.0).random
    assert Ancestral(Midpoint(), 0.0).order == 2


@every_schedule
def test_the_ancestral_step_is_the_same_on_every_schedule_and_form(schedule):
    """x̄ ← (γ₁/γ₀)² x̄ + (1 - (γ₁/γ₀)²) x̂₀ + γ₁ √(1 - (γ₁/γ₀)²) z."""
    problem = smooth_mixture(schedule)
    times, x = log_snr_grid(schedule, 7), start(problem)

    def published(x):
        yield x
        for t, s in pairs(times):
            g0, g1 = schedule.gamma(t), schedule.gamma(s)
            xbar = x / schedule.alpha(t)
            rest = 1 - (g1 / g0) ** 2
            x0 = xbar - g0 * problem(x, t)
            z = path(schedule, x, t, s)
            x = schedule.alpha(s) * ((1 - rest) * xbar + rest * x0 + g1 * math.sqrt(rest) * z)
            yield x

    noise = Brownian(1)
    expected = list(published(x))
    assert_same(Localization(problem, noise), EulerMaruyama(), times, x, expected)
    # Euler's method on these two forms is DDIM, so the step down is the same.
    assert_same(DDIM(problem, noise), Ancestral(), times, x, expected)
    assert_same(Preconditioned(problem, 0.0, noise), Ancestral(), times, x, expected)


def test_dpm2_ancestral_is_that_of_k_diffusion():
    schedule = EDM()
    problem = smooth_mixture(schedule)
    times, x = grids.edm(8, schedule, 7.0, 80.0, 0.002), start(problem)

    def k_diffusion(x):
        yield x
        for s0, s1 in pairs(times):
            up = min(s1, math.sqrt(s1**2 * (s0**2 - s1**2) / s0**2))
            down = math.sqrt(s1**2 - up**2)
            d = (x - (x - s0 * problem(x, s0))) / s0
            middle = math.exp(0.5 * (math.log(s0) + math.log(down)))
            x2 = x + d * (middle - s0)
            x = x + problem(x2, middle) * (down - s0) + up * path(schedule, x, s0, s1)
            yield x

    assert_same(DDIM(problem, Brownian(1)), METHODS["dpm2-ancestral"].solver, times, x, k_diffusion(x))


# --- SDE-DPM-Solver++


def sde_dpm_2m(score, times, x):
    """Lu et al. (2022b), Eq. 21 as in their code: 2M, started by one step of the first order."""
    yield x
    schedule, before = score.schedule, None
    for t, s in pairs(times):
        lam, lam_s = -math.log(schedule.gamma(t)), -math.log(schedule.gamma(s))
        h = lam_s - lam
        d0 = (x - schedule.sigma(t) * score(x, t)) / schedule.alpha(t)
        d1 = 0.0 if before is None else (d0 - before[1]) * h / (lam - before[0])
        before = lam, d0
        gain = schedule.alpha(s) * -math.expm1(-2 * h)
        z = path(schedule, x, t, s)
        x = schedule.sigma(s) / schedule.sigma(t) * math.exp(-h) * x + gain * d0 + 0.5 * gain * d1
        x = x + schedule.sigma(s) * math.sqrt(-math.expm1(-2 * h)) * z
        yield x


def sde_3m(score, times, x, share):
    """k-diffusion's dpmpp_3m_sde with η = 1, its quadratic term times ``share``."""
    yield x
    schedule, nodes = score.schedule, []
    for t, s in pairs(times):
        lam = -math.log(schedule.gamma(t))
        h = -math.log(schedule.gamma(s)) - lam
        d = (x - schedule.sigma(t) * score(x, t)) / schedule.alpha(t)
        nodes = [(lam, d), *nodes][:3]
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        step = -math.expm1(-2 * h) * d
        if len(nodes) == 3:
            (l0, e0), (l1, e1), (l2, e2) = nodes
            r0, r1 = (l0 - l1) / h, (l1 - l2) / h
            first, second = (e0 - e1) / r0, (e1 - e2) / r1
            step = step + phi_2 * (first + (first - second) * r0 / (r0 + r1))
            step = step - share * phi_3 * (first - second) / (r0 + r1)
        elif len(nodes) == 2:
            (l0, e0), (l1, e1) = nodes
            step = step + phi_2 * (e0 - e1) * h / (l0 - l1)
        x = schedule.sigma(s) / schedule.sigma(t) * math.exp(-h) * x + schedule.alpha(s) * step
        x = x + schedule.sigma(s) * math.sqrt(-math.expm1(-2 * h)) * path(schedule, x, t, s)
        yield x


@pytest.mark.parametrize("make", [toy_mixture, smooth_mixture])
@pytest.mark.parametrize("grid", [GRIDS["linear"], GRIDS["log-snr"]], ids=str)
def test_sde_dpm_solver(make, grid):
    problem = make()
    times, x = grid.times(10, problem.schedule), start(problem)
    form, clock = Localization(problem, Brownian(1)), Exact(LogSNR())
    assert_same(form, METHODS["sde-dpm-solver++2m"].solver, times, x, sde_dpm_2m(problem, times, x))
    published = Maruyama(DPMSolver3M(start=Adams(2, clock=clock)))
    assert_same(form, published, times, x, sde_3m(problem, times, x, 1.0))
    meant = METHODS["sde-dpm-solver++3m-exact"].solver
    assert meant == Maruyama(Adams(3, clock=clock))
    # ∫ τ² over the step with the weight of its end is -2 φ₃: the published rule takes half of it.
    assert_same(form, meant, times, x, sde_3m(problem, times, x, 2.0))


def test_without_noise_a_maruyama_method_is_its_inner_method():
    problem, times = toy_mixture(), grids.power(8)
    inner = Adams(2, clock=LogSNR())
    ends = [
        final(march(Preconditioned(problem), s, times, start(problem))).x for s in (Maruyama(inner), inner)
    ]
    assert torch.equal(*ends)


# --- EDM and predictor-corrector


def edm_stochastic(score, times, x, churn, low, high, noise, seed=1):
    """Karras et al. (2022), Alg. 2, with t = σ and s = 1."""
    yield x
    for t, t_next in pairs(times):
        gain = churn if low <= t <= high else 0.0
        hat = t * (1 + gain)
        z = noise * Brownian(seed).at(x, t)
        x_hat = x + math.sqrt(hat**2 - t**2) * z
        d = score(x_hat, hat)
        euler = x_hat + (t_next - hat) * d
        x = x_hat + (t_next - hat) * 0.5 * (d + score(euler, t_next))
        yield x


def test_churn_is_alg_2_of_edm():
    schedule = EDM()
    problem = smooth_mixture(schedule)
    times, x = grids.edm(18, schedule, 7.0, 80.0, 0.002), start(problem)
    solver, form = METHODS["edm-churn"].solver, DDIM(problem, Brownian(1))
    published = edm_stochastic(problem, times, x, math.sqrt(2) - 1, 0.05, 50.0, 1.003)
    assert_same(form, solver, times, x, published)
    calm = Churn(Heun(), 0.0)
    assert torch.equal(*(final(march(form, s, times, x)).x for s in (calm, Heun())))
    assert (calm.order, calm.random, solver.order, solver.random) == (2, False, 0, True)


@every_schedule
def test_churn_stays_on_the_schedule(schedule):
    """Nothing is evaluated beyond its start, whatever S_max is."""
    problem, seen = smooth_mixture(schedule), []

    class Watched(DDIM):
        def jet(self, y, s, order=1):
            seen.append(s)
            return super().jet(y, s, order)

    solver = Churn(Heun(), high=math.inf)
    final(march(Watched(problem, Brownian(0)), solver, log_snr_grid(schedule, 12), start(problem)))
    assert max(seen) <= schedule.gamma(schedule.start) * (1 + 1e-12)
    assert len(seen) == 24


def pc_sampler(score, times, x, corrections, snr, seed=1):
    """The authors' code for VESDE: corrections with norms of the whole batch, then reverse diffusion."""
    yield x
    for t, s in pairs(times):
        g0, g1 = score.schedule.gamma(t), score.schedule.gamma(s)
        for i in range(corrections):
            grad, noise = -score(x, t) / g0, Brownian(seed).at(x, g0, i + 2)
            norms = [v.reshape(len(v), -1).norm(dim=-1).mean() for v in (noise, grad)]
            step = (snr * norms[0] / norms[1]) ** 2 * 2
            x = x + step * grad + torch.sqrt(step * 2) * noise
        g = math.sqrt(g0**2 - g1**2)
        x = x + g**2 * (-score(x, t) / g0) + g * path(score.schedule, x, t, s)
        yield x


@pytest.mark.parametrize("corrections", [1, 2])
def test_the_predictor_corrector_of_vesde(corrections):
    schedule = VE()
    problem = toy_mixture(schedule)
    times, x = grids.power(10, 1.0, schedule.start, schedule.stop), start(problem)
    solver = LangevinCorrector(steps=corrections)
    published = pc_sampler(problem, times, x, corrections, 0.16)
    # γ = σ goes to t and back before it says which numbers are drawn, so the place is that of the form.
    before = problem.spent.nfe
    assert_same(DDIM(problem, Brownian(1)), solver, times, x, published, 1e-9)
    # The published sampler was evaluated on the same problem.
    assert problem.spent.nfe - before == 2 * 10 * (corrections + 1)


@pytest.mark.parametrize("make", [DDIM, lambda m, n: Preconditioned(m, 0.0, n), ProbabilityFlow])
def test_corrections_do_not_depend_on_the_form(make):
    problem = smooth_mixture()

    class Still(Taylor):
        def step(self, eq, y, s0, s1, past):
            return y, None

    class SameNumbers(Brownian):
        def at(self, like, place, stream=1):
            return super().at(like, 1.0, stream)

    x, t = problem.sample(50, 0.3, rng()), 0.3
    ends = []
    for form in (make(problem, SameNumbers(0)), DDIM(problem, SameNumbers(0))):
        s = form.s(t)
        y, _ = LangevinCorrector(Still(), 3).step(form, form.enter(x, t), s, s, ())
        ends.append(form.leave(y, t))
    assert torch.allclose(*ends, rtol=1e-10, atol=1e-11)
    assert (ends[0] - x).abs().max() > 0.1


class Remembered(Brownian):
    """Brownian paths of whole batches that keep what was drawn, for methods on one grid."""

    def __init__(self, seed):
        super().__init__(seed)
        self.known = {}

    def over(self, like, a, b):
        key = like.shape, a, b
        if key not in self.known:
            self.known[key] = super().over(like, a, b)
        return self.known[key]


# --- in law, on a Gaussian

MEAN, STD = torch.tensor([0.3, -0.2], dtype=F64), 0.5


def affine(method, steps, width=64, mean=0.0, std=1.0):
    """Return mean and variance to which a method brings N(mean, std²) on the Gaussian N(0.3, 0.5²), exactly.

    There every step is affine in the state and in its numbers, so one run from the mean without noise and
    one for each source of variance, all in one batch, say everything.
    """
    problem = Gaussian(torch.tensor([0.3], dtype=F64), STD)

    class Probe(Brownian):
        """One number is 1 in each row, all others are 0."""

        calls = 0

        def numbers(self, like):
            z = torch.zeros_like(like)
            Probe.calls += 1
            if Probe.calls + 1 < len(like):
                z[Probe.calls + 1] = 1.0
            return z

        def over(self, like, a, b):
            return self.numbers(like)

        def at(self, like, place, stream=1):
            return self.numbers(like)

    x = torch.full((width, 1), mean, dtype=F64)
    x[1] += std
    ends = method.sample(problem, steps, x, Probe(0))[:, 0]
    assert Probe.calls + 2 <= width
    return float(ends[0]), float((ends[1:] - ends[0]).square().sum())


@functools.cache
def crowd():
    """Return 100,000 latents in one dimension, and their paths."""
    return start(Gaussian(torch.tensor([0.3], dtype=F64), STD), 100_000), Remembered(2)


AFFINE = [n for n in FAMILIES["stochastic"] if n not in ("adaptive-sde", "vesde-pc") and "cld" not in n]


@pytest.mark.parametrize("name", AFFINE)
def test_moments_on_a_gaussian_are_those_of_the_recursion(name):
    """100,000 samples; their distribution is the normal one with the moments of the method's affine map."""
    n, steps, method = 100_000, 8, METHODS[name]
    problem = Gaussian(torch.tensor([0.3], dtype=F64), STD)
    mean, variance = affine(method, steps)
    x = method.sample(problem, steps, *crowd())[:, 0]
    assert abs(float(x.mean()) - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4.5 * variance * math.sqrt(2 / n)
    assert stats.kstest(((x - mean) / math.sqrt(variance)).numpy(), "norm").pvalue > 1e-4


def weak_errors(name, steps):
    """Errors of mean and variance at the end, exactly, from p_1 to p_{t_cut} on N(0.3, 0.5²)."""
    schedule = VP()
    first = schedule.alpha(1.0) * 0.3, math.sqrt((schedule.alpha(1.0) * STD) ** 2 + schedule.sigma(1.0) ** 2)
    errors = []
    for n in steps:
        mean, variance = affine(METHODS[name], n, 2 * n + 3, *first)
        alpha, gamma = schedule.alpha(1e-3), schedule.gamma(1e-3)
        errors.append((abs(mean / alpha - 0.3), abs(variance / alpha**2 - STD**2 - gamma**2)))
    return np.array(errors).T


# Where the drift is linear, what 2M misses of the noise of one step it has from the step before.
WEAK = {
    "euler-maruyama": 1,
    "ddpm": 1,
    "ddpm-beta": 1,
    "ddim-eta0.5": 1,
    "sde-dpm-solver++2m": 2,
    "dpm2-ancestral": 2,
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_orders_on_a_gaussian(name):
    steps = [100, 200, 400]
    for errors in weak_errors(name, steps):
        if errors.max() < 1e-14:  # the mean of most methods has no error where the drift is linear
            continue
        assert fitted_order(steps, errors) == pytest.approx(WEAK[name], abs=0.1)


# --- along paths


def exact_along_path(problem, noise, x, t0, t1, steps):
    """The solution of dy = x̂₀ dw + dW on N(μ, s²) along a path, from W on a fine partition.

    With c = 1/s², M = (y + cμ)/(w + c) obeys dM = dW/(w + c); the integral, by parts, is
    W/(w + c) + ∫ W/(w + c)² dw, of which the last is taken by the trapezoidal rule.
    """
    form = Localization(problem, noise)
    c = 1 / problem.std**2
    w = torch.logspace(math.log10(form.s(t0)), math.log10(form.s(t1)), steps + 1, dtype=F64).tolist()
    total, brownian = torch.zeros_like(x), torch.zeros_like(x)
    for a, b in itertools.pairwise(w):
        after = brownian + math.sqrt(b - a) * noise.over(x, a, b)
        total = total + 0.5 * (brownian + after) * (1 / (a + c) - 1 / (b + c))
        brownian = after
    m = (form.enter(x, t0) + c * problem.mean) / (w[0] + c) + brownian / (w[-1] + c) + total
    return form.leave((w[-1] + c) * m - c * problem.mean, t1)


STRONG = {
    "euler-maruyama": 1,
    "ddpm": 1,
    "ddpm-beta": 1,
    "sde-dpm-solver++2m": 1,
    "sde-dpm-solver++3m": 1,
    "sde-dpm-solver++3m-exact": 1,
}


@pytest.fixture(scope="module")
def on_paths():
    """A Gaussian problem, the noise of 250 samples, their beginning and their end."""
    problem, x = Gaussian(MEAN, STD), start(Gaussian(MEAN, STD), 250)
    return problem, Remembered(3), x, exact_along_path(problem, Brownian(3), x, 1.0, 1e-3, 1000)


@pytest.mark.parametrize("name", STRONG)
def test_strong_order_on_a_gaussian(name, on_paths):
    """Root mean square distance from the exact solution on the same path: order 1, as noise is additive."""
    problem, noise, x, exact = on_paths
    method, steps, errors = METHODS[name], [32, 64, 128], []
    form = method.form.make(problem, noise)
    for n in steps:
        end = final(march(form, method.solver, log_snr_grid(problem.schedule, n), x)).x
        errors.append(float((end - exact).square().mean().sqrt()))
    assert fitted_order(steps, errors) == pytest.approx(STRONG[name], abs=0.15)


# --- the adaptive method


class Smooth(Brownian):
    """Numbers that depend smoothly on the interval, so that rounding does not decide where steps end."""

    def over(self, like, a, b):
        rows = np.arange(len(like)) if self._rows is None else self._rows
        log_a, log_b = (torch.as_tensor(w, dtype=F64).log() for w in (a, b))
        phase = torch.tensor(rows, dtype=F64)[:, None] + torch.arange(like.shape[1]) * 2.0
        return torch.sin(phase + 3.0 * log_a + 5.0 * log_b)


def test_the_adaptive_method_is_alg_1():
    """Samples one by one, as the paper has the algorithm, for a dozen attempts.

    Each step is chosen by a difference of two increments, which loses about a digit every other time.
    """
    problem, solver = smooth_mixture(), AdaptiveSDE(0.05, 0.01)
    x = start(problem, 3)
    schedule, noise = problem.schedule, Smooth(4)
    end = final(march(ReverseSDE(problem, noise), solver, [1.0, 0.9], x)).x
    attempts = []
    for i in range(3):
        state, before, t, h, count = x[i : i + 1], x[i : i + 1], 1.0, 0.01 * 0.1, 0
        own = noise.part(torch.tensor([i]))
        while t > 0.9:
            h = min(h, t - 0.9)
            after = 0.9 if t - h <= 0.9 * (1 + 1e-9) else t - h
            w0, w1 = (float(schedule.gamma(place)) ** -2 for place in (t, after))
            z = own.over(state, w0, w1)

            def increment(y, s, t=t, after=after, z=z):
                beta = 0.1 + 19.9 * s
                drift = 0.5 * beta * (y - 2 * problem(y, s) / schedule.sigma(s))
                return (t - after) * drift + math.sqrt(beta * (t - after)) * z

            first = state + increment(state, t)
            second = state + increment(first, after)
            mean = 0.5 * (first + second)
            scale = torch.maximum(first.abs(), before.abs()).mul(0.05).clamp(min=0.01)
            error = float(((first - mean) / scale).norm()) / math.sqrt(2)
            if error <= 1:
                state, before, t = mean, first, after
            h = 0.9 * h * error**-0.9
            count += 1
        assert torch.allclose(end[i], state[0], rtol=0, atol=1e-6)
        attempts.append(count)
    assert len(set(attempts)) > 1
    assert problem.spent.nfe == pytest.approx(2 * np.mean(attempts) + 2 * sum(attempts))


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=["VP", "VE"])
def test_the_adaptive_method_gets_closer_with_its_tolerance(schedule):
    """To the solution on the same path, which 400 steps of another method give to a tenth of the errors."""
    problem, noise = smooth_mixture(schedule), Brownian(5)
    x = start(problem, 40)
    solver = METHODS["sde-dpm-solver++2m"].solver
    exact = final(march(Localization(problem, noise), solver, log_snr_grid(schedule, 400), x)).x
    errors, bills = [], []
    for tolerance in (0.5, 0.05):
        before = problem.spent.nfe
        solver = AdaptiveSDE(tolerance, tolerance / 10)
        ends = [schedule.start, schedule.stop]
        end = final(march(ReverseSDE(problem, noise), solver, ends, x)).x
        errors.append(float((end - exact).square().mean().sqrt()))
        bills.append(problem.spent.nfe - before)
    assert errors[1] < 0.4 * errors[0]
    assert bills[1] > 1.5 * bills[0]


def test_the_adaptive_method_belongs_to_the_sample():
    """The way of a sample does not depend on its batch; an empty batch is none of its business."""
    problem, solver, noise = smooth_mixture(), AdaptiveSDE(0.2), Brownian(6)
    x = start(problem, 5)
    whole = final(march(ReverseSDE(problem, noise), solver, [1.0, 0.1], x)).x
    rows = torch.tensor([4, 1])
    form = ReverseSDE(problem, noise.part(rows))
    assert torch.allclose(final(march(form, solver, [1.0, 0.1], x[rows])).x, whole[rows], rtol=1e-12)
    assert final(march(ReverseSDE(problem, noise), solver, [1.0, 0.1], x[:0])).x.shape == (0, 2)
    single = final(march(ReverseSDE(problem, noise), solver, [1.0, 0.1], x.float())).x
    assert single.dtype == torch.float32


def test_a_state_that_is_no_number_is_an_error():
    problem = smooth_mixture()
    form = ReverseSDE(problem, Brownian(0))
    with pytest.raises(ArithmeticError, match="shrink to nothing"):
        final(march(form, AdaptiveSDE(), [1.0, 0.1], torch.full((2, 2), math.nan, dtype=F64)))


# --- all of them


def test_what_is_made_of_a_random_method_is_random():
    churn = Churn(Heun())
    for solver in (Maruyama(churn), Ancestral(churn, 0.0), Churn(churn, 0.0)):
        assert solver.random
        assert solver.order == 0
    assert not Maruyama(Heun()).random


@pytest.mark.parametrize("name", [n for n in FAMILIES["stochastic"] if "cld" not in n])
def test_noise_belongs_to_seed_and_sample(name):
    """The same ends from the same seed, others from another, in the dtype of the states; and they differ."""
    problem, method = smooth_mixture(), METHODS[name]
    x = start(problem, 5)
    steps = method.steps(problem, 10)
    ends = [method.sample(problem, steps, x, Brownian(seed)) for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert (ends[0] - ends[2]).abs().min() > 0
    assert method.random
    assert method.sample(problem, steps, x.float(), Brownian(0)).dtype == torch.float32


def test_bills():
    """Evaluations of ten steps: one each; two with Heun, a midpoint or a correction; one less with AFS."""
    expected = {"ddpm": 10, "sde-dpm-solver++3m": 10, "ddpm-beta": 10, "edm-churn": 20, "vesde-pc": 20}
    for name, nfe in expected.items():
        assert METHODS[name].bill(toy_mixture(), 10).nfe == nfe
    first = AnalyticFirst(toy_mixture(), 1.0)
    METHODS["vesde-pc"].sample(first, 10, torch.zeros(3, 2, dtype=F64), Brownian(0))
    assert first.spent.nfe == 18  # the correction at the start is analytical too


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ancestral(eta=1.5), "eta"),
        (lambda: Ancestral(eta=-0.1), "eta"),
        (lambda: Churn(Heun(), -0.1), "churn"),
        (lambda: LangevinCorrector(steps=0), "steps >= 1"),
        (lambda: LangevinCorrector(snr=0.0), "snr > 0"),
        (lambda: AdaptiveSDE(rtol=0.0), "positive"),
    ],
)
def test_parameters_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
