import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from mpmath import mp, mpf
from torch.distributions import MultivariateNormal

from analysis.measure.problems import PROBLEMS
from analysis.methods import METHODS
from problems import Brownian, Gaussian, Mixture, smooth_mixture, toy_mixture
from problems.langevin import CriticallyDamped, damped, mix
from solvers import EulerMaruyama, final, grids, march
from solvers.splitting import SSCS, Strang
from tests.conftest import fitted_order

F64 = torch.float64
GAMMA0 = 0.04
DRIFT = np.array([[0.0, 1.0], [-1.0, -2.0]])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def diffused(s, initial):
    """F = e^(As) and F Σ₀ Fᵀ + noise. A + Aᵀ + diag(0, 4) = 0, so I is stationary, the noise is I - F Fᵀ."""
    flow = scipy.linalg.expm(DRIFT * s)
    return flow, np.eye(2) + flow @ (initial - np.eye(2)) @ flow.T


# --- closed forms


@pytest.mark.parametrize("s", [1e-3, 0.05, 1.0, 8.0, 20.0])
def test_mix_in_high_precision(s):
    """γ, c and V by regression of z_x on z_v, from the flow and the covariance of the noise, 60 digits."""
    s, g = mpf(s), mpf(GAMMA0)
    back = mp.exp(s) * mp.matrix([[1 - s, -s], [s, 1 + s]])
    flow = back**-1
    assert mp.norm(flow - mp.expm(mp.matrix(DRIFT.tolist()) * s)) < mpf(10) ** -40
    # N(0, I) is stationary, so the noise is I - e^(As) e^(A's); that of z is had by going back.
    noise = back * (mp.eye(2) - flow * flow.T) * back.T + mp.diag([0, g])
    values = mix(np.array(float(s)), GAMMA0)
    exact = (
        mp.sqrt(noise[0, 0] - noise[0, 1] ** 2 / noise[1, 1]),
        -noise[0, 1] / noise[1, 1],
        noise[1, 1],
    )
    for value, truth in zip(values, exact, strict=True):
        assert abs(mpf(float(value)) / truth - 1) < 1e-14 * (1 + s)


@pytest.mark.parametrize("h", [1e-4, 0.01, 0.3, 2.0])
def test_the_exact_part_in_high_precision(h):
    """dx = -v, dv = (x - 2v) + 2 dw in reversed time: I - F Fᵀ with F = e^(Bh)."""
    flow = mp.expm(mp.matrix([[0, -1], [1, -2]]) * mpf(h))
    noise = mp.eye(2) - flow * flow.T
    length, decay, q_xx, q_xv, q_vv = (mpf(float(c)) for c in damped(np.array(h)))
    assert mp.norm(decay * mp.matrix([[1 + length, -length], [length, 1 - length]]) - flow) < 1e-15
    for value, truth in ((q_xx, noise[0, 0]), (q_xv, noise[0, 1]), (q_vv, noise[1, 1])):
        assert abs(value / truth - 1) < 1e-14


@pytest.mark.parametrize("t", [1e-2, 0.1, 0.5, 1.0])
def test_the_papers_diffusion_in_these_units(t):
    """M = 1/4, β = 4, Γ = 1: moments at t are those at s = 8t, the velocity in units of √M = 1/2.

    The covariance by Van Loan's matrix exponential, whose blocks grow as e^(8t): with 60 digits.
    """
    m_inverse, beta, friction = 4, 4, 1
    drift = [[0, beta * m_inverse], [-beta, -beta * friction * m_inverse]]
    block = mp.zeros(4)
    for i, j in itertools.product(range(2), repeat=2):
        block[i, j], block[2 + i, 2 + j] = -drift[i][j], drift[j][i]
    block[1, 3] = 2 * friction * beta
    block = mp.expm(block * mpf(t))
    flow = block[2:, 2:].T
    initial = mp.diag([mpf(0.09), mpf(GAMMA0) / m_inverse])
    covariance = np.array((flow * initial * flow.T + flow * block[:2, 2:]).tolist(), dtype=float)
    units = np.diag([1.0, 0.5])
    ours, ours_covariance = diffused(8.0 * t, np.diag([0.09, GAMMA0]))
    paper = np.array(flow.tolist(), dtype=float)
    assert np.allclose(units @ ours @ np.linalg.inv(units), paper, rtol=0, atol=1e-14)
    assert np.allclose(units @ ours_covariance @ units, covariance, rtol=0, atol=1e-14)


def test_gamma_grows_by_what_the_noise_adds():
    """dγ²/ds = 4 a_v², a_v the weight of v in x̄: to first order the best combination stays the best."""
    s, h = 1.3, 1e-4

    def squared(place):
        return float(mix(np.array(place), GAMMA0).gamma) ** 2

    c = float(mix(np.array(s), GAMMA0).c)
    weight = math.exp(s) * (c * (1 + s) - s)
    # Central difference of fourth order, error h⁴.
    slope = (8 * (squared(s + h) - squared(s - h)) - squared(s + 2 * h) + squared(s - 2 * h)) / (12 * h)
    assert slope == pytest.approx(4 * weight**2, rel=1e-9)


def separate():
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [-0.2, -0.7]], dtype=F64)
    return Mixture(means, torch.tensor([0.1, 0.4, 0.25], dtype=F64), torch.tensor([0.5, 0.3, 0.2]))


def components(problem):
    stds = {"shared": [0.4] * 3, "separate": [0.1, 0.4, 0.25]}
    return stds["shared" if problem.component_std == 0.4 else "separate"]


@pytest.mark.parametrize("problem", [smooth_mixture(), separate()], ids=["shared", "separate"])
@pytest.mark.parametrize("s", [0.07, 0.5, 2.0, 7.0])
def test_score_is_the_gradient_of_the_log_density(problem, s):
    """Of the mixture in (x, v): means e^(As) (m, 0), one 2 × 2 covariance for each component."""
    eq = CriticallyDamped(problem)
    parts = []
    for mean, std in zip(problem.means, components(problem), strict=True):
        flow, covariance = diffused(s, np.diag([std**2, GAMMA0]))
        centre = torch.tensor(flow)[:, :1] * mean  # (2, D)
        parts.append((centre.T, torch.tensor(covariance)))

    def log_density(y):  # (N, 2, D)
        terms = [
            MultivariateNormal(centre, covariance, validate_args=False).log_prob(y.mT).sum(-1)
            for centre, covariance in parts
        ]
        return torch.logsumexp(torch.stack(terms, -1) + problem.weights.log(), -1)

    centre, covariance = parts[0]
    noise = torch.randn(5, 2, 2, dtype=F64, generator=rng())
    y = (centre.T + torch.linalg.cholesky(covariance) @ noise).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(y).sum(), y)
    x, v = y.detach().unbind(1)
    drift = torch.stack([v, -x - 2 * v - 4 * gradient[:, 1]], 1)
    assert torch.allclose(eq.jet(y.detach(), s)[0], drift, rtol=1e-9, atol=1e-11)
    # The two parts of a splitting add up to the whole.
    linear = torch.stack([v, 2 * v - x], 1)
    assert torch.allclose(linear + eq.rest(y.detach(), s), drift, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.6])
def test_coordinates_carry_the_distribution_over(t):
    """100,000 samples of p_t become samples of (x, v) at s(t), their moments within 5 standard errors."""
    problem, n = smooth_mixture(), 100_000
    eq = CriticallyDamped(problem, Brownian(1))
    x = problem.sample(n, t, rng())
    y = eq.enter(x, t)
    assert torch.allclose(eq.leave(y, t), x, rtol=1e-11, atol=1e-12)
    assert eq.t(eq.s(t)) == pytest.approx(t, rel=1e-13)
    flow, _ = diffused(eq.s(t), np.zeros((2, 2)))
    for d in range(2):
        variance = float(problem.covariance[d, d])
        _, covariance = diffused(eq.s(t), np.diag([variance, GAMMA0]))
        mean = flow[:, 0] * float(problem.mean[d])
        sample = y[..., d].numpy()
        assert np.all(np.abs(sample.mean(0) - mean) <= 5 * np.sqrt(np.diag(covariance) / n))
        products = (sample[:, :, None] - mean[:, None]) * (sample[:, None, :] - mean)
        assert np.all(np.abs(products.mean(0) - covariance) <= 5 * products.std(0) / math.sqrt(n))


def test_a_place_for_each_state():
    eq = CriticallyDamped(smooth_mixture(), Brownian(0))
    t = torch.tensor([0.05, 0.3, 1.0], dtype=F64)
    x = torch.randn(3, 2, dtype=F64, generator=rng())
    y, s = eq.enter(x, t), eq.s(t)
    assert torch.allclose(eq.leave(y, t), x, rtol=1e-11)
    wide = s[:, None, None]
    flowed, kicked = eq.flow(y, wide, 0.5 * wide), eq.kick(y, wide, 0.5 * wide)
    assert torch.equal(kicked[:, 0], torch.zeros(3, 2, dtype=F64))
    # What adaptive methods multiply their noise with.
    assert torch.equal(eq.spread(wide), torch.tensor([0.0, 2.0], dtype=F64).reshape(1, 2, 1).expand(3, 2, 1))
    for i in range(3):
        part, place = eq.part(torch.tensor([i]), 3), s[i].item()
        assert torch.allclose(part.enter(x[i : i + 1], t[i].item()), y[i : i + 1], rtol=1e-12)
        assert torch.allclose(part.jet(y[i : i + 1], place)[0], eq.jet(y, wide)[0][i : i + 1], rtol=1e-9)
        assert torch.allclose(part.flow(y[i : i + 1], place, place / 2), flowed[i : i + 1], rtol=1e-11)
        assert torch.allclose(part.kick(y[i : i + 1], place, place / 2), kicked[i : i + 1], rtol=1e-11)
    single = eq.enter(x.float(), 0.3)
    assert eq.jet(single, eq.s(0.3))[0].dtype == eq.flow(single, 1.0, 0.9).dtype == torch.float32


# --- methods, by their moments on one Gaussian, on which every step is affine

MEAN, STD = 0.7, 0.5
START, STOP = 0.9, 0.05


def exact(s):
    flow, covariance = diffused(s, np.diag([STD**2, GAMMA0]))
    return flow[:, 0] * MEAN, covariance


def exact_part(h):
    """Flow and noise of dx = -v, dv = (x - 2v) + 2 dw over h, from the matrix exponential."""
    mirror = np.diag([1.0, -1.0])
    flow, noise = diffused(h, np.zeros((2, 2)))
    return mirror @ flow @ mirror, mirror @ noise @ mirror


def score(s):
    """∇_v log p = g z + k."""
    mean, covariance = exact(s)
    gain = -np.linalg.inv(covariance)[1]
    return gain, -gain @ mean


def euler_maruyama(s0, s1):
    h, (gain, shift) = s0 - s1, score(s0)
    matrix = np.eye(2) - h * DRIFT + 4 * h * np.outer([0, 1], gain)
    return matrix, np.array([0, 4 * h * shift]), np.diag([0.0, 4 * h])


def kicked(h, s):
    """An Euler step of the rest, dv = 4 (v + ∇_v log p), as matrix and shift."""
    gain, shift = score(s)
    return np.diag([1.0, 1 + 4 * h]) + 4 * h * np.outer([0, 1], gain), np.array([0, 4 * h * shift])


def sscs(s0, s1):
    flow, noise = exact_part((s0 - s1) / 2)
    matrix, shift = kicked(s0 - s1, s0)
    return flow @ matrix @ flow, flow @ shift, flow @ matrix @ noise @ matrix.T @ flow.T + noise


def strang(s0, s1):
    flow, noise = exact_part((s0 - s1) / 2)
    half, half_shift = kicked((s0 - s1) / 2, (s0 + s1) / 2)
    whole, whole_shift = kicked(s0 - s1, (s0 + s1) / 2)
    matrix = np.eye(2) + (whole - np.eye(2)) @ half
    shift = (whole - np.eye(2)) @ half_shift + whole_shift
    return flow @ matrix @ flow, flow @ shift, flow @ matrix @ noise @ matrix.T @ flow.T + noise


SOLVERS = {
    "Euler-Maruyama": (EulerMaruyama(), euler_maruyama),
    "SSCS": (SSCS(), sscs),
    "Strang": (Strang(), strang),
}
every_method = pytest.mark.parametrize("name", SOLVERS)


@every_method
def test_a_step_is_the_affine_map(name):
    """200,000 samples from one state: mean and covariance of a step within 5 standard errors."""
    solver, affine = SOLVERS[name]
    n, s0, s1 = 200_000, 1.2, 0.9
    eq = CriticallyDamped(Gaussian(torch.full((1,), MEAN, dtype=F64), STD), rng(7))
    state = np.array([0.4, -1.1])
    y = torch.tensor(state).reshape(1, 2, 1).expand(n, 2, 1)
    end = solver.step(eq, y, s0, s1, ())[0][..., 0].numpy()
    matrix, shift, noise = affine(s0, s1)
    mean = matrix @ state + shift
    assert np.all(np.abs(end.mean(0) - mean) <= 5 * np.sqrt(np.diag(noise) / n) + 1e-10)
    products = (end[:, :, None] - mean[:, None]) * (end[:, None, :] - mean)
    assert np.all(np.abs(products.mean(0) - noise) <= 5 * products.std(0) / math.sqrt(n) + 1e-10)


@every_method
def test_orders_by_the_recursion_of_moments(name):
    """Means and covariances from exact ones at t = 0.9 to 0.05, over equal steps in s."""
    solver, affine = SOLVERS[name]
    eq = CriticallyDamped(Gaussian(torch.zeros(1, dtype=F64), STD))
    begin, end = eq.s(START), eq.s(STOP)
    steps, errors = [400, 800, 1600], []
    for n in steps:
        mean, covariance = exact(begin)
        for s0, s1 in itertools.pairwise(np.linspace(begin, end, n + 1)):
            matrix, shift, noise = affine(s0, s1)
            mean, covariance = matrix @ mean + shift, matrix @ covariance @ matrix.T + noise
        wrong = np.concatenate([mean - exact(end)[0], (covariance - exact(end)[1]).ravel()])
        errors.append(np.abs(wrong).max())
    assert fitted_order(steps, errors) == pytest.approx(solver.order, abs=0.1)


# --- on mixtures and networks


@pytest.mark.parametrize("solver", [SSCS(), Strang()])
def test_many_steps_sample_the_toy(solver):
    """200 steps, 4,000 samples: clusters, variances and distances from means within 5 standard errors."""
    problem, n = toy_mixture(), 4000
    times = grids.log_snr(200, problem.schedule)
    x = torch.randn(n, 2, dtype=F64, generator=rng())
    end = final(march(CriticallyDamped(problem, rng(1)), solver, times, x)).x
    alpha, sigma = problem.schedule.alpha(1e-3), problem.schedule.sigma(1e-3)
    nearest = problem.nearest(end / alpha)
    clusters = torch.bincount(nearest // 8, minlength=8)
    assert float((clusters / n - 1 / 8).abs().max()) <= 5 * math.sqrt(7 / 64 / n)
    square = (end - end.mean(0)).square()
    exact = alpha**2 * problem.covariance.diagonal() + sigma**2
    assert torch.all((square.mean(0) - exact).abs() <= 5 * square.std(0) / math.sqrt(n))
    # |x - αm|² is (α²s² + σ²) χ²₂, whose standard deviation is its mean.
    width = (end - alpha * problem.means[nearest]).square().sum(-1).mean()
    assert float(width) == pytest.approx(2 * ((0.01 * alpha) ** 2 + sigma**2), rel=5 / math.sqrt(n))


@every_method
def test_few_steps_are_biased_and_many_are_not(name):
    """On the smooth mixture, 20,000 samples: the variance is off by 5 standard errors at 4 steps only."""
    solver, problem, n = SOLVERS[name][0], smooth_mixture(), 20_000
    alpha, sigma = problem.schedule.alpha(1e-3), problem.schedule.sigma(1e-3)
    x = torch.randn(n, 2, dtype=F64, generator=rng())
    exact = alpha**2 * problem.covariance.diagonal() + sigma**2
    errors = []
    for steps in (4, 100):
        times = grids.log_snr(steps, problem.schedule)
        end = final(march(CriticallyDamped(problem, rng(1)), solver, times, x)).x
        square = (end - end.mean(0)).square()
        errors.append(float(((square.mean(0) - exact) / square.std(0)).abs().max()) * math.sqrt(n))
    assert errors[1] <= 5 <= errors[0]


@pytest.mark.parametrize("name", ["cld-em", "cld-sscs", "cld-strang"])
def test_methods_on_any_model(name):
    """A network is a model of this diffusion too; one evaluation a step, two for the second order."""
    method, network = METHODS[name], PROBLEMS["digits"]()
    cost = 2 if name == "cld-strang" else 1
    assert method.random
    assert method.steps(network, 10) == 10 // cost
    x = torch.randn(2, *network.event_shape, generator=rng())
    ends = [method.sample(network, 3, x, Brownian(0)) for _ in range(2)]
    assert torch.equal(*ends)
    assert ends[0].shape == x.shape
    assert network.spent.nfe == 6 * cost
