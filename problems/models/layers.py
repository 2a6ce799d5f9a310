"""Layers of the U-Nets of Song et al. (2021) and of what was built on them.

Embeddings of the time, attention among the pixels of an image, and resampling by two, with a filter or
without. Every layer is a plain torch module, written with differentiable torch functions of the time and of
the image; the names of its parameters are those of its maker's files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SQRT2 = math.sqrt(2.0)


def sinusoid(time: Tensor, size: int) -> Tensor:
    """Return the sines, then the cosines, of the times at geometric frequencies (Ho et al. 2020).

    Frequency k of n = ``size`` // 2 is 10000^(-k/(n - 1)), so they run from 1 to 1/10000.

    Parameters
    ----------
    time
        Times, shape (N,).
    size
        Number of features, at least 4; if it is odd, the last feature is zero.

    Returns
    -------
    Shape (N, size), in the dtype of the times.
    """
    half = size // 2
    order = torch.arange(half, dtype=time.dtype, device=time.device)
    phase = time[:, None] * torch.exp(order * (-math.log(10000.0) / (half - 1)))
    features = torch.cat([phase.sin(), phase.cos()], dim=1)
    return functional.pad(features, (0, 1)) if size % 2 else features


class Fourier(nn.Module):
    """Random Fourier features, the sines and then the cosines of 2π W x (Tancik et al. 2020).

    The frequencies ``W`` are not trained, so they require no gradient.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (N, 2 size) of numbers of shape (N,)."""
        phase = (x[:, None] * self.W) * (2.0 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class NIN(nn.Module):
    """A linear map of the channels of every pixel, with a matrix ``W`` of shape (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        return functional.conv2d(x, self.W.t()[:, :, None, None], self.b)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the values at all pixels, averaged with weights softmax(q·k/√C), one head.

    Parameters
    ----------
    q, k, v
        Queries, keys and values, shape (N, C, H, W).

    Returns
    -------
    Shape (N, C, H, W): at pixel i, Σ_j softmax_j(q_i·k_j/√C) v_j.
    """
    logits = q.flatten(2).transpose(1, 2) @ k.flatten(2) * q.shape[1] ** -0.5
    average: Tensor = v.flatten(2) @ logits.softmax(-1).transpose(1, 2)
    return average.reshape(v.shape)


class Attention(nn.Module):
    """Self-attention among the pixels of an image, around which the image is passed on.

    Parameters
    ----------
    channels
        Channels of the image.
    groups
        Groups of the normalisation before it.
    rescale
        Whether the sum is divided by √2.
    """

    def __init__(self, channels: int, groups: int, rescale: bool) -> None:
        super().__init__()
        self.rescale = rescale
        self.GroupNorm_0 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.NIN_0, self.NIN_1 = NIN(channels, channels), NIN(channels, channels)
        self.NIN_2, self.NIN_3 = NIN(channels, channels), NIN(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the same shape."""
        h = self.GroupNorm_0(x)
        total: Tensor = x + self.NIN_3(attend(self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)))
        return total / SQRT2 if self.rescale else total


class Nearest(nn.Module):
    """Twice the height and width, every pixel four times."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Mean(nn.Module):
    """Half the height and width, the mean of every four pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/2, W/2)."""
        return functional.avg_pool2d(x, 2)


class Filter(nn.Module):
    """A separable filter on every channel, the outer product of ``taps``, that sums to ``gain``.

    Parameters
    ----------
    taps
        The filter along one axis, an even number of weights.
    gain
        Sum of the weights of the filter.

    Raises
    ------
    ValueError
        If the number of taps is odd: the filter would shift the image by half a pixel.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], gain: float = 1.0) -> None:
        super().__init__()
        if len(taps) % 2:
            raise ValueError(f"a filter needs an even number of taps, not {len(taps)}")
        # On the CPU even where weights are made without memory, because no file has these numbers.
        row = torch.tensor(taps, dtype=torch.float64, device="cpu")
        kernel = torch.outer(row, row)
        self.margin = len(taps) // 2
        self.register_buffer("kernel", (kernel * (gain / kernel.sum())).float()[None, None], persistent=False)

    def on(self, x: Tensor) -> Tensor:
        """Return the kernel as the weight of a convolution of each channel of ``x`` with it."""
        return self.kernel.expand(x.shape[1], 1, -1, -1)


class FilteredUp(Filter):
    """Twice the height and width: zeros put between the pixels, then a filter of gain 4."""

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__(taps, gain=4.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        return functional.conv_transpose2d(
            x, self.on(x), stride=2, padding=self.margin - 1, groups=x.shape[1]
        )


class FilteredDown(Filter):
    """Half the height and width: a filter, then every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/2, W/2)."""
        kernel = self.on(x).flip(2, 3)
        return functional.conv2d(x, kernel, stride=2, padding=self.margin - 1, groups=x.shape[1])


class FilteredConv(Filter):
    """Half the height and width: a filter with a margin of zeros, then a 3×3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int, taps: Sequence[float]) -> None:
        super().__init__(taps)
        conv = nn.Conv2d(inputs, outputs, 3)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/2, W/2)."""
        blurred = functional.conv2d(x, self.on(x).flip(2, 3), padding=self.margin, groups=x.shape[1])
        return functional.conv2d(blurred, self.weight, self.bias, stride=2)
