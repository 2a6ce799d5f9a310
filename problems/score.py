"""The noun *score*: what is ε at a point, and how does it change along a path?

Every model of this suite answers one question: given the Taylor coefficients of a path (x̄(h), γ(h)),
what are those of ε along it? From that follow the jets of every equation (``forms``), of guided models
and of wrapped ones, at any order. The bill for every answer is kept here, where it is given, so no solver
and no analysis ever counts.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from problems.posterior import Average, Variance
from problems.schedule import Schedule
from problems.series import Scalar, Series, convolve

Push = Callable[[Tensor], Tensor]
"""Takes the next Taylor coefficient of x̄ along a path, returns the next Taylor coefficient of ε."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What was evaluated, per sample; on average, where samples go separate ways.

    Attributes
    ----------
    nfe
        Evaluations of the score network (of an exact score: of ε).
    jvp
        Jacobian-vector products: one for each total derivative beyond ε.
    head
        Calls of a distilled derivative head.
    """

    nfe: float = 0
    jvp: float = 0
    head: float = 0

    def __add__(self, other: Bill) -> Bill:
        return Bill(self.nfe + other.nfe, self.jvp + other.jvp, self.head + other.head)

    def __sub__(self, other: Bill) -> Bill:
        return Bill(self.nfe - other.nfe, self.jvp - other.jvp, self.head - other.head)

    def __mul__(self, share: float) -> Bill:
        return Bill(self.nfe * share, self.jvp * share, self.head * share)

    def cost(self, tariff: Tariff) -> float:
        """Return the sum, in evaluations of the score network."""
        return self.nfe + tariff.jvp * self.jvp + tariff.head * self.head


@dataclass(frozen=True, slots=True)
class Tariff:
    """What derivatives cost, in evaluations of the score network; nothing, by default.

    Attributes
    ----------
    jvp
        Cost of a derivative of ε along a path.
    head
        Cost of a call of a distilled head: the overhead of App. C.2.5.
    """

    jvp: float = 0.0
    head: float = 0.0


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
    """Expand ε, which is expanded along any path by ``push``, along its own flow; see ``Model.follow``."""
    slope = [(i + 1) * gamma[i + 1] for i in range(len(gamma) - 1)]
    eps: list[Tensor] = []
    for j in range(len(gamma)):
        if j > 0:
            xbar = torch.as_tensor(convolve(slope, eps, j - 1))
        eps.append(push(xbar if j < 2 else xbar / j))
        yield eps[j]


class Model(ABC):
    """A score model: ε(x, t) and its total derivatives along paths.

    Attributes
    ----------
    schedule
        The noise schedule of the model.
    data_std
        Standard deviation of the data, per dimension; the preconditioned form is built on it.
    """

    schedule: Schedule
    data_std: float

    @property
    def jet_order(self) -> int:
        """The order of jets with which a Taylor method of high accuracy is cheapest.

        Sixteen where derivatives come from series arithmetic; few where each costs a multiple of the one
        before; 1 where they are not those of ε.
        """
        return 16

    @property
    def distilled(self) -> Model:
        """The same score, with its first derivative by a distilled head.

        Raises
        ------
        ValueError
            If it has none.
        """
        raise ValueError(f"{type(self).__name__} has no distilled head")

    @property
    def posterior_variance(self) -> Variance:
        """The variances of the coordinates of x₀ given a state, exactly; not billed.

        Raises
        ------
        ValueError
            If they are not known.
        """
        raise ValueError("the model does not know the covariance of the data given a state")

    @property
    def average_variance(self) -> Variance:
        """The average of these variances over the coordinates and the states of one noise level; not billed.

        Raises
        ------
        ValueError
            If there are no data to estimate it from.
        """
        raise ValueError("the model has no data over which to average the covariance given a state")

    @property
    def positional(self) -> bool:
        """Whether the score of a state depends on its place in the batch, as with a label for each state."""
        return False

    @property
    def component_std(self) -> float:
        """Standard deviation of the narrowest component of the data; of all data where there is but one."""
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
        """Return what coefficient j of an expansion costs."""

    @abstractmethod
    def part(self, rows: Tensor, of: int) -> Self:
        """Return the model of some states of a batch; the bill of the whole grows by their share.

        Parameters
        ----------
        rows
            Which states, int64, shape (n,).
        of
            How many there are in the batch.
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
        """Expand the flow in preconditioned variables, where the model has a better way to it than ε.

        In u = (s² + γ²)^(-1/2) and y = u x̄, with s = ``std``, the flow is dy/du = x̄ - (s² + γ²) ε/γ: the
        posterior mean of the data, taken for something that was blurred by Gaussian noise of standard
        deviation s.

        Parameters
        ----------
        std
            s ≥ 0.
        y
            The state u x̄ at h = 0.
        u
            Taylor coefficients of u along the path, one more than there will be coefficients.

        Yields
        ------
        The Taylor coefficients y₁, y₂, … of the solution. None instead of an iterator where there is only
        ε to do it with.
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
            Number of entries: 1 gives (ε,), 2 gives (ε, dε/dγ), p gives up to the derivative of
            order p - 1, which is what a truncated Taylor method of order p asks for.

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
    """A model together with what it is a model of: where states live, and how they are drawn.

    Attributes
    ----------
    event_shape
        Shape of one sample.
    """

    @property
    @abstractmethod
    def event_shape(self) -> torch.Size:
        """Shape of one sample."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which it is evaluated unless another one is asked for."""
        return torch.float64

    @abstractmethod
    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples of p_t, shape (n, *event); t = None is the data distribution."""

    @abstractmethod
    def to(self, like: Tensor) -> Self:
        """Return the same problem in the dtype and on the device of a tensor, with a bill of its own."""

    @functools.cached_property
    def average_variance(self) -> Variance:
        """The average variance of x₀ given a state, estimated from samples; see ``Average``.

        Raises
        ------
        ValueError
            If each state has a score of its own, so that there is no one distribution to average over.
        """
        if self.positional:
            raise ValueError("each state has a score of its own, and no samples to average over belong to it")
        return Average(self)

    @property
    def tariff(self) -> Tariff:
        """What derivatives cost in evaluations of ε; nothing where that was not measured."""
        return Tariff()

    @property
    def parts(self) -> tuple[object, ...]:
        """What determines the values of the model besides its name and its class; strings and types."""
        return ()


class Source(Model):
    """A model that does its own evaluations, and therefore counts them."""

    def __init__(self, schedule: Schedule, data_std: float) -> None:
        self.schedule = schedule
        self.data_std = data_std
        self._spent = Bill()
        self._payer: Source | None = None
        self._share = 1.0

    @abstractmethod
    def _expand(self, gamma: Series) -> Push:
        """Do what ``expand`` says, without the bill."""

    def _follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        """Do what ``follow`` says, without the bill."""
        return follow(self._expand(gamma), xbar, gamma)

    def _follow_preconditioned(self, std: float, y: Tensor, u: Series) -> Iterator[Tensor] | None:
        """Do what ``follow_preconditioned`` says, without the bill."""
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
        """Add to the bill."""
        if self._payer is None:
            self._spent += bill
        else:
            self._payer.charge(bill * self._share)

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the model of some states of a batch; see ``Model.part``."""
        other = copy.copy(self)
        other._payer, other._share = self, len(rows) / of
        return other

    def price(self, j: int) -> Bill:
        """One score evaluation first, then one Jacobian-vector product for each derivative."""
        return _EVALUATION if j == 0 else _DERIVATIVE

    @property
    def spent(self) -> Bill:
        """Everything evaluated since the model was made."""
        return self._spent if self._payer is None else self._payer.spent


class Autodiff(Source):
    """Any function ε(x, t), differentiated along paths by nested forward-mode automatic differentiation.

    Derivative j costs about 2ʲ evaluations of ε, so this is the provider for networks whose layers have no
    series of their own, and the independent check of those that have.

    Parameters
    ----------
    eps
        ε(x, t) for states x and a time t (float, 0-dim tensor or one that broadcasts against x); must be
        differentiable by ``torch.func.jvp``, nested as often as derivatives are asked for.
    schedule
        The noise schedule that ``eps`` belongs to.
    data_std
        Standard deviation of the data, per dimension.
    """

    def __init__(
        self, eps: Callable[[Tensor, Scalar], Tensor], schedule: Schedule, data_std: float = 1.0
    ) -> None:
        super().__init__(schedule, data_std)
        self._eps = eps

    @property
    def jet_order(self) -> int:
        """4: nested differentiation multiplies the cost with each order."""
        return 4

    def _expand(self, gamma: Series) -> Push:
        path: list[Tensor] = []

        def eps_along(h: Tensor) -> Tensor:
            t = self.schedule.time(_polynomial(gamma.coefficients[: len(path)], h))
            return self._eps(self.schedule.alpha(t) * _polynomial(path, h), t)

        def push(coefficient: Tensor) -> Tensor:
            path.append(coefficient)
            j = len(path) - 1
            if j == 0:
                t = self.schedule.time(gamma[0])
                return self._eps(self.schedule.alpha(t) * coefficient, t)
            f: Callable[[Tensor], Tensor] = eps_along
            for _ in range(j):
                f = _derivative(f)
            zero = torch.zeros((), dtype=torch.float64, device=coefficient.device)
            return f(zero) / math.factorial(j)

        return push


def _polynomial(coefficients: Sequence[Scalar], h: Tensor) -> Tensor:
    """Evaluate Σ cⱼ hʲ by Horner's rule."""
    value: Scalar = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = c + h * value
    return torch.as_tensor(value)


def _derivative(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return f' for a function of one real variable, by forward mode."""

    def slope(h: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(f, (h,), (torch.ones_like(h),))[1]
        return tangent

    return slope


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
