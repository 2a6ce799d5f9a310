"""Data predictions that are kept in the range of the data, as many samplers of images do."""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from typing import Self, cast

import torch
from torch import Tensor

from problems.bill import Tariff
from problems.score import Model, Problem, Push
from problems.series import Series, convolve_states, quotient
from problems.wrappers import Wrapper


class Bounded(Wrapper, Problem):
    """A problem whose denoised state x̂₀ = x̄ - γ ε is changed by a function: ε = (x̄ - f(x̂₀))/γ.

    Along a path ε is differentiated exactly wherever f is smooth. A method keeps its order as long as no
    coordinate reaches the bound during a step.

    Parameters
    ----------
    score
        The problem.
    """

    def __init__(self, score: Model) -> None:
        super().__init__(score)
        self.jet_order = min(score.jet_order, 3)

    @property
    def problem(self) -> Problem:
        """The wrapped problem."""
        return cast(Problem, self.score)

    @property
    def distilled(self) -> Self | None:
        """The same bound around the problem with its head; None without a head."""
        inner = self.score.distilled
        return None if inner is None else self._around(inner)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of a state."""
        return self.problem.event_shape

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the wrapped problem."""
        return self.problem.dtype

    @property
    def tariff(self) -> Tariff:
        """Prices of derivatives of the wrapped problem."""
        return self.problem.tariff

    @property
    def posterior_variance(self) -> None:
        """None: the bounded score is not that of a distribution."""
        return

    @property
    def average_variance(self) -> None:
        """None: the bounded score is not that of a distribution."""
        return

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples of the wrapped problem."""
        return self.problem.sample(n, t, generator)

    @property
    def note(self) -> str:
        """What has to be said of the data of the wrapped problem."""
        return self.problem.note

    def nearest(self, x: Tensor) -> Tensor | None:
        """Return what the wrapped problem returns."""
        return self.problem.nearest(x)

    def to(self, like: Tensor) -> Self:
        """Return the same around the wrapped problem in the dtype and on the device of a tensor."""
        return self._around(self.problem.to(like))

    def _around(self, score: Model) -> Self:
        other = copy.copy(self)
        other.score = score
        return other

    @abstractmethod
    def _bound(self) -> Push:
        """Begin the expansion of f along a path: takes the next coefficient of x̂₀, returns that of f(x̂₀)."""

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion of the changed ε along the path."""
        push, bound = self.score.expand(gamma), self._bound()
        eps: list[Tensor] = []
        changed: list[Tensor] = []

        def bounded(coefficient: Tensor) -> Tensor:
            eps.append(push(coefficient))
            j = len(eps) - 1
            data = coefficient - convolve_states(gamma, eps, j)
            changed.append(quotient(coefficient - bound(data), gamma, changed))
            return changed[j]

        return bounded


class Clipped(Bounded):
    """Static clipping: x̂₀ is kept in [-limit, limit], as ``clip_sample`` in diffusers.

    Parameters
    ----------
    score
        The problem.
    limit
        The bound, 1 for images in [-1, 1].

    Raises
    ------
    ValueError
        If the bound is not positive.
    """

    def __init__(self, score: Model, limit: float = 1.0) -> None:
        if not limit > 0.0:
            raise ValueError(f"the bound of the data is a positive number, not {limit}")
        super().__init__(score)
        self.limit = limit

    def _bound(self) -> Push:
        inside: list[Tensor] = []

        def push(data: Tensor) -> Tensor:
            if not inside:
                inside.append(data.abs() < self.limit)
                return data.clamp(-self.limit, self.limit)
            return data * inside[0]

        return push


class DynamicallyThresholded(Bounded):
    """Dynamic thresholding: x̂₀ is clipped to [-s, s] and divided by s (Saharia et al. 2022, Sec. 2.3).

    s is a quantile of |x̂₀| over the coordinates of a sample, at least 1 and at most ``most``.

    Parameters
    ----------
    score
        The problem, with data in [-1, 1].
    share
        The quantile, in (0, 1); 0.995 by default, as ``dynamic_thresholding_ratio`` in diffusers.
    most
        The largest s; 1 in diffusers (``sample_max_value``), where it makes this static clipping.

    Raises
    ------
    ValueError
        If the numbers are not in these ranges.
    """

    def __init__(self, score: Model, share: float = 0.995, most: float = float("inf")) -> None:
        if not 0.0 < share < 1.0 or not most >= 1.0:
            raise ValueError(f"a share between 0 and 1 and a bound of at least 1 are needed: {share}, {most}")
        super().__init__(score)
        self.share, self.most = share, most

    def _bound(self) -> Push:
        known: list[Tensor] = []
        rates: list[Tensor] = []
        clipped: list[Tensor] = []
        index = itertools.count()

        def push(data: Tensor) -> Tensor:
            flat = data.flatten(1)
            if next(index) == 0:
                place, weight = self._places(flat)
                s = (weight * flat.gather(1, place)).sum(1, keepdim=True)
                free = ((s > 1.0) & (s < self.most)).to(data)
                s = s.clamp(1.0, self.most)
                inside = (flat.abs() < s).to(data)
                known.extend((place, weight, free, inside, flat.sign()))
                rates.append(s)
                value = torch.minimum(torch.maximum(flat, -s), s)
            else:
                place, weight, free, inside, sign = known
                rates.append(free * (weight * flat.gather(1, place)).sum(1, keepdim=True))
                value = inside * flat + (1.0 - inside) * sign * rates[-1]
            clipped.append(quotient(value, Series(rates), clipped))
            return clipped[-1].view(data.shape)

        return push

    def _places(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the two values are between which the quantile of |x̂₀| lies, and their weights."""
        order = flat.abs().argsort(1)
        place = self.share * (flat.shape[1] - 1)
        low = min(int(place), flat.shape[1] - 2) if flat.shape[1] > 1 else 0
        high = min(low + 1, flat.shape[1] - 1)
        pair = order[:, [low, high]]
        between = torch.tensor([1.0 - (place - low), place - low], dtype=flat.dtype, device=flat.device)
        return pair, between * flat.gather(1, pair).sign()
