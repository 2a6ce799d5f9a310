"""Tables of β against products, sums and continuations in high precision, and against diffusers."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from problems import (
    DDIM,
    VP,
    Autodiff,
    FlowMatching,
    Mixture,
    SubVP,
    Table,
    rescale_betas_zero_snr,
    toy_mixture,
)
from problems.series import Series, taylor
from solvers import Taylor, final, march

F64 = torch.float64
SD = (0.00085, 0.012)
ROUGH = (1e-4, 0.5, 0.02, 0.3, 1e-3, 0.1, 0.2)
LINEAR, SCALED, COSINE = Table.linear(), Table.scaled_linear(), Table.cosine()
TABLES = {
    "linear": LINEAR,
    "scaled linear": SCALED,
    "cosine": COSINE,
    "linear of 250": Table.linear(0.1 / 250, 20.0 / 250, 250),
    "cosine of 4000": Table.cosine(4000),
    "zero terminal": Table(rescale_betas_zero_snr(SCALED.betas)),
    "zero terminal linear": Table(rescale_betas_zero_snr(LINEAR.betas)),
    "cosine of 50, unbounded": Table.cosine(50, most=1.0),
    "from float32": Table(np.linspace(1e-4, 0.02, 1000, dtype=np.float32)),
    "noisy": Table(np.random.default_rng(0).uniform(1e-4, 0.1, 100)),
    "rough": Table(ROUGH),
    "two": Table((0.1, 0.9)),
}
SMOOTH = [name for name in TABLES if name not in ("from float32", "noisy", "rough", "two")]
every_table = pytest.mark.parametrize("name", TABLES)


def products(betas):
    """ᾱ of the given floats, in high precision."""
    value, result = mpf(1), []
    for beta in betas:
        value *= 1 - mpf(beta)
        result.append(value)
    return result


def ratios(betas):
    return [mp.sqrt((1 - value) / value) for value in products(betas) if value > 0]


@every_table
def test_nodes(name):
    """γ is that of the products of 1 - β, for floats and for tensors, and α and σ are theirs."""
    table = TABLES[name]
    with mp.workdps(30):
        exact = ratios(table.betas)
        assert len(exact) == table.last + 1
        t = torch.arange(table.last + 1, dtype=F64)
        for i, (gamma, found) in enumerate(zip(exact, table.gamma(t).tolist(), strict=True)):
            assert abs(found / float(gamma) - 1) < 1e-13
            if i % 50 == 0 or i == table.last:
                assert abs(table.gamma(float(i)) / gamma - 1) < 1e-13
                alpha = 1 / mp.sqrt(1 + gamma**2)
                assert abs(table.alpha(float(i)) / alpha - 1) < 2e-13
                assert abs(table.sigma(float(i)) / (alpha * gamma) - 1) < 1e-13


def test_families_are_those_of_their_papers():
    """β in high precision, and ᾱ of the cosine table, cos²φ_{i+1}/cos²φ_0 up to the node before the last."""
    with mp.workdps(50):
        first, last = mpf("0.0001"), mpf("0.02")
        for i in (0, 1, 500, 999):
            assert LINEAR.betas[i] == pytest.approx(float(first + (last - first) * i / 999), rel=1e-15)
            a, b = mp.sqrt(mpf("0.00085")), mp.sqrt(mpf("0.012"))
            assert SCALED.betas[i] == pytest.approx(float((a + (b - a) * i / 999) ** 2), rel=2e-15)

        def level(u):
            return mp.cos((u + mpf("0.008")) / (1 + mpf("0.008")) * mp.pi / 2) ** 2

        for i in (0, 1, 10, 500, 997, 998):
            gamma = mp.sqrt(level(mpf(0)) / level(mpf(i + 1) / 1000) - 1)
            assert abs(COSINE.gamma(float(i)) / gamma - 1) < 2e-13
    assert COSINE.betas[-1] == 0.999
    assert Table.linear(0.1 / 1000, 20.0 / 1000, 1000) == LINEAR


@pytest.mark.parametrize("at", [0.5, 3.25, 100.5, 640.125, 998.5])
def test_between_nodes_the_linear_table_is_its_continuation(at):
    """1 - β_i = d (c - i): the product is d^(t+1) Γ(c + 1)/Γ(c - t), smooth in t; so are its derivatives."""
    with mp.workdps(60):
        a, d = mpf("0.0001"), (mpf("0.02") - mpf("0.0001")) / 999
        c = (1 - a) / d

        def gamma(t):
            level = -(t + 1) * mp.log(d) - mp.loggamma(c + 1) + mp.loggamma(c - t)
            return mp.sqrt(mp.expm1(level))

        truth = mp.taylor(gamma, mpf(at), 6)
    found = taylor(LINEAR.gamma, at, 7)
    radius = 0.2 * (at + 1)
    for j, coefficient in enumerate(truth):
        assert abs(found[j] - coefficient) * radius**j < 1e-12 * truth[0]


def test_between_nodes_the_cosine_table_is_the_cosine():
    with mp.workdps(60):
        rate, shift = mp.pi / 2 / (1 + mpf("0.008")), mpf("0.008")

        def gamma(t):
            phi = rate * ((t + 1) / 1000 + shift)
            return mp.sqrt(mp.cos(rate * shift) ** 2 / mp.cos(phi) ** 2 - 1)

        for at in (0.5, 300.25, 900.5, 997.5):
            truth = mp.taylor(gamma, mpf(at), 6)
            found = taylor(COSINE.gamma, at, 7)
            radius = 0.2 * min(at + 1, 999 - at)
            for j, coefficient in enumerate(truth):
                assert abs(found[j] - coefficient) * radius**j < 2e-12 * truth[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_usual_tables_are_smooth(name):
    assert TABLES[name].smooth


def test_rounded_tables_are_smooth_within_their_rounding():
    """With a tolerance the curve of float32 numbers is that of the exact ones, to their rounding."""
    rounded = TABLES["from float32"]
    assert not rounded.smooth
    near = Table(rounded.betas, tolerance=1e-6)
    assert near.smooth
    t = torch.linspace(0.0, 999.0, 77, dtype=F64)
    assert torch.allclose(near.gamma(t), LINEAR.gamma(t), rtol=1e-6)


@every_table
def test_gamma_increases(name):
    table = TABLES[name]
    t = torch.linspace(-0.9, table.last, 20 * table.nodes, dtype=F64)
    gamma = table.gamma(t)
    assert (gamma.diff() > 0).all()
    assert (gamma > 0).all()


@every_table
@settings(max_examples=30)
@given(u=st.floats(0.0, 1.0))
def test_time_inverts_gamma(name, u):
    """From a little below node 0, where ancestral steps go, to the last node."""
    table = TABLES[name]
    t = -0.9 + u * (table.last + 0.9)
    assert table.time(table.gamma(t)) == pytest.approx(t, rel=1e-12, abs=1e-12)


@every_table
def test_time_of_tensors(name):
    table = TABLES[name]
    t = torch.linspace(-0.9, table.last, 240, dtype=F64).reshape(3, 2, 40)
    assert torch.allclose(table.time(table.gamma(t)), t, rtol=1e-12, atol=1e-12)
    nodes = torch.arange(table.last + 1, dtype=F64)
    assert torch.allclose(table.time(table.gamma(nodes)), nodes, rtol=1e-12, atol=1e-12)
    assert table.time(table.gamma(t[0, 0, 5])).shape == ()
    single = t.float()
    assert table.time(table.gamma(single)).dtype == torch.float32
    assert torch.allclose(table.gamma(table.time(table.gamma(single))), table.gamma(single), rtol=1e-4)


@every_table
@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_time_of_series(name, length):
    """The series of time(γ(t)) is that of t, in units in which the coefficients of γ fall."""
    table = TABLES[name]
    at = 0.37 * table.last
    at += 0.5 * (at == round(at))
    radius = 0.2 * (min(at + 1.0, table.nodes - at) if table.smooth else 0.3)
    h = Series([at, radius, *([0.0] * length)][:length])
    back = table.time(table.gamma(h))
    assert back.coefficients == pytest.approx(h.coefficients, rel=1e-12, abs=1e-12 * (1.0 + at))
    tensor = table.time(table.gamma(Series([torch.tensor(c, dtype=F64) for c in h.coefficients])))
    assert [float(c) for c in tensor.coefficients] == pytest.approx(back.coefficients, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("name", ["linear", "cosine", "zero terminal", "rough"])
def test_nested_forward_mode(name):
    """Four nested derivatives of γ and of its inverse are the series' coefficients times j!."""
    table = TABLES[name]
    at = 0.6 * table.start
    gamma = table.gamma(at)
    radius = 0.2 * at if table.smooth else 0.05

    def jets(f):
        functions = [f]
        for _ in range(4):
            inner = functions[-1]
            functions.append(lambda h, g=inner: torch.func.jvp(g, (h,), (torch.ones_like(h),))[1])
        zero = torch.zeros((), dtype=F64)
        return [float(g(zero)) / math.factorial(j) for j, g in enumerate(functions)]

    up = taylor(lambda h: table.gamma(at + radius * h), 0.0, 5).coefficients
    assert jets(lambda h: table.gamma(at + radius * h)) == pytest.approx(up, rel=1e-9)
    rate = radius * table.gamma_rate(at)
    down = taylor(lambda h: table.time(gamma + rate * h), 0.0, 5).coefficients
    assert jets(lambda h: table.time(gamma + rate * h)) == pytest.approx(down, rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "noisy"])
def test_rates(name):
    """f = α'/α, g² = -2f for a schedule that preserves variance, by differences in high precision."""
    table = TABLES[name]
    for t in (0.5, 0.4 * table.nodes + 0.25):
        h = 1e-4
        slope = (table.alpha(t + h) - table.alpha(t - h)) / (2 * h)
        assert table.alpha_rate(t) == pytest.approx(slope, rel=1e-5)
        assert table.diffusion(t) == pytest.approx(-2.0 * table.drift(t), rel=1e-11)
        assert table.alpha(t) ** 2 + table.sigma(t) ** 2 == pytest.approx(1.0, abs=1e-14)


def test_zero_terminal():
    """Lin et al.'s rescaling in high precision; sampling starts at the node before the last."""
    table = TABLES["zero terminal"]
    assert table.zero_terminal
    assert (table.start, table.last, table.nodes) == (998.0, 998, 1000)
    with mp.workdps(50):
        roots = [mp.sqrt(value) for value in products(SCALED.betas)]
        scale = roots[0] / (roots[0] - roots[-1])
        for i in (0, 1, 500, 998):
            assert table.alpha(float(i)) == pytest.approx(float((roots[i] - roots[-1]) * scale), rel=1e-12)
    assert not LINEAR.zero_terminal
    assert LINEAR.start == 999.0
    with pytest.raises(ValueError, match="finite gamma up to node 998"):
        Table(table.betas, start=999.0)


@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": SD[0], "beta_end": SD[1]},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "scaled_linear", "beta_start": SD[0], "beta_end": SD[1], "zero": True},
        {"trained_betas": list(ROUGH), "num_train_timesteps": len(ROUGH)},
    ],
    ids=["linear", "scaled", "cosine", "zero terminal", "trained"],
)
def test_diffusers_has_the_same_tables(options):
    """In its float32, whose products of a thousand factors differ by up to some 1e-5 in ᾱ."""
    diffusers = pytest.importorskip("diffusers")
    zero = options.pop("zero", False)
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=zero, **options)
    table = {
        "linear": LINEAR,
        "scaled_linear": TABLES["zero terminal"] if zero else SCALED,
        "squaredcos_cap_v2": COSINE,
        None: TABLES["rough"],
    }[options.get("beta_schedule")]
    alpha = table.alpha(torch.arange(table.last + 1, dtype=F64))
    theirs = scheduler.alphas_cumprod.double()[: table.last + 1]
    # The first roundings of β are relative to 1, so ᾱ is good to some ten of them.
    assert torch.allclose(alpha**2, theirs, rtol=3e-5, atol=1e-6)
    assert float(scheduler.alphas_cumprod[-1]) == 0.0 or not table.zero_terminal


def test_tables_from_products():
    alphas = torch.tensor(LINEAR.betas, dtype=F64).neg().log1p().cumsum(0).exp().tolist()
    table = Table.products(alphas, tolerance=1e-11)
    assert table.smooth
    t = torch.linspace(0.0, 999.0, 50, dtype=F64)
    assert torch.allclose(table.gamma(t), LINEAR.gamma(t), rtol=1e-11)
    assert Table.products([0.9, 0.5, 0.0]).zero_terminal
    assert Table.products([0.9, 0.5, 0.25]).betas == pytest.approx((0.1, 4 / 9, 0.5))


def test_tables_are_values():
    table = Table.linear()
    assert table == LINEAR
    assert hash(table) == hash(LINEAR)
    assert table != Table.linear(last=0.03)
    assert repr(table) == repr(LINEAR) != repr(Table.linear(last=0.03))
    cut = dataclasses.replace(table, start=500.0, stop=20.0)
    assert (cut.start, cut.stop, cut.betas) == (500.0, 20.0, table.betas)
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert other == table
        assert other.gamma(10.5) == table.gamma(10.5)


@pytest.mark.parametrize("betas", [(), (0.1,), (0.1, 0.0, 0.2), (0.1, 1.0, 0.5), (0.1, 1.5), (math.nan, 0.1)])
def test_numbers_that_are_no_table(betas):
    with pytest.raises(ValueError, match="two or more betas between 0 and 1"):
        Table(betas)


def test_ends_outside_the_table():
    with pytest.raises(ValueError, match="0 <= stop < start <= 999"):
        Table(LINEAR.betas, start=1000.0)
    with pytest.raises(ValueError, match="0 <= stop < start <= 999"):
        Table(LINEAR.betas, start=10.0, stop=10.0)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, TABLES["noisy"], FlowMatching(), SubVP()])
def test_one_flow_on_every_schedule(schedule):
    """In (x̄, γ) a schedule is a map of time: from equal x̄ at equal γ the same steps lead to the same x̄."""
    gammas = torch.tensor([3.0, 1.0, 0.5, 0.2, 0.1], dtype=F64)
    xbar = 3.0 * torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    ends = []
    for other in (VP(), schedule):
        eq = DDIM(toy_mixture(other))
        times = other.time(gammas)
        state = final(march(eq, Taylor(2), times, eq.leave(xbar, float(times[0]))))
        ends.append(eq.enter(state.x, state.t))
    assert torch.allclose(ends[0], ends[1], rtol=1e-9, atol=1e-10)


def test_autodiff_on_a_table():
    """ε of a mixture as a function of (x, t), differentiated through the schedule in forward mode."""
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [-0.2, -0.7]], dtype=F64)
    score = Mixture(means, 0.4, schedule=LINEAR)

    def eps(x, t):
        alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
        variance = (0.4 * alpha) ** 2 + sigma**2
        offsets = x[:, None] - alpha * means
        weights = torch.softmax(-(offsets**2).sum(-1) / (2.0 * variance), -1)
        return sigma / variance * (weights[..., None] * offsets).sum(1)

    xbar = 2.0 * torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    found = Autodiff(eps, LINEAR).flow_jet(xbar, 1.5, 4)
    for ours, exact in zip(found, score.flow_jet(xbar, 1.5, 4), strict=True):
        assert torch.allclose(ours, exact, rtol=1e-8, atol=1e-9)
