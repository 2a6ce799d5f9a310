"""The U-Net of Ho et al. (2020) with the layer names of GENIE's files, for churches and bedrooms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.models.layers import Mean, Nearest, attend, sinusoid


@dataclass(frozen=True)
class Config:
    """Architecture of a network.

    Attributes
    ----------
    size, channels
        Height and width, and channels of an image.
    width
        Channels at the first resolution, a multiple of 32.
    multipliers
        Channels at every resolution, in units of ``width``.
    blocks
        Residual blocks at a resolution.
    attention
        The resolutions, in pixels, at which there is attention after every block.
    convolve
        Whether the layers that change the resolution contain a convolution.

    Raises
    ------
    ValueError
        If the resolutions do not divide each other.
    """

    size: int
    channels: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    convolve: bool = True

    def __post_init__(self) -> None:
        halvings = len(self.multipliers) - 1
        if self.size % 2**halvings:
            raise ValueError(f"{self.size} pixels cannot be halved {halvings} times")

    def attends(self, level: int) -> bool:
        """Return whether there is attention at a resolution."""
        return self.size >> level in self.attention


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    """A residual block: norm, SiLU, 3×3 convolution, plus the embedding, and the first three again."""

    def __init__(self, inputs: int, outputs: int, embedded: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.temb_proj = nn.Linear(embedded, outputs)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.widens = inputs != outputs
        if self.widens:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W), given the embedding (N, embedded) of the time."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.temb_proj(functional.silu(embedding))[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        total: Tensor = (self.nin_shortcut(x) if self.widens else x) + h
        return total


class Attention(nn.Module):
    """Self-attention among the pixels of an image, around which the image is passed on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the same shape."""
        h = self.norm(x)
        total: Tensor = x + self.proj_out(attend(self.q(h), self.k(h), self.v(h)))
        return total


class Resampled(nn.Module):
    """Half or twice the resolution.

    Parameters
    ----------
    channels
        Channels of the image.
    down
        Whether the resolution is halved, by a convolution of stride 2 or else by means. Otherwise it is
        doubled by nearest neighbours, with or without a convolution after it.
    convolve
        Whether there is a convolution.
    """

    def __init__(self, channels: int, down: bool, convolve: bool) -> None:
        super().__init__()
        self.resample: nn.Module | None = Nearest()
        if down:
            self.resample = None if convolve else Mean()
        self.convolve = convolve
        if convolve:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the other resolution."""
        h: Tensor = functional.pad(x, (0, 1, 0, 1)) if self.resample is None else self.resample(x)
        return self.conv(h) if self.convolve else h


class Embedding(nn.Module):
    """An embedding of the time: sines and cosines, and two linear layers with SiLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])

    def forward(self, time: Tensor) -> Tensor:
        """Map times (N,) to (N, 4 width)."""
        h: Tensor = self.dense[0](sinusoid(time, self.width))
        embedding: Tensor = self.dense[1](functional.silu(h))
        return embedding


class Stage(nn.Module):
    """The blocks of one resolution, with attention after each of them or none.

    Parameters
    ----------
    inputs
        Channels that enter each block.
    outputs
        Channels that leave it.
    embedded
        Size of the embedding of the time.
    attends
        Whether there is attention.
    """

    def __init__(self, inputs: list[int], outputs: int, embedded: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(n, outputs, embedded) for n in inputs)
        self.attn = nn.ModuleList(Attention(outputs) for _ in inputs if attends)

    def apply_block(self, i: int, h: Tensor, embedding: Tensor) -> Tensor:
        """Return the result of block i and of the attention after it."""
        h = self.block[i](h, embedding)
        return self.attn[i](h) if len(self.attn) else h


class Middle(nn.Module):
    """Two blocks, and attention between them."""

    def __init__(self, channels: int, embedded: int) -> None:
        super().__init__()
        self.block_1 = Block(channels, channels, embedded)
        self.attn_1 = Attention(channels)
        self.block_2 = Block(channels, channels, embedded)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Return features of the same shape."""
        seen: Tensor = self.attn_1(self.block_1(h, embedding))
        result: Tensor = self.block_2(seen, embedding)
        return result


class UNet(nn.Module):
    """A network of an architecture.

    Attributes
    ----------
    features
        Name of the layer whose result enters the last normalisation and convolution.
    embedding
        Name of the layer whose result is the embedding of the time, (N, 4 width).
    """

    embedding = "temb"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        blocks, last = config.blocks, len(config.multipliers) - 1
        widths = [config.width, *(config.width * m for m in config.multipliers)]
        down, up = [], []
        for level in range(last + 1):
            above, here, below = widths[level], widths[level + 1], widths[min(level + 2, last + 1)]
            attends, embedded = config.attends(level), 4 * config.width
            down.append(Stage([above, *[here] * (blocks - 1)], here, embedded, attends))
            carried, skipped = [below, *[here] * blocks], [*[here] * blocks, above]
            inputs = [a + b for a, b in zip(carried, skipped, strict=True)]
            up.append(Stage(inputs, here, embedded, attends))
            if level < last:
                down[-1].downsample = Resampled(here, True, config.convolve)
            if level > 0:
                up[-1].upsample = Resampled(here, False, config.convolve)
        self.temb = Embedding(config.width)
        self.conv_in = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.down = nn.ModuleList(down)
        self.mid = Middle(widths[-1], 4 * config.width)
        self.up = nn.ModuleList(up)
        self.norm_out = _norm(widths[1])
        self.conv_out = nn.Conv2d(widths[1], config.channels, 3, padding=1)
        self.features = f"up.0.{'attn' if config.attends(0) else 'block'}.{blocks}"

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return what the network predicts.

        Parameters
        ----------
        x
            Noisy images, shape (N, channels, size, size).
        time
            Time, shape (N,).
        """
        embedding = self.temb(time)
        h = self.conv_in(x)
        skips = [h]
        stage: Any
        for level, stage in enumerate(self.down):
            for i in range(self.config.blocks):
                h = stage.apply_block(i, h, embedding)
                skips.append(h)
            if level < len(self.down) - 1:
                h = stage.downsample(h)
                skips.append(h)
        h = self.mid(h, embedding)
        for level in reversed(range(len(self.up))):
            stage = self.up[level]
            for i in range(self.config.blocks + 1):
                h = stage.apply_block(i, torch.cat([h, skips.pop()], dim=1), embedding)
            if level > 0:
                h = stage.upsample(h)
        output: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return output
