"""The U-Net of Dhariwal & Nichol (2021), "ADM", with the parameter names of guided-diffusion.

All layers are plain torch modules, in the precision of their weights. The embedding of the time is a module
of its own and may be replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Options:
    """The architecture of a U-Net.

    Attributes
    ----------
    channels
        Channels at full resolution, before the first multiplier; a multiple of 32 like all that follow.
    multipliers
        Factors of the channels, one for each resolution, from fine to coarse.
    blocks
        Residual blocks at each resolution.
    attention
        Factors of downsampling (1, 2, 4, …) at which there is attention.
    heads, up_heads, head_channels
        Heads of an attention on the way down and on the way up, or channels of each head, if not None.
    inputs, outputs
        Channels of the images, and of the network's last convolution; what is above ``inputs`` is dropped.
    classes
        Number of classes; 0 for a network without.
    scale_shift
        Whether the time scales and shifts the normalised features; otherwise it is added before.
    block_resampling
        Whether residual blocks change the resolution; otherwise layers between them do.
    conv_resampling
        Whether these layers have a convolution.
    interleaved
        Whether the outputs q, k, v of an attention are sorted by heads first, as in older files.
    """

    channels: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int = 1
    up_heads: int = 1
    head_channels: int | None = None
    inputs: int = 3
    outputs: int = 3
    classes: int = 0
    scale_shift: bool = True
    block_resampling: bool = False
    conv_resampling: bool = True
    interleaved: bool = True

    @property
    def features(self) -> int:
        """Length of the embedding of the time."""
        return 4 * self.channels

    def width(self, multiplier: float) -> int:
        """Return the number of channels at a multiplier."""
        return int(multiplier * self.channels)


def waves(time: Tensor, size: int) -> Tensor:
    """Return cos(t ω_k), then sin(t ω_k), with ω_k = 10000^(-k/n), k = 0, …, n - 1, n = ``size`` // 2.

    Parameters
    ----------
    time
        Times, shape (N,).
    size
        Number of features, even.

    Returns
    -------
    Shape (N, size), in the dtype of the times.
    """
    half = size // 2
    k = torch.arange(half, dtype=time.dtype, device=time.device)
    phase = time[:, None] * torch.exp(-math.log(10000.0) * k / half)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """Two linear layers on the waves of the time."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__(nn.Linear(channels, features), nn.SiLU(), nn.Linear(features, features))
        self.channels = channels

    def forward(self, time: Tensor) -> Tensor:
        """Map times (N,) to features (N, features)."""
        first, act, second = self
        features: Tensor = second(act(first(waves(time, self.channels))))
        return features


class Downsample(nn.Module):
    """Half the resolution by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H/2, W/2)."""
        h: Tensor = self.op(x)
        return h


class Upsample(nn.Module):
    """Twice the resolution, every pixel four times, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        h: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


def down() -> nn.Module:
    """Return the layer that takes the mean of every four pixels."""
    return nn.AvgPool2d(2)


def up() -> nn.Module:
    """Return the layer that takes every pixel four times."""
    return nn.Upsample(scale_factor=2.0, mode="nearest")


class Residual(nn.Module):
    """Two convolutions between which the time enters, and a way around them.

    Parameters
    ----------
    o
        The architecture.
    inputs, outputs
        Channels.
    resample
        Makes the layer that changes the resolution; it has no weights.
    """

    def __init__(
        self, o: Options, inputs: int, outputs: int, resample: Callable[[], nn.Module] = nn.Identity
    ) -> None:
        super().__init__()
        self.scale_shift = o.scale_shift
        self.resample = resample()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(o.features, 2 * outputs if o.scale_shift else outputs)
        )
        # The identity stands where the makers' network has dropout.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map (N, inputs, H, W) and the features of the time to (N, outputs, H', W')."""
        norm, act, conv = self.in_layers
        h = conv(self.resample(act(norm(x))))
        told = self.emb_layers(features)[:, :, None, None]
        norm, act, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1.0 + scale) + shift
        else:
            h = norm(h + told)
        total: Tensor = self.skip_connection(self.resample(x)) + conv(act(h))
        return total


class Attention(nn.Module):
    """Self-attention of several heads among the pixels, around which the image is passed on.

    The channels of ``qkv`` are the queries of all heads, then the keys, then the values.

    Raises
    ------
    ValueError
        If the channels cannot be shared out among the heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"{channels} channels cannot be shared out among {heads} heads of attention")
        self.heads = heads
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Return q, k, v, each (N, heads, C/heads, pixels), of (N, 3C, pixels)."""
        return qkv.reshape(len(qkv), 3, self.heads, -1, qkv.shape[2]).unbind(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the values at all pixels, averaged with weights softmax(q·k/√(C/heads))."""
        pixels = x.flatten(2)
        q, k, v = self.split(self.qkv(self.norm(pixels)))
        scale = q.shape[2] ** -0.25
        weights = ((q * scale).transpose(2, 3) @ (k * scale)).softmax(-1)
        seen: Tensor = self.proj_out((v @ weights.transpose(2, 3)).flatten(1, 2))
        return (pixels + seen).reshape(x.shape)


class InterleavedAttention(Attention):
    """The same with the channels of ``qkv`` sorted by heads: query, key and value of the first, and so on."""

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Return q, k, v, each (N, heads, C/heads, pixels), of (N, 3C, pixels)."""
        return qkv.reshape(len(qkv), self.heads, 3, -1, qkv.shape[2]).unbind(2)


class Stage(nn.ModuleList):
    """Layers one after the other, of which the residual blocks are told the time."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Map images, given the features of the time."""
        for layer in self:
            x = layer(x, features) if isinstance(layer, Residual) else layer(x)
        return x


class UNet(nn.Module):
    """The U-Net; its parameters have the names of guided-diffusion.

    Parameters
    ----------
    o
        The architecture.
    time_embed
        Maps times (N,) to features (N, 4 channels); ``TimeEmbedding`` if None.
    """

    def __init__(self, o: Options, time_embed: nn.Module | None = None) -> None:
        super().__init__()
        self.channels = o.inputs
        self.time_embed = TimeEmbedding(o.channels, o.features) if time_embed is None else time_embed
        if o.classes:
            self.label_emb = nn.Embedding(o.classes, o.features)
        width, last = o.width(o.multipliers[0]), len(o.multipliers) - 1

        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(o.inputs, width, 3, padding=1))])
        widths = [width]
        for level, multiplier in enumerate(o.multipliers):
            for _ in range(o.blocks):
                layers: list[nn.Module] = [Residual(o, width, o.width(multiplier))]
                width = o.width(multiplier)
                if 2**level in o.attention:
                    layers.append(_attention(o, width, o.heads))
                self.input_blocks.append(Stage(*layers))
                widths.append(width)
            if level < last:
                self.input_blocks.append(Stage(_resampling(o, width, down, Downsample)))
                widths.append(width)

        self.middle_block = Stage(
            Residual(o, width, width), _attention(o, width, o.heads), Residual(o, width, width)
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(o.multipliers))):
            for i in range(o.blocks + 1):
                layers = [Residual(o, width + widths.pop(), o.width(multiplier))]
                width = o.width(multiplier)
                if 2**level in o.attention:
                    layers.append(_attention(o, width, o.up_heads))
                if level > 0 and i == o.blocks:
                    layers.append(_resampling(o, width, up, Upsample))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, o.outputs, 3, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction of the mean, shape of ``x``.

        Parameters
        ----------
        x
            Images, shape (N, C, H, W).
        time
            What the network is told of the time, shape (N,).
        labels
            Classes, shape (N,), where the network has some.
        """
        features = self.time_embed(time)
        if labels is not None:
            features = features + self.label_emb(labels)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, features)
            skips.append(x)
        x = self.middle_block(x, features)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), features)
        prediction: Tensor = self.out(x)
        return prediction[:, : self.channels]


def _attention(o: Options, width: int, heads: int) -> Attention:
    kind = InterleavedAttention if o.interleaved else Attention
    if o.head_channels is None:
        return kind(width, heads)
    if width % o.head_channels:
        raise ValueError(f"{width} channels cannot be shared out among heads of {o.head_channels} channels")
    return kind(width, width // o.head_channels)


def _resampling(
    o: Options, width: int, plain: Callable[[], nn.Module], conv: Callable[[int], nn.Module]
) -> nn.Module:
    if o.block_resampling:
        return Residual(o, width, width, plain)
    return conv(width) if o.conv_resampling else plain()
