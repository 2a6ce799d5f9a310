"""Scores made of scores: each wrapper is a model itself, so no solver knows that it is there."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Self

import torch
from torch import Tensor

from problems.posterior import Variance
from problems.score import Bill, Model, Push
from problems.series import Scalar, Series, convolve


class Wrapper(Model):
    """A model that answers with the help of one other model, and bills what that one bills."""

    def __init__(self, score: Model) -> None:
        self.score = score
        self.schedule = score.schedule
        self.data_std = score.data_std

    @property
    def component_std(self) -> float:
        """That of the wrapped model."""
        return self.score.component_std

    @property
    def posterior_variance(self) -> Variance:
        """That of the wrapped model."""
        return self.score.posterior_variance

    @property
    def average_variance(self) -> Variance:
        """That of the wrapped model."""
        return self.score.average_variance

    @property
    def jet_order(self) -> int:
        """1: the derivatives are not those of ε."""
        return 1

    @property
    def positional(self) -> bool:
        """That of the wrapped model."""
        return self.score.positional

    def price(self, j: int) -> Bill:
        """Return the price of the wrapped model."""
        return self.score.price(j)

    @property
    def spent(self) -> Bill:
        """The bill of the wrapped model."""
        return self.score.spent

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the same around a part of the wrapped model."""
        other = copy.copy(self)
        other.score = self.score.part(rows, of)
        return other


class AnalyticFirst(Wrapper):
    """The analytical first step (AFS, Sec. 3.2): at time t, and only there, ε = x and dε/dγ = 0, for free.

    At the start the diffused distribution is the normal one to within a few millionths, so its score needs
    no network. With a prior of standard deviation s the value is x/s.

    Parameters
    ----------
    score
        The model to call everywhere else.
    t
        The time of the first evaluation.
    """

    def __init__(self, score: Model, t: float) -> None:
        super().__init__(score)
        self._t = t
        self._gamma = score.schedule.gamma(t)
        self._gain = score.schedule.alpha(t) / score.schedule.prior_std

    @property
    def distilled(self) -> AnalyticFirst:
        """The same, around the wrapped model with its head."""
        return AnalyticFirst(self.score.distilled, self._t)

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion; free at the first time, the wrapped model's elsewhere."""
        if not _all_close(gamma[0], self._gamma):
            return self.score.expand(gamma)
        index = itertools.count()

        def push(coefficient: Tensor) -> Tensor:
            return self._gain * coefficient if next(index) == 0 else torch.zeros_like(coefficient)

        return push


class Ideal(Wrapper):
    """Derivatives by the "ideal derivative trick" (App. B.2): dε/dγ = 0 along the flow, for free.

    On the DDIM ODE the truncated Taylor method of any order then is DDIM; on the probability-flow ODE it is
    the scheme of Tachibana et al. (2021), Eq. 47 (Eq. 51 with its middle term corrected).
    """

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: ε is the wrapped model's, its derivatives are zero."""
        push = self.score.expand(gamma)
        index = itertools.count()

        def ideal(coefficient: Tensor) -> Tensor:
            return push(coefficient) if next(index) == 0 else torch.zeros_like(coefficient)

        return ideal

    def price(self, j: int) -> Bill:
        """Return the price of ε; derivatives cost nothing."""
        return self.score.price(0) if j == 0 else Bill()


class _Pair(Model):
    def __init__(self, conditional: Model, unconditional: Model, w: float) -> None:
        if conditional.schedule != unconditional.schedule:
            raise ValueError("guidance needs two models of one noise schedule")
        self.conditional, self.unconditional, self.w = conditional, unconditional, w
        self.schedule = conditional.schedule
        self.data_std = conditional.data_std

    @property
    def distilled(self) -> GuidedHeads:
        """The two models with their heads, combined as the paper does."""
        return GuidedHeads(self.conditional.distilled, self.unconditional.distilled, self.w)

    @property
    def component_std(self) -> float:
        """The smaller one of the two models."""
        return min(self.conditional.component_std, self.unconditional.component_std)

    @property
    def jet_order(self) -> int:
        """1: the derivatives are not those of ε."""
        return 1

    @property
    def positional(self) -> bool:
        """Whether either model is."""
        return self.conditional.positional or self.unconditional.positional

    def price(self, j: int) -> Bill:
        """Return the price of both models."""
        return self.conditional.price(j) + self.unconditional.price(j)

    @property
    def spent(self) -> Bill:
        """The bills of both models together."""
        if self.conditional is self.unconditional:
            return self.conditional.spent
        return self.conditional.spent + self.unconditional.spent

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the pair of parts."""
        other = copy.copy(self)
        other.conditional = self.conditional.part(rows, of)
        same = self.conditional is self.unconditional
        other.unconditional = other.conditional if same else self.unconditional.part(rows, of)
        return other

    def _combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return (1.0 + self.w) * conditional - self.w * unconditional


class Guided(_Pair):
    """Classifier-free guidance, ε = (1 + w) ε_c - w ε_u (Eq. 16), with the exact derivatives of that ε.

    Both models are expanded along the one guided path, so a method of order p stays of order p.

    Parameters
    ----------
    conditional, unconditional
        The two models ε_c and ε_u, of one schedule.
    w
        The guidance scale; 0 is no guidance.

    Raises
    ------
    ValueError
        If the schedules differ.
    """

    @property
    def jet_order(self) -> int:
        """The smaller one of the two models."""
        return min(self.conditional.jet_order, self.unconditional.jet_order)

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion of the guided ε along its own path."""
        conditional, unconditional = self.conditional.expand(gamma), self.unconditional.expand(gamma)
        return lambda coefficient: self._combine(conditional(coefficient), unconditional(coefficient))


class GuidedHeads(_Pair):
    """Guidance as the paper combines it (Eqs. 16 and 81): each derivative along its own unguided flow.

    The derivative of each model is taken (or was distilled) along the flow of that model alone, and the two
    are combined as ε is. This is not the derivative of the guided ε: order two is lost.

    Parameters
    ----------
    conditional, unconditional, w
        As in ``Guided``.
    """

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: both models start from the given point and follow flows of their own."""
        pushes = [model.expand(gamma) for model in (self.conditional, self.unconditional)]
        eps: list[list[Tensor]] = [[], []]
        slope = [(i + 1) * gamma[i + 1] for i in range(len(gamma) - 1)]

        def push(coefficient: Tensor) -> Tensor:
            j = len(eps[0])
            for e, advance in zip(eps, pushes, strict=True):
                # dx̄/dh = ε dγ/dh, with the model's own ε.
                own = coefficient if j == 0 else torch.as_tensor(convolve(slope, e, j - 1)) / j
                e.append(advance(own))
            return self._combine(eps[0][-1], eps[1][-1])

        return push


def _all_close(gamma: Scalar, reference: float) -> bool:
    if isinstance(gamma, Tensor):
        return bool(((gamma - reference).abs() <= 1e-9 * reference).all())
    return math.isclose(gamma, reference, rel_tol=1e-9)
