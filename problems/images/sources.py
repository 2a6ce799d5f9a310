"""Training data of networks: images drawn at random from a data set or from a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from problems.console import UsageError
from problems.images import data
from problems.makers import digits_gaussians
from problems.mixture import Mixture

MIXTURES: dict[str, Callable[[], Mixture]] = {"digits-gaussians": digits_gaussians}
"""Distributions with unlimited samples to train on, by name."""


EMBEDDED = ("digits", *MIXTURES)
"""Data that come with the suite, by the names that a card may give them."""


class Samples(NamedTuple):
    """Training data of a network.

    Attributes
    ----------
    draw
        Returns n clean images, (n, C, H, W), float32, and their classes, drawn with a generator.
    shape
        Shape (C, H, W) of an image.
    std
        Standard deviation of the images, per dimension.
    classes
        Number of classes; 0 without labels.
    card
        The description of the data on the card of a checkpoint.
    note
        What has to be said wherever a distance to the data is printed; see ``data.Images``.
    """

    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]
    shape: torch.Size
    std: float
    classes: int
    card: dict[str, Any]
    note: str = ""


def samples(name: str, noise: float = 0.0, *, flip: bool = False, resolution: int | None = None) -> Samples:
    """Return the training data of a name.

    Parameters
    ----------
    name
        A name in ``MIXTURES``, ``digits``, or a path (see ``data.load``).
    noise
        Standard deviation of Gaussian noise that is added to an image each time it is drawn.
    flip
        Whether half of the images are mirrored, at random.
    resolution
        Side of the images, which are averaged to it (see ``data.load``); None keeps the size.

    Raises
    ------
    UsageError
        If the data cannot be read, or the noise is negative.
    """
    if not noise >= 0.0:
        raise UsageError(f"noise has a standard deviation of at least 0, not {noise}")
    if name in MIXTURES and (flip or resolution is not None):
        raise UsageError(
            f"{name} is a distribution, which cannot be mirrored or averaged; leave out --flip "
            "and --resolution"
        )
    if name in MIXTURES:
        mixture = MIXTURES[name]()

        def endless(n: int, source: torch.Generator) -> tuple[Tensor, None]:
            return mixture.sample(n, generator=source).float(), None

        return Samples(endless, mixture.event_shape, mixture.data_std, 0, {"name": name})
    try:
        images = data.load(name, resolution)
    except data.DataError as error:
        raise UsageError(str(error)) from error
    everything = images.batch(torch.arange(min(len(images), 10_000)))
    spread = float(everything.double().var(0, unbiased=False).mean())

    def draw(n: int, source: torch.Generator) -> tuple[Tensor, Tensor | None]:
        index = torch.randint(len(images), (n,), generator=source)
        x = images.batch(index)
        x = x + noise * torch.randn(x.shape, generator=source)
        if flip:
            mirrored = torch.rand(n, 1, 1, 1, generator=source) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        return x, None if images.labels is None else images.labels[index]

    card = {"name": images.name, "sha256": images.digest, "images": len(images), "noise": noise, "flip": flip}
    card |= traits(images, resolution)
    return Samples(draw, images.shape, (spread + noise**2) ** 0.5, images.classes, card, images.note)


def traits(images: data.Images, resolution: int | None) -> dict[str, Any]:
    """Return what else is on the card of data: the side to which they were averaged, and their note."""
    side = {} if resolution is None else {"resolution": resolution}
    return {**side, **({"note": images.note} if images.note else {})}
