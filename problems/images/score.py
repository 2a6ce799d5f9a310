"""Score networks as models: their jets by Taylor series layer by layer, or by a distilled head."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from problems.images import checkpoints
from problems.images.checkpoints import Checkpoint, CheckpointError
from problems.images.head import Head, HeadConfig
from problems.images.layers import nestable
from problems.images.unet import Config, Expansion, ScoreNetwork
from problems.schedule import EDM, VE, VP, CosineVP, Schedule
from problems.score import Autodiff, Bill, Push, Source, like
from problems.series import Scalar, Series
from problems.wrappers import Wrapper

C = TypeVar("C", Config, HeadConfig)


class Learned(Source):
    """A score network with its exact derivatives along any path, by Taylor series layer by layer.

    Parameters
    ----------
    network
        The network; it is copied, and the copy is frozen.
    labels
        Whose score it is, if the network is conditional: one class, or one for each state, (N,). None is
        that of all classes.
    head
        The head that was distilled from it, if there is one; see ``distilled``.

    Raises
    ------
    ValueError
        If there is no such class.
    """

    def __init__(
        self, network: ScoreNetwork, labels: int | Tensor | None = None, head: Head | None = None
    ) -> None:
        super().__init__(network.schedule, network.config.data_std)
        classes = network.config.classes
        if labels is None:
            given = torch.tensor([classes]) if classes else None
        else:
            given = torch.as_tensor(labels).reshape(-1)
            if not classes or bool(((given < 0) | (given >= classes)).any()):
                raise ValueError(
                    f"the network knows the classes 0 to {classes - 1}" if classes else "no classes"
                )
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.head = None if head is None else copy.deepcopy(head).eval().requires_grad_(False)
        self.labels = given

    @property
    def event_shape(self) -> torch.Size:
        """Shape (C, H, W) of the images."""
        config = self.network.config
        return torch.Size((config.colours, config.size, config.size))

    @property
    def jet_order(self) -> int:
        """3: each further derivative costs more than the plain network."""
        return 3

    @property
    def distilled(self) -> Distilled:
        """The same score, with its derivative by the head.

        Raises
        ------
        ValueError
            If there is no head.
        """
        if self.head is None:
            raise ValueError(
                "this network has no distilled head; train one by python -m problems.images.distill"
            )
        return Distilled(self, self.head)

    def labelled(self, labels: int | Tensor | None) -> Learned:
        """Return the score of other classes, by the same network and with a bill of its own."""
        return Learned(self.network, labels, self.head)

    def to(self, like: Tensor) -> Learned:
        """Return the model in the dtype and on the device of a tensor."""
        other = copy.copy(self)
        other._spent = Bill()
        other.network = copy.deepcopy(self.network).to(like)
        other.head = None if self.head is None else copy.deepcopy(self.head).to(like)
        other.labels = None if self.labels is None else self.labels.to(like.device)
        return other

    def nested(self) -> Autodiff:
        """Return the same score, its derivatives by nested forward-mode automatic differentiation."""
        network = nestable(copy.deepcopy(self.network))

        def eps(x: Tensor, t: Scalar) -> Tensor:
            alpha, gamma = like(self.schedule.alpha(t), x), like(self.schedule.gamma(t), x)
            value: Tensor = network(x / alpha, gamma, self.labels)
            return value

        return Autodiff(eps, self.schedule, self.data_std)

    def _expand(self, gamma: Series) -> Push:
        return Expansion(self.network, gamma, self.labels).push


class Distilled(Wrapper):
    """A score network whose first derivative along its flow is what a distilled head says (Eq. 14).

    Parameters
    ----------
    score
        The score network; it is billed.
    head
        The head.
    """

    def __init__(self, score: Learned, head: Head) -> None:
        super().__init__(score)
        self._learned, self._head = score, head

    def price(self, j: int) -> Bill:
        """One evaluation, then one call of the head."""
        return (Bill(nfe=1), Bill(head=1))[j] if j < 2 else Bill()

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: ε by the network, its derivative by the head.

        Whatever the path, the derivative is that along the network's own flow, for which it was distilled.
        There is no further one: the third push raises a ``ValueError``.
        """
        network, labels = self._learned.network, self._learned.labels
        expansion = Expansion(network, Series([gamma[0]]), labels)
        said: list[Tensor] = []
        index = itertools.count()

        def push(coefficient: Tensor) -> Tensor:
            j = next(index)
            if j > 1:
                raise ValueError(
                    "a distilled head gives the first derivative of ε only; take jets of the network"
                )
            self._learned.charge(self.price(j))
            if j == 0:
                said.extend((coefficient, expansion.push(coefficient)))
                return said[1]
            xbar, eps = said
            k: Tensor = self._head(
                network, xbar, gamma[0], eps, expansion.features[0], expansion.embeddings[0]
            )
            return k * gamma[1]

        return push


SCHEDULES: dict[str, type[Schedule]] = {"VP": VP, "CosineVP": CosineVP, "VE": VE, "EDM": EDM}
"""The schedules that a card can name."""


def load(path: Path, head: Path | None = None) -> tuple[Learned, dict[str, Any]]:
    """Read a score network from a checkpoint, with its head if one is given.

    Parameters
    ----------
    path
        The safetensors file of the network; its card lies beside it.
    head
        That of a head that was distilled from this network.

    Returns
    -------
    The model, float32 on the CPU, and the network's card.

    Raises
    ------
    CheckpointError
        If a file cannot be used; executes no code in any case.
    """
    stored = checkpoints.load(path, "score network")
    try:
        config = _config(Config, stored.card["config"])
        about = dict(stored.card["schedule"])
        network = ScoreNetwork(config, SCHEDULES[about.pop("name")](**about))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} describes no network of this suite ({error})") from None
    checkpoints.fill(network, stored, path)
    return Learned(network, head=None if head is None else _head(head, network, stored)), stored.card


def _head(path: Path, network: ScoreNetwork, about: Checkpoint) -> Head:
    stored = checkpoints.load(path, "head")
    if stored.card.get("network") != about.card["sha256"]:
        raise CheckpointError(f"the head {path} was distilled from another network; distil one from this")
    try:
        head = Head(
            _config(HeadConfig, stored.card["config"]), network.config.colours, network.config.channels
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} describes no head of this suite ({error})") from None
    checkpoints.fill(head, stored, path)
    return head


def _config(kind: Callable[..., C], values: dict[str, Any]) -> C:
    """Make a configuration of JSON values, in which tuples are lists."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
