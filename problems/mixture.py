"""Gaussian mixtures: data distributions whose diffused score is known exactly, with every derivative.

In the variables (x̄, γ) of the DDIM ODE the diffused distribution is again a mixture, each component's
covariance Σₖ grown by γ²I. Its score, and by power-series arithmetic the Taylor coefficients of the score
along any path, are closed formulas (ε = γ Σ rₖ (Σₖ + γ²I)⁻¹ (x̄ - mₖ), r the responsibilities),
so on these problems every error is the solver's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from problems.posterior import Variance
from problems.schedule import VP, Schedule
from problems.score import Problem, Push, Source, align, like
from problems.series import Exponential, Scalar, Series

# glibc hands freed blocks above a threshold back to the system, and every array of a large batch is then
# faulted in anew, which doubles the cost of a jet. Freeing one large block raises the threshold
# (mallopt(3), M_MMAP_THRESHOLD); the block itself is never touched.
torch.empty(31 << 20, dtype=torch.uint8)


class _Components(Protocol):
    """The part of a mixture that depends on the kind of covariance; states are flat, shape (N, D)."""

    std: float
    log_weights: Tensor

    def expand(self, gamma: Series, like: Tensor) -> Push: ...

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]: ...

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor: ...

    def posterior_variance(self, xbar: Tensor, gamma: Scalar) -> Tensor: ...

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor: ...

    def covariance(self) -> Tensor: ...

    def to(self, like: Tensor) -> _Components: ...


class _PosteriorMean:
    """Expands Σ r_k m_k, with weights r_k ∝ w_k exp(m_k·z - ½|m_k|² q), in the expansions of z and q.

    Parameters
    ----------
    features, log_weights
        (m_k, -½|m_k|²) and log w_k, shapes (K, D + 1) and (K, 1).
    sums
        What is summed over the components: -m_k, ½|m_k|² and 1, shape (D + 2, K).
    """

    def __init__(self, features: Tensor, log_weights: Tensor, sums: Tensor) -> None:
        self._features, self._log_weights, self._sums = features, log_weights, sums
        self._exponential = Exponential(dim=0)
        self._totals: list[Tensor] = []
        self._divisor = log_weights
        self._mean: list[Tensor] = []

    def push(self, z: Tensor, q: Scalar) -> Tensor:
        """Take the next coefficients of z, shape (D, N), and of q, and return that of the mean, (D, N)."""
        j, totals = len(self._mean), self._totals
        flat = isinstance(q, float) and q == 0.0
        natural = z if flat else _extended(z, q)
        features = self._features[:, :-1] if flat else self._features
        if j == 0:
            common = self._log_weights
        else:  # minus the average of the exponents under the weights of order 0
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


class _Shared:
    """Components m_k with one covariance s²I.

    With q = 1/(s² + γ²) and z = q x̄ the weights of the components are a softmax of
    log w_k + m_k·z - ½|m_k|² q: linear in z and q, so two matrix products do. States lie along the last axis
    in here, (D, N), as do numbers of their own, (1, N): what is done state by state is done on long rows.
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
        gamma = _rows(gamma)
        variance = self.std**2 + gamma * gamma
        q = 1.0 / variance
        push = self._mean(like).push
        z: list[Tensor] = []
        rho: list[Tensor] = []  # q times x̄ minus the mean; ε is γ times this

        def eps(coefficient: Tensor) -> Tensor:
            j = len(z)
            x = coefficient.T.contiguous()
            z.append(quotient(x, variance, z))
            rho.append(quotient(x - push(z[j], q[j]), variance, rho))
            return convolve_states(gamma, rho, j).T

        return eps

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        # With ρ = q (x̄ - m̄), ε = γ ρ along the flow obeys ε' = q (s² γ' ρ - γ m̄'). By the product rule ε'
        # would be the small difference of terms that cancel, all but one part in γ².
        gamma = _rows(gamma)
        slope = _slope(gamma)
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
            x = _over(convolve_states(slope, eps, j - 1), j)
            z.append(quotient(x, variance, z))
            mean = push(z[j], q[j])
            mean_slope.append(mean if j == 1 else j * mean)
            rate = convolve_states(drag, mean_slope, j - 1, convolve_states(pull, rho, j - 1))
            eps_slope.append(quotient(rate, variance, eps_slope))
            eps.append(_over(eps_slope[j - 1], j))
            yield eps[j].T

    def follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor]:
        # With δ = s² - std² and w = 1 + δ u², z = u y/w and q = u²/w, and the flow is dy/du = m̄/w + δ z: no
        # two terms cancel, and at std = s there are no quotients.
        u = _rows(u)
        slope = _slope(u)
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
            path.append(_over(convolve_states(slope, rate, j), j + 1))
            yield path[j + 1].T

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        variance = torch.as_tensor(self.std**2 + gamma * gamma, dtype=torch.float64).to(xbar)
        square = torch.cdist(xbar, self.means.to(xbar), compute_mode="donot_use_mm_for_euclid_dist").square()
        dimension = xbar.shape[-1]
        return -0.5 * (square / variance + dimension * torch.log(2.0 * math.pi * variance))

    def posterior_variance(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        # Of each component s²γ²/v with v = s² + γ², and of their posterior means (γ²/v)² Var_r(m). The
        # means are taken relative to their centre, so that the difference is one of small numbers.
        square = torch.as_tensor(gamma * gamma, dtype=torch.float64).to(xbar)
        variance = self.std**2 + square
        r = _shares(self, xbar, gamma)
        means = (self.means - self.means.mean(0)).to(xbar)
        spread = (r @ means.square() - (r @ means).square()).clamp(min=0.0)
        return self.std**2 * square / variance + (square / variance).square() * spread

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor:
        return self.std * normal

    def covariance(self) -> Tensor:
        return self.std**2 * torch.eye(self.means.shape[-1]).to(self.means)

    def to(self, like: Tensor) -> _Shared:
        return _Shared(self.means.to(like), self.std, self.log_weights.to(like))


class _Posterior:
    """Expands the weights r_k of components with variances of their own, and d_k = V_k⁻¹ Uₖᵀ (x̄ - m_k).

    Parameters
    ----------
    variance
        V = Λ + γ² as a series with arrays of shape (K, D) or (N, K, D) for its constant term.
    means, log_weights
        Uₖᵀ m_k and log w_k, shapes (K, D) and (K,).

    Attributes
    ----------
    weights, solved
        The coefficients so far of r and d, of shapes (N, K) and (N, K, D).
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
        """Take the next coefficient of the state in every component's eigenbasis, (N, K or 1, D)."""
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


class _Separate:
    """Components with covariances Uₖ Λₖ Uₖᵀ of their own, each treated in its eigenbasis.

    Parameters
    ----------
    means, log_weights
        Shapes (K, D) and (K,).
    variances
        Λ, shape (K, D), positive or zero.
    axes
        U, shape (K, D, D), eigenvectors in columns; None where the covariances are diagonal already.
    """

    def __init__(self, means: Tensor, variances: Tensor, axes: Tensor | None, log_weights: Tensor) -> None:
        self.means, self.variances, self.axes, self.log_weights = means, variances, axes, log_weights
        self.std = float(variances.min().sqrt())

    def _rotate(self, x: Tensor) -> Tensor:
        """Coordinates of flat states in every component's eigenbasis, shape (N, K or 1, D)."""
        return x[:, None] if self.axes is None else torch.einsum("nd,kde->nke", x, self.axes.to(x))

    def _rotate_back(self, r: Tensor, q: Tensor) -> Tensor:
        """Σₖ rₖ Uₖ qₖ, shape (N, D)."""
        if self.axes is None:
            return torch.einsum("nk,nkd->nd", r, q)
        return torch.einsum("nke,kde->nd", r[..., None] * q, self.axes.to(q))

    def _posterior(self, gamma: Series, like: Tensor) -> _Posterior:
        # Numbers of shape (N, 1) must meet arrays of shape (N, K, D).
        square = (gamma * gamma).coefficients
        wide = [c[:, None] if isinstance(c, Tensor) and c.ndim == 2 else c for c in square]
        variance = Series([self.variances.to(like) + wide[0], *wide[1:]])
        return _Posterior(variance, self._rotate_means().to(like), self.log_weights.to(like))

    def expand(self, gamma: Series, like: Tensor) -> Push:
        posterior = self._posterior(gamma, like)
        force: list[Tensor] = []  # Σ rₖ Uₖ dₖ; ε is γ times this

        def eps(coefficient: Tensor) -> Tensor:
            j = len(force)
            posterior.push(self._rotate(coefficient))
            terms = [self._rotate_back(posterior.weights[i], posterior.solved[j - i]) for i in range(j + 1)]
            force.append(torch.stack(terms).sum(0))
            return convolve_states(gamma, force, j)

        return eps

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        # With f = Σ rₖ Uₖ dₖ, ε = γ f along the flow obeys
        #     ε' = γ Σ rₖ' Uₖ dₖ + γ' Σ rₖ Uₖ bₖ,  bₖ = Vₖ⁻¹ Λₖ (2 dₖ - Uₖᵀ f).
        # By the product rule ε' would be the small difference of terms that cancel, all but one part in γ².
        slope = _slope(gamma)
        variances = self.variances.to(xbar)
        posterior = self._posterior(gamma, xbar)
        weights, solved, variance = posterior.weights, posterior.solved, posterior.variance
        eps: list[Tensor] = []
        force: list[Tensor] = []  # f
        turn: list[Tensor] = []  # Σ rₖ' Uₖ dₖ
        inner: list[Tensor] = []  # b
        bend: list[Tensor] = []  # Σ rₖ Uₖ bₖ
        for j in range(len(gamma)):
            x = xbar if j == 0 else _over(convolve_states(slope, eps, j - 1), j)
            posterior.push(self._rotate(x))
            terms = torch.stack([self._rotate_back(weights[i], solved[j - i]) for i in range(j + 1)])
            force.append(terms.sum(0))
            if j == 0:
                eps.append(gamma[0] * force[0])
            else:
                turn.append(sum((i * terms[i] for i in range(2, j + 1)), start=terms[1]))
                pull = 2.0 * solved[j - 1] - self._rotate(force[j - 1])
                inner.append(quotient(variances * pull, variance, inner))
                terms = torch.stack([self._rotate_back(weights[i], inner[j - 1 - i]) for i in range(j)])
                bend.append(terms.sum(0))
                slopes = convolve_states(gamma, turn, j - 1, convolve_states(slope, bend, j - 1))
                eps.append(_over(slopes, j))
            yield eps[j]

    def _rotate_means(self) -> Tensor:
        if self.axes is None:
            return self.means
        return torch.einsum("kd,kde->ke", self.means, self.axes)

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        if isinstance(gamma, Tensor) and gamma.ndim == 2:
            gamma = gamma[:, None]
        variances = (self.variances.to(xbar) + gamma * gamma).to(xbar)
        z = self._rotate(xbar) - self._rotate_means().to(xbar)
        return -0.5 * (z.square() / variances + torch.log(2.0 * math.pi * variances)).sum(-1)

    def posterior_variance(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        # Of each component γ² Uₖ Λₖ Vₖ⁻¹ Uₖᵀ, and of their posterior means mₖ + Uₖ Λₖ Vₖ⁻¹ Uₖᵀ (x̄ - mₖ).
        square = torch.as_tensor(gamma * gamma, dtype=torch.float64).to(xbar)
        square = square[:, None] if square.ndim == 2 else square
        variances = self.variances.to(xbar)
        gain = variances / (variances + square)
        r = _shares(self, xbar, gamma)[..., None]
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
        scaled = self.variances.to(normal)[index].sqrt() * normal
        return (
            scaled if self.axes is None else torch.einsum("nde,ne->nd", self.axes.to(normal)[index], scaled)
        )

    def covariance(self) -> Tensor:
        weights = self.log_weights.exp()
        if self.axes is None:
            return torch.diag(weights @ self.variances)
        return torch.einsum("k,kde,ke,kfe->df", weights, self.axes, self.variances, self.axes)

    def to(self, like: Tensor) -> _Separate:
        axes = None if self.axes is None else self.axes.to(like)
        return _Separate(self.means.to(like), self.variances.to(like), axes, self.log_weights.to(like))


def _shares(components: _Components, xbar: Tensor, gamma: Scalar) -> Tensor:
    """Return the responsibilities rₖ of the components for states, (N, K)."""
    return torch.softmax(components.log_densities(xbar, gamma) + components.log_weights.to(xbar), -1)


def convolve_states(scalars: Series, states: list[Tensor], j: int, total: Tensor | None = None) -> Tensor:
    """Return coefficient j of a scalar series times a series of states, plus ``total``; zeros are free."""
    for a, state in zip(scalars.coefficients, states[j::-1], strict=False):
        if isinstance(a, float) and a == 0.0:
            continue
        if total is None:
            total = state if isinstance(a, float) and a == 1.0 else a * state
        elif isinstance(a, Tensor):
            total = torch.addcmul(total, a, state)
        else:
            total = torch.add(total, state, alpha=a)
    return torch.zeros_like(states[j]) if total is None else total


def quotient(numerator: Tensor, scalars: Series, before: list[Tensor]) -> Tensor:
    """Return the next coefficient of states over scalars: from that of the states and those before it."""
    for a, state in zip(scalars.coefficients[1:], reversed(before), strict=False):
        if isinstance(a, Tensor):
            numerator = torch.addcmul(numerator, a, state, value=-1.0)
        elif a != 0.0:
            numerator = torch.sub(numerator, state, alpha=a)
    first = scalars[0]
    return numerator if isinstance(first, float) and first == 1.0 else numerator / first


def _over(state: Tensor, j: int) -> Tensor:
    return state if j == 1 else state / j


def _extended(z: Tensor, q: Scalar) -> Tensor:
    """Append a number, or a row of them, to states that lie along the last axis."""
    if isinstance(q, Tensor) and q.ndim > 0:
        return torch.cat([z, q.expand(1, z.shape[1])])
    return torch.nn.functional.pad(z, (0, 0, 0, 1), value=float(q))


def _slope(series: Series) -> Series:
    return Series([(i + 1) * series[i + 1] for i in range(len(series) - 1)])


def _rows(scalars: Series) -> Series:
    """Lay numbers along the last axis, (N, 1) to (1, N)."""
    return Series([c.T if isinstance(c, Tensor) and c.ndim == 2 else c for c in scalars.coefficients])


class Mixture(Source, Problem):
    """The distribution p_0 = Σ wₖ N(mₖ, Σₖ), diffused by a schedule, with exact jets of every order.

    Parameters
    ----------
    means
        Shape (K, *event): K components of states of any event shape.
    std
        Standard deviation of every component (a float), or of each (shape (K,)); in each direction.
    weights
        Shape (K,), positive; normalised here. Equal by default.
    schedule
        The noise schedule; the paper's by default.

    Raises
    ------
    ValueError
        If a standard deviation is negative, a weight is not positive, or shapes do not fit.
    """

    def __init__(
        self,
        means: Tensor,
        std: float | Tensor,
        weights: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        flat = means.reshape(len(means), -1)
        spread = torch.as_tensor(std, dtype=flat.dtype, device=flat.device)
        if spread.min() < 0:
            raise ValueError("the standard deviation of a component must not be negative")
        log_weights = _log_weights(weights, flat)
        if spread.ndim == 0:
            components: _Components = _Shared(flat, float(std), log_weights)
        elif spread.shape == (len(flat),):
            components = _Separate(flat, spread.square()[:, None].expand_as(flat), None, log_weights)
        else:
            raise ValueError(f"std must be a number or have shape ({len(flat)},), not {tuple(spread.shape)}")
        self._set_up(means, components, log_weights, schedule)

    @classmethod
    def full(
        cls,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> Mixture:
        """Make a mixture whose components have full covariances.

        Parameters
        ----------
        means, weights, schedule
            As in the constructor; D is the product of the event's axes.
        covariances
            Shape (K, D, D), symmetric and positive semidefinite.

        Raises
        ------
        ValueError
            If a covariance is not of that kind, a weight is not positive, or shapes do not fit.
        """
        flat = means.reshape(len(means), -1)
        if covariances.shape != (*flat.shape, flat.shape[-1]):
            raise ValueError(
                f"covariances must have shape {(*flat.shape, flat.shape[-1])}, not {tuple(covariances.shape)}"
            )
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("a covariance matrix is not symmetric")
        variances, axes = torch.linalg.eigh(covariances)
        if variances.min() < -1e-10 * variances.max():
            raise ValueError("a covariance matrix has a negative eigenvalue")
        log_weights = _log_weights(weights, flat)
        mixture = cls.__new__(cls)
        mixture._set_up(
            means, _Separate(flat, variances.clamp(min=0), axes, log_weights), log_weights, schedule
        )
        return mixture

    def _set_up(
        self, means: Tensor, components: _Components, log_weights: Tensor, schedule: Schedule | None
    ) -> None:
        self.means = means
        self.weights = log_weights.exp()
        self._components = components
        self._flat = means.reshape(len(means), -1)
        variance = self.covariance.diagonal().mean()
        super().__init__(schedule or VP(), float(variance.sqrt()))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one sample."""
        return self.means.shape[1:]

    @property
    def component_std(self) -> float:
        """Standard deviation of the components, in their narrowest direction."""
        return self._components.std

    @property
    def mean(self) -> Tensor:
        """The exact mean of p_0, shape (*event)."""
        return (self.weights @ self._flat).reshape(self.event_shape)

    @property
    def covariance(self) -> Tensor:
        """The exact covariance of p_0, shape (D, D)."""
        centred = self._flat - self.weights @ self._flat
        return torch.einsum("k,kd,ke->de", self.weights, centred, centred) + self._components.covariance()

    def _batch(self, x: Tensor) -> torch.Size:
        if x.shape[x.ndim - len(self.event_shape) :] != self.event_shape:
            raise ValueError(f"states must end in the axes {tuple(self.event_shape)}, not {tuple(x.shape)}")
        return x.shape[: x.ndim - len(self.event_shape)]

    def _flatten(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self._flat.shape[-1])

    def _expand(self, gamma: Series) -> Push:
        push: Push | None = None

        def reshaped(coefficient: Tensor) -> Tensor:
            nonlocal push
            flat = self._flatten(coefficient)
            if push is None:
                push = self._components.expand(_columns(gamma, self._batch(coefficient)), flat)
            return push(flat).reshape(coefficient.shape)

        return reshaped

    def _follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        path = self._components.follow(self._flatten(xbar), _columns(gamma, self._batch(xbar)))
        return (coefficient.reshape(xbar.shape) for coefficient in path)

    def _follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        if not isinstance(self._components, _Shared):
            return None
        path = self._components.follow_preconditioned(std, self._flatten(y), _columns(u, self._batch(y)))
        return (coefficient.reshape(y.shape) for coefficient in path)

    def log_prob(self, x: Tensor, t: Scalar | None = None) -> Tensor:
        """Return the log-density log p_t(x) of the diffused mixture, in nats.

        Parameters
        ----------
        x
            States, shape (..., *event).
        t
            Time (see ``Model.jet``); None is the data distribution.

        Returns
        -------
        Tensor of shape (...).
        """
        batch = self._batch(x)
        alpha: Scalar = 1.0 if t is None else like(self.schedule.alpha(align(t, x)), x)
        gamma: Scalar = 0.0 if t is None else self.schedule.gamma(align(t, x))
        flat = (x / alpha).reshape(-1, self._flat.shape[-1])
        log_weights = self.weights.to(flat).log()
        terms = self._components.log_densities(flat, _column(gamma, batch)) + log_weights
        jacobian = torch.as_tensor(_column(alpha, batch), dtype=torch.float64).to(x).log().reshape(-1)
        return (torch.logsumexp(terms, -1) - flat.shape[-1] * jacobian).reshape(batch)

    @property
    def posterior_variance(self) -> Variance:
        """The diagonal of Cov(x₀ | x̄) = Σ rₖ [Cₖ + (μₖ - μ̄)(μₖ - μ̄)ᵀ], μₖ and Cₖ those of component k."""

        def variance(xbar: Tensor, gamma: Scalar) -> Tensor:
            column = _column(gamma, self._batch(xbar))
            return self._components.posterior_variance(self._flatten(xbar), column).reshape(xbar.shape)

        return variance

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` exact samples of p_t, shape (n, *event); t = None is the data distribution."""
        flat = self._flat
        index = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, flat.shape[-1], generator=generator, dtype=flat.dtype, device=flat.device)
        x = flat[index] + self._components.perturb(index, normal)
        if t is not None:
            noise = torch.randn(x.shape, generator=generator, dtype=flat.dtype, device=flat.device)
            x = self.schedule.alpha(t) * x + self.schedule.sigma(t) * noise
        return x.reshape(n, *self.event_shape)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the index of the component whose mean is nearest to each state, shape (...)."""
        batch = self._batch(x)
        flat = x.reshape(-1, self._flat.shape[-1])
        return torch.cdist(flat, self._flat.to(flat)).argmin(-1).reshape(batch)

    def to(self, like: Tensor) -> Mixture:
        """Return the same mixture with its arrays in the dtype and on the device of ``like``.

        States of any dtype and device are accepted as they are; this saves the conversion at every call.
        """
        mixture = type(self).__new__(type(self))
        log_weights = self.weights.log().to(like)
        mixture._set_up(self.means.to(like), self._components.to(like), log_weights, self.schedule)
        return mixture


def _column(c: Scalar, batch: torch.Size) -> Scalar:
    """Give a scalar that broadcasts against states of this batch shape the shape of flat ones."""
    if not isinstance(c, Tensor):
        return c
    if c.numel() == 1:
        return c.reshape(())
    return c.reshape(c.shape[: len(batch)]).expand(batch).reshape(-1, 1)


def _columns(series: Series, batch: torch.Size) -> Series:
    return Series([_column(c, batch) for c in series.coefficients])


def _log_weights(weights: Tensor | None, flat: Tensor) -> Tensor:
    if weights is None:
        return torch.full((len(flat),), -math.log(len(flat)), dtype=flat.dtype, device=flat.device)
    if weights.shape != (len(flat),) or not bool((weights > 0).all()):
        raise ValueError(f"weights must be {len(flat)} positive numbers, one per component")
    return (weights / weights.sum()).to(flat).log()
