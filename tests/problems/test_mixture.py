import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

from problems import (
    DDIM,
    VE,
    Gaussian,
    Mixture,
    Preconditioned,
    ProbabilityFlow,
    digits_mixture,
    smooth_mixture,
    toy_mixture,
)
from tests.conftest import exact_eps, exact_flow_jet, relative_errors

F64 = torch.float64
ORDER = 9  # ε and eight derivatives
MEANS = torch.tensor([[0.9, 0.1], [-0.4, 0.7], [-0.3, -0.8]], dtype=F64)
WEIGHTS = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
STDS = torch.tensor([0.05, 0.4, 0.01], dtype=F64)
COVARIANCES = torch.tensor(
    [[[0.05, 0.02], [0.02, 0.03]], [[0.2, -0.1], [-0.1, 0.06]], [[0.04, 0.0], [0.0, 0.0]]], dtype=F64
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def shared():
    return Mixture(MEANS, 0.1, WEIGHTS)


def separate():
    return Mixture(MEANS, STDS, WEIGHTS)


def full():
    return Mixture.full(MEANS, COVARIANCES, WEIGHTS)


KINDS = {
    "shared": (shared, [0.01] * 3),
    "separate": (separate, STDS.square().tolist()),
    "full": (full, list(COVARIANCES)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def truth(kind):
    return exact_eps(MEANS.tolist(), KINDS[kind][1], (WEIGHTS / WEIGHTS.sum()).tolist())


def toy_truth():
    toy = toy_mixture()
    return exact_eps(toy.means.tolist(), [0.01**2] * 64, [1 / 64] * 64)


# --- ε and its derivatives against the direct formula in high precision


def assert_exact(mixture, eps, xbar, gamma, order=ORDER, tolerance=1e-12):
    """ε and its derivatives at every state have a relative error of at most 1e-12.

    Where a derivative is so sensitive that it cannot be had to that, by chance or near the border of two
    modes, they are within 64 times what one ulp in the state does to it.
    """
    jet = mixture.flow_jet(xbar, gamma, order)
    for i, x in enumerate(xbar.tolist()):
        exact = exact_flow_jet(eps, x, gamma, order)
        errors = relative_errors([d[i] for d in jet], exact)
        assert errors[0] <= 1e-12
        if max(errors) > tolerance:
            ulp = mpf(2) ** -53
            moved = exact_flow_jet(eps, [x[0] * (1 + ulp), x[1] * (1 - ulp)], gamma, order)
            shifts = [mp.norm(list(m - e)) / mp.norm(list(e)) for m, e in zip(moved, exact, strict=True)]
            assert all(e <= max(tolerance, 64 * shift) for e, shift in zip(errors, shifts, strict=True))


@pytest.mark.parametrize("t", [1e-3, 1e-2, 0.1, 0.3, 0.5, 1.0])
def test_toy_jets_are_exact(t):
    """A sample and a point near the border between two modes, where the derivatives are largest."""
    toy = toy_mixture()
    xbar = toy.sample(2, t, rng(1)) / toy.schedule.alpha(t)
    xbar[1] = 0.5 * (toy.means[0] + toy.means[2]) + 1e-3
    assert_exact(toy, toy_truth(), xbar, toy.schedule.gamma(t))


@every_kind
@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 1.0])
def test_jets_are_exact(kind, t):
    mixture = KINDS[kind][0]()
    xbar = mixture.sample(3, t, rng(2)) / mixture.schedule.alpha(t)
    assert_exact(mixture, truth(kind), xbar, mixture.schedule.gamma(t))


@every_kind
@pytest.mark.parametrize("t", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize("direction", [0.0, 1.0, 2.5, 4.0])
def test_far_out(kind, t, direction):
    """At 10⁴ standard deviations ε is as exact as ever, and nothing overflows.

    With unequal covariances the exponents are of size ½·10⁸, so that the weights of components that still
    compete, and with them the tiny derivatives, can be had to 1e-8 only.
    """
    mixture = KINDS[kind][0]()
    gamma = mixture.schedule.gamma(t)
    std = math.sqrt(mixture.data_std**2 + gamma**2)
    xbar = 1e4 * std * torch.tensor([[math.cos(direction), math.sin(direction)]], dtype=F64)
    assert_exact(mixture, truth(kind), xbar, gamma, 5, 1e-12 if kind == "shared" else 1e-8)
    assert mixture.log_prob(xbar * mixture.schedule.alpha(t), t).isfinite().all()


@pytest.mark.parametrize("t", [1e-3, 0.5, 1.0])
def test_far_out_of_the_toy(t):
    toy = toy_mixture()
    gamma = toy.schedule.gamma(t)
    xbar = torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=F64) * 1e4 * math.hypot(toy.data_std, gamma)
    assert_exact(toy, toy_truth(), xbar, gamma, order=5)


def test_jet_is_flow_jet_in_the_data_coordinates():
    toy = toy_mixture()
    x = toy.sample(50, 0.3, rng())
    alpha, gamma = toy.schedule.alpha(0.3), toy.schedule.gamma(0.3)
    for a, b in zip(toy.jet(x, 0.3, 4), toy.flow_jet(x / alpha, gamma, 4), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(toy(x, 0.3), toy.jet(x, 0.3)[0])


@given(t=st.floats(1e-3, 1.0), seed=st.integers(0, 1000))
def test_first_derivative_in_closed_form(t, seed):
    """dε/dγ = s²(x̄ - m̄)/v² - (γ/v²) [C ε + (γ/v) Σ rₖ (mₖ - m̄) |x̄ - mₖ|²], typed here.

    The closed form cancels: its own rounding error is the sum of its terms' times ε.
    """
    mixture = smooth_mixture()
    xbar = mixture.sample(1, t, rng(seed)) / mixture.schedule.alpha(t)
    gamma = mixture.schedule.gamma(t)
    s2, m, v = 0.4**2, mixture.means, 0.4**2 + gamma**2
    square = (xbar - m).square().sum(-1)
    r = torch.softmax(mixture.weights.log() - square / (2 * v), 0)
    mean = r @ m
    c = (r[:, None] * (m - mean)).T @ (m - mean)
    eps = gamma * (xbar - mean) / v
    terms = (
        s2 * (xbar - mean) / v**2,
        -(gamma / v**2) * (eps @ c),
        -((gamma / v) ** 2 / v) * ((r * square) @ (m - mean)),
    )
    value = mixture.flow_jet(xbar, gamma, 2)
    assert torch.allclose(value[0], eps, rtol=1e-13, atol=1e-14)
    scale = float((gamma / v) ** 2 / v * (r * square).sum() + terms[0].norm() + terms[1].norm())
    assert (value[1] - sum(terms)).norm() <= 1e-14 * scale + 1e-12 * value[1].norm()


@every_kind
@pytest.mark.parametrize("form", [DDIM, ProbabilityFlow, Preconditioned, lambda m: Preconditioned(m, 0.1)])
def test_expansions_along_the_flow_agree(kind, form):
    """The general expansion, fed with the solution's coefficients, against what follows the flow."""
    mixture = KINDS[kind][0]()
    equation, x = form(mixture), mixture.sample(20, 0.3, rng())
    y, s = equation.enter(x, 0.3), equation.s(0.3)
    jet = equation.jet(y, s, 5)

    class Plain(type(mixture)):
        """The same ε; every short cut switched off."""

        def _follow(self, xbar, gamma):
            return super(Mixture, self)._follow(xbar, gamma)

        def _follow_preconditioned(self, std, y, u):
            return None

    mixture.__class__ = Plain
    for a, b in zip(jet, equation.jet(y, s, 5), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("make", ["shared", "separate", "full"])
def test_one_component_is_the_gaussian_to_order_twenty(make):
    mean = torch.tensor([[0.3, -1.2]], dtype=F64)
    one = {
        "shared": Mixture(mean, 0.5),
        "separate": Mixture(mean, torch.tensor([0.5], dtype=F64)),
        "full": Mixture.full(mean, 0.25 * torch.eye(2, dtype=F64)[None]),
    }[make]
    xbar, gamma = torch.tensor([[2.0, 1.0]], dtype=F64), 0.7
    growth = mpmath.taylor(lambda g: mp.sqrt(mpf("0.25") + g**2), mpf(gamma), 21)
    for j, d in enumerate(one.flow_jet(xbar, gamma, 20)):
        derivative = growth[j + 1] / growth[0] * mp.factorial(j + 1)
        exact = np.array([[derivative * mpf(c) for c in (xbar - mean)[0].tolist()]])
        assert relative_errors([d[0]], exact)[0] < 1e-11


def test_a_point_mass_at_zero_noise_std():
    """s = 0: ε is constant along the flow into the only point there is."""
    point = Mixture(torch.tensor([[1.0, 2.0]], dtype=F64), 0.0)
    xbar, gamma = torch.tensor([[3.0, 5.0]], dtype=F64), 4.0
    eps, *rest = point.flow_jet(xbar, gamma, 4)
    assert torch.allclose(eps, torch.tensor([[0.5, 0.75]], dtype=F64), rtol=1e-15)
    assert all((d.abs() < 1e-15).all() for d in rest)


# --- the three kinds of covariance are one


@pytest.mark.parametrize("t", [1e-3, 0.2, 1.0])
def test_kinds_agree_where_they_meet(t):
    std = 0.3
    alike = [
        Mixture(MEANS, std, WEIGHTS),
        Mixture(MEANS, torch.full((3,), std, dtype=F64), WEIGHTS),
        Mixture.full(MEANS, std**2 * torch.eye(2, dtype=F64).expand(3, 2, 2), WEIGHTS),
    ]
    x = alike[0].sample(40, t, rng())
    jets = [m.jet(x, t, 4) for m in alike]
    for jet in jets[1:]:
        for a, b in zip(jets[0], jet, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10 * float(a.abs().max()))
    for m in alike[1:]:
        assert torch.allclose(m.log_prob(x, t), alike[0].log_prob(x, t), rtol=1e-12, atol=1e-12)
        assert torch.allclose(m.covariance, alike[0].covariance, atol=1e-15)
        assert m.data_std == pytest.approx(alike[0].data_std, rel=1e-14)


def test_rotation_carries_over():
    """Turning means and covariances turns the score."""
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s], [s, c]], dtype=F64)
    turned = Mixture.full(MEANS @ turn.T, turn @ COVARIANCES @ turn.T, WEIGHTS)
    x = full().sample(20, 0.3, rng())
    for a, b in zip(full().jet(x, 0.3, 3), turned.jet(x @ turn.T, 0.3, 3), strict=True):
        assert torch.allclose(a @ turn.T, b, rtol=1e-9, atol=1e-11 * float(b.abs().max()))


# --- densities, moments, samples


@every_kind
@pytest.mark.parametrize("t", [0.1, 1.0, None])
def test_log_prob_is_scipys(kind, t):
    mixture, covariances = KINDS[kind][0](), KINDS[kind][1]
    if t is None and kind == "full":
        mixture = Mixture.full(MEANS, COVARIANCES + 0.01 * torch.eye(2, dtype=F64), WEIGHTS)
        covariances = COVARIANCES + 0.01 * torch.eye(2, dtype=F64)
    alpha, sigma = (1.0, 0.0) if t is None else (mixture.schedule.alpha(t), mixture.schedule.sigma(t))
    x = mixture.sample(30, t, rng())
    density = 0.0
    for m, c, w in zip(MEANS, covariances, WEIGHTS, strict=True):
        matrix = c if isinstance(c, torch.Tensor) else c * torch.eye(2, dtype=F64)
        spread = alpha**2 * matrix + sigma**2 * torch.eye(2, dtype=F64)
        density = density + float(w) * stats.multivariate_normal(alpha * m.numpy(), spread.numpy()).pdf(
            x.numpy()
        )
    assert mixture.log_prob(x, t).numpy() == pytest.approx(np.log(density), rel=1e-11, abs=1e-11)


@every_kind
@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 1.0])
def test_score_is_the_gradient_of_log_prob(kind, t):
    """ε = -σ ∇ log p_t."""
    mixture = KINDS[kind][0]()
    x = mixture.sample(20, t, rng()).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(x, t).sum(), x)
    eps = mixture(x.detach(), t)
    assert torch.allclose(-mixture.schedule.sigma(t) * gradient, eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("problem", ["shared", "separate", "full", "smooth", "toy"])
@pytest.mark.parametrize("t", [None, 0.2])
def test_samples_have_the_exact_moments(problem, t):
    """100,000 samples; each moment within 5 of its own standard errors."""
    mixture = {"smooth": smooth_mixture, "toy": toy_mixture}.get(problem) or KINDS[problem][0]
    mixture, n = mixture(), 100_000
    alpha, sigma = (1.0, 0.0) if t is None else (mixture.schedule.alpha(t), mixture.schedule.sigma(t))
    x = mixture.sample(n, t, rng(3))
    mean = alpha * mixture.mean
    covariance = alpha**2 * mixture.covariance + sigma**2 * torch.eye(2, dtype=F64)
    assert ((x.mean(0) - mean).abs() <= 5 * (x.var(0) / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() <= 5 * (products.var(0) / n).sqrt()).all()


def test_moments_typed_from_the_definition():
    mean = WEIGHTS @ MEANS
    second = torch.einsum("k,kd,ke->de", WEIGHTS, MEANS, MEANS) + torch.einsum(
        "k,kde->de", WEIGHTS, COVARIANCES
    )
    assert torch.allclose(full().mean, mean, atol=1e-15)
    assert torch.allclose(full().covariance, second - mean[:, None] * mean[None], atol=1e-15)


def test_samples_fall_to_components_by_weight():
    far = Mixture(100.0 * MEANS, 0.01, WEIGHTS)
    n = 50_000
    counts = torch.bincount(far.nearest(far.sample(n, generator=rng(4))), minlength=3)
    assert stats.chisquare(counts.numpy(), n * WEIGHTS.numpy()).pvalue > 1e-4


def test_the_toy_is_the_papers():
    """App. E: 64 modes, mean 0, variance 0.4213 per dimension, std 0.01."""
    toy = toy_mixture()
    assert toy.means.shape == (64, 2)
    assert torch.allclose(toy.mean, torch.zeros(2, dtype=F64), atol=1e-15)
    assert torch.allclose(toy.covariance, 0.4213 * torch.eye(2, dtype=F64), atol=1e-13)
    assert toy.data_std == pytest.approx(math.sqrt(0.4213), rel=1e-12)
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    expected = (0.9 * ring[:, None] + 0.18 * ring[None]).reshape(64, 2)
    apart = (toy.means[:, None] - expected).norm(dim=-1)
    assert apart.min(0).values.max() < 1e-15
    assert apart.min(1).values.max() < 1e-15


def test_sampling_is_reproducible_and_moves_the_generator():
    toy, g = toy_mixture(), rng(5)
    first, second = toy.sample(4, 0.5, g), toy.sample(4, 0.5, g)
    assert torch.equal(first, toy.sample(4, 0.5, rng(5)))
    assert not torch.equal(first, second)


# --- shapes, dtypes, times of many kinds


def test_images_are_states():
    digits = digits_mixture(0.1)
    assert digits.event_shape == (1, 8, 8)
    x = digits.sample(6, 0.3, rng())
    flat = Mixture(digits.means.reshape(1797, 64), 0.1)
    assert x.shape == (6, 1, 8, 8)
    for a, b in zip(digits.jet(x, 0.3, 3), flat.jet(x.reshape(6, 64), 0.3, 3), strict=True):
        assert a.shape == x.shape
        assert torch.equal(a.reshape(6, 64), b)
    assert digits.log_prob(x, 0.3).shape == (6,)
    assert torch.equal(digits.nearest(digits.means[:9]), torch.arange(9))
    assert digits.mean.shape == (1, 8, 8)
    assert digits.means.min() == -1.0
    assert digits.means.max() == 1.0


@every_kind
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)])
def test_any_batch(kind, batch):
    mixture = KINDS[kind][0]()
    x = mixture.sample(math.prod(batch), 0.4, rng()).reshape(*batch, 2)
    for order in (1, 3):
        jet = mixture.jet(x, 0.4, order)
        alone = mixture.jet(x.reshape(-1, 2), 0.4, order)
        assert len(jet) == order
        for a, b in zip(jet, alone, strict=True):
            assert torch.equal(a.reshape(-1, 2), b)
    assert mixture.log_prob(x, 0.4).shape == batch


@every_kind
@pytest.mark.parametrize("batch", [(1,), (4,), (2, 3)])
@pytest.mark.parametrize("event", [(2,), (1, 2, 1)])
def test_a_time_for_each_state(kind, batch, event):
    """A tensor of times gives each trajectory what its own time gives alone."""
    mixture = {
        "shared": Mixture(MEANS.reshape(3, *event), 0.1, WEIGHTS),
        "separate": Mixture(MEANS.reshape(3, *event), STDS, WEIGHTS),
        "full": Mixture.full(MEANS.reshape(3, *event), COVARIANCES, WEIGHTS),
    }[kind]
    n = math.prod(batch)
    t = torch.linspace(0.01, 1.0, n + 1, dtype=F64)[1:].reshape(batch)
    x = torch.randn(*batch, *event, dtype=F64, generator=rng())
    jet, log_prob = mixture.jet(x, t, 4), mixture.log_prob(x, t)
    for i in range(n):
        one = x.reshape(n, *event)[i : i + 1]
        for a, b in zip(jet, mixture.jet(one, t.flatten()[i].item(), 4), strict=True):
            assert torch.allclose(
                a.reshape(n, *event)[i], b[0], rtol=1e-11, atol=1e-13 * float(b.abs().max())
            )
        expected = mixture.log_prob(one, t.flatten()[i].item())[0]
        assert log_prob.flatten()[i].item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_time_per_row_of_a_block():
    """Times of the leading axis only."""
    toy = toy_mixture()
    x, t = toy.sample(6, 0.4, rng()).reshape(2, 3, 2), torch.tensor([0.3, 0.6], dtype=F64)
    for a, b in zip(toy.jet(x, t, 3), toy.jet(x[1], 0.6, 3), strict=True):
        assert torch.allclose(a[1], b, rtol=1e-10, atol=1e-12 * float(b.abs().max()))


@every_kind
@pytest.mark.parametrize("times", ["float", "0-dim", "per state"])
@pytest.mark.parametrize("arrays", [torch.float32, F64])
def test_float32_states_stay_float32(kind, times, arrays):
    """ε to a few ε of its condition: the logits are of size |x̄||m|/v."""
    mixture = KINDS[kind][0]()
    x = mixture.sample(30, 0.5, rng())
    t = {"float": 0.5, "0-dim": torch.tensor(0.5, dtype=F64), "per state": torch.full((30,), 0.5, dtype=F64)}[
        times
    ]
    lowered = mixture.to(torch.zeros((), dtype=arrays))
    single = lowered.jet(x.float(), t, 3)
    for a, b in zip(single, mixture.jet(x.float().double(), t, 3), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 2e-5 * b.norm()
    assert lowered.log_prob(x.float(), t).dtype == torch.float32
    assert torch.allclose(
        lowered.log_prob(x.float(), t).double(), mixture.log_prob(x, t), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0])
def test_float32_on_the_toy(t):
    """A logit is of size 1/v, with v down to 2e-4, times ε = 6e-8: a few 1e-4 in ε at worst."""
    toy = toy_mixture()
    x = toy.sample(200, t, rng()).float()
    eps = toy(x, t)
    exact = toy(x.double(), t)
    assert eps.dtype == torch.float32
    assert (eps - exact).norm(dim=-1).max() <= 2e-3 * exact.norm(dim=-1).mean()
    assert float((eps - exact).norm(dim=-1).median()) <= 1e-5 * float(exact.norm(dim=-1).mean())


@every_kind
@pytest.mark.parametrize(
    "t", [0.5, torch.full((4,), 0.5, device="meta", dtype=F64)], ids=["float", "per state"]
)
def test_states_of_another_device_stay_there(kind, t):
    """On the meta device, which refuses to mix with others and to be read."""
    mixture = KINDS[kind][0]()
    x = torch.empty(4, 2, dtype=torch.float32, device="meta")
    for value in (*mixture.jet(x, t), *mixture.jet(x, t, 5), mixture.log_prob(x, t)):
        assert (value.device.type, value.dtype, len(value)) == ("meta", torch.float32, 4)


def test_to_changes_the_dtype_of_the_arrays():
    for make, _ in KINDS.values():
        lowered = make().to(torch.zeros((), dtype=torch.float32))
        assert lowered.means.dtype == torch.float32
        assert lowered.sample(3).dtype == torch.float32
        assert lowered.schedule == make().schedule
        assert lowered.data_std == pytest.approx(make().data_std, rel=1e-6)


def test_other_schedules():
    """ε is a function of (x̄, γ) alone."""
    ve, vp = Mixture(MEANS, 0.1, WEIGHTS, VE()), shared()
    xbar = vp.sample(5, generator=rng()) + 0.3
    gamma = 0.3
    for a, b in zip(ve.flow_jet(xbar, gamma, 3), vp.flow_jet(xbar, gamma, 3), strict=True):
        assert torch.equal(a, b)
    assert torch.allclose(ve(xbar, ve.schedule.time(gamma)), ve.flow_jet(xbar, gamma)[0], rtol=1e-12)


# --- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(MEANS, -0.1), "negative"),
        (lambda: Mixture(MEANS, torch.tensor([0.1, -0.1, 0.1])), "negative"),
        (lambda: Mixture(MEANS, torch.tensor([0.1, 0.1])), "shape"),
        (lambda: Mixture(MEANS, 0.1, torch.tensor([0.5, 0.5])), "weights"),
        (lambda: Mixture(MEANS, 0.1, torch.tensor([0.5, 0.6, -0.1])), "weights"),
        (lambda: Mixture(MEANS, 0.1, torch.tensor([0.5, 0.5, 0.0])), "weights"),
        (lambda: Mixture(MEANS * torch.nan, 0.1), "means of a mixture must be finite"),
        (lambda: Mixture(MEANS, math.inf), "std of a mixture must be finite"),
        (lambda: Mixture(MEANS, torch.tensor([0.1, math.nan, 0.1])), "std of a mixture must be finite"),
        (
            lambda: Mixture(MEANS, 0.1, torch.tensor([0.5, math.inf, 0.5])),
            "weights of a mixture must be finite",
        ),
        (lambda: Mixture.full(MEANS, COVARIANCES * math.nan), "covariances of a mixture must be finite"),
        (lambda: Mixture.full(MEANS, torch.eye(2, dtype=F64)), "covariances"),
        (lambda: Mixture.full(MEANS, -COVARIANCES), "negative eigenvalue"),
        (lambda: Mixture.full(MEANS, COVARIANCES.tril()), "symmetric"),
        (lambda: shared().jet(torch.zeros(4, 3, dtype=F64), 0.5), "axes"),
        (lambda: shared().log_prob(torch.zeros(4, 3, dtype=F64), 0.5), "axes"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_are_normalised():
    a, b = Mixture(MEANS, 0.1, WEIGHTS), Mixture(MEANS, 0.1, 7 * WEIGHTS)
    assert torch.allclose(a.weights, b.weights, rtol=1e-15)
    assert b.weights.sum().item() == pytest.approx(1.0, abs=1e-15)
    assert torch.allclose(Mixture(MEANS, 0.1).weights, torch.full((3,), 1 / 3, dtype=F64))


def test_gaussian_is_a_mixture_of_one():
    mean = torch.tensor([0.3, -1.2], dtype=F64)
    one, gaussian = Mixture(mean[None], 0.5), Gaussian(mean, 0.5)
    x = one.sample(8, 0.4, rng())
    for a, b in zip(one.jet(x, 0.4, 6), gaussian.jet(x, 0.4, 6), strict=True):
        assert torch.allclose(a, b, rtol=1e-11)
