import math

import pytest
import torch
from torch import nn

from problems import (
    DDIM,
    EDM,
    VP,
    AnalyticFirst,
    Autodiff,
    Bill,
    Guided,
    GuidedHeads,
    Ideal,
    Mixture,
    Preconditioned,
    ProbabilityFlow,
    denoise,
    smooth_mixture,
    toy_mixture,
)
from solvers import RK4, RK45, Adams, EulerMaruyama, Heun, Index, Midpoint, Taylor, Time, final, grids, march
from tests.conftest import distance, fitted_order

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def typed_eps(mixture, std):
    """ε(x, t) = σ Σ rₖ (x - α mₖ)/(α²s² + σ²), in the data's coordinates as for a network."""

    def eps(x, t):
        t = torch.as_tensor(t, dtype=F64)
        log_alpha = -0.05 * t - 4.975 * t**2
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2.0 * log_alpha)).sqrt()
        v = (alpha * std) ** 2 + sigma**2
        d = x[..., None, :] - alpha * mixture.means
        r = torch.softmax(mixture.weights.log() - d.square().sum(-1) / (2.0 * v), -1)
        return sigma * (r[..., None] * d).sum(-2) / v

    return eps


def autodiff(mixture, std):
    return Autodiff(typed_eps(mixture, std), VP(), mixture.data_std)


def other_mixture():
    return Mixture(torch.tensor([[-0.3, 0.9], [0.6, -0.4]], dtype=F64), 0.5)


# --- automatic differentiation against power series


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 1.0])
def test_autodiff_gives_the_exact_series_of_a_smooth_mixture(t):
    """ε and four derivatives, each beside the size of the terms that AD adds up, |ε| j!/γʲ."""
    mixture = smooth_mixture()
    x = mixture.sample(12, t, rng())
    gamma = mixture.schedule.gamma(t)
    exact, value = mixture.jet(x, t, 5), autodiff(mixture, 0.4).jet(x, t, 5)
    for j, (a, b) in enumerate(zip(value, exact, strict=True)):
        scale = b.norm() + exact[0].norm() * math.factorial(j) / gamma**j
        assert (a - b).norm() <= 1e-12 * scale


@pytest.mark.parametrize("t", [0.1, 0.2, 0.5])
def test_autodiff_gives_the_exact_series_of_the_toy(t):
    toy = toy_mixture()
    x = toy.sample(8, t, rng())
    for a, b in zip(autodiff(toy, 0.01).jet(x, t, 5), toy.jet(x, t, 5), strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow, Preconditioned, lambda m: Preconditioned(m, 0.4)])
def test_autodiff_and_series_agree_in_every_form(form):
    mixture = smooth_mixture()
    x = mixture.sample(6, 0.4, rng())
    a, b = form(autodiff(mixture, 0.4)), form(mixture)
    for left, right in zip(
        a.jet(a.enter(x, 0.4), a.s(0.4), 4), b.jet(b.enter(x, 0.4), b.s(0.4), 4), strict=True
    ):
        assert (left - right).norm() <= 1e-9 * right.norm()


def test_autodiff_of_a_network():
    """The first derivative of a small network is its Jacobian times the tangent of the flow (Eqs. 10-12)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    for p in net.parameters():
        p.requires_grad_(False)

    def eps(x, t):
        column = torch.as_tensor(t, dtype=F64).expand(x.shape[:-1])[..., None]
        return net(torch.cat([x, column], -1))

    vp, t = VP(), 0.4
    x = torch.randn(5, 2, dtype=F64, generator=rng())
    value, derivative = Autodiff(eps, vp).jet(x, t, 2)
    gamma = vp.gamma(t)
    tangent = value / math.sqrt(1 + gamma**2) - gamma * x / (1 + gamma**2)
    rate = 2 * gamma / ((0.1 + 19.9 * t) * (1 + gamma**2))
    inputs = torch.cat([x, torch.full((5, 1), t, dtype=F64)], -1)
    jacobian = torch.func.vmap(torch.func.jacrev(net))(inputs)
    expected = torch.einsum(
        "nij,nj->ni", jacobian, torch.cat([tangent, torch.full((5, 1), rate, dtype=F64)], -1)
    )
    assert torch.allclose(value, net(inputs), rtol=1e-14, atol=1e-15)
    assert torch.allclose(derivative, expected, rtol=1e-12, atol=1e-14)


def test_autodiff_in_float32():
    mixture = smooth_mixture()
    eps = typed_eps(mixture.to(torch.zeros(())), 0.4)
    single = Autodiff(lambda x, t: eps(x, torch.as_tensor(t, dtype=torch.float32)), VP())
    x = mixture.sample(10, 0.3, rng()).float()
    for a, b in zip(single.jet(x, 0.3, 3), mixture.jet(x.double(), 0.3, 3), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_autodiff_does_not_need_gradients_and_gives_none():
    """Nested derivatives through torch's own SiLU, of a network whose parameters can be trained."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2)).double()

    def eps(x, t):
        return net(torch.cat([x, torch.as_tensor(t, dtype=F64).expand(x.shape[:-1])[..., None]], -1))

    score, x = Autodiff(eps, VP()), torch.randn(5, 2, dtype=F64, generator=rng())
    jet = score.jet(x, 0.4, 3)
    with torch.no_grad():
        without = score.jet(x, 0.4, 3)
    assert all(torch.equal(a, b) for a, b in zip(without, jet, strict=True))
    assert not any(d.requires_grad for d in (*jet, *without, score(x, 0.4)))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


# --- the bill

# Score evaluations and Jacobian-vector products of N steps.
BILLS = {
    "DDIM": (Taylor(1), lambda n: (n, 0)),
    "TTM-2": (Taylor(2), lambda n: (n, n)),
    "TTM-3": (Taylor(3), lambda n: (n, 2 * n)),
    "AB2": (Adams(2), lambda n: (n, 0)),
    "AB4": (Adams(4), lambda n: (n, 0)),
    "Adams(2, 2)": (Adams(2, 2), lambda n: (n, n)),
    "Heun": (Heun(), lambda n: (2 * n, 0)),
    "midpoint": (Midpoint(), lambda n: (2 * n, 0)),
    "RK4": (RK4(), lambda n: (4 * n, 0)),
    "S-PNDM": (Adams(2, clock=Index(), start=Heun()), lambda n: (n + 1, 0)),
    "F-PNDM": (Adams(4, clock=Index(), start=RK4(Time())), lambda n: (n + 9 if n >= 3 else 4 * n, 0)),
    "Euler-Maruyama": (EulerMaruyama(), lambda n: (n, 0)),
}


def cost(score, solver, steps, form=DDIM):
    before = score.spent
    times = grids.power(steps)
    state = final(march(form(score), solver, times, torch.ones(3, 2, dtype=F64)))
    bill = score.spent - before
    assert state.nfe == bill.nfe
    return bill


@pytest.mark.parametrize("name", BILLS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow, Preconditioned, lambda m: Preconditioned(m, 0.4)])
def test_bills(name, steps, form):
    solver, expected = BILLS[name]
    assert cost(smooth_mixture(), solver, steps, form) == Bill(*expected(steps))


@pytest.mark.parametrize("name", BILLS)
def test_the_analytic_first_step_saves_one_evaluation(name):
    solver, expected = BILLS[name]
    nfe, jvp = expected(5)
    bill = cost(AnalyticFirst(smooth_mixture(), 1.0), solver, 5)
    assert bill.nfe == nfe - 1
    assert bill.jvp == jvp - (1 if jvp == 5 else 2 if jvp == 10 else 0)


@pytest.mark.parametrize("name", BILLS)
@pytest.mark.parametrize("pair", [Guided, GuidedHeads])
def test_guidance_doubles_the_bill(name, pair):
    solver, expected = BILLS[name]
    nfe, jvp = expected(5)
    assert cost(pair(smooth_mixture(), other_mixture(), 1.5), solver, 5) == Bill(2 * nfe, 2 * jvp)


def test_guidance_with_one_model_twice():
    mixture = smooth_mixture()
    assert cost(Guided(mixture, mixture, 1.0), Taylor(2), 5) == Bill(10, 10)


@pytest.mark.parametrize("name", BILLS)
def test_autodiff_bills_alike(name):
    solver, expected = BILLS[name]
    assert cost(autodiff(smooth_mixture(), 0.4), solver, 4) == Bill(*expected(4))


def test_ideal_derivatives_are_free():
    assert cost(Ideal(smooth_mixture()), Taylor(3), 5) == Bill(5, 0)


@pytest.mark.parametrize("rtol", [1e-2, 1e-5])
def test_rk45_costs_two_and_six_per_attempt(rtol):
    bill = cost(smooth_mixture(), RK45(rtol, rtol), 1)
    assert bill.jvp == 0
    assert bill.nfe >= 8
    assert bill.nfe % 6 == 2


def test_denoising_costs_one_and_is_a_ddim_step_to_no_noise():
    mixture = smooth_mixture()
    x = mixture.sample(5, 0.3, rng())
    before = mixture.spent
    alpha, sigma = mixture.schedule.alpha(0.3), mixture.schedule.sigma(0.3)
    value = denoise(mixture, x, 0.3)
    assert mixture.spent - before == Bill(1)
    assert torch.allclose(value, (x - sigma * mixture(x, 0.3)) / alpha, rtol=1e-13)


def test_prices():
    """What the coefficients of an expansion cost: an evaluation first, then a derivative each."""
    mixture = smooth_mixture()
    for score, evaluation, derivative in (
        (mixture, Bill(1), Bill(jvp=1)),
        (autodiff(mixture, 0.4), Bill(1), Bill(jvp=1)),
        (AnalyticFirst(mixture, 1.0), Bill(1), Bill(jvp=1)),
        (Ideal(mixture), Bill(1), Bill()),
        (Guided(mixture, other_mixture(), 1.0), Bill(2), Bill(jvp=2)),
        (GuidedHeads(mixture, mixture, 1.0), Bill(2), Bill(jvp=2)),
    ):
        assert [score.price(j) for j in range(3)] == [evaluation, derivative, derivative]


def test_bills_are_added_up():
    assert Bill(1, 2, 3) + Bill(4, 5, 6) == Bill(5, 7, 9)
    assert Bill(4, 5, 6) - Bill(1, 2, 3) == Bill(3, 3, 3)


def test_the_bill_of_a_batch_is_per_sample():
    mixture = smooth_mixture()
    mixture.jet(torch.zeros(100, 2, dtype=F64), 0.5, 3)
    assert mixture.spent == Bill(1, 2)


# --- the analytic first step


class Recorder(Mixture):
    """The smooth mixture, with the γ at which it was asked."""

    def expand(self, gamma):
        self.asked.append(float(gamma[0]))
        return super().expand(gamma)

    def follow(self, xbar, gamma):
        self.asked.append(float(gamma[0]))
        return super().follow(xbar, gamma)


def recorder():
    smooth = smooth_mixture()
    mixture = Recorder(smooth.means, 0.4, smooth.weights)
    mixture.asked = []
    return mixture


@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow, Preconditioned, lambda m: Preconditioned(m, 0.4)])
def test_afs_is_x_at_the_first_time_only(form):
    mixture = recorder()
    score = AnalyticFirst(mixture, 1.0)
    x = torch.randn(4, 2, dtype=F64, generator=rng())
    assert torch.allclose(score(x, 1.0), x, rtol=1e-14)
    assert score.jet(x, 1.0, 3)[1].abs().max() == 0.0
    assert score.jet(x, torch.tensor(1.0, dtype=F64), 3)[2].abs().max() == 0.0
    assert torch.equal(score(x, 0.9), mixture(x, 0.9))
    mixture.asked.clear()
    list(march(form(score), RK4(), [1.0, 0.5], x))
    assert [round(g, 6) for g in mixture.asked][-1] == round(mixture.schedule.gamma(0.5), 6)
    assert len(mixture.asked) == 3


def test_afs_needs_the_prior_of_the_schedule():
    """Where x starts with standard deviation 80, ε = x/80."""
    smooth = smooth_mixture(EDM())
    x = 80.0 * torch.randn(4, 2, dtype=F64, generator=rng())
    value, exact = AnalyticFirst(smooth, 80.0)(x, 80.0), smooth(x, 80.0)
    assert torch.allclose(value, x / 80.0, rtol=1e-14)
    assert (value - exact).norm() <= 0.02 * exact.norm()


def test_afs_error_on_the_toy():
    """To leading order ε = x (1 + (1/2 - var)/γ²), with the data's variance 0.4213: off by 3.4e-6."""
    toy = toy_mixture()
    x = torch.randn(1000, 2, dtype=F64, generator=rng())
    error = (AnalyticFirst(toy, 1.0)(x, 1.0) - toy(x, 1.0)).norm() / x.norm()
    assert float(error) == pytest.approx((0.5 - 0.4213) / toy.schedule.gamma(1.0) ** 2, rel=0.05)


def test_afs_enters_the_history():
    """AB2 on two steps, typed by hand: the second step extrapolates from x."""
    mixture = smooth_mixture()
    times = grids.power(2)
    x = torch.randn(4, 2, dtype=F64, generator=rng())
    g0, g1, g2 = (mixture.schedule.gamma(t) for t in times.tolist())
    xbar = x / mixture.schedule.alpha(1.0)
    xbar1 = xbar + (g1 - g0) * x
    eps1 = mixture.flow_jet(xbar1, g1)[0]
    h, before = g2 - g1, g1 - g0
    expected = xbar1 + h * eps1 + 0.5 * h**2 * (eps1 - x) / before
    value = final(march(DDIM(AnalyticFirst(mixture, 1.0)), Adams(2), times, x)).x
    assert torch.allclose(value / mixture.schedule.alpha(1e-3), expected, rtol=1e-11)


# --- ideal derivatives


@pytest.mark.parametrize("p", [2, 3, 5])
def test_ideal_taylor_on_the_ddim_ode_is_ddim(p):
    mixture = smooth_mixture()
    x = torch.randn(6, 2, dtype=F64, generator=rng())
    times = grids.power(7)
    ideal = final(march(DDIM(Ideal(mixture)), Taylor(p), times, x)).x
    assert torch.equal(ideal, final(march(DDIM(mixture), Taylor(1), times, x)).x)


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_ideal_derivative_on_the_probability_flow(t):
    """df/dt ≈ [β'/(2σ) - β²/(4σ³)] ε + [-β'/2 + β²/4] x: Eq. 51 with its misprint corrected."""
    mixture = smooth_mixture()
    x = mixture.sample(6, t, rng())
    beta, rate, sigma = 0.1 + 19.9 * t, 19.9, mixture.schedule.sigma(t)
    eps = mixture(x, t)
    first = (rate / (2 * sigma) - beta**2 / (4 * sigma**3)) * eps
    second = (-rate / 2 + beta**2 / 4) * x
    value = ProbabilityFlow(Ideal(mixture)).jet(x, t, 2)[1]
    assert (value - first - second).norm() <= 1e-12 * (first.norm() + second.norm())


# --- guidance


def guided_pair(kind=Guided, w=1.5):
    return kind(smooth_mixture(), other_mixture(), w)


def guided_autodiff(w):
    c, u = typed_eps(smooth_mixture(), 0.4), typed_eps(other_mixture(), 0.5)
    return Autodiff(lambda x, t: (1 + w) * c(x, t) - w * u(x, t), VP())


@pytest.mark.parametrize("w", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow, lambda m: Preconditioned(m, 0.4)])
def test_jets_of_the_guided_score_are_its_derivatives(w, form):
    x = smooth_mixture().sample(8, 0.4, rng())
    a, b = form(guided_pair(w=w)), form(guided_autodiff(w))
    y, s = a.enter(x, 0.4), a.s(0.4)
    for left, right in zip(a.jet(y, s, 4), b.jet(y, s, 4), strict=True):
        assert (left - right).norm() <= 1e-9 * right.norm()


def test_guided_heads_combine_unguided_derivatives():
    """Eq. 16: every derivative along the flow of its own model."""
    w, pair = 1.5, guided_pair(GuidedHeads)
    x = smooth_mixture().sample(8, 0.4, rng())
    c, u = smooth_mixture().jet(x, 0.4, 4), other_mixture().jet(x, 0.4, 4)
    for value, a, b in zip(pair.jet(x, 0.4, 4), c, u, strict=True):
        assert (value - (1 + w) * a + w * b).norm() <= 1e-12 * (a.norm() + b.norm())


@pytest.mark.parametrize("kind", [Guided, GuidedHeads])
def test_no_guidance_and_equal_models_are_the_model_itself(kind):
    x = smooth_mixture().sample(8, 0.4, rng())
    plain = smooth_mixture().jet(x, 0.4, 3)
    for pair in (guided_pair(kind, 0.0), kind(smooth_mixture(), smooth_mixture(), 2.0)):
        for a, b in zip(pair.jet(x, 0.4, 3), plain, strict=True):
            assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize(("kind", "order"), [(Guided, 2), (GuidedHeads, 1)])
def test_order_of_guided_ttm2(kind, order):
    """The exact derivatives of the guided ε keep order two; combined heads lose it."""
    pair, steps = guided_pair(kind, 1.5), [80, 160, 320]
    x = torch.randn(8, 2, dtype=F64, generator=rng())
    exact = final(march(DDIM(guided_pair(w=1.5)), Taylor(8), grids.log_snr(200, VP(), 0.9, 0.05), x)).x
    errors = [
        distance(final(march(DDIM(pair), Taylor(2), grids.power(n, 2, 0.9, 0.05), x)).x, exact) for n in steps
    ]
    assert fitted_order(steps, errors) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("kind", [Guided, GuidedHeads])
def test_guidance_needs_one_schedule(kind):
    with pytest.raises(ValueError, match="schedule"):
        kind(smooth_mixture(), smooth_mixture(EDM()), 1.0)


@pytest.mark.parametrize("kind", [Guided, GuidedHeads])
@pytest.mark.parametrize("w", [math.nan, math.inf])
def test_the_scale_of_guidance_is_finite(kind, w):
    with pytest.raises(ValueError, match="the guidance scale is a finite number"):
        kind(smooth_mixture(), smooth_mixture(), w)


def test_wrappers_pass_on_what_they_wrap():
    mixture = smooth_mixture()
    for wrapper in (AnalyticFirst(mixture, 1.0), Ideal(mixture)):
        assert wrapper.schedule == mixture.schedule
        assert wrapper.data_std == mixture.data_std
    both = AnalyticFirst(Ideal(mixture), 1.0)
    x = torch.randn(4, 2, dtype=F64, generator=rng())
    assert torch.allclose(both(x, 1.0), x, rtol=1e-14)
    assert torch.equal(both.jet(x, 0.5, 2)[0], mixture(x, 0.5))
    assert both.jet(x, 0.5, 2)[1].abs().max() == 0.0
