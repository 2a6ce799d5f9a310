import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from problems import EDM, VE, VP, CosineVP, FlowMatching, SubVP
from problems.series import taylor

# Every schedule as its paper defines it: α and σ, in high precision. γ = σ/α and log-SNR = log(α²/σ²) follow.


def vp_alpha(t):
    return mp.exp(-(mpf("0.1") * t + mpf("9.95") * t**2) / 2)


def cosine_alpha(t):
    offset = mpf("0.008")
    return mp.cos((t + offset) / (1 + offset) * mp.pi / 2) / mp.cos(offset / (1 + offset) * mp.pi / 2)


def preserving(alpha):
    return alpha, lambda t: mp.sqrt(1 - alpha(t) ** 2)


def exploding(sigma):
    return lambda t: mpf(1), sigma


SCHEDULES = {
    "VP": (VP(), *preserving(vp_alpha)),
    "SubVP": (SubVP(), vp_alpha, lambda t: 1 - vp_alpha(t) ** 2),
    "FlowMatching": (FlowMatching(), lambda t: 1 - t, lambda t: t),
    "CosineVP": (CosineVP(), *preserving(cosine_alpha)),
    "cosine without offset": (CosineVP(offset=0.0), *preserving(lambda t: mp.cos(mp.pi * t / 2))),
    "VE": (VE(), *exploding(lambda t: mpf("0.01") * mpf(5000) ** t)),
    "EDM": (EDM(), *exploding(lambda t: t)),
}

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def exact(name, quantity, t):
    """Return the quantity at the float t, in high precision."""
    _, alpha, sigma = SCHEDULES[name]
    functions = {
        "alpha": alpha,
        "sigma": sigma,
        "gamma": lambda t: sigma(t) / alpha(t),
        "log_snr": lambda t: 2 * mp.log(alpha(t) / sigma(t)),
    }
    if quantity.endswith("_rate"):
        return mp.diff(functions[quantity.removesuffix("_rate")], mpf(t))
    if quantity == "drift":
        return mp.diff(lambda t: mp.log(alpha(t)), mpf(t))
    if quantity == "diffusion":
        return mp.diff(lambda t: sigma(t) ** 2, mpf(t)) - 2 * exact(name, "drift", t) * sigma(mpf(t)) ** 2
    return functions[quantity](mpf(t))


def times(name):
    """Times from 1e-5 to the start of the schedule, on a logarithmic scale."""
    start = SCHEDULES[name][0].start
    return st.floats(0.0, 1.0).map(lambda u: min(1e-5 * (start / 1e-5) ** u, start))


@every_schedule
@pytest.mark.parametrize("quantity", ["alpha", "sigma", "gamma"])
@settings(max_examples=50)
@given(data=st.data())
def test_functions(name, quantity, data):
    t = data.draw(times(name))
    truth = exact(name, quantity, t)
    assert abs(getattr(SCHEDULES[name][0], quantity)(t) - truth) <= 1e-13 * abs(truth)


@every_schedule
@given(data=st.data())
def test_log_snr(name, data):
    """Its absolute error is twice the relative one of γ."""
    t = data.draw(times(name))
    truth = exact(name, "log_snr", t)
    assert abs(SCHEDULES[name][0].log_snr(t) - truth) <= 2e-13


@every_schedule
@pytest.mark.parametrize(
    "quantity", ["alpha_rate", "sigma_rate", "gamma_rate", "log_snr_rate", "drift", "diffusion"]
)
@settings(max_examples=50)
@given(data=st.data())
def test_rates(name, quantity, data):
    """α' of the cosine schedule vanishes at the crest, good to four ulps of its amplitude only."""
    t = data.draw(times(name))
    truth = exact(name, quantity, t)
    assert abs(getattr(SCHEDULES[name][0], quantity)(t) - truth) <= 1e-13 * abs(truth) + 1e-15


@every_schedule
@given(data=st.data())
def test_time_inverts_gamma(name, data):
    """To the error of γ times the condition of the inverse, γ/(t γ')."""
    schedule = SCHEDULES[name][0]
    t = data.draw(times(name))
    condition = schedule.gamma(t) / (t * schedule.gamma_rate(t))
    assert schedule.time(schedule.gamma(t)) == pytest.approx(t, rel=1e-14 * (1.0 + condition))


@every_schedule
@pytest.mark.parametrize("quantity", ["alpha", "sigma", "gamma"])
@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 0.99])
def test_derivatives_of_any_order(name, quantity, t):
    """The Taylor coefficients to order 10, beside the largest of them in units of t/2.

    A recurrence of j terms loses at most some j² ε at order j, several of them in a row 1e-12.
    """
    schedule = SCHEDULES[name][0]
    value = taylor(getattr(schedule, quantity), t, 11)
    with mp.workdps(100):
        truth = mpmath.taylor(lambda u: exact(name, quantity, u), mpf(t), 10)
    radius = t / 2
    scale = max(abs(c) * radius**j for j, c in enumerate(truth))
    for j, c in enumerate(truth):
        assert abs(value[j] - c) * radius**j <= 1e-12 * scale


@every_schedule
def test_inverse_of_series(name):
    """The series of time(γ(t)) is that of t."""
    schedule = SCHEDULES[name][0]
    value = taylor(lambda h: schedule.time(schedule.gamma(h)), 0.3, 6)
    assert value.coefficients == pytest.approx([0.3, 1.0, 0.0, 0.0, 0.0, 0.0], rel=1e-13, abs=1e-10)


@every_schedule
@pytest.mark.parametrize(
    "quantity",
    [
        "alpha",
        "sigma",
        "gamma",
        "log_snr",
        "time",
        "alpha_rate",
        "gamma_rate",
        "sigma_rate",
        "drift",
        "diffusion",
    ],
)
def test_tensors(name, quantity):
    """Tensors of any shape give, element by element, what floats give."""
    schedule = SCHEDULES[name][0]
    f = getattr(schedule, quantity)
    t = torch.tensor(np.geomspace(1e-4, schedule.start, 12)).reshape(3, 4)
    value = torch.broadcast_to(torch.as_tensor(f(t), dtype=torch.float64), t.shape)
    for v, point in zip(value.flatten().tolist(), t.flatten().tolist(), strict=True):
        assert v == pytest.approx(f(point), rel=1e-13, abs=1e-14)
        zero_dim = f(torch.tensor(point, dtype=torch.float64))
        assert float(zero_dim) == pytest.approx(f(point), rel=1e-13, abs=1e-14)


@every_schedule
@pytest.mark.parametrize("quantity", ["alpha", "sigma", "gamma"])
def test_float32(name, quantity):
    """The exponent of the VP schedule reaches 10, so its rounding alone costs a dozen ε."""
    schedule = SCHEDULES[name][0]
    t = torch.tensor(np.geomspace(1e-5, 0.99 * schedule.start, 50), dtype=torch.float32)
    value = torch.broadcast_to(getattr(schedule, quantity)(t), t.shape)
    assert value.dtype == torch.float32
    for v, point in zip(value.tolist(), t.tolist(), strict=True):
        assert v == pytest.approx(float(exact(name, quantity, point)), rel=32 * 2.0**-24)


def test_published_constants():
    """The paper's, as its authors' code prints them."""
    vp = VP()
    assert vp.gamma(1.0) == pytest.approx(152.16697, abs=5e-6)
    assert vp.gamma(1e-3) == pytest.approx(0.010485993, abs=5e-10)
    assert vp.alpha(1.0) == pytest.approx(0.0065716, abs=5e-8)
    assert vp.sigma(1.0) == pytest.approx(0.9999784, abs=5e-8)


@given(t=st.floats(1e-5, 1.0))
def test_vp_is_the_sde_of_song(t):
    """dx = -½β x dt + √β dw, and dγ/dt = β(1 + γ²)/(2γ)."""
    vp = VP()
    beta = 0.1 + 19.9 * t
    assert vp.beta(t) == pytest.approx(beta, rel=1e-15)
    assert vp.drift(t) == pytest.approx(-beta / 2, rel=1e-13)
    assert vp.diffusion(t) == pytest.approx(beta, rel=1e-13)
    gamma = vp.gamma(t)
    assert vp.gamma_rate(t) == pytest.approx(beta * (1 + gamma**2) / (2 * gamma), rel=1e-13)


@pytest.mark.parametrize("name", ["VP", "CosineVP", "cosine without offset"])
@given(data=st.data())
def test_variance_is_preserved(name, data):
    schedule = SCHEDULES[name][0]
    t = data.draw(times(name))
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1.0, abs=1e-14)


@every_schedule
def test_prior(name):
    """At the start x is the prior, to which unit data add little (by their share of the variance)."""
    schedule = SCHEDULES[name][0]
    assert schedule.sigma(schedule.start) == pytest.approx(schedule.prior_std, rel=1e-4)
    assert schedule.stop < schedule.start
    assert schedule.gamma(schedule.stop) < 0.02
    assert schedule.gamma(schedule.start) > 49


@given(t=st.floats(1e-5, 1.0))
def test_sub_vp_is_the_sde_of_song(t):
    """Song et al. (2021), Eq. 29: the drift of VP, and g² = β (1 - exp(-2L))."""
    schedule = SubVP()
    assert schedule.drift(t) == pytest.approx(VP().drift(t), rel=1e-12)
    growth = -math.expm1(-2.0 * (0.1 * t + 9.95 * t * t))
    assert schedule.diffusion(t) == pytest.approx(schedule.beta(t) * growth, rel=1e-12)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 <= 1.0 + 1e-15


def test_flow_matching_is_a_straight_line():
    """x_t = (1 - t) x_0 + t z, so dx/dt = z - x_0, and dγ/dt = 1/(1 - t)²."""
    schedule = FlowMatching()
    for t in (1e-3, 0.25, 0.5, 0.999):
        assert schedule.alpha(t) + schedule.sigma(t) == 1.0
        assert (schedule.alpha_rate(t), schedule.sigma_rate(t)) == (-1.0, 1.0)
        assert schedule.gamma_rate(t) == pytest.approx(1.0 / (1.0 - t) ** 2, rel=1e-13)
    assert schedule.gamma(schedule.start) == pytest.approx(999.0, rel=1e-12)
    assert FlowMatching(start=0.5).prior_std == 0.5


@pytest.mark.parametrize("ends", [{"start": 1.0}, {"stop": -0.1}, {"start": 0.2, "stop": 0.3}])
def test_flow_matching_runs_inside_its_ends(ends):
    with pytest.raises(ValueError, match="gamma is infinite at 1"):
        FlowMatching(**ends)


def test_other_betas():
    vp = VP(beta_min=0.5, beta_max=8.0)
    t = mpf("0.625")
    assert vp.gamma(0.625) == pytest.approx(
        float(mp.sqrt(mp.expm1(mpf("0.5") * t + mpf("3.75") * t**2))), rel=1e-14
    )
    assert vp.time(vp.gamma(0.625)) == pytest.approx(0.625, rel=1e-14)


def test_schedules_are_values():
    assert VP() == VP()
    assert VP() != VP(beta_max=10.0)
    assert hash(EDM()) == hash(EDM())
    assert math.isclose(VE().time(VE().gamma(0.25)), 0.25)
