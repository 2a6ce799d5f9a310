"""What images are compared in: features, of which distances between samples and errors are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from analysis.measure import named
from analysis.measure.named import Decoder
from analysis.methods.plugins import extensible
from problems import Gaussian, Problem
from problems.console import UsageError
from problems.images import classifier as classifiers
from problems.images import inception as inceptions
from problems.models.naming import is_function

INCEPTION = "Inception-v3"
"""The features of the FID."""

DECODED = "decoded images"
"""What a latent decoder makes of states."""

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
    """

    name: str
    of: Callable[[Tensor], Tensor] = field(repr=False, compare=False)

    @property
    def distance(self) -> str:
        """What a Fréchet distance of these features is called. That of Inception-v3 alone is the FID."""
        return "FID" if self.name == INCEPTION else f"Fréchet distance ({self.name})"


class Network(Protocol):
    """A network of features."""

    def features(self, x: Tensor) -> Tensor:
        """Return the features (n, d) of float32 images."""

    def to(self, device: torch.device) -> object:
        """Move it to a device."""


class Seen:
    """What a network sees in images, in float32, on the device of the states.

    Parameters
    ----------
    network
        The network; its method ``features`` returns them.
    prepare
        What is done to the images before.
    again
        Makes the same in another process: a function and its arguments.
    """

    def __init__(
        self,
        network: Network,
        prepare: Callable[[Tensor], Tensor],
        again: tuple[Callable[..., Seen], tuple[Any, ...]],
    ) -> None:
        self.network, self.prepare, self._again = network, prepare, again

    def __key__(self) -> object:
        """Return what determines the features, for ``study.keys``."""
        return self.network, self.prepare

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what to load."""
        return self._again

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features (N, d) of images, float64, on the CPU."""
        self.network.to(x.device)
        # Unless told, a GPU cuts the factors of convolutions to 10 bits.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            batches = [self.prepare(part.float()) for part in torch.split(x, BATCH)]
            seen = [self.network.features(part).cpu().double() for part in batches]
        return torch.cat(seen)  # outside, so that it is a tensor like any other


def is_image(shape: Sequence[int]) -> bool:
    """Return whether states of a shape are images that can be shown: of one or three colours."""
    return len(shape) == 3 and shape[0] in (1, 3)


def pixels(problem: Problem) -> Features:
    """Return the states themselves, flattened; those of problems without images are called coordinates."""
    return Features("pixels" if len(problem.event_shape) == 3 else "coordinates", flat)


def flat(x: Tensor) -> Tensor:
    """Return states as vectors, float64, on the CPU."""
    return x.detach().flatten(1).cpu().double()


def decoded(decoder: Decoder) -> Features:
    """Return the images that a latent decoder makes of states, flattened."""
    return Features(DECODED, partial(_flat_images, decoder))


def _flat_images(decoder: Decoder, x: Tensor) -> Tensor:
    return flat(decoder(x))


def as_they_are(x: Tensor) -> Tensor:
    """Return images as they are."""
    return x


def classifier(problem: Problem) -> Features | None:
    """Return the 64 features of the shipped classifier of images of this shape; None if there is none."""
    known = CLASSIFIERS.get(tuple(problem.event_shape))
    return None if known is None else Features(f"{known[0]} classifier", by_classifier(known[1]))


CLASSIFIERS: dict[tuple[int, ...], tuple[str, str]] = {
    (3, 16, 16): ("CIFAR-10", "cifar10-16"),
    (1, 8, 8): ("digits", "digits"),
}
"""What the shipped classifiers know, and their names, by the shape of the images that they see."""


@lru_cache(maxsize=2)
def by_classifier(name: str) -> Seen:
    """Return what a shipped classifier sees; see ``problems.images.classifier.shipped``."""
    return Seen(classifiers.shipped(name), as_they_are, (by_classifier, (name,)))


def by_inception(path: Path) -> Seen:
    """Return what Inception-v3 sees with the weights of a file, which is read again when it has changed."""
    return _by_inception(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=1)
def _by_inception(path: Path, changed: int) -> Seen:
    return Seen(inceptions.load(path), stored, (by_inception, (path,)))


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
    return Features(INCEPTION, by_inception(path.absolute()))


def by_function(name: str) -> Seen:
    """Return what a user's function sees, ``module:function`` or ``file.py:function``."""
    function = named.Named(name)
    return Seen(function, as_they_are, (by_function, (function.name,)))


def by_script(path: Path) -> Seen:
    """Return what a user's TorchScript file sees, which is read again when it has changed."""
    script = named.script(path, path.stat().st_mtime_ns if path.is_file() else 0)
    return Seen(script, as_they_are, (by_script, (path,)))


def of_user(name: str, shape: Sequence[int]) -> Features:
    """Return the features of a function or TorchScript file that a user names, tried on two states.

    Parameters
    ----------
    name
        ``module:function``, ``file.py:function``, or the path of a TorchScript file.
    shape
        Shape of the states.

    Raises
    ------
    UsageError
        If they cannot be used.
    """
    if is_function(name):
        seen, title = by_function(name), name.rpartition(":")[2]
    else:
        seen, title = by_script(Path(name).absolute()), Path(name).stem
    named.tried(seen.network.features, shape, f"--features {name}")
    return Features(title, seen)


def shaped(shape: Sequence[int]) -> Problem:
    """Return a problem that says nothing but the shape of its states: for images that are of no model."""
    return Gaussian(torch.zeros(tuple(shape), dtype=torch.float64), 1.0)


def stored(x: Tensor) -> Tensor:
    """Return images in [-1, 1] as they are after files of 8 bits."""
    return (127.5 * (x + 1.0)).round().clamp(0.0, 255.0) / 127.5 - 1.0


FEATURES: dict[str, Callable[[Problem], Features | None]] = {"classifier": classifier, "pixels": pixels}
"""Features by name: functions of the problem whose states they see, None where they see no such states."""

extensible("features", FEATURES)


def features(names: Sequence[str], problem: Problem) -> tuple[Features, ...]:
    """Return the features that a user names, for the states of a problem.

    Parameters
    ----------
    names
        Names in ``FEATURES``, the path of Inception-v3 weights, or what ``of_user`` takes.
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
    if name in FEATURES:
        found = FEATURES[name](problem)
        if found is None:
            known = (
                f"the {of} classifier sees images of shape {seen}" for seen, (of, _) in CLASSIFIERS.items()
            )
            what = ", ".join(known) if name == "classifier" else name
            raise UsageError(
                f"{what}, and this problem's states have shape {shape}; type --features pixels, or the path "
                "of Inception-v3 weights"
            )
        return found
    if is_function(name) or named.is_script(Path(name)):
        return of_user(name, shape)
    if not Path(name).suffix:
        raise UsageError(
            f"unknown features {name!r}; choose from {', '.join(FEATURES)}, or type the path of Inception-v3 "
            f"weights, such as {inceptions.WEIGHTS}, or file.py:function"
        )
    if not is_image(shape):
        raise UsageError(
            "Inception-v3 sees images of one or three colours, and this problem's states have shape "
            f"{shape}; type --features pixels"
        )
    try:
        return inception(Path(name))
    except ValueError as error:
        raise UsageError(str(error)) from error
