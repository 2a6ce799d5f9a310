"""What images are compared in: features, of which distances between samples and errors are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from problems import Problem
from problems.console import UsageError
from problems.images import classifier as classifiers
from problems.images import inception as inceptions
from problems.images.classifier import Classifier
from problems.images.inception import Inception

INCEPTION = "Inception-v3"
"""The features of the FID."""

BATCH = 64
"""Images that a network sees at once."""


@dataclass(frozen=True)
class Features:
    """A map from states to vectors.

    Attributes
    ----------
    name
        What it is called in tables.
    of
        Takes states (N, *event), of any floating dtype and on any device; returns float64 (N, d) on the CPU.
    parts
        What else determines it, for ``study.Cell``: the hash of the weights and the class of the network.
    """

    name: str
    of: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    parts: tuple[object, ...] = ()

    @property
    def distance(self) -> str:
        """What a Fréchet distance of these features is called. That of Inception-v3 alone is the FID."""
        return "FID" if self.name == INCEPTION else f"Fréchet distance ({self.name})"


def pixels(problem: Problem) -> Features:
    """Return the states themselves, flattened; those of problems without images are called coordinates."""
    name = "pixels" if len(problem.event_shape) == 3 else "coordinates"
    return Features(name, lambda x: x.detach().flatten(1).cpu().double())


def classifier(problem: Problem) -> Features | None:
    """Return the 64 features of the digits classifier; None for problems that are not of its images."""
    if problem.event_shape != torch.Size((1, 8, 8)):
        return None
    return _seen("digits classifier", classifiers.shipped(), lambda x: x)


def inception(path: Path) -> Features:
    """Return the 2,048 features of Inception-v3.

    It sees images as files of 8 bits keep them, as is usual for the FID: cut to [-1, 1] and rounded to one of
    256 levels.

    Parameters
    ----------
    path
        File of the weights; see ``problems.images.inception.load``.

    Raises
    ------
    problems.images.checkpoints.CheckpointError
        If it cannot be used.
    """
    return _seen(INCEPTION, inceptions.load(path), stored)


def stored(x: Tensor) -> Tensor:
    """Return images in [-1, 1] as they are after files of 8 bits."""
    return (127.5 * (x + 1.0)).round().clamp(0.0, 255.0) / 127.5 - 1.0


def features(names: Sequence[str], problem: Problem) -> tuple[Features, ...]:
    """Return the features that a user names, for the states of a problem.

    Parameters
    ----------
    names
        ``classifier``, ``pixels``, or the path of Inception-v3 weights.
    problem
        Where the states come from.

    Raises
    ------
    UsageError
        If there are no such features, or not for this problem.
    """
    return tuple(_named(name, problem) for name in dict.fromkeys(names))


def _named(name: str, problem: Problem) -> Features:
    shape = tuple(problem.event_shape)
    if name == "pixels":
        return pixels(problem)
    if name == "classifier":
        found = classifier(problem)
        if found is None:
            raise UsageError(
                f"the digits classifier sees images of shape (1, 8, 8), and this problem's states have shape "
                f"{shape}; type --features pixels, or the path of Inception-v3 weights"
            )
        return found
    if not Path(name).suffix:
        raise UsageError(
            f"unknown features {name!r}; choose from classifier, pixels, or type the path of Inception-v3 "
            f"weights, such as {inceptions.WEIGHTS}"
        )
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(
            "Inception-v3 sees images of one or three colours, and this problem's states have shape "
            f"{shape}; type --features pixels"
        )
    try:
        return inception(Path(name))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _seen(name: str, network: Classifier | Inception, prepare: Callable[[Tensor], Tensor]) -> Features:
    """Return features that a network sees, in float32, on the device of the states."""

    def of(x: Tensor) -> Tensor:
        network.to(x.device)
        # Unless told, a GPU cuts the factors of convolutions to 10 bits.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            seen = [network.features(prepare(part.float())).cpu().double() for part in torch.split(x, BATCH)]
        return torch.cat(seen)  # outside, so that it is a tensor like any other

    return Features(name, of, (_digest(network), type(network)))


def _digest(network: nn.Module) -> str:
    """Return a hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, weights in sorted(network.state_dict().items()):
        digest.update(name.encode() + weights.numpy().tobytes())
    return digest.hexdigest()
