"""What a method costs: its bill, found by a rehearsal on a model that costs the same and is zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from problems import Bill, Model, Source, Tariff
from problems.posterior import Variance
from problems.score import Push
from problems.series import Scalar, Series


class Sampler(Protocol):
    """What can be rehearsed."""

    def sample(self, score: Model, steps: int, x: Tensor) -> Tensor:
        """Return the states to which ``x`` is brought."""


class _Rehearsal(Source):
    """A model that costs what another one costs, and is zero."""

    def __init__(self, model: Model, payer: Source | None = None) -> None:
        super().__init__(model.schedule, model.data_std)
        self.model, self._payer = model, payer

    def price(self, j: int) -> Bill:
        return self.model.price(j)

    @property
    def distilled(self) -> _Rehearsal | None:
        head = self.model.distilled
        return None if head is None else _Rehearsal(head, self)

    @property
    def posterior_variance(self) -> Variance | None:
        return None if self.model.posterior_variance is None else _free

    @property
    def average_variance(self) -> Variance | None:
        return None if self.model.average_variance is None else _free

    def _expand(self, gamma: Series) -> Push:
        return torch.zeros_like


def _free(xbar: Tensor, gamma: Scalar) -> Tensor:
    """Return zeros in the place of a variance."""
    return torch.zeros_like(xbar)


@lru_cache(maxsize=4096)
def rehearsed(method: Sampler, model: Model, steps: int) -> Bill:
    """Return the bill of so many steps, the same on every grid; races ask for it thousands of times."""
    rehearsal = _Rehearsal(model)
    method.sample(rehearsal, steps, torch.zeros(1, 1, dtype=torch.float64))
    return rehearsal.spent


def affordable(bill: Callable[[int], Bill], least: int, nfe: int, tariff: Tariff) -> int:
    """Return the most steps that a budget pays for; see ``Method.steps``.

    Parameters
    ----------
    bill
        Returns the bill of a number of steps.
    least
        The fewest steps that the method can take.
    nfe
        The budget, in score evaluations per sample.
    tariff
        What derivatives cost.

    Raises
    ------
    ValueError
        If the budget is too small; the message says what is needed.
    """

    def paid(steps: int) -> bool:
        spent = bill(steps)
        cost = spent.cost(tariff)
        if spent.nfe > nfe or cost <= nfe:
            return spent.nfe <= nfe
        return cost - nfe < 0.5 * (bill(steps + 1).cost(tariff) - cost) - 1e-9

    if not paid(least):
        needed = bill(least).cost(tariff)
        raise ValueError(f"needs at least {needed:g} NFE ({least} steps), so {nfe} are too few")
    low, high = least, 2 * least
    while paid(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if paid(middle) else (low, middle)
    return low
