"""Gaussian mixtures: data distributions whose diffused score is known exactly, with every derivative.

In the variables (x̄, γ) of the DDIM ODE the diffused distribution is again a mixture, each component's
covariance Σₖ grown by γ²I. Its score, and by power-series arithmetic the Taylor coefficients of the score
along any path, are closed formulas (FORMULAS: ε = γ Σ rₖ (Σₖ + γ²I)⁻¹ (x̄ - mₖ), r the responsibilities),
so on these problems every error is the solver's own.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from problems.schedule import VP, Schedule
from problems.score import Push, Source, align
from problems.series import Scalar, Series, Softmax, convolve

# glibc hands freed blocks above a threshold back to the system, and every array of a large batch is then
# faulted in anew, which doubles the cost of a jet. Freeing one large block raises the threshold
# (mallopt(3), M_MMAP_THRESHOLD); the block itself is never touched.
torch.empty(31 << 20, dtype=torch.uint8)


class _Components(Protocol):
    """The part of a mixture that depends on the kind of covariance; states are flat, shape (N, D)."""

    def expand(self, gamma: Series, like: Tensor) -> Push: ...

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor: ...

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor: ...

    def covariance(self) -> Tensor: ...

    def to(self, like: Tensor) -> _Components: ...


class _Shared:
    """Components m_k with one covariance s²I: the logits are linear in x̄, and two matrix products do."""

    def __init__(self, means: Tensor, std: float, log_weights: Tensor) -> None:
        self.means, self.std, self.log_weights = means, std, log_weights
        self.rows = means.T.contiguous()
        self.half_squares = 0.5 * means.square().sum(-1)

    def expand(self, gamma: Series, like: Tensor) -> Push:
        # The component axis is the contiguous one: the skinny product r @ means is then thrice as fast.
        rows, half_squares = self.rows.to(like), self.half_squares.to(like)
        log_weights = self.log_weights.to(like)
        precision = 1.0 / (self.std**2 + gamma * gamma)
        path: list[Tensor] = []
        residual: list[Tensor] = []  # x̄ - Σ rₖ mₖ
        scaled: list[Tensor] = []  # the same times the precision; ε is γ times this
        softmax = Softmax()

        def push(coefficient: Tensor) -> Tensor:
            j = len(path)
            path.append(coefficient)
            constant = -precision[j] * half_squares
            if j == 0:
                constant = constant + log_weights
            logits = torch.addmm(constant, convolve_states(precision, path, j), rows)
            residual.append(coefficient - softmax.push(logits) @ rows.T)
            scaled.append(convolve_states(precision, residual, j))
            return convolve_states(gamma, scaled, j)

        return push

    def log_densities(self, xbar: Tensor, gamma: Scalar) -> Tensor:
        variance = torch.as_tensor(self.std**2 + gamma * gamma, dtype=torch.float64).to(xbar)
        square = torch.cdist(xbar, self.means.to(xbar), compute_mode="donot_use_mm_for_euclid_dist").square()
        dimension = xbar.shape[-1]
        return -0.5 * (square / variance + dimension * torch.log(2.0 * math.pi * variance))

    def perturb(self, index: Tensor, normal: Tensor) -> Tensor:
        return self.std * normal

    def covariance(self) -> Tensor:
        return self.std**2 * torch.eye(self.means.shape[-1]).to(self.means)

    def to(self, like: Tensor) -> _Shared:
        return _Shared(self.means.to(like), self.std, self.log_weights.to(like))


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

    def _rotate(self, x: Tensor) -> Tensor:
        """Coordinates of flat states in every component's eigenbasis, shape (N, K or 1, D)."""
        return x[:, None] if self.axes is None else torch.einsum("nd,kde->nke", x, self.axes.to(x))

    def _rotate_back(self, r: Tensor, q: Tensor) -> Tensor:
        """Σₖ rₖ Uₖ qₖ, shape (N, D)."""
        if self.axes is None:
            return torch.einsum("nk,nkd->nd", r, q)
        return torch.einsum("nke,kde->nd", r[..., None] * q, self.axes.to(q))

    def expand(self, gamma: Series, like: Tensor) -> Push:
        variances = self.variances.to(like)
        log_weights = self.log_weights.to(like)
        # Scalars of shape (N, 1) must meet arrays of shape (N, K, D).
        grown = [
            c[:, None] if isinstance(c, Tensor) and c.ndim == 2 else c for c in (gamma * gamma).coefficients
        ]
        precision = 1.0 / Series([variances + grown[0], *grown[1:]])
        centre = self._rotate_means().to(like)
        path: list[Tensor] = []
        solved: list[Tensor] = []  # Vₖ⁻¹ (x̄ - mₖ)
        weights: list[Tensor] = []
        force: list[Tensor] = []  # Σ rₖ Vₖ⁻¹ (x̄ - mₖ); ε is γ times this
        log_determinant: list[Tensor] = []
        softmax = Softmax()

        def push(coefficient: Tensor) -> Tensor:
            j = len(path)
            z = self._rotate(coefficient)
            path.append(z - centre if j == 0 else z)
            solved.append(convolve_states(precision, path, j))
            distance = path[0] * solved[j]
            for i in range(1, j + 1):
                distance = distance + path[i] * solved[j - i]
            # log det V = Σ log(Λ + γ²), whose derivative is (γ²)' Σ V⁻¹.
            if j == 0:
                log_determinant.append((variances + grown[0]).log())
            else:
                slope = sum(i * grown[i] * precision[j - i] for i in range(1, j + 1))
                log_determinant.append(torch.as_tensor(slope / j).to(like))
            logits = -0.5 * (distance + log_determinant[j]).sum(-1)
            if j == 0:
                logits = logits + log_weights
            weights.append(softmax.push(logits))
            total = self._rotate_back(weights[0], solved[j])
            for i in range(1, j + 1):
                total = total + self._rotate_back(weights[i], solved[j - i])
            force.append(total)
            return convolve_states(gamma, force, j)

        return push

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


def convolve_states(scalars: Series, states: list[Tensor], j: int) -> Tensor:
    """Return coefficient j of a scalar series times a series of states; exact zeros cost nothing."""
    value = convolve(scalars.coefficients, states, j)
    return value if isinstance(value, Tensor) else torch.zeros_like(states[j])


class Mixture(Source):
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
        """
        flat = means.reshape(len(means), -1)
        if covariances.shape != (*flat.shape, flat.shape[-1]):
            raise ValueError(
                f"covariances must have shape {(*flat.shape, flat.shape[-1])}, not {tuple(covariances.shape)}"
            )
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

    def _expand(self, gamma: Series) -> Push:
        push: Push | None = None

        def reshaped(coefficient: Tensor) -> Tensor:
            nonlocal push
            flat = coefficient.reshape(-1, self._flat.shape[-1])
            if push is None:
                batch = self._batch(coefficient)
                scalars = Series([_column(c, batch) for c in gamma.coefficients])
                push = self._components.expand(scalars, flat)
            return push(flat).reshape(coefficient.shape)

        return reshaped

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
        alpha: Scalar = 1.0 if t is None else self.schedule.alpha(align(t, x))
        gamma: Scalar = 0.0 if t is None else self.schedule.gamma(align(t, x))
        flat = (x / alpha).reshape(-1, self._flat.shape[-1])
        log_weights = self.weights.to(flat).log()
        terms = self._components.log_densities(flat, _column(gamma, batch)) + log_weights
        jacobian = torch.as_tensor(_column(alpha, batch), dtype=torch.float64).to(x).log().reshape(-1)
        return (torch.logsumexp(terms, -1) - flat.shape[-1] * jacobian).reshape(batch)

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
    if not isinstance(c, Tensor) or c.numel() == 1:
        return c
    return c.reshape(c.shape[: len(batch)]).expand(batch).reshape(-1, 1)


def _log_weights(weights: Tensor | None, flat: Tensor) -> Tensor:
    if weights is None:
        return torch.full((len(flat),), -math.log(len(flat)), dtype=flat.dtype, device=flat.device)
    if weights.shape != (len(flat),) or not bool((weights > 0).all()):
        raise ValueError(f"weights must be {len(flat)} positive numbers, one per component")
    return (weights / weights.sum()).to(flat).log()
