import math

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf

from problems import (
    DDIM,
    EDM,
    VE,
    VP,
    CosineVP,
    Gaussian,
    Localization,
    Mixture,
    Preconditioned,
    ProbabilityFlow,
    ReverseSDE,
    denoise,
    smooth_mixture,
)
from solvers import EulerMaruyama, Taylor, final, grids, march
from tests.conftest import distance, relative_errors

F64 = torch.float64
FLOWS = {
    "DDIM": DDIM,
    "probability flow": ProbabilityFlow,
    "data": Preconditioned,
    "component std": lambda m: Preconditioned(m, 0.4),
    "data std": lambda m: Preconditioned(m, m.data_std),
}
FORMS = {**FLOWS, "reverse SDE": ReverseSDE}
SCHEDULES = {"VP": VP(), "CosineVP": CosineVP(), "VE": VE(), "EDM": EDM()}
every_flow = pytest.mark.parametrize("name", FLOWS)
every_form = pytest.mark.parametrize("name", FORMS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# --- coordinates


@every_form
@every_schedule
def test_coordinates_go_there_and_back(name, schedule):
    form = FORMS[name](smooth_mixture(schedule))
    x = torch.randn(5, 2, dtype=F64, generator=rng())
    for t in np.geomspace(schedule.stop, schedule.start, 7).tolist():
        assert torch.allclose(form.leave(form.enter(x, t), t), x, rtol=1e-14)
        # The larger s, the fewer digits of a small γ are left in s² + γ².
        condition = 1.0 + (form.std / schedule.gamma(t)) ** 2 if hasattr(form, "std") else 1.0
        rate = schedule.gamma(t) / (t * schedule.gamma_rate(t))
        assert form.t(form.s(t)) == pytest.approx(t, rel=1e-14 * (1.0 + condition * rate))


@every_schedule
def test_the_place_of_the_sde_form_is_that_of_its_time(schedule):
    """w = 1/γ², there and back in both orders, for floats and for tensors."""
    form = Localization(smooth_mixture(schedule))
    times = torch.linspace(schedule.stop, schedule.start, 9, dtype=F64)
    places = form.s(times)
    assert torch.allclose(places, schedule.gamma(times) ** -2, rtol=1e-13)
    assert torch.allclose(form.s(form.t(places)), places, rtol=1e-9)
    assert torch.allclose(form.t(places), times, rtol=1e-9)
    assert form.s(form.t(2.5)) == pytest.approx(2.5, rel=1e-12)


def test_coordinates_are_what_they_are_called():
    mixture, x, t = smooth_mixture(), torch.tensor([[0.3, -0.7]], dtype=F64), 0.4
    alpha, sigma, gamma = mixture.schedule.alpha(t), mixture.schedule.sigma(t), mixture.schedule.gamma(t)
    assert DDIM(mixture).s(t) == gamma
    assert torch.allclose(DDIM(mixture).enter(x, t), x / alpha)
    assert Preconditioned(mixture).s(t) == pytest.approx(1 / gamma)
    assert torch.allclose(Preconditioned(mixture).enter(x, t), x / sigma)
    assert Preconditioned(mixture, 0.4).s(t) == pytest.approx(1 / math.hypot(0.4, gamma))
    assert torch.allclose(Preconditioned(mixture, 0.4).enter(x, t), x / alpha / math.hypot(0.4, gamma))
    for form in (ProbabilityFlow(mixture), ReverseSDE(mixture)):
        assert form.s(t) == form.t(t) == t
        assert torch.equal(form.enter(x, t), x)
        assert torch.equal(form.leave(x, t), x)


@every_form
def test_a_time_for_each_state(name):
    """Tensors of times and of s, and float32 states, which stay float32."""
    form = FORMS[name](smooth_mixture())
    x, t = torch.randn(4, 2, dtype=F64, generator=rng()), torch.tensor([0.05, 0.3, 0.6, 1.0], dtype=F64)
    y = form.enter(x, t)
    s = form.s(t)[:, None]
    jet = form.jet(y, s, 1 if name == "reverse SDE" else 3)
    assert torch.allclose(form.leave(y, t), x, rtol=1e-14)
    for i in range(4):
        one, point = x[i : i + 1], t[i].item()
        assert torch.allclose(y[i], form.enter(one, point)[0], rtol=1e-13)
        expected = form.jet(form.enter(one, point), form.s(point), len(jet))
        for a, b in zip(jet, expected, strict=True):
            assert torch.allclose(a[i], b[0], rtol=1e-9, atol=1e-13 * float(b.abs().max()))
    single = form.enter(x.float(), t)
    assert single.dtype == form.leave(single, t).dtype == torch.float32
    for a, b in zip(form.jet(single, s.float(), len(jet)), jet, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 1e-4 * b.norm()


# --- one flow, many forms


@every_schedule
def test_all_forms_follow_the_same_flow(schedule):
    """By Taylor-12 on a fine grid: every form ends where the DDIM ODE does."""
    mixture = smooth_mixture(schedule)
    start, stop = schedule.time(20.0), schedule.time(0.05)
    x = schedule.alpha(start) * 20.0 * torch.randn(4, 2, dtype=F64, generator=rng())
    times = grids.log_snr(40, schedule, start, stop)
    ends = {name: final(march(form(mixture), Taylor(12), times, x)).x for name, form in FLOWS.items()}
    exact = ends.pop("DDIM")
    assert {name: distance(end, exact) < 1e-10 for name, end in ends.items()} == dict.fromkeys(ends, True)


@pytest.mark.parametrize("gamma", [0.2, 0.7, 5.0])
@pytest.mark.parametrize("name", ["DDIM", "probability flow", "data", "own"])
def test_jets_are_the_derivatives_of_the_closed_solution(name, gamma):
    """One Gaussian: y(s) = scale(s) [μ + c √(std² + γ(s)²)], differentiated in high precision."""
    std, mean = 0.5, torch.tensor([0.3, -1.2], dtype=F64)
    problem = Gaussian(mean, std)
    form = {**FLOWS, "own": lambda m: Preconditioned(m, 0.2)}[name](problem)

    def vp(t):
        exponent = mpf("0.1") * t + mpf("9.95") * t**2
        return mp.exp(-exponent / 2), mp.sqrt(mp.expm1(exponent))

    scale_and_gamma = {
        "DDIM": lambda s: (1, s),
        "probability flow": vp,
        "data": lambda s: (s, 1 / s),
        "own": lambda s: (s, mp.sqrt(1 / s**2 - mpf(0.2) ** 2)),
    }[name]
    xbar = torch.tensor([[2.0, 1.0]], dtype=F64)
    t = problem.schedule.time(gamma)
    y, s = form.enter(problem.schedule.alpha(t) * xbar, t), form.s(t)
    jet = form.jet(y, s, 5)

    def solution(i):
        scale, g = scale_and_gamma(mpf(s))
        growth = (mpf(y[0, i].item()) / scale - mpf(mean[i].item())) / mp.sqrt(mpf(std) ** 2 + g**2)

        def path(place):
            scale, g = scale_and_gamma(place)
            return scale * (mpf(mean[i].item()) + growth * mp.sqrt(mpf(std) ** 2 + g**2))

        return mpmath.taylor(path, mpf(s), 5)

    exact = np.array([[c * mp.factorial(j) for j, c in enumerate(solution(i))] for i in range(2)]).T
    for j, (value, truth) in enumerate(zip(jet, exact[1:], strict=True), start=1):
        # Series add terms of the size of |y| j!/rʲ, r the distance to where γ or α is singular.
        room = 1 / form.std - s if name == "own" else s
        natural = float(y.norm()) * math.factorial(j) / min(s, room) ** j / float(mp.norm(list(truth)))
        assert relative_errors([value[0]], truth[None])[0] <= 1e-13 + 1e-14 * natural


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 1.0])
def test_probability_flow_is_eqs_4_and_46(t):
    """f = -½β(x - ε/σ), df/dt = (β'/β - β/2) f + ½β(ε̇/σ - σ̇ε/σ²)."""
    mixture, vp = smooth_mixture(), VP()
    x = mixture.sample(6, t, rng())
    eps, rate = mixture.jet(x, t, 2)
    beta, sigma, alpha = 0.1 + 19.9 * t, vp.sigma(t), vp.alpha(t)
    f = -0.5 * beta * (x - eps / sigma)
    eps_dot = rate * beta * (1 + vp.gamma(t) ** 2) / (2 * vp.gamma(t))
    sigma_dot = beta * alpha**2 / (2 * sigma)
    terms = (
        (19.9 / beta - beta / 2) * f,
        0.5 * beta * eps_dot / sigma,
        -0.5 * beta * sigma_dot * eps / sigma**2,
    )
    value = ProbabilityFlow(mixture).jet(x, t, 2)
    size = 0.5 * beta * (x.norm() + eps.norm() / sigma)
    assert (value[0] - f).norm() <= 1e-14 * size
    # The form adds up the terms of the second derivative of α x̄, of the size of |f| times these rates.
    rates = beta + 1 / t + beta / sigma**2
    assert (value[1] - sum(terms)).norm() <= 1e-14 * size * rates


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("std", [0.0, 0.01, 0.4, 1.0])
def test_preconditioned_is_its_formula(t, std):
    """dy/du = x̄ - (s² + γ²)/γ ε; for s = 0 the denoised state."""
    mixture = smooth_mixture()
    form, x = Preconditioned(mixture, std), mixture.sample(6, t, rng())
    xbar, gamma = x / mixture.schedule.alpha(t), mixture.schedule.gamma(t)
    eps = mixture(x, t)
    value = form.jet(form.enter(x, t), form.s(t))[0]
    pull = (std**2 + gamma**2) / gamma * eps
    # γ is had back from s² + γ², which costs (s/γ)² ε.
    assert (value - xbar + pull).norm() <= 1e-14 * (xbar.norm() + pull.norm()) * (1 + (std / gamma) ** 2)
    if std == 0.0:
        assert torch.allclose(value, denoise(mixture, x, t), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("t", [1e-3, 0.2, 1.0])
def test_core_of_a_mixture_is_its_posterior_mean(t):
    """At the components' std dy/du = Σ rₖ mₖ, to any number of digits: no difference of large numbers."""
    mixture = smooth_mixture()
    form, x = Preconditioned(mixture, 0.4), mixture.sample(6, t, rng())
    xbar, v = x / mixture.schedule.alpha(t), 0.4**2 + mixture.schedule.gamma(t) ** 2
    square = (xbar[:, None] - mixture.means).square().sum(-1)
    r = torch.softmax(mixture.weights.log() - square / (2 * v), -1)
    assert torch.allclose(form.jet(form.enter(x, t), form.s(t))[0], r @ mixture.means, rtol=1e-12, atol=1e-13)


@every_flow
def test_flows_have_no_noise(name):
    y = torch.ones(3, 2)
    assert torch.equal(FLOWS[name](smooth_mixture()).kick(y, 0.5, 0.4), torch.zeros(3, 2))


@every_form
def test_a_form_shows_the_bill_and_the_schedule_of_its_model(name):
    mixture = smooth_mixture()
    form = FORMS[name](mixture)
    form.jet(torch.ones(3, 2, dtype=F64), form.s(0.5))
    assert form.spent == mixture.spent
    assert form.spent.nfe == 1
    assert form.schedule == mixture.schedule


# --- the reverse SDE


@pytest.mark.parametrize("t", [1e-3, 0.2, 1.0])
def test_reverse_sde(t):
    """Drift -½β(x - 2ε/σ), noise of variance β |Δt|."""
    mixture, step = smooth_mixture(), 1e-4
    x = mixture.sample(6, t, rng())
    beta, sigma = 0.1 + 19.9 * t, mixture.schedule.sigma(t)
    form = ReverseSDE(mixture, rng(1))
    drift = -0.5 * beta * (x - 2 * mixture(x, t) / sigma)
    assert torch.allclose(form.jet(x, t)[0], drift, rtol=1e-11, atol=1e-12)
    noise = torch.randn(6, 2, dtype=F64, generator=rng(1))
    assert torch.allclose(form.kick(x, t, t - step), math.sqrt(beta * step) * noise, rtol=1e-10)
    assert form.kick(x.float(), t, t - step).dtype == torch.float32


def test_the_reverse_sde_has_no_derivatives():
    form = ReverseSDE(smooth_mixture())
    with pytest.raises(ValueError, match="no derivatives"):
        form.jet(torch.ones(3, 2, dtype=F64), 0.5, 2)


@every_schedule
def test_reverse_sde_of_other_schedules(schedule):
    """x' = (α'/α) x + g² ε/σ with g² = dσ²/dt - 2 (α'/α) σ²."""
    mixture, t = smooth_mixture(schedule), schedule.time(0.8)
    x = torch.randn(6, 2, dtype=F64, generator=rng())
    f = schedule.alpha_rate(t) / schedule.alpha(t)
    variance_rate = 2 * schedule.sigma(t) * (schedule.sigma_rate(t) - f * schedule.sigma(t))
    expected = f * x + variance_rate * mixture(x, t) / schedule.sigma(t)
    assert torch.allclose(ReverseSDE(mixture).jet(x, t)[0], expected, rtol=1e-11, atol=1e-12)


STD, MEAN = 0.5, 0.7


def affine_step(t, step):
    """One step of Euler-Maruyama on N(μ, s²): x ← a x + b + noise; returns a, b and the noise's variance.

    ε = σ (x - αμ)/(α²s² + σ²), typed in the data's coordinates.
    """
    vp = VP()
    beta, alpha, sigma = 0.1 + 19.9 * t, vp.alpha(t), vp.sigma(t)
    variance = (alpha * STD) ** 2 + sigma**2
    slope = 0.5 * beta * step * (1 - 2 / variance)
    return 1 + slope, beta * step * alpha * MEAN / variance, beta * step


def exact_moments(t):
    """Mean and variance of p_t."""
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    return alpha * MEAN, (alpha * STD) ** 2 + sigma**2


def exact_recursion(times, mean=0.0, variance=1.0):
    """Mean and variance at the end of Euler-Maruyama from N(mean, variance), by the recursion they obey."""
    for t0, t1 in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        a, b, noise = affine_step(t0, t0 - t1)
        mean, variance = a * mean + b, a**2 * variance + noise
    return mean, variance


@pytest.mark.parametrize("grid", [grids.power, lambda n, **k: grids.power(n, 1.0, **k)])
def test_one_euler_maruyama_step_is_affine(grid):
    """The step itself, with its noise taken from the same generator."""
    problem = Gaussian(torch.full((1,), MEAN, dtype=F64), STD)
    x = torch.randn(7, 1, dtype=F64, generator=rng(3))
    a, b, noise = affine_step(0.6, 0.1)
    value = final(march(ReverseSDE(problem, rng(4)), EulerMaruyama(), [0.6, 0.5], x)).x
    z = torch.randn(7, 1, dtype=F64, generator=rng(4))
    assert torch.allclose(value, a * x + b + math.sqrt(noise) * z, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps", [10, 40])
def test_euler_maruyama_obeys_its_recursion_of_moments(steps):
    """100,000 paths; mean and variance within 5 standard errors of the method's own exact moments."""
    problem, n = Gaussian(torch.full((1,), MEAN, dtype=F64), STD), 100_000
    times = grids.power(steps)
    x = torch.randn(n, 1, dtype=F64, generator=rng(5))
    end = final(march(ReverseSDE(problem, rng(6)), EulerMaruyama(), times, x)).x
    mean, variance = exact_recursion(times)
    assert abs(float(end.mean()) - mean) <= 5 * math.sqrt(variance / n)
    assert abs(float(end.var()) - variance) <= 5 * variance * math.sqrt(2 / n)


def test_euler_maruyama_converges_weakly_at_order_one():
    """The moments of the recursion, which are the method's own, approach those of p_t at t_cut as 1/N."""
    coarse, fine = (exact_recursion(grids.power(n), *exact_moments(1.0)) for n in (4000, 8000))
    for a, b, exact in zip(coarse, fine, exact_moments(1e-3), strict=True):
        assert (a - exact) / (b - exact) == pytest.approx(2.0, abs=0.02)


def test_flow_forms_need_no_components():
    """Full covariances and images go through every form alike."""
    full = Mixture.full(torch.zeros(2, 1, 2, dtype=F64), torch.eye(2, dtype=F64).expand(2, 2, 2) * 0.1)
    x = torch.randn(3, 1, 2, dtype=F64, generator=rng())
    for name in FLOWS:
        form = FLOWS[name](full)
        assert all(d.shape == x.shape for d in form.jet(form.enter(x, 0.4), form.s(0.4), 3))
