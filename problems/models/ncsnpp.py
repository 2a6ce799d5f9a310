"""The U-Nets of Song et al. (2021): DDPM++, NCSN++ and their version of the U-Net of Ho et al. (2020).

All layers are in one flat list, ``all_modules``, in the order in which they are applied. The weighted average
in a file of its maker is a list in the order of the parameters, so this order is part of the format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.models.blocks import BIGGAN, DDPM, Block, Combine, Down, Up, conv3
from problems.models.layers import (
    SQRT2,
    Attention,
    FilteredDown,
    FilteredUp,
    Fourier,
    Mean,
    Nearest,
    sinusoid,
)


class Pyramid(Enum):
    """How images of lower resolution enter on the way down, or how the output is gathered on the way up."""

    NONE = "none"
    SKIP = "skip"
    RESIDUAL = "residual"


@dataclass(frozen=True)
class Ladder:
    """The noise levels of a network that is told their index: geometric, from the largest to the smallest.

    Attributes
    ----------
    sigma_min, sigma_max
        The last and the first level.
    levels
        Their number.
    """

    sigma_min: float
    sigma_max: float
    levels: int

    def sigma(self, index: Tensor) -> Tensor:
        """Return the level at an index, which may lie between two levels; shape and dtype of the index."""
        rate = math.log(self.sigma_min / self.sigma_max) / (self.levels - 1)
        return self.sigma_max * torch.exp(rate * index)


@dataclass(frozen=True)
class Config:
    """Architecture of a network.

    Attributes
    ----------
    size, channels
        Height and width, and channels of an image.
    width
        Channels at the first resolution.
    multipliers
        Channels at every resolution, in units of ``width``.
    blocks
        Residual blocks at a resolution.
    attention
        The resolutions, in pixels, at which there is attention.
    conditional
        Whether the network knows the time.
    fourier
        Whether the time is embedded by random features of its logarithm, or by sines and cosines of itself.
    taps
        The filter of all resampling; None is nearest neighbours and means.
    rescale
        Whether sums of two branches are divided by √2.
    resampling_blocks
        Whether residual blocks change the resolution, or layers of their own.
    convolve
        Whether these layers contain a convolution.
    input_pyramid, output_pyramid
        How images of lower resolutions are handed in, and how the result is gathered from all resolutions.
    concatenate
        Whether ``Pyramid.SKIP`` hands in by concatenation, or by a sum.
    group
        Least number of channels in a group of a normalisation; there are at most 32 groups.
    centred
        Whether images are in [-1, 1]; otherwise they are in [0, 1], and are mapped by the network.
    divide
        Whether the result is divided by the noise level σ.
    ladder
        The noise levels, if the network is told their index; None if it is told σ itself.

    Raises
    ------
    ValueError
        If the resolutions do not divide each other, or for a layer that does not exist.
    """

    size: int
    channels: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    conditional: bool = True
    fourier: bool = False
    taps: tuple[float, ...] | None = None
    rescale: bool = True
    resampling_blocks: bool = True
    convolve: bool = True
    input_pyramid: Pyramid = Pyramid.NONE
    output_pyramid: Pyramid = Pyramid.NONE
    concatenate: bool = False
    group: int = 4
    centred: bool = True
    divide: bool = False
    ladder: Ladder | None = None

    def __post_init__(self) -> None:
        if self.size % 2 ** (len(self.multipliers) - 1):
            raise ValueError(
                f"{self.size} pixels cannot be halved {len(self.multipliers) - 1} times; "
                "the number of resolutions must fit the image size"
            )
        if self.divide and not self.fourier and self.ladder is None:
            raise ValueError("a network that divides by the noise level must be told it, or its index")
        plain = not self.resampling_blocks and self.convolve
        if self.taps is not None and (self.output_pyramid is Pyramid.RESIDUAL or plain):
            raise ValueError("no network has a filter fused with a convolution that doubles the resolution")

    @property
    def levels(self) -> range:
        """The numbers of the resolutions, from the highest."""
        return range(len(self.multipliers))

    def attends(self, level: int) -> bool:
        """Return whether there is attention at a resolution."""
        return self.size >> level in self.attention

    def groups(self, channels: int) -> int:
        """Return the number of groups in which so many channels are normalised."""
        return min(channels // self.group, 32)


class NCSNpp(nn.Module):
    """A network of an architecture.

    Attributes
    ----------
    features
        Name of the layer whose result enters the last normalisation and convolution; empty where that is the
        result of no layer.
    embedding
        Name of the layer whose result is the embedding of the time, (N, 4 width).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        if config.output_pyramid is Pyramid.SKIP:
            self.pyramid_upsample = Up(0, 0, config.taps, convolve=False)
        if config.input_pyramid is Pyramid.SKIP:
            self.pyramid_downsample = Down(0, 0, config.taps, convolve=False)
        self.all_modules = nn.ModuleList(_layers(config))
        residual = config.output_pyramid is Pyramid.RESIDUAL
        self.features = "" if residual else f"all_modules.{len(self.all_modules) - 3}"
        self.embedding = f"all_modules.{2 if config.fourier else 1}" if config.conditional else ""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return what the network predicts.

        Parameters
        ----------
        x
            Noisy images, shape (N, channels, size, size).
        time
            Time, noise level or index of the level, shape (N,).
        """
        config, layers = self.config, iter(self.all_modules)
        embedding = self._embed(layers, time)
        h, skips = self._descend(layers, x if config.centred else 2.0 * x - 1.0, embedding)
        h = next(layers)(h, embedding)
        h = next(layers)(h)
        h = next(layers)(h, embedding)
        h = self._ascend(layers, h, skips, embedding)
        if not config.divide:
            return h
        sigma = time if config.ladder is None else config.ladder.sigma(time)
        return h / sigma[:, None, None, None]

    def _embed(self, layers: Iterator[Any], time: Tensor) -> Tensor | None:
        config = self.config
        features = next(layers)(time.log()) if config.fourier else sinusoid(time, config.width)
        if not config.conditional:
            return None
        hidden: Tensor = next(layers)(features)
        embedding: Tensor = next(layers)(functional.silu(hidden))
        return embedding

    def _descend(
        self, layers: Iterator[Any], x: Tensor, embedding: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        config, image = self.config, x
        h = next(layers)(x)
        skips = [h]
        for level in config.levels:
            for _ in range(config.blocks):
                h = next(layers)(h, embedding)
                if config.attends(level):
                    h = next(layers)(h)
                skips.append(h)
            if level == config.levels[-1]:
                break
            h = next(layers)(h, embedding)
            if config.input_pyramid is Pyramid.SKIP:
                image = self.pyramid_downsample(image)
                h = next(layers)(image, h)
            elif config.input_pyramid is Pyramid.RESIDUAL:
                h = image = self._sum(next(layers)(image), h)
            skips.append(h)
        return h, skips

    def _ascend(
        self, layers: Iterator[Any], h: Tensor, skips: list[Tensor], embedding: Tensor | None
    ) -> Tensor:
        config = self.config
        image: Tensor | None = None
        for level in reversed(config.levels):
            for _ in range(config.blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], dim=1), embedding)
            if config.attends(level):
                h = next(layers)(h)
            if config.output_pyramid is Pyramid.SKIP:
                part = next(layers)(h)
                part = next(layers)(functional.silu(part))
                image = part if image is None else self.pyramid_upsample(image) + part
            elif config.output_pyramid is Pyramid.RESIDUAL:
                if image is None:
                    image = next(layers)(h)
                    image = next(layers)(functional.silu(image))
                else:
                    h = image = self._sum(next(layers)(image), h)
            if level > 0:
                h = next(layers)(h, embedding)
        if config.output_pyramid is Pyramid.SKIP and image is not None:
            return image
        h = next(layers)(h)
        output: Tensor = next(layers)(functional.silu(h))
        return output

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) / SQRT2 if self.config.rescale else a + b


def _layers(config: Config) -> Iterator[nn.Module]:
    """Yield the layers of a network in the order in which they are applied."""
    width, channels = config.width, config.channels
    if config.fourier:
        yield Fourier(width)
    if config.conditional:
        yield nn.Linear(width * (2 if config.fourier else 1), 4 * width)
        yield nn.Linear(4 * width, 4 * width)

    def block(inputs: int, outputs: int, resample: nn.Module | None = None) -> nn.Module:
        around = BIGGAN if config.resampling_blocks else DDPM
        return Block(inputs, outputs, 4 * width, config.groups, config.rescale, around, resample)

    def norm(c: int) -> nn.Module:
        return nn.GroupNorm(config.groups(c), c, eps=1e-6)

    def attention(c: int) -> nn.Module:
        return Attention(c, config.groups(c), config.rescale)

    yield conv3(channels, width)
    now, skips, image = width, [width], channels
    for level in config.levels:
        for _ in range(config.blocks):
            before, now = now, width * config.multipliers[level]
            yield block(before, now)
            if config.attends(level):
                yield attention(now)
            skips.append(now)
        if level == config.levels[-1]:
            break
        if config.resampling_blocks:
            yield block(now, now, Mean() if config.taps is None else FilteredDown(config.taps))
        else:
            yield Down(now, now, config.taps, config.convolve)
        if config.input_pyramid is Pyramid.SKIP:
            yield Combine(channels, now, config.concatenate)
            now *= 2 if config.concatenate else 1
        elif config.input_pyramid is Pyramid.RESIDUAL:
            yield Down(image, now, config.taps, convolve=True)
            image = now
        skips.append(now)

    yield block(now, now)
    yield attention(now)
    yield block(now, now)

    for level in reversed(config.levels):
        for _ in range(config.blocks + 1):
            before, now = now, width * config.multipliers[level]
            yield block(before + skips.pop(), now)
        if config.attends(level):
            yield attention(now)
        first = level == config.levels[-1]
        if config.output_pyramid is Pyramid.SKIP:
            yield norm(now)
            yield conv3(now, channels)
        elif config.output_pyramid is Pyramid.RESIDUAL:
            if first:
                yield norm(now)
            yield conv3(now, now) if first else Up(image, now, config.taps, convolve=True)
            image = now
        if level > 0 and config.resampling_blocks:
            yield block(now, now, Nearest() if config.taps is None else FilteredUp(config.taps))
        elif level > 0:
            yield Up(now, now, config.taps, config.convolve)
    if config.output_pyramid is not Pyramid.SKIP:
        yield norm(now)
        yield conv3(now, channels)
