"""Blocks of the U-Nets of Song et al. (2021), of which the heads of GENIE are made too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.models.layers import NIN, SQRT2, FilteredConv, FilteredDown, FilteredUp, Mean, Nearest


def few(channels: int) -> int:
    """Return the number of groups of a normalisation, at least four channels each and at most 32."""
    return min(channels // 4, 32)


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3×3 convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


Shortcut = tuple[str, Callable[[int, int], nn.Module]]
"""Name and kind of the linear layer around a block that changes the channels or the resolution."""

BIGGAN: Shortcut = ("Conv_2", lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1))
DDPM: Shortcut = ("NIN_0", NIN)


class Block(nn.Module):
    """A residual block: norm, SiLU, 3×3 convolution, plus the embedding, and the first three again.

    The resolution changes after the first activation, and along the way around the block.

    Parameters
    ----------
    inputs, outputs
        Channels.
    embedded
        Size of the embedding of the time.
    groups
        Returns the number of groups in which so many channels are normalised.
    rescale
        Whether the sum of both ways is divided by √2.
    around
        The layer around the block.
    resample
        The layer that changes the resolution; None for none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedded: int,
        groups: Callable[[int], int],
        rescale: bool,
        around: Shortcut = BIGGAN,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.rescale, self.resample = rescale, resample
        self.GroupNorm_0 = nn.GroupNorm(groups(inputs), inputs, eps=1e-6)
        self.Conv_0 = conv3(inputs, outputs)
        self.Dense_0 = nn.Linear(embedded, outputs)
        self.GroupNorm_1 = nn.GroupNorm(groups(outputs), outputs, eps=1e-6)
        self.Conv_1 = conv3(outputs, outputs)
        name, kind = around
        self.around = name if inputs != outputs or resample is not None else ""
        if self.around:
            self.add_module(name, kind(inputs, outputs))

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H', W'), given the embedding (N, embedded) of the time."""
        h = functional.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(functional.silu(embedding))[:, :, None, None]
        h = self.Conv_1(functional.silu(self.GroupNorm_1(h)))
        total: Tensor = (self.get_submodule(self.around)(x) if self.around else x) + h
        return total / SQRT2 if self.rescale else total


class Down(nn.Module):
    """Half the resolution: filter or means, with a convolution of stride 2 or without."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...] | None, convolve: bool) -> None:
        super().__init__()
        self.resample: nn.Module | None = None
        if not convolve:
            self.resample = Mean() if taps is None else FilteredDown(taps)
        elif taps is None:
            self.Conv_0 = nn.Conv2d(inputs, outputs, 3, stride=2)
        else:
            self.Conv2d_0 = FilteredConv(inputs, outputs, taps)
        self.padded = convolve and taps is None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/2, W/2); the embedding has no influence."""
        if self.padded:
            h: Tensor = self.Conv_0(functional.pad(x, (0, 1, 0, 1)))
        else:
            h = self.Conv2d_0(x) if self.resample is None else self.resample(x)
        return h


class Up(nn.Module):
    """Twice the resolution: filter or nearest neighbours, then a 3×3 convolution or none."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...] | None, convolve: bool) -> None:
        super().__init__()
        self.resample = Nearest() if taps is None else FilteredUp(taps)
        self.convolve = convolve
        if convolve:
            self.Conv_0 = conv3(inputs, outputs)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2H, 2W); the embedding has no influence."""
        h: Tensor = self.resample(x)
        return self.Conv_0(h) if self.convolve else h


class Combine(nn.Module):
    """Hands in an image: its 1×1 convolution beside the features, or added to them."""

    def __init__(self, inputs: int, outputs: int, concatenate: bool) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(inputs, outputs, 1)
        self.concatenate = concatenate

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        """Return features, twice as many channels if they are concatenated."""
        handed = self.Conv_0(image)
        return torch.cat([handed, h], dim=1) if self.concatenate else handed + h
