"""Mixture components that share one isotropic covariance: everything is two matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from problems.components import responsibilities
from problems.score import Push
from problems.series import Exponential, Scalar, Series, convolve_states, integral, quotient


class SharedCovariance:
    """Components N(m_k, s²I).

    With q = 1/(s² + γ²) and z = q x̄ the responsibilities are a softmax of log w_k + m_k·z - ½|m_k|² q. The
    exponents are linear in z and q, so they are one matrix product, and the sums over components another.
    Inside this class states lie along the last axis, (D, N), and so do scalars per state, (1, N): operations
    on each state then run over long rows.

    Parameters
    ----------
    means, log_weights
        m_k and log w_k, shapes (K, D) and (K,).
    std
        s ≥ 0.
    """

    def __init__(self, means: Tensor, std: float, log_weights: Tensor) -> None:
        self.means, self.std, self.log_weights = means, std, log_weights
        half_squares = 0.5 * means.square().sum(-1, keepdim=True)
        self._features = torch.cat([means, -half_squares], -1)
        self._sums = torch.cat([-self._features, torch.ones_like(half_squares)], -1).T.contiguous()
        self._column = log_weights[:, None]

    def _mean(self, like: Tensor) -> _PosteriorMean:
        return _PosteriorMean(self._features.to(like), self._column.to(like), self._sums.to(like))

    def expand(self, gamma: Series, like: Tensor) -> Push:
        """Begin an expansion of ε = γ q (x̄ - m̄), with m̄ the posterior mean of m."""
        gamma = _rows(gamma)
        variance = self.std**2 + gamma * gamma
        q = 1.0 / variance
        push = self._mean(like).push
        z: list[Tensor] = []
        rho: list[Tensor] = []  # q (x̄ - m̄)

        def eps(coefficient: Tensor) -> Tensor:
            j = len(z)
            x = coefficient.T.contiguous()
            z.append(quotient(x, variance, z))
            rho.append(quotient(x - push(z[j], q[j]), variance, rho))
            return convolve_states(gamma, rho, j).T

        return eps

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Expand ε along its flow by a differential equation for ε itself."""
        # Along the flow, ε = γ ρ with ρ = q (x̄ - m̄) obeys ε' = q (s² γ' ρ - γ m̄'). In ε' = γ' ρ + γ ρ'
        # the two terms cancel up to a relative part of order 1/γ².
        gamma = _rows(gamma)
        slope = gamma.slope()
        variance = self.std**2 + gamma * gamma
        q = 1.0 / variance
        push = self._mean(xbar).push
        pull, drag = slope * self.std**2, -gamma
        x = xbar.T.contiguous()
        z = [quotient(x, variance, [])]
        mean = push(z[0], q[0])
        rho = [quotient(x - mean, variance, [])]
        eps = [gamma[0] * rho[0]]
        mean_slope: list[Tensor] = []
        eps_slope: list[Tensor] = []
        yield eps[0].T
        for j in range(1, len(gamma)):
            if j > 1:
                rho.append(quotient(x - mean, variance, rho))
            x = integral(convolve_states(slope, eps, j - 1), j)
            z.append(quotient(x, variance, z))
            mean = push(z[j], q[j])
            mean_slope.append(mean if j == 1 else j * mean)
            rate = convolve_states(drag, mean_slope, j - 1, convolve_states(pull, rho, j - 1))
            eps_slope.append(quotient(rate, variance, eps_slope))
            eps.append(integral(eps_slope[j - 1], j))
            yield eps[j].T

    def follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor]:
        """Expand y along the preconditioned flow."""
        # With δ = s² - std² and w = 1 + δ u²: z = u y/w, q = u²/w, and the flow is dy/du = m̄/w + δ z. Its
        # terms do not cancel, and at std = s there are no quotients.
        u = _rows(u)
        slope = u.slope()
        delta = self.std**2 - std**2
        square = u * u
        w = 1.0 + delta * square if delta != 0.0 else Series([1.0])
        q = square / w if delta != 0.0 else square
        push = self._mean(y).push
        path = [y.T.contiguous()]
        z: list[Tensor] = []
        pull: list[Tensor] = []  # m̄/w
        rate: list[Tensor] = []  # dy/du
        for j in range(len(slope)):
            z.append(quotient(convolve_states(u, path, j), w, z))
            pull.append(quotient(push(z[j], q[j]), w, pull))
            rate.append(pull[j] if delta == 0.0 else torch.add(pull[j], z[j], alpha=delta))
            path.append(integral(convolve_states(slope, rate, j), j + 1))
            yield path[j + 1].T

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return log N(x̄; m_k, (s² + γ²)I), shape (N, K)."""
        variance = torch.as_tensor(self.std**2 + gamma * gamma, dtype=torch.float64).to(xbar)
        square = torch.cdist(xbar, self.means.to(xbar), compute_mode="donot_use_mm_for_euclid_dist").square()
        dimension = xbar.shape[-1]
        return -0.5 * (square / variance + dimension * torch.log(2.0 * math.pi * variance))

    def posterior_variance(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return s²γ²/v + (γ²/v)² Var_r(m) with v = s² + γ², shape (N, D)."""
        square = torch.as_tensor(gamma * gamma, dtype=torch.float64).to(xbar)
        variance = self.std**2 + square
        r = responsibilities(self, xbar, gamma)
        # Relative to their centre, so that E m² - (E m)² is a difference of small numbers.
        means = (self.means - self.means.mean(0)).to(xbar)
        spread = (r @ means.square() - (r @ means).square()).clamp(min=0.0)
        return self.std**2 * square / variance + (square / variance).square() * spread

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor:
        """Return s z, shape (N, D)."""
        return self.std * normal

    def covariance(self) -> Tensor:
        """Return s²I, shape (D, D)."""
        return self.std**2 * torch.eye(self.means.shape[-1]).to(self.means)

    def to(self, like: Tensor) -> SharedCovariance:
        """Return the same components in the dtype and on the device of ``like``."""
        return SharedCovariance(self.means.to(like), self.std, self.log_weights.to(like))


class _PosteriorMean:
    """Expands m̄ = Σ r_k m_k, r_k ∝ w_k exp(m_k·z - ½|m_k|² q), given the expansions of z and q.

    Parameters
    ----------
    features, log_weights
        (m_k, -½|m_k|²) and log w_k, shapes (K, D + 1) and (K, 1).
    sums
        The terms of the sums over components: -m_k, ½|m_k|² and 1, shape (D + 2, K).
    """

    def __init__(self, features: Tensor, log_weights: Tensor, sums: Tensor) -> None:
        self._features, self._log_weights, self._sums = features, log_weights, sums
        self._exponential = Exponential(dim=0)
        self._totals: list[Tensor] = []
        self._divisor = log_weights
        self._mean: list[Tensor] = []

    def push(self, z: Tensor, q: Scalar) -> Tensor:
        """Take the next coefficients of z, shape (D, N), and of q; return the one of m̄, shape (D, N)."""
        j, totals = len(self._mean), self._totals
        flat = isinstance(q, float) and q == 0.0
        natural = z if flat else _extended(z, q)
        features = self._features[:, :-1] if flat else self._features
        if j == 0:
            common = self._log_weights
        else:  # minus the average of the exponents under the responsibilities at h = 0, see Exponential
            common = (totals[0][: natural.shape[0]] * natural).sum(0) / totals[0][-1]
        exponents = torch.addmm(common, features, natural)
        totals.append(self._sums @ self._exponential.push(exponents))
        mean = totals[j][:-2]
        for i in range(j):
            mean = torch.addcmul(mean, self._mean[i], totals[j - i][-1])
        if j == 0:
            self._divisor = -totals[0][-1]
        self._mean.append(mean / self._divisor)
        return self._mean[j]


def _extended(z: Tensor, q: Scalar) -> Tensor:
    """Append a scalar, or one per state, as a row to states that lie along the last axis."""
    if isinstance(q, Tensor) and q.ndim > 0:
        return torch.cat([z, q.expand(1, z.shape[1])])
    return torch.nn.functional.pad(z, (0, 0, 0, 1), value=float(q))


def _rows(scalars: Series) -> Series:
    """Turn coefficients of shape (N, 1) into rows, (1, N)."""
    return Series([c.T if isinstance(c, Tensor) and c.ndim == 2 else c for c in scalars.coefficients])
