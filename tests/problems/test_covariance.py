import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from analysis.measure.problems import PROBLEMS
from analysis.methods import METHODS
from problems import VP, AnalyticFirst, Brownian, Gaussian, Mixture, smooth_mixture
from problems.covariance import UncertainDDIM, UncertainLocalization
from problems.posterior import SAMPLES
from solvers import EulerMaruyama, final, grids, march

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def separate():
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [-0.2, -0.7]], dtype=F64)
    return Mixture(means, torch.tensor([0.1, 0.4, 0.25], dtype=F64), torch.tensor([0.5, 0.3, 0.2]))


def full():
    means = torch.tensor([[[0.8, 0.1, 0.0]], [[-0.5, 0.6, 0.3]]], dtype=F64)
    root = torch.randn(2, 3, 3, dtype=F64, generator=rng(3))
    return Mixture.full(means, 0.1 * root @ root.mT, torch.tensor([0.6, 0.4], dtype=F64))


EXACT = {
    "shared": smooth_mixture,
    "separate": separate,
    "full": full,
    "Gaussian": lambda: Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5),
}
every_problem = pytest.mark.parametrize("problem", [make() for make in EXACT.values()], ids=EXACT)


# --- the covariance of x₀ given a state


@every_problem
@pytest.mark.parametrize("gamma", [0.05, 0.4, 3.0, 40.0])
def test_exact_variance_is_tweedies(problem, gamma):
    """Cov(x₀ | x̄) = γ² (I - γ ∂ε/∂x̄), the Jacobian by automatic differentiation."""
    x0 = problem.sample(6, generator=rng())
    xbar = x0 + gamma * torch.randn(x0.shape, dtype=F64, generator=rng(1))
    value = problem.posterior_variance(xbar, gamma)
    for x, variance in zip(xbar, value.expand_as(xbar), strict=True):
        size = x.numel()
        jacobian = torch.func.jacfwd(lambda y: problem.flow_jet(y[None], gamma)[0][0])(x).reshape(size, size)
        exact = gamma**2 * (1.0 - gamma * jacobian.diagonal())
        # 1 - γ ∂ε/∂x̄ is a small number at large γ, and C's own is small beside |m|² at small γ.
        assert torch.allclose(variance.reshape(-1), exact, rtol=1e-11, atol=1e-13 * (1.0 + gamma**2))


@pytest.mark.parametrize("gamma", [0.02, 0.3, 2.0])
def test_exact_variance_in_one_dimension_by_quadrature(gamma):
    """Moments of p(x₀ | x̄) ∝ p₀(x₀) exp(-(x̄ - x₀)²/2γ²), summed over a fine grid."""
    means, stds, weights = np.array([0.8, -0.5, -0.1]), np.array([0.1, 0.4, 0.25]), np.array([0.5, 0.3, 0.2])
    problem = Mixture(torch.tensor(means)[:, None], torch.tensor(stds), torch.tensor(weights))
    xbar = torch.tensor([[-1.0], [0.2], [0.7]], dtype=F64)
    value = problem.posterior_variance(xbar, gamma)
    # The trapezoidal rule on functions like these is exact to rounding.
    x0 = np.linspace(-6.0, 6.0, 200_001)
    prior = logsumexp(np.log(weights / stds) - (x0[:, None] - means) ** 2 / (2 * stds**2), axis=1)
    for x, variance in zip(xbar[:, 0].tolist(), value[:, 0].tolist(), strict=True):
        log_density = prior - (x - x0) ** 2 / (2 * gamma**2)
        density = np.exp(log_density - log_density.max())
        mean = (density @ x0) / density.sum()
        assert variance == pytest.approx(density @ (x0 - mean) ** 2 / density.sum(), rel=1e-11)


@every_problem
def test_a_noise_level_for_each_state(problem):
    x = problem.sample(4, generator=rng())
    gamma = torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=F64)
    wide = gamma.reshape(4, *[1] * (x.ndim - 1))
    together = problem.posterior_variance(x, wide).expand_as(x)
    for i in range(4):
        alone = problem.posterior_variance(x[i : i + 1], gamma[i].item()).expand_as(x[i : i + 1])
        assert torch.allclose(together[i], alone[0], rtol=1e-12)
    assert problem.posterior_variance(x.float(), wide.float()).dtype == torch.float32
    average = problem.average_variance(x, wide)
    assert average.shape == wide.shape
    assert [problem.average_variance(x, g).item() for g in gamma.tolist()] == average.reshape(-1).tolist()


@every_problem
@pytest.mark.parametrize("gamma", [0.05, 0.4, 3.0, 152.0])
def test_average_variance_is_the_average(problem, gamma):
    """Within 5 standard errors of the mean of exact variances; so is γ² (1 - E|ε|²/d) where it has digits."""
    x0 = problem.sample(100_000, generator=rng(5))
    xbar = x0 + gamma * torch.randn(x0.shape, dtype=F64, generator=rng(6))
    exact = problem.posterior_variance(xbar, gamma).expand_as(xbar)
    eps = problem.flow_jet(xbar, gamma)[0]
    residual = (x0 - xbar + gamma * eps).square().flatten(1).mean(1)
    error = residual.std() / math.sqrt(SAMPLES)
    value = problem.average_variance(xbar, gamma).item()
    assert abs(value - exact.mean()) <= 5 * error
    published = gamma**2 * (1 - eps.square().mean())
    assert abs(published - exact.mean()) <= 5 * gamma**2 * eps.square().flatten(1).mean(1).std() / math.sqrt(
        1e5
    )


def test_the_average_is_estimated_once_and_not_billed():
    problem = smooth_mixture()
    x = problem.sample(3, generator=rng())
    first = problem.average_variance(x, 0.7)
    assert torch.equal(first, problem.average_variance(x + 1.0, 0.7))
    assert problem.average_variance is problem.part(torch.arange(2), 3).average_variance
    assert problem.average_variance._known.keys() == {0.7}
    assert problem.spent.nfe == 0
    assert torch.equal(first, smooth_mixture().average_variance(x, 0.7))
    assert torch.equal(AnalyticFirst(problem, 1.0).average_variance(x, 0.7), first)


# --- steps

FORMS = {"DDIM": UncertainDDIM, "DDPM": UncertainLocalization}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


class Ones(Brownian):
    """Numbers that are 1, so that what is added is its own standard deviation."""

    def over(self, like, a, b):
        return torch.ones_like(like)


class Zeros(Brownian):
    """No noise."""

    def over(self, like, a, b):
        return torch.zeros_like(like)


@pytest.mark.parametrize("times", [(1.0, 0.6), (0.6, 0.5), (0.3, 0.01)])
def test_analytic_ddpm_is_as_published(times):
    """Bao et al. 2022a, Theorem 1, in their symbols: μ_n and σ*²_n of a step from n to m."""
    problem = smooth_mixture()
    x = problem.sample(5, times[0], rng())
    alpha_n, alpha_m = (VP().alpha(t) ** 2 for t in times)  # their ᾱ
    beta_n, beta_m, alpha = 1 - alpha_n, 1 - alpha_m, alpha_n / alpha_m
    score = -problem(x, times[0]) / math.sqrt(beta_n)
    x0 = (x + beta_n * score) / math.sqrt(alpha_n)
    # β̄_n Γ_n = E|ε|²/d, taken from the average that is used, whose own truth is tested above.
    gamma = VP().gamma(times[0])
    rest = problem.average_variance(x, gamma).item() / gamma**2  # 1 - β̄_n Γ_n
    for form, squared in ((UncertainDDIM, 0.0), (UncertainLocalization, beta_m / beta_n * (1 - alpha))):
        root = math.sqrt(beta_m - squared)
        mean = math.sqrt(alpha_m) * x0 + root * (x - math.sqrt(alpha_n) * x0) / math.sqrt(beta_n)
        variance = squared + (math.sqrt(beta_n / alpha) - root) ** 2 * rest
        eq = form(problem, problem.average_variance, Ones(0))
        end = final(march(eq, EulerMaruyama(), times, x)).x
        assert torch.allclose(end, mean + math.sqrt(variance), rtol=1e-11, atol=1e-12)


@every_form
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_on_one_gaussian_any_steps_give_the_right_distribution(form, steps):
    """Mean and variance of the method, read off the affine map that each of its steps is, from exact ones."""
    mean, std = 0.7, 0.5
    problem = Gaussian(torch.full((1,), mean, dtype=F64), std)
    probe = torch.tensor([[0.0], [1.0]], dtype=F64)
    times = grids.power(steps).tolist()

    def moments(t):
        return VP().alpha(t) * mean, (VP().alpha(t) * std) ** 2 + VP().sigma(t) ** 2

    m, v = moments(times[0])
    for t0, t1 in itertools.pairwise(times):
        plain = form.__bases__[0](problem, Zeros(0))
        noisy = form(problem, problem.posterior_variance, Ones(0))
        drift, loud = (final(march(eq, EulerMaruyama(), [t0, t1], probe)).x[:, 0] for eq in (plain, noisy))
        slope = float(drift[1] - drift[0])
        m, v = slope * m + float(drift[0]), slope**2 * v + float(loud[0] - drift[0]) ** 2
    for value, exact in zip((m, v), moments(times[-1]), strict=True):
        assert value == pytest.approx(exact, rel=1e-10)


@every_form
def test_covariances_make_few_steps_right_on_a_mixture(form):
    """Five steps, 20,000 samples: the variance gets nearer to the truth, by ten standard errors."""
    problem, n, steps = smooth_mixture(), 20_000, 5
    times = grids.power(steps)
    x = problem.sample(n, 1.0, rng())
    t = float(times[-1])
    exact = VP().alpha(t) ** 2 * problem.covariance.diagonal() + VP().sigma(t) ** 2
    errors = []
    for eq in (
        form.__bases__[0](problem, Brownian(1)),
        form(problem, problem.average_variance, Brownian(1)),
        form(problem, problem.posterior_variance, Brownian(1)),
    ):
        end = final(march(eq, EulerMaruyama(), times, x)).x
        errors.append(float((end.var(0) - exact).abs().max()))
    error = 10 * float(exact.max()) * math.sqrt(2 / n)
    assert errors[0] - errors[1] > error
    assert errors[0] - errors[2] > error


# --- as methods


@pytest.mark.parametrize("name", ["analytic-ddim", "optimal-ddim", "analytic-ddpm", "optimal-ddpm"])
def test_methods_cost_one_evaluation_a_step(name):
    method, problem = METHODS[name], smooth_mixture()
    assert method.random
    assert method.steps(problem, 10) == 10
    x = torch.randn(3, 2, dtype=F64, generator=rng())
    method.sample(problem, 10, x, Brownian(0))
    assert problem.spent.nfe == 10
    assert torch.equal(*(method.sample(problem, 4, x, Brownian(0)) for _ in range(2)))


def test_methods_with_averages_sample_networks():
    network = PROBLEMS["digits"]()
    assert METHODS["analytic-ddpm"].steps(network, 10) == 10
    x = torch.randn(1, *network.event_shape, generator=rng())
    assert METHODS["analytic-ddim"].sample(network, 1, x, Brownian(0)).shape == x.shape
    assert network.spent.nfe == 1


@pytest.mark.parametrize(
    ("method", "problem"), [("optimal-ddim", "digits"), ("analytic-ddim", "digits-guided")]
)
def test_methods_refuse_models_without_the_variance_that_they_need(method, problem):
    with pytest.raises(ValueError, match="varianc"):
        METHODS[method].steps(PROBLEMS[problem](), 10)
