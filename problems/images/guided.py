"""Classifier-free guidance of a class-conditional network as a problem."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from problems.bill import Tariff
from problems.images.score import Learned
from problems.score import Problem
from problems.wrappers import Guided


class InTurn(Learned):
    """A class-conditional network; the class of state n is n modulo the number of classes.

    Parameters
    ----------
    learned
        The network, with its head if it has one.

    Raises
    ------
    ValueError
        If the network has no classes.
    """

    positional = True

    def __init__(self, learned: Learned) -> None:
        if not learned.network.config.classes:
            raise ValueError("guidance needs a network with classes; train one with --conditional")
        super().__init__(learned.network, head=learned.head, tariff=learned.tariff)
        self.labels = None

    def labels_of(self, n: int) -> Tensor:
        """Return the classes 0, 1, … in turn, or the classes of a part, (n,)."""
        if self.labels is not None:
            return self.labels
        device = next(self.network.parameters()).device
        return torch.arange(n, device=device) % self.network.config.classes


class GuidedImages(Guided, Problem):
    """Images of all classes in turn, with guidance: ε = (1 + w) ε_c - w ε, exactly differentiated.

    Parameters
    ----------
    learned
        The class-conditional network.
    w
        The guidance scale.

    Raises
    ------
    ValueError
        If the network has no classes.
    """

    def __init__(self, learned: Learned, w: float) -> None:
        super().__init__(InTurn(learned), learned.labelled(None), w)
        self._learned = learned

    @property
    def event_shape(self) -> torch.Size:
        """Shape (C, H, W) of the images."""
        return self._learned.event_shape

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network."""
        return self._learned.dtype

    @property
    def tariff(self) -> Tariff:
        """Prices of derivatives of the network."""
        return self._learned.tariff

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` training images of all classes, diffused to t; see ``Learned.sample``."""
        return self._learned.sample(n, t, generator)

    def to(self, like: Tensor) -> Self:
        """Return the problem in the dtype and on the device of a tensor."""
        other = copy.copy(self)
        other._learned = self._learned.to(like)
        other.conditional, other.unconditional = InTurn(other._learned), other._learned.labelled(None)
        return other
