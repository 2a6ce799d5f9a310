"""Layers of the U-Nets of Karras et al. (2022): resampling by filters, and blocks of two convolutions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return the normalisation of groups of at least 4 channels, at most 32 groups."""
    if channels < 4:
        raise ValueError(f"{channels} channels cannot be normalised; 4 are the least")
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def _kernel(taps: Sequence[float]) -> Tensor:
    """Return the outer product of a filter with itself that sums to 1, shape (1, 1, n, n)."""
    row = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(row, row) / row.sum().square())[None, None]


def _doubled(x: Tensor, kernel: Tensor) -> Tensor:
    """Return images of twice the height and width: zeros between the pixels, then the filter times 4."""
    weight = (4.0 * kernel).repeat(x.shape[1], 1, 1, 1)
    margin = (kernel.shape[-1] - 1) // 2
    return functional.conv_transpose2d(x, weight, stride=2, padding=margin, groups=x.shape[1])


def _halved(x: Tensor, kernel: Tensor, margin: int) -> Tensor:
    """Return every second pixel of filtered images."""
    weight = kernel.repeat(x.shape[1], 1, 1, 1)
    return functional.conv2d(x, weight, stride=2, padding=margin, groups=x.shape[1])


class Up(nn.Module):
    """Twice the height and width by a filter."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        return _doubled(x, self.resample_filter)


class Down(nn.Module):
    """Half the height and width by a filter."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("resample_filter", _kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/2, W/2)."""
        return _halved(x, self.resample_filter, (self.resample_filter.shape[-1] - 1) // 2)


class _FilteredConv(nn.Conv2d):
    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, taps: Sequence[float]) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.register_buffer("resample_filter", _kernel(taps))
        self.margin = (len(taps) - 1) // 2


class UpConv(_FilteredConv):
    """Twice the height and width by a filter, then a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2H, 2W)."""
        return super().forward(_doubled(x, self.resample_filter))


class DownConv(_FilteredConv):
    """Half the height and width by a filter, then a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/2, W/2)."""
        return super().forward(_halved(x, self.resample_filter, self.margin))


class ConvDown(_FilteredConv):
    """A convolution with a margin for the filter, which then halves height and width; the bias is last."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/2, W/2)."""
        margin = self.weight.shape[-1] // 2 + self.margin
        h = _halved(functional.conv2d(x, self.weight, padding=margin), self.resample_filter, 0)
        return h if self.bias is None else h + self.bias[:, None, None]


class Block(nn.Module, ABC):
    """Two convolutions between which the time enters, a way around them, and maybe attention.

    Parameters
    ----------
    inputs, outputs
        Channels.
    features
        Length of the features of the time.
    conv0
        The first convolution, which may change the resolution.
    skip
        What the image passes on the way around.
    heads
        Heads of the attention, 0 for none.
    """

    eps: ClassVar[float]
    factor: ClassVar[float]
    told: ClassVar[int]

    def __init__(
        self, inputs: int, outputs: int, features: int, conv0: nn.Module, skip: nn.Module, heads: int = 0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm0 = norm(inputs, self.eps)
        self.conv0 = conv0
        self.affine = nn.Linear(features, self.told * outputs)
        self.norm1 = norm(outputs, self.eps)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = skip
        if heads:
            if outputs % heads:
                raise ValueError(f"{outputs} channels cannot be shared out among {heads} heads of attention")
            self.norm2 = norm(outputs, self.eps)
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    @abstractmethod
    def informed(self, h: Tensor, told: Tensor) -> Tensor:
        """Return the normalised features into which what the time tells has entered."""

    def attended(self, x: Tensor) -> Tensor:
        """Return the values at all pixels, averaged with weights softmax(q·k/√(C/heads)).

        The channels of ``qkv`` are sorted by heads, then by the channels of a head, then as q, k and v.
        """
        n, channels = x.shape[:2]
        qkv = self.qkv(self.norm2(x)).reshape(n, self.heads, channels // self.heads, 3, -1)
        q, k, v = qkv.unbind(3)
        weights = (q.transpose(2, 3) @ (k * q.shape[2] ** -0.5)).softmax(-1)
        seen: Tensor = self.proj((v @ weights.transpose(2, 3)).reshape(x.shape))
        return seen

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map (N, inputs, H, W) and the features of the time to (N, outputs, H', W')."""
        h = self.conv0(functional.silu(self.norm0(x)))
        h = functional.silu(self.informed(h, self.affine(features)[:, :, None, None]))
        x = (self.skip(x) + self.conv1(h)) * self.factor
        return (x + self.attended(x)) * self.factor if self.heads else x


class SongBlock(Block):
    """The block of DDPM++ and NCSN++: what the time tells is added; sums are divided by √2."""

    eps, factor, told = 1e-6, math.sqrt(0.5), 1

    def informed(self, h: Tensor, told: Tensor) -> Tensor:
        """Return norm(h + told)."""
        normed: Tensor = self.norm1(h + told)
        return normed


class DhariwalBlock(Block):
    """The block of ADM: what the time tells scales and shifts."""

    eps, factor, told = 1e-5, 1.0, 2

    def informed(self, h: Tensor, told: Tensor) -> Tensor:
        """Return norm(h) (1 + scale) + shift."""
        scale, shift = told.chunk(2, dim=1)
        normed: Tensor = self.norm1(h) * (scale + 1.0) + shift
        return normed
