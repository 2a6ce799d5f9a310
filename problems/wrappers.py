"""Scores made of scores: each wrapper is a model, so a solver sees no difference."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Self

import torch
from torch import Tensor

from problems.bill import Bill
from problems.posterior import Variance
from problems.score import Model, Push
from problems.series import Scalar, Series, convolve


class Wrapper(Model):
    """A model that evaluates one other model; the bill is that of the other model."""

    jet_order = 1

    def __init__(self, score: Model) -> None:
        self.score = score
        self.schedule = score.schedule
        self.data_std = score.data_std

    @property
    def component_std(self) -> float:
        """The ``component_std`` of the wrapped model."""
        return self.score.component_std

    @property
    def posterior_variance(self) -> Variance | None:
        """The ``posterior_variance`` of the wrapped model."""
        return self.score.posterior_variance

    @property
    def average_variance(self) -> Variance | None:
        """The ``average_variance`` of the wrapped model."""
        return self.score.average_variance

    @property
    def positional(self) -> bool:
        """Whether the wrapped model is positional."""
        return self.score.positional

    def price(self, j: int) -> Bill:
        """Return the price of coefficient j of the wrapped model."""
        return self.score.price(j)

    @property
    def spent(self) -> Bill:
        """The bill of the wrapped model."""
        return self.score.spent

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the same wrapper around a part of the wrapped model."""
        other = copy.copy(self)
        other.score = self.score.part(rows, of)
        return other


class AnalyticFirst(Wrapper):
    """The analytical first step (AFS, Sec. 3.2): at time t, and only there, ε = x and dε/dγ = 0, unbilled.

    At the start of the schedule the diffused distribution differs from the standard normal one by a few parts
    in a million, so its score needs no network. With a prior of standard deviation s, ε = x/s.

    Parameters
    ----------
    score
        The model at all other times.
    t
        The time of the first evaluation.
    """

    def __init__(self, score: Model, t: float) -> None:
        super().__init__(score)
        self._t = t
        self._gamma = score.schedule.gamma(t)
        self._gain = score.schedule.alpha(t) / score.schedule.prior_std

    @property
    def distilled(self) -> AnalyticFirst | None:
        """The same wrapper around the wrapped model with its head; None without a head."""
        score = self.score.distilled
        return None if score is None else AnalyticFirst(score, self._t)

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: ε = x/s and zero derivatives at time t, the wrapped model's at other times."""
        if not _all_close(gamma[0], self._gamma):
            return self.score.expand(gamma)
        index = itertools.count()

        def push(coefficient: Tensor) -> Tensor:
            return self._gain * coefficient if next(index) == 0 else torch.zeros_like(coefficient)

        return push


class Ideal(Wrapper):
    """Derivatives by the "ideal derivative trick" (App. B.2): dε/dγ = 0 along the flow, unbilled.

    With it, the truncated Taylor method of any order on the DDIM ODE is DDIM. On the probability-flow ODE it
    is the scheme of Tachibana et al. (2021), Eq. 47 (Eq. 51 with its middle term corrected).
    """

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: ε of the wrapped model, zero derivatives."""
        push = self.score.expand(gamma)
        index = itertools.count()

        def ideal(coefficient: Tensor) -> Tensor:
            return push(coefficient) if next(index) == 0 else torch.zeros_like(coefficient)

        return ideal

    def price(self, j: int) -> Bill:
        """Return the price of coefficient j; derivatives cost nothing."""
        return self.score.price(0) if j == 0 else Bill()


class _Pair(Model):
    def __init__(self, conditional: Model, unconditional: Model, w: float) -> None:
        if conditional.schedule != unconditional.schedule:
            raise ValueError("guidance needs two models of one noise schedule")
        if not math.isfinite(w):
            raise ValueError(f"the guidance scale is a finite number, not {w}")
        self.conditional, self.unconditional, self.w = conditional, unconditional, w
        self.schedule = conditional.schedule
        self.data_std = conditional.data_std

    @property
    def distilled(self) -> GuidedHeads | None:
        """The two models with their heads, combined as in the paper; None unless both have one."""
        conditional, unconditional = self.conditional.distilled, self.unconditional.distilled
        if conditional is None or unconditional is None:
            return None
        return GuidedHeads(conditional, unconditional, self.w)

    @property
    def component_std(self) -> float:
        """The smaller ``component_std`` of the two models."""
        return min(self.conditional.component_std, self.unconditional.component_std)

    @property
    def positional(self) -> bool:
        """Whether either model is positional."""
        return self.conditional.positional or self.unconditional.positional

    def price(self, j: int) -> Bill:
        """Return the price of coefficient j of both models together."""
        return self.conditional.price(j) + self.unconditional.price(j)

    @property
    def spent(self) -> Bill:
        """The sum of the bills of both models; the bill of one if they are the same object."""
        if self.conditional is self.unconditional:
            return self.conditional.spent
        return self.conditional.spent + self.unconditional.spent

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the same combination of parts of both models."""
        other = copy.copy(self)
        other.conditional = self.conditional.part(rows, of)
        same = self.conditional is self.unconditional
        other.unconditional = other.conditional if same else self.unconditional.part(rows, of)
        return other

    def _combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return (1.0 + self.w) * conditional - self.w * unconditional


class Guided(_Pair):
    """Classifier-free guidance, ε = (1 + w) ε_c - w ε_u (Eq. 16), with the exact derivatives of this ε.

    Both models are expanded along the guided path, so a method of order p keeps its order.

    Parameters
    ----------
    conditional, unconditional
        The two models ε_c and ε_u, of one schedule.
    w
        The guidance scale; 0 is no guidance.

    Raises
    ------
    ValueError
        If the schedules differ, or the scale is not finite.
    """

    @property
    def jet_order(self) -> int:
        """The smaller ``jet_order`` of the two models."""
        return min(self.conditional.jet_order, self.unconditional.jet_order)

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion of the guided ε: both models along the same path."""
        conditional, unconditional = self.conditional.expand(gamma), self.unconditional.expand(gamma)
        return lambda coefficient: self._combine(conditional(coefficient), unconditional(coefficient))


class GuidedHeads(_Pair):
    """Guidance as in the paper (Eqs. 16 and 81): the derivative of each model along its own unguided flow.

    The derivative of each model is taken, or was distilled, along the flow of that model alone, and the two
    are combined like ε. This is not the derivative of the guided ε, so a method of order two loses an order.

    Parameters
    ----------
    conditional, unconditional, w
        As in ``Guided``.
    """

    jet_order = 1

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: both models start at the given point and follow their own flows."""
        pushes = [model.expand(gamma) for model in (self.conditional, self.unconditional)]
        eps: list[list[Tensor]] = [[], []]
        slope = gamma.slope().coefficients

        def push(coefficient: Tensor) -> Tensor:
            j = len(eps[0])
            for e, advance in zip(eps, pushes, strict=True):
                # dx̄/dh = ε dγ/dh with the ε of this model.
                own = coefficient if j == 0 else torch.as_tensor(convolve(slope, e, j - 1)) / j
                e.append(advance(own))
            return self._combine(eps[0][-1], eps[1][-1])

        return push


def _all_close(gamma: Scalar, reference: float) -> bool:
    if isinstance(gamma, Tensor):
        return bool(((gamma - reference).abs() <= 1e-9 * reference).all())
    return math.isclose(gamma, reference, rel_tol=1e-9)
