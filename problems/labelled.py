"""What every network has as a problem: classes, data, and states that are taken in blocks."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from problems.bill import Tariff
from problems.posterior import Variance
from problems.schedule import Schedule
from problems.score import Problem, Push, Source, diffused
from problems.series import Scalar, Series

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws n data, (n, *event)."""


@dataclass(frozen=True)
class InTurn:
    """Labels 0, 1, …, in turn.

    Attributes
    ----------
    classes
        Number of classes.
    """

    classes: int

    def of(self, n: int, device: torch.device) -> Tensor:
        """Return the classes of n states, (n,)."""
        return torch.arange(n, device=device) % self.classes


Labels = int | Tensor | InTurn | None


class Labelled(Source, Problem):
    """A network as a problem, with or without classes.

    Parameters
    ----------
    schedule, data_std
        See ``Model``.
    shape
        Shape of a state.
    classes
        Number of classes; 0 if the network takes no labels.
    no_class
        The label of the unconditional score; None if the network has none.
    labels
        The classes: one for all states, one for each, (N,), or ``InTurn``. None is ``no_class``, or all
        classes in turn if there is none.
    draw
        Draws training data, for ``sample``.
    tariff
        Prices of derivatives in evaluations of the network.

    Raises
    ------
    ValueError
        If a label is not a class of the network.
    """

    jet_order = 3

    def __init__(
        self,
        schedule: Schedule,
        data_std: float,
        shape: tuple[int, ...],
        classes: int = 0,
        no_class: int | None = None,
        labels: Labels = None,
        draw: Draw | None = None,
        tariff: Tariff = Tariff(),
    ) -> None:
        super().__init__(schedule, data_std)
        self.classes, self.no_class = classes, no_class
        self.labels = self._checked(labels)
        self._shape = torch.Size(shape)
        self._draw = draw
        self._tariff = tariff

    def _checked(self, labels: Labels) -> Tensor | InTurn | None:
        if labels is None:
            if not self.classes:
                return None
            return InTurn(self.classes) if self.no_class is None else torch.tensor([self.no_class])
        if isinstance(labels, InTurn):
            if not self.classes:
                raise ValueError("the network knows no classes; give no labels")
            return labels
        given = torch.as_tensor(labels).reshape(-1)
        if not self.classes or bool(((given < 0) | (given >= self.classes)).any()):
            known = f"the classes 0 to {self.classes - 1}" if self.classes else "no classes; give no labels"
            raise ValueError(f"the network knows {known}")
        return given

    @property
    def event_shape(self) -> torch.Size:
        """Shape of a state."""
        return self._shape

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is."""

    @property
    def tariff(self) -> Tariff:
        """Prices of derivatives, as they were given."""
        return self._tariff

    @functools.cached_property
    def average_variance(self) -> Variance | None:
        """The average variance of x₀ given a state; None without data or with a label for each state."""
        return None if self._draw is None else super().average_variance

    @property
    def has_data(self) -> bool:
        """Whether ``sample`` has training data to draw from."""
        return self._draw is not None

    @property
    def positional(self) -> bool:
        """Whether there is a label for each state."""
        return self.labels is not None and (isinstance(self.labels, InTurn) or len(self.labels) > 1)

    def labelled(self, labels: Labels) -> Self:
        """Return the score of other classes by the same network, with a bill of its own.

        Raises
        ------
        ValueError
            If a label is not a class of the network.
        """
        other = self._copied()
        other.labels = self._checked(labels)
        if isinstance(other.labels, Tensor):
            other.labels = other.labels.to(self.device)
        return other

    def labels_of(self, n: int) -> Tensor | None:
        """Return the classes of n states, (n,) or (1,); None if the network takes no labels."""
        return self.labels.of(n, self.device) if isinstance(self.labels, InTurn) else self.labels

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the score of some states of a batch, with their labels."""
        other = super().part(rows, of)
        labels = self.labels_of(of)
        other.labels = labels if labels is None or len(labels) == 1 else labels[rows]
        return other

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` training data of all classes, diffused to t; float64.

        Raises
        ------
        ValueError
            If the training data are not available.
        """
        if self._draw is None:
            raise ValueError("the data that this network was trained on are not at hand")
        source = generator or torch.Generator()
        return diffused(self.schedule, self._draw(n, source), t, source)

    @abstractmethod
    def _copied(self) -> Self:
        """Return the same network with caches shared and a bill of its own."""

    @abstractmethod
    def _begin(self, path: Series, labels: Tensor | None) -> Push:
        """Begin the expansion of a block of states, whose path γ(h) and labels these are.

        Coefficients of states come in any precision, and are answered in it.
        """

    @abstractmethod
    def _block(self, x: Tensor, order: int) -> int:
        """Return the number of states per pass, for jets of ``order`` entries."""

    def _expand(self, gamma: Series) -> Push:
        pushes: list[Push] = []

        def push(coefficient: Tensor) -> Tensor:
            blocks = torch.split(coefficient, self._block(coefficient, len(gamma)))
            if not pushes:
                labels, begin = self.labels_of(len(coefficient)), 0
                for block in blocks:
                    rows = slice(begin, begin + len(block))
                    path = Series([_rows(c, rows) for c in gamma.coefficients])
                    known = labels if labels is None or len(labels) == 1 else labels[rows]
                    pushes.append(self._begin(path, known))
                    begin += len(block)
            pushed = [push(block) for push, block in zip(pushes, blocks, strict=True)]
            return pushed[0] if len(pushed) == 1 else torch.cat(pushed)

        return push


def _rows(value: Scalar, rows: slice) -> Scalar:
    """Return the numbers of some states, given one number for each state or one for all."""
    return value[rows] if isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1 else value


def frozen(module: Any) -> Any:
    """Set a module to evaluation without gradients, in place."""
    return module.eval().requires_grad_(False)
