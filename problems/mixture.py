"""Gaussian mixtures: data distributions whose diffused score is known exactly, with every derivative.

In the variables (x̄, γ) of the DDIM ODE the diffused distribution is again a mixture: each covariance Σₖ
becomes Σₖ + γ²I. Its score ε = γ Σ rₖ (Σₖ + γ²I)⁻¹ (x̄ - mₖ), with r the responsibilities, is a closed
formula. Power-series arithmetic gives its Taylor coefficients along any path. On these problems the error of
a sample is the error of the solver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from problems.components import Components
from problems.posterior import Variance
from problems.schedule import VP, Schedule
from problems.score import Problem, Push, Source, align, like
from problems.separate_covariances import SeparateCovariances
from problems.series import Scalar, Series
from problems.shared_covariance import SharedCovariance


class Mixture(Source, Problem):
    """The distribution p_0 = Σ wₖ N(mₖ, Σₖ), diffused by a schedule, with exact jets of any order.

    Parameters
    ----------
    means
        Shape (K, *event): K components of states of any event shape.
    std
        Standard deviation of the components in every direction: one number, or one for each, shape (K,).
    weights
        Shape (K,), positive; they are normalised. Equal by default.
    schedule
        The noise schedule; the paper's by default.

    Raises
    ------
    ValueError
        If a standard deviation is negative, a weight is not positive, a number is not finite, or shapes do
        not fit.
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
        _require_finite(means=flat, std=spread)
        if spread.min() < 0:
            raise ValueError("the standard deviation of a component must not be negative")
        log_weights = _log_weights(weights, flat)
        if spread.ndim == 0:
            components: Components = SharedCovariance(flat, float(std), log_weights)
        elif spread.shape == (len(flat),):
            components = SeparateCovariances(
                flat, spread.square()[:, None].expand_as(flat), None, log_weights
            )
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
        """Return a mixture whose components have full covariances.

        Parameters
        ----------
        means, weights, schedule
            As in the constructor; D is the product of the event's axes.
        covariances
            Shape (K, D, D), symmetric and positive semidefinite.

        Raises
        ------
        ValueError
            If a covariance is not symmetric or not positive semidefinite, a weight is not positive, a number
            is not finite, or shapes do not fit.
        """
        flat = means.reshape(len(means), -1)
        if covariances.shape != (*flat.shape, flat.shape[-1]):
            raise ValueError(
                f"covariances must have shape {(*flat.shape, flat.shape[-1])}, not {tuple(covariances.shape)}"
            )
        _require_finite(means=flat, covariances=covariances)
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("a covariance matrix is not symmetric")
        variances, axes = torch.linalg.eigh(covariances)
        if variances.min() < -1e-10 * variances.max():
            raise ValueError("a covariance matrix has a negative eigenvalue")
        log_weights = _log_weights(weights, flat)
        mixture = cls.__new__(cls)
        mixture._set_up(
            means, SeparateCovariances(flat, variances.clamp(min=0), axes, log_weights), log_weights, schedule
        )
        return mixture

    def _set_up(
        self, means: Tensor, components: Components, log_weights: Tensor, schedule: Schedule | None
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
        path = self._components.follow_preconditioned(std, self._flatten(y), _columns(u, self._batch(y)))
        return None if path is None else (coefficient.reshape(y.shape) for coefficient in path)

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
        """The diagonal of Cov(x₀ | x̄) = Σ rₖ [Cₖ + (μₖ - μ̄)(μₖ - μ̄)ᵀ].

        μₖ and Cₖ are mean and covariance of x₀ given x̄ and component k, μ̄ = Σ rₖ μₖ.
        """

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

        States of any dtype and device are accepted without this; it saves a conversion in every call.
        """
        mixture = type(self).__new__(type(self))
        log_weights = self.weights.log().to(like)
        mixture._set_up(self.means.to(like), self._components.to(like), log_weights, self.schedule)
        return mixture


def _column(c: Scalar, batch: torch.Size) -> Scalar:
    """Reshape a scalar that broadcasts against states of this batch shape for flat states: (), or (N, 1)."""
    if not isinstance(c, Tensor):
        return c
    if c.numel() == 1:
        return c.reshape(())
    return c.reshape(c.shape[: len(batch)]).expand(batch).reshape(-1, 1)


def _columns(series: Series, batch: torch.Size) -> Series:
    return Series([_column(c, batch) for c in series.coefficients])


def _require_finite(**numbers: Tensor) -> None:
    for name, values in numbers.items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"the {name} of a mixture must be finite numbers")


def _log_weights(weights: Tensor | None, flat: Tensor) -> Tensor:
    if weights is None:
        return torch.full((len(flat),), -math.log(len(flat)), dtype=flat.dtype, device=flat.device)
    _require_finite(weights=weights)
    if weights.shape != (len(flat),) or not bool((weights > 0).all()):
        raise ValueError(f"weights must be {len(flat)} positive numbers, one per component")
    return (weights / weights.sum()).to(flat).log()
