"""Score networks as models, with jets by Taylor series layer by layer or by a distilled head."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from problems.autodiff import Autodiff
from problems.bill import Bill, Tariff
from problems.images import checkpoints
from problems.images.checkpoints import Checkpoint, CheckpointError
from problems.images.head import Head, HeadConfig
from problems.images.layers import nestable
from problems.images.sources import EMBEDDED, Samples, samples
from problems.images.unet import Config, Expansion, ScoreNetwork
from problems.labelled import Labelled, Labels, frozen
from problems.schedule import EDM, VE, VP, CosineVP, FlowMatching, Schedule, SubVP
from problems.score import Push, like
from problems.series import Scalar, Series
from problems.wrappers import Wrapper

REMEMBERED = 2**18
"""Most numbers in the largest activation of a block of states on a CPU.

Larger blocks exceed the CPU's caches, and their memory is requested from and returned to the system in every
pass.
"""


class Learned(Labelled):
    """A score network with exact derivatives along any path, by Taylor series layer by layer.

    Parameters
    ----------
    network
        The network; it is copied, and the copy is frozen.
    labels
        See ``Labelled``; None is the unconditional score.
    head
        The head that was distilled from the network, if any; see ``distilled``.
    data
        Returns the training data, for ``sample``.
    tariff
        Prices of derivatives in evaluations of the network.
    note
        What has to be said of the data; by default what the data say themselves.

    Raises
    ------
    ValueError
        If a label is not a class of the network.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        labels: Labels = None,
        head: Head | None = None,
        data: Callable[[], Samples] | None = None,
        tariff: Tariff = Tariff(),
        note: str = "",
    ) -> None:
        config = network.config
        shape, classes = (config.colours, config.size, config.size), config.classes
        draw = None if data is None else functools.partial(_drawn, data)
        none = classes if classes else None
        super().__init__(network.schedule, config.data_std, shape, classes, none, labels, draw, tariff)
        self.network: ScoreNetwork = frozen(copy.deepcopy(network))
        self.head: Head | None = None if head is None else frozen(copy.deepcopy(head))
        self._data, self._note = data, note

    @property
    def note(self) -> str:
        """What has to be said of the training data, where they are at hand."""
        if self._note or self._data is None:
            return self._note
        try:
            return self._data().note
        except ValueError:
            return ""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network, in which states of any precision are evaluated."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def distilled(self) -> Distilled | None:
        """The same ε with its first derivative by the head; None without a head."""
        return None if self.head is None else Distilled(self, self.head)

    def with_head(self, head: Head | None, tariff: Tariff = Tariff()) -> Learned:
        """Return the same network with a head that was distilled from it, or with none."""
        other = self._copied()
        other.head = None if head is None else frozen(copy.deepcopy(head))
        other._tariff = tariff
        return other

    def to(self, like: Tensor) -> Learned:
        """Return the model in the dtype and on the device of a tensor."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network).to(like)
        other.head = None if self.head is None else copy.deepcopy(self.head).to(like)
        if isinstance(self.labels, Tensor):
            other.labels = self.labels.to(like.device)
        return other

    def _copied(self) -> Self:
        return copy.copy(self)

    def nested(self) -> Autodiff:
        """Return the same score with derivatives by nested forward-mode automatic differentiation."""
        network = nestable(copy.deepcopy(self.network))

        def eps(x: Tensor, t: Scalar) -> Tensor:
            alpha, gamma = like(self.schedule.alpha(t), x), like(self.schedule.gamma(t), x)
            value: Tensor = network(x / alpha, gamma, self.labels_of(len(x)))
            return value

        return Autodiff(eps, self.schedule, self.data_std)

    def _begin(self, path: Series, labels: Tensor | None) -> Push:
        begin = next(self.network.parameters())
        push = Expansion(self.network, Series([like(c, begin) for c in path.coefficients]), labels).push
        return lambda coefficient: push(coefficient.to(begin.dtype)).to(coefficient.dtype)

    def _block(self, x: Tensor, order: int) -> int:
        """Return the number of states per pass: all, unless coefficients are remembered on a CPU."""
        if order == 1 or x.device.type != "cpu":
            return max(1, len(x))
        config = self.network.config
        return max(1, REMEMBERED * config.patch**2 // (config.channels * x[0, 0].numel()))


class Distilled(Wrapper):
    """A score network with its first derivative along the flow by a distilled head (Eq. 14).

    Parameters
    ----------
    score
        The score network, which keeps the bill.
    head
        The head.
    """

    def __init__(self, score: Learned, head: Head) -> None:
        super().__init__(score)
        self._learned, self._head = score, head

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the model of some states of a batch."""
        other = super().part(rows, of)
        other._learned = self._learned.part(rows, of)
        return other

    def price(self, j: int) -> Bill:
        """Return the price of coefficient j: one evaluation for ε, one call of the head for dε/dγ."""
        return (Bill(nfe=1), Bill(head=1))[j] if j < 2 else Bill()

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: ε by the network, its first derivative by the head.

        The derivative is the one along the network's own flow, whatever the path, because the head was
        distilled along that flow. The head gives no further derivative: the third push raises a
        ``ValueError``.
        """
        network = self._learned.network
        expansions: list[Expansion] = []
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
                xbar = coefficient.to(self._learned.dtype)
                start = Series([like(gamma[0], xbar)])
                expansions.append(Expansion(network, start, self._learned.labels_of(len(xbar))))
                said.extend((xbar, expansions[0].push(xbar)))
                return said[1].to(coefficient.dtype)
            (xbar, eps), (expansion,) = said, expansions
            k: Tensor = self._head(
                network, xbar, like(gamma[0], xbar), eps, expansion.features[0], expansion.embeddings[0]
            )
            return k.to(coefficient.dtype) * gamma[1]

        return push


def _drawn(data: Callable[[], Samples], n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` training images."""
    return data().draw(n, generator)[0]


SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (VP, SubVP, CosineVP, VE, EDM, FlowMatching)
}
"""The schedules by the names used on cards."""


def load(path: Path, head: Path | None = None) -> tuple[Learned, dict[str, Any]]:
    """Read a score network from a checkpoint, with its head if one is given.

    Parameters
    ----------
    path
        The safetensors file of the network, with its card beside it.
    head
        The safetensors file of a head that was distilled from this network.

    Returns
    -------
    The model, float32 on the CPU, and the card of the network.

    Raises
    ------
    CheckpointError
        If a file cannot be used. No code in a file is executed in any case.
    """
    stored = checkpoints.load(path, "score network")
    try:
        config = checkpoints.described(Config, stored.card["config"])
        schedule, about = _schedule(stored.card["schedule"]), stored.card.get("data", {})
        data, note = _data(**about), str(about.get("note", ""))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} describes no network of this suite ({error})") from None
    network = checkpoints.built(lambda: ScoreNetwork(config, schedule), stored, path)
    trained, costs = (None, Tariff()) if head is None else _head(head, network, stored)
    return Learned(network, head=trained, data=data, tariff=costs, note=note), stored.card


def shipped(name: str) -> Learned:
    """Return a network shipped with the suite, with its head if it has one.

    Parameters
    ----------
    name
        ``digits``, ``digits-classes``, ``digits-gaussians``, ``digits-positional``, ``digits-fourier`` or
        ``cifar10-16``.
    """
    path = weights(name)
    head = weights(f"{name}-head")
    return load(path, head if head.exists() else None)[0]


def weights(name: str) -> Path:
    """Return the path of a checkpoint shipped with the suite."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"


def _head(path: Path, network: ScoreNetwork, about: Checkpoint) -> tuple[Head, Tariff]:
    stored = checkpoints.load(path, "head")
    if stored.card.get("network") != about.card["sha256"]:
        raise CheckpointError(f"the head {path} was distilled from another network; distil one from this")
    try:
        config = checkpoints.described(HeadConfig, stored.card["config"])
        costs = checkpoints.described(Tariff, stored.card["tariff"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} describes no head of this suite ({error})") from None
    owner = network.config
    head = checkpoints.built(lambda: Head(config, owner.colours, owner.channels, owner.patch), stored, path)
    return head, costs


def _schedule(about: dict[str, Any]) -> Schedule:
    """Return the schedule on a card, if its noise is finite and rises."""
    rest = {name: value for name, value in about.items() if name != "name"}
    schedule = checkpoints.described(SCHEDULES[about["name"]], rest)
    low, high = (float(schedule.gamma(t)) for t in (schedule.stop, schedule.start))
    if not (0.0 <= low < high < math.inf and math.isfinite(schedule.alpha(schedule.start))):
        raise ValueError(f"its noise does not rise from {schedule.stop:g} to {schedule.start:g}")
    return schedule


def _data(
    name: object = "", noise: float = 0.0, flip: bool = False, **_: object
) -> Callable[[], Samples] | None:
    """Return the training data on a card, if they come with the suite: a card names no file to be read."""
    if not (isinstance(noise, int | float) and 0.0 <= noise < math.inf and isinstance(flip, bool)):
        raise ValueError(f"its data have noise {noise!r} and flip {flip!r}")
    return functools.partial(samples, name, noise, flip=flip) if name in EMBEDDED else None
