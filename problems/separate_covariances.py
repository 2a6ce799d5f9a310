"""Mixture components with covariances of their own, each treated in its eigenbasis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from problems.components import responsibilities
from problems.score import Push
from problems.series import Exponential, Scalar, Series, convolve_states, integral, quotient


class SeparateCovariances:
    """Components N(mₖ, Uₖ Λₖ Uₖᵀ), each treated in its eigenbasis.

    Parameters
    ----------
    means, log_weights
        Shapes (K, D) and (K,).
    variances
        Λ, shape (K, D), positive or zero.
    axes
        U, shape (K, D, D), eigenvectors in columns; None if the covariances are diagonal.
    """

    def __init__(self, means: Tensor, variances: Tensor, axes: Tensor | None, log_weights: Tensor) -> None:
        self.means, self.variances, self.axes, self.log_weights = means, variances, axes, log_weights
        self.std = float(variances.min().sqrt())

    def _rotate(self, x: Tensor) -> Tensor:
        """Return Uₖᵀ x for flat states x, shape (N, K or 1, D)."""
        return x[:, None] if self.axes is None else torch.einsum("nd,kde->nke", x, self.axes.to(x))

    def _mean(self, weights: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
        """Return the last coefficient of the series Σₖ rₖ Uₖ qₖ, shape (N, D), given r and q."""
        total = weights[0][..., None] * states[-1]
        for r, q in zip(weights[1:], states[-2::-1], strict=True):
            total.addcmul_(r[..., None], q)
        return total.sum(1) if self.axes is None else torch.einsum("nke,kde->nd", total, self.axes.to(total))

    def _posterior(self, gamma: Series, like: Tensor) -> _Posterior:
        # Coefficients of shape (N, 1) must broadcast against arrays of shape (N, K, D).
        square = (gamma * gamma).coefficients
        wide = [c[:, None] if isinstance(c, Tensor) and c.ndim == 2 else c for c in square]
        variance = Series([self.variances.to(like) + wide[0], *wide[1:]])
        return _Posterior(variance, self._rotate_means().to(like), self.log_weights.to(like))

    def expand(self, gamma: Series, like: Tensor) -> Push:
        """Begin an expansion of ε = γ Σ rₖ Uₖ dₖ, with dₖ = (Λₖ + γ²)⁻¹ Uₖᵀ (x̄ - mₖ)."""
        posterior = self._posterior(gamma, like)
        force: list[Tensor] = []  # Σ rₖ Uₖ dₖ

        def eps(coefficient: Tensor) -> Tensor:
            posterior.push(self._rotate(coefficient))
            force.append(self._mean(posterior.weights, posterior.solved))
            return convolve_states(gamma, force, len(force) - 1)

        return eps

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Expand ε along its flow by a differential equation for ε itself."""
        # Along the flow, ε = γ f with f = Σ rₖ Uₖ dₖ obeys
        #     ε' = γ Σ rₖ' Uₖ dₖ + γ' Σ rₖ Uₖ bₖ,  bₖ = Vₖ⁻¹ Λₖ (2 dₖ - Uₖᵀ f),  Vₖ = Λₖ + γ².
        # In ε' = γ' f + γ f' the two terms cancel up to a relative part of order 1/γ².
        slope = gamma.slope()
        variances = self.variances.to(xbar)
        posterior = self._posterior(gamma, xbar)
        weights, solved, variance = posterior.weights, posterior.solved, posterior.variance
        eps: list[Tensor] = []
        force: list[Tensor] = []  # f
        turning: list[Tensor] = []  # r'
        turn: list[Tensor] = []  # Σ rₖ' Uₖ dₖ
        inner: list[Tensor] = []  # b
        bend: list[Tensor] = []  # Σ rₖ Uₖ bₖ
        for j in range(len(gamma)):
            x = xbar if j == 0 else integral(convolve_states(slope, eps, j - 1), j)
            posterior.push(self._rotate(x))
            force.append(self._mean(weights, solved))
            if j == 0:
                eps.append(gamma[0] * force[0])
            else:
                turning.append(j * weights[j])
                turn.append(self._mean(turning, solved[:j]))
                pull = 2.0 * solved[j - 1] - self._rotate(force[j - 1])
                inner.append(quotient(variances * pull, variance, inner))
                bend.append(self._mean(weights[:j], inner))
                slopes = convolve_states(gamma, turn, j - 1, convolve_states(slope, bend, j - 1))
                eps.append(integral(slopes, j))
            yield eps[j]

    def follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        """Return None: there is only ε."""
        return None

    def _rotate_means(self) -> Tensor:
        if self.axes is None:
            return self.means
        return torch.einsum("kd,kde->ke", self.means, self.axes)

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return log N(x̄; mₖ, Uₖ (Λₖ + γ²) Uₖᵀ), shape (N, K)."""
        if isinstance(gamma, Tensor) and gamma.ndim == 2:
            gamma = gamma[:, None]
        variances = (self.variances.to(xbar) + gamma * gamma).to(xbar)
        z = self._rotate(xbar) - self._rotate_means().to(xbar)
        return -0.5 * (z.square() / variances + torch.log(2.0 * math.pi * variances)).sum(-1)

    def posterior_variance(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        """Return the diagonal of Cov(x₀ | x̄), shape (N, D).

        With Vₖ = Λₖ + γ², component k has the covariance γ² Uₖ Λₖ Vₖ⁻¹ Uₖᵀ and the posterior mean
        mₖ + Uₖ Λₖ Vₖ⁻¹ Uₖᵀ (x̄ - mₖ).
        """
        square = torch.as_tensor(gamma * gamma, dtype=torch.float64).to(xbar)
        square = square[:, None] if square.ndim == 2 else square
        variances = self.variances.to(xbar)
        gain = variances / (variances + square)
        r = responsibilities(self, xbar, gamma)[..., None]
        pulled = gain * (self._rotate(xbar) - self._rotate_means().to(xbar))
        if self.axes is None:
            own = gain
        else:
            axes = self.axes.to(xbar)
            pulled = torch.einsum("nke,kde->nkd", pulled, axes)
            own = torch.einsum("...ke,kde->...kd", gain, axes.square())
        means = self.means.to(xbar) + pulled
        centred = means - (r * means).sum(1, keepdim=True)
        return (r * (square * own + centred.square())).sum(1)

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor:
        """Return Uₖ Λₖ^(1/2) z, shape (N, D)."""
        scaled = self.variances.to(normal)[index].sqrt() * normal
        return (
            scaled if self.axes is None else torch.einsum("nde,ne->nd", self.axes.to(normal)[index], scaled)
        )

    def covariance(self) -> Tensor:
        """Return Σ wₖ Uₖ Λₖ Uₖᵀ, shape (D, D)."""
        weights = self.log_weights.exp()
        if self.axes is None:
            return torch.diag(weights @ self.variances)
        return torch.einsum("k,kde,ke,kfe->df", weights, self.axes, self.variances, self.axes)

    def to(self, like: Tensor) -> SeparateCovariances:
        """Return the same components in the dtype and on the device of ``like``."""
        axes = None if self.axes is None else self.axes.to(like)
        return SeparateCovariances(
            self.means.to(like), self.variances.to(like), axes, self.log_weights.to(like)
        )


class _Posterior:
    """Expands the responsibilities rₖ and dₖ = Vₖ⁻¹ Uₖᵀ (x̄ - mₖ).

    Parameters
    ----------
    variance
        V = Λ + γ²; its constant term has shape (K, D) or (N, K, D).
    means, log_weights
        Uₖᵀ mₖ and log wₖ, shapes (K, D) and (K,).

    Attributes
    ----------
    weights, solved
        The known coefficients of r and d, of shapes (N, K) and (N, K, D).
    """

    def __init__(self, variance: Series, means: Tensor, log_weights: Tensor) -> None:
        self.variance = variance
        self.weights: list[Tensor] = []
        self.solved: list[Tensor] = []
        self._means, self._log_weights = means, log_weights
        self._precision = 1.0 / variance
        self._path: list[Tensor] = []
        self._mass: list[Tensor] = []
        self._exponential = Exponential(dim=-1)

    def push(self, x: Tensor) -> None:
        """Take the next coefficient of Uₖᵀ x̄, (N, K or 1, D)."""
        j = len(self._path)
        path, solved = self._path, self.solved
        path.append(x - self._means if j == 0 else x)
        solved.append(quotient(path[j], self.variance, solved))
        # The exponents are -½ Σ (path · solved + log V), and (log V)' = V'/V.
        growth = [i * self.variance[i] * self._precision[j - i] for i in range(1, j + 1)]
        volume = torch.as_tensor(sum(growth) / j if j else torch.as_tensor(self.variance[0]).log())
        square = sum((path[i] * solved[j - i] for i in range(1, j + 1)), start=path[0] * solved[j])
        exponents = -0.5 * (square + volume.to(x)).sum(-1)
        if j == 0:
            exponents = exponents + self._log_weights
        else:
            exponents = exponents - (self.weights[0] * exponents).sum(-1, keepdim=True)
        values = self._exponential.push(exponents)
        self._mass.append(values.sum(-1, keepdim=True))
        for i in range(j):
            values = torch.addcmul(values, self.weights[i], self._mass[j - i], value=-1.0)
        self.weights.append(values / self._mass[0])
