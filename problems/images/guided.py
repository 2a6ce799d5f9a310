"""Classifier-free guidance of a class-conditional network as a problem."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from problems.bill import Tariff
from problems.labelled import InTurn, Labelled
from problems.score import Problem
from problems.wrappers import Guided


class GuidedImages(Guided, Problem):
    """Images of all classes in turn, with guidance: ε = (1 + w) ε_c - w ε, exactly differentiated.

    Parameters
    ----------
    network
        The class-conditional network; its labels are not used.
    w
        The guidance scale.

    Raises
    ------
    ValueError
        If the network has no classes, or no unconditional score.
    """

    def __init__(self, network: Labelled, w: float) -> None:
        super().__init__(*_pair(network), w)
        self._network = network

    @property
    def event_shape(self) -> torch.Size:
        """Shape (C, H, W) of the images."""
        return self._network.event_shape

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network."""
        return self._network.dtype

    @property
    def tariff(self) -> Tariff:
        """Prices of derivatives of the network."""
        return self._network.tariff

    def sample(self, n: int, t: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` training images of all classes, diffused to t; see ``Labelled.sample``."""
        return self._network.sample(n, t, generator)

    @property
    def note(self) -> str:
        """What has to be said of the data of the network."""
        return self._network.note

    def to(self, like: Tensor) -> Self:
        """Return the problem in the dtype and on the device of a tensor."""
        other = copy.copy(self)
        other._network = self._network.to(like)
        other.conditional, other.unconditional = _pair(other._network)
        return other


def _pair(network: Labelled) -> tuple[Labelled, Labelled]:
    if not network.classes:
        raise ValueError("guidance needs a network with classes; train one with --conditional")
    if network.no_class is None:
        raise ValueError("guidance needs a network with a label for no class")
    return network.labelled(InTurn(network.classes)), network.labelled(None)
