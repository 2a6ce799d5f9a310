"""The noun *score*: what is ε at a point, and how does it change along a path?

A model maps the Taylor coefficients of a path (x̄(h), γ(h)) to those of ε along it. The jets of every form
(``forms``), of guided models and of wrapped ones follow from this map, at any order. Models count their own
evaluations, so solvers and experiments never count.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor

from problems.bill import Bill, Tariff
from problems.posterior import Average, Variance
from problems.schedule import Schedule
from problems.series import Scalar, Series, convolve

__all__ = [
    "Bill",
    "Model",
    "Problem",
    "Push",
    "Source",
    "Tariff",
    "align",
    "denoise",
    "follow",
    "like",
]

Push = Callable[[Tensor], Tensor]
"""Takes the next Taylor coefficient of x̄ along a path, returns the next Taylor coefficient of ε."""

_EVALUATION, _DERIVATIVE = Bill(nfe=1), Bill(jvp=1)


def align(t: Scalar, x: Tensor) -> Scalar:
    """Give a tensor of times trailing axes of length 1, so that it broadcasts against states ``x``."""
    if isinstance(t, Tensor) and 0 < t.ndim < x.ndim:
        return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
    return t


def like(value: Scalar, x: Tensor) -> Scalar:
    """Give a tensor of numbers the dtype and device of ``x``, so that it does not promote states."""
    return value.to(x) if isinstance(value, Tensor) and value.ndim > 0 else value


def follow(push: Push, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
    """Expand ε along its own flow, with ``push`` for its expansion along any path; see ``Model.follow``."""
    rate = gamma.slope().coefficients
    eps: list[Tensor] = []
    for j in range(len(gamma)):
        if j > 0:
            xbar = torch.as_tensor(convolve(rate, eps, j - 1))
        eps.append(push(xbar if j < 2 else xbar / j))
        yield eps[j]


class Model(ABC):
    """A score model: ε(x, t) and its total derivatives along paths.

    A model is a value: copies and pickles contain what determines its results, not its bill and not its
    caches.

    Attributes
    ----------
    schedule
        The noise schedule of the model.
    data_std
        Standard deviation of the data, per dimension; the preconditioned form is built on it.
    """

    schedule: Schedule
    data_std: float

    def __getstate__(self) -> dict[str, Any]:
        cached = {
            name
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, functools.cached_property)
        }
        return {name: value for name, value in vars(self).items() if name not in cached}

    @property
    def jet_order(self) -> int:
        """The order of jets at which a Taylor method of high accuracy costs least.

        16 where derivatives come from power-series arithmetic, 3 or 4 where each derivative costs a multiple
        of the previous one, 1 where the derivatives are not those of ε.
        """
        return 16

    @property
    def distilled(self) -> Model | None:
        """The same ε with its first derivative by a distilled head; None without a head."""
        return None

    @property
    def posterior_variance(self) -> Variance | None:
        """The exact variances of the coordinates of x₀ given a state, not billed; None if unknown."""
        return None

    @property
    def average_variance(self) -> Variance | None:
        """The average of these variances over coordinates and over p_γ, not billed; None if unknown."""
        return None

    @property
    def positional(self) -> bool:
        """Whether the score of a state depends on its place in the batch, as with a label for each state."""
        return False

    @property
    def component_std(self) -> float:
        """Standard deviation of the narrowest component of the data; of the data if there is only one."""
        return self.data_std

    @abstractmethod
    def expand(self, gamma: Series) -> Push:
        """Begin a power-series expansion along the path with noise-to-signal ratio γ(h).

        Parameters
        ----------
        gamma
            Taylor coefficients of γ along the path, at least as many as there will be pushes; each a
            float or a tensor that broadcasts against the states.

        Returns
        -------
        Push
            To be called with the Taylor coefficients of x̄ = x/α, in order, each of the shape of the
            states; call j returns coefficient j of ε along the path and adds ``price(j)`` to the bill.
        """

    @abstractmethod
    def price(self, j: int) -> Bill:
        """Return the price of coefficient j of an expansion."""

    @abstractmethod
    def part(self, rows: Tensor, of: int) -> Self:
        """Return the model of some states of a batch; the whole model is billed in proportion.

        Parameters
        ----------
        rows
            Indices of the states, int64, shape (n,).
        of
            Number of states in the batch.
        """

    @property
    @abstractmethod
    def spent(self) -> Bill:
        """The bill so far."""

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Expand ε along the flow itself, dx̄/dh = ε dγ/dh.

        Parameters
        ----------
        xbar
            The state x/α at h = 0.
        gamma
            Taylor coefficients of γ along the path.

        Yields
        ------
        The Taylor coefficients of ε, as many as there are of γ.
        """
        return follow(self.expand(gamma), xbar, gamma)

    def follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        """Expand the flow in preconditioned variables without the detour over ε, if the model can.

        In u = (s² + γ²)^(-1/2) and y = u x̄, with s = ``std``, the flow is dy/du = x̄ - (s² + γ²) ε/γ. This
        is the posterior mean of the data if x̄ is taken for data blurred by Gaussian noise of standard
        deviation s.

        Parameters
        ----------
        std
            s ≥ 0.
        y
            The state u x̄ at h = 0.
        u
            Taylor coefficients of u along the path, one more than the coefficients yielded.

        Yields
        ------
        The Taylor coefficients y₁, y₂, … of the solution. None instead of an iterator if the model has only
        ε.
        """
        return None

    def flow_jet(self, xbar: Tensor, gamma: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (ε, dε/dγ, …), ``order`` entries, along dx̄/dγ = ε through (x̄, γ) (Eq. 6)."""
        if order == 1:
            return (self.expand(Series([gamma]))(xbar),)
        eps = self.follow(xbar, Series.variable(gamma, order))
        return tuple(c if j < 2 else float(math.factorial(j)) * c for j, c in enumerate(eps))

    def jet(self, x: Tensor, t: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return ε and its total derivatives in γ along the flow (Eqs. 6 and 10).

        Parameters
        ----------
        x
            States, shape (..., *event), any float dtype.
        t
            Time: a float, a 0-dim tensor, or a tensor whose axes are the leading axes of ``x``.
        order
            Number of entries: 1 gives (ε,), 2 gives (ε, dε/dγ). p entries, up to the derivative of order
            p - 1, are the input of a truncated Taylor method of order p.

        Returns
        -------
        tuple of tensors of the shape and dtype of ``x``.
        """
        t = align(t, x)
        xbar = x / like(self.schedule.alpha(t), x)
        return self.flow_jet(xbar, like(self.schedule.gamma(t), x), order)

    def __call__(self, x: Tensor, t: Scalar) -> Tensor:
        """Return ε(x, t)."""
        return self.jet(x, t)[0]


class Problem(Model):
    """A model together with its data: the shape of a state, and how samples are drawn."""

    @property
    @abstractmethod
    def event_shape(self) -> torch.Size:
        """Shape of one sample."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the problem is evaluated by default."""
        return torch.float64

    @abstractmethod
    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples of p_t, shape (n, *event); t = None is the data distribution."""

    @abstractmethod
    def to(self, like: Tensor) -> Self:
        """Return the same problem in the dtype and on the device of a tensor, with a bill of its own."""

    @property
    def note(self) -> str:
        """What has to be said of the data wherever a distance to them is printed; empty if nothing."""
        return ""

    def nearest(self, x: Tensor) -> Tensor | None:
        """Return the index of the component of the data that each state is nearest to, shape (...).

        None if the data have no components.
        """
        return None

    @functools.cached_property
    def average_variance(self) -> Variance | None:
        """The average variance of x₀ given a state, estimated from samples; see ``Average``.

        None if each state has a score of its own: then there is no single distribution to average over.
        """
        return None if self.positional else Average(self)

    @property
    def tariff(self) -> Tariff:
        """Prices of derivatives in evaluations of ε; zero where they were not measured."""
        return Tariff()


class Source(Model):
    """A model that does its own evaluations, and therefore counts them."""

    _spent = Bill()
    _payer: Source | None = None
    _share = 1.0

    def __init__(self, schedule: Schedule, data_std: float) -> None:
        self.schedule = schedule
        self.data_std = data_std

    def __getstate__(self) -> dict[str, Any]:
        own = super().__getstate__()
        return {name: value for name, value in own.items() if name not in ("_spent", "_payer", "_share")}

    @abstractmethod
    def _expand(self, gamma: Series) -> Push:
        """Return the push of ``expand`` without billing."""

    def _follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Return the coefficients of ``follow`` without billing."""
        return follow(self._expand(gamma), xbar, gamma)

    def _follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        """Return the coefficients of ``follow_preconditioned`` without billing."""
        return None

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion along γ(h); see ``Model.expand``."""
        push = self._expand(gamma)
        index = itertools.count()

        def billed(coefficient: Tensor) -> Tensor:
            self.charge(self.price(next(index)))
            return push(coefficient)

        return billed

    def follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Expand ε along the flow itself; see ``Model.follow``."""
        return self._billed(self._follow(xbar, gamma))

    def follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        """Expand the flow in preconditioned variables; see ``Model.follow_preconditioned``."""
        path = self._follow_preconditioned(std, y, u)
        return None if path is None else self._billed(path)

    def _billed(self, path: Iterator[Tensor]) -> Iterator[Tensor]:
        for j, coefficient in enumerate(path):
            self.charge(self.price(j))
            yield coefficient

    def charge(self, bill: Bill) -> None:
        """Add to the bill of this model, or of the model whose part it is."""
        if self._payer is None:
            self._spent += bill
        else:
            self._payer.charge(bill * self._share)

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the model of some states of a batch; see ``Model.part``."""
        other = copy.copy(self)
        # Caches included, which a copy leaves out: an average variance is estimated once for all parts.
        vars(other).update(vars(self), _payer=self, _share=len(rows) / of)
        return other

    def price(self, j: int) -> Bill:
        """Return the price of coefficient j: one score evaluation for ε, one JVP for each derivative."""
        return _EVALUATION if j == 0 else _DERIVATIVE

    @property
    def spent(self) -> Bill:
        """Everything evaluated since the model was made; for a part, by the whole model."""
        return self._spent if self._payer is None else self._payer.spent


def diffused(schedule: Schedule, x0: Tensor, t: float | None, source: torch.Generator) -> Tensor:
    """Return data (n, *event) diffused to time t, float64; t = None leaves them as they are."""
    x0 = x0.double()
    if t is None:
        return x0
    noise = torch.randn(x0.shape, generator=source, dtype=torch.float64)
    return schedule.alpha(t) * x0 + schedule.sigma(t) * noise


def denoise(score: Model, x: Tensor, t: Scalar) -> Tensor:
    """Return the denoised state x_0 = x̄ - γ ε, that is one DDIM step to γ = 0; costs one evaluation.

    Parameters
    ----------
    score
        The model.
    x, t
        States, shape (..., *event), and their time.
    """
    t = align(t, x)
    xbar, gamma = x / like(score.schedule.alpha(t), x), like(score.schedule.gamma(t), x)
    return xbar - gamma * score.flow_jet(xbar, gamma)[0]
