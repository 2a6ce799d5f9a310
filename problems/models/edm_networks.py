"""The U-Nets of Karras et al. (2022), with the parameter names of their files.

``SongUNet`` is their version of DDPM++ and NCSN++ (Song et al. 2021), ``DhariwalUNet`` that of ADM (Dhariwal
& Nichol 2021). All layers are plain torch modules, in the precision of their weights. Classes are integers
from 0; the number of classes itself stands for "no class".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.models.edm_blocks import (
    Block,
    ConvDown,
    DhariwalBlock,
    Down,
    DownConv,
    SongBlock,
    Up,
    UpConv,
    norm,
)
from problems.models.edm_options import Options, SongOptions


class Waves(nn.Module):
    """Cosines and sines of the time at n = ``size`` / 2 frequencies 10000^(-k/``last``), k = 0, …, n - 1."""

    def __init__(self, size: int, last: int) -> None:
        super().__init__()
        self.size, self.last = size, last

    def forward(self, time: Tensor) -> Tensor:
        """Map times (N,) to the cosines, then the sines, (N, size)."""
        k = torch.arange(self.size // 2, dtype=time.dtype, device=time.device)
        phase = time[:, None] * torch.pow(1e-4, k / self.last)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Fourier(nn.Module):
    """Cosines and sines of the time at random frequencies."""

    freqs: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16.0 * torch.randn(size // 2))

    def forward(self, time: Tensor) -> Tensor:
        """Map times (N,) to the cosines, then the sines, of 2π f t, (N, size)."""
        phase = time[:, None] * (2.0 * math.pi * self.freqs)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class UNet(nn.Module, ABC):
    """What the two networks have in common: a way down with blocks, a way up with as many and one more.

    Parameters
    ----------
    o
        The architecture.
    first
        Channels after the first convolution.
    """

    map_layer0: nn.Linear
    map_layer1: nn.Linear
    map_label: nn.Linear

    def __init__(self, o: Options, first: int) -> None:
        super().__init__()
        self.options = o
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, widths = first, []
        for size, factor in zip(o.sizes, o.channel_mult, strict=True):
            if size == o.img_resolution:
                self.enc[f"{size}x{size}_conv"] = nn.Conv2d(o.in_channels, first, 3, padding=1)
            else:
                self.enc[f"{size}x{size}_down"] = self.down(width)
                self.add_entrance(size, width)
            widths.append(width)
            for i in range(o.num_blocks):
                heads = self.heads(factor * o.model_channels) if size in o.attn_resolutions else 0
                self.enc[f"{size}x{size}_block{i}"] = self.block(width, factor * o.model_channels, heads)
                width = factor * o.model_channels
                widths.append(width)
        for size, factor in reversed(list(zip(o.sizes, o.channel_mult, strict=True))):
            if size == o.sizes[-1]:
                self.dec[f"{size}x{size}_in0"] = self.block(width, width, self.heads(width))
                self.dec[f"{size}x{size}_in1"] = self.block(width, width)
            else:
                self.dec[f"{size}x{size}_up"] = self.up(width)
            for i in range(o.num_blocks + 1):
                heads = self.heads(factor * o.model_channels) if self.attends_up(size, i) else 0
                inputs, width = width + widths.pop(), factor * o.model_channels
                self.dec[f"{size}x{size}_block{i}"] = self.block(inputs, width, heads)
            self.add_exit(size, width)

    @abstractmethod
    def block(self, inputs: int, outputs: int, heads: int = 0) -> Block:
        """Return a block that keeps the resolution, with attention if it has heads."""

    @abstractmethod
    def down(self, width: int) -> Block:
        """Return a block that halves height and width."""

    @abstractmethod
    def up(self, width: int) -> Block:
        """Return a block that doubles height and width."""

    @abstractmethod
    def heads(self, width: int) -> int:
        """Return the heads of an attention at this number of channels."""

    @abstractmethod
    def attends_up(self, size: int, i: int) -> bool:
        """Return whether block i on the way up has attention."""

    def add_entrance(self, size: int, width: int) -> None:
        """Add the layers by which the image enters at a lower resolution."""

    @abstractmethod
    def add_exit(self, size: int, width: int) -> None:
        """Add the layers by which the output leaves at a resolution."""

    def entered(self, size: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features into which the image has entered, and the image for the next resolution."""
        return x, image

    @abstractmethod
    def left(self, size: int, x: Tensor, output: Tensor | None) -> Tensor | None:
        """Return the output up to a resolution, given that of lower ones."""

    @abstractmethod
    def features(self, time: Tensor, labels: Tensor | None) -> Tensor:
        """Return the features of times (N,) and classes (N,)."""

    def one_hot(self, labels: Tensor | None, time: Tensor) -> Tensor:
        """Return a 1 in the place of each class, shape (N, classes); only zeros for "no class"."""
        classes = torch.arange(self.options.label_dim, device=time.device)
        chosen = torch.full_like(time, self.options.label_dim) if labels is None else labels
        return (chosen[:, None] == classes).to(time.dtype)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what the network predicts, shape of ``x``.

        Parameters
        ----------
        x
            Images, shape (N, C, H, W).
        time
            What the network is told of the time, shape (N,).
        labels
            Classes, shape (N,); None for no class.
        """
        o, features = self.options, self.features(time, labels)
        image, skips = x, []
        for size in o.sizes:
            at = f"{size}x{size}_"
            x = self.enc[at + "conv"](x) if size == o.img_resolution else self.enc[at + "down"](x, features)
            x, image = self.entered(size, x, image)
            skips.append(x)
            for i in range(o.num_blocks):
                x = self.enc[f"{at}block{i}"](x, features)
                skips.append(x)
        output: Tensor | None = None
        for size in reversed(o.sizes):
            at = f"{size}x{size}_"
            for name in ("in0", "in1") if size == o.sizes[-1] else ("up",):
                x = self.dec[at + name](x, features)
            for i in range(o.num_blocks + 1):
                x = self.dec[f"{at}block{i}"](torch.cat([x, skips.pop()], dim=1), features)
            output = self.left(size, x, output)
        assert output is not None
        return output[:, : o.in_channels]


class SongUNet(UNet):
    """DDPM++ and NCSN++."""

    options: SongOptions

    def __init__(self, o: SongOptions) -> None:
        super().__init__(o, o.model_channels)
        noise = o.model_channels * o.channel_mult_noise
        self.map_noise = Fourier(noise) if o.embedding_type == "fourier" else Waves(noise, noise // 2 - 1)
        if o.label_dim:
            self.map_label = nn.Linear(o.label_dim, noise)
        if o.augment_dim:
            self.map_augment = nn.Linear(o.augment_dim, noise, bias=False)
        self.map_layer0 = nn.Linear(noise, o.features)
        self.map_layer1 = nn.Linear(o.features, o.features)

    def block(self, inputs: int, outputs: int, heads: int = 0) -> Block:
        """Return a block that keeps the resolution, with attention if it has heads."""
        conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        return SongBlock(inputs, outputs, self.options.features, conv0, skip, heads)

    def down(self, width: int) -> Block:
        """Return a block that halves height and width."""
        conv0, skip = (DownConv(width, width, n, self.options.resample_filter) for n in (3, 1))
        return SongBlock(width, width, self.options.features, conv0, skip)

    def up(self, width: int) -> Block:
        """Return a block that doubles height and width."""
        conv0, skip = (UpConv(width, width, n, self.options.resample_filter) for n in (3, 1))
        return SongBlock(width, width, self.options.features, conv0, skip)

    def heads(self, width: int) -> int:
        """Return 1."""
        return 1

    def attends_up(self, size: int, i: int) -> bool:
        """Return whether block i on the way up has attention: the last at a resolution."""
        return size in self.options.attn_resolutions and i == self.options.num_blocks

    def add_entrance(self, size: int, width: int) -> None:
        """Add the layers by which the image enters at a lower resolution."""
        o, at = self.options, f"{size}x{size}_aux_"
        if o.encoder_type == "skip":
            self.enc[at + "down"] = Down(o.resample_filter)
            self.enc[at + "skip"] = nn.Conv2d(o.in_channels, width, 1)
        if o.encoder_type == "residual":
            above = o.sizes.index(size) - 2
            image = o.in_channels if above < 0 else o.model_channels * o.channel_mult[above]
            self.enc[at + "residual"] = ConvDown(image, width, 3, o.resample_filter)

    def add_exit(self, size: int, width: int) -> None:
        """Add the layers by which the output leaves at a resolution."""
        o, at = self.options, f"{size}x{size}_aux_"
        if o.decoder_type == "skip" and size != o.sizes[-1]:
            self.dec[at + "up"] = Up(o.resample_filter)
        if o.decoder_type == "skip" or size == o.img_resolution:
            self.dec[at + "norm"] = norm(width, 1e-6)
            self.dec[at + "conv"] = nn.Conv2d(width, o.out_channels, 3, padding=1)

    def entered(self, size: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features into which the image has entered, and the image for the next resolution."""
        at = f"{size}x{size}_aux_"
        if at + "skip" in self.enc:
            image = self.enc[at + "down"](image)
            return x + self.enc[at + "skip"](image), image
        if at + "residual" in self.enc:
            x = (x + self.enc[at + "residual"](image)) / math.sqrt(2.0)
            return x, x
        return x, image

    def left(self, size: int, x: Tensor, output: Tensor | None) -> Tensor | None:
        """Return the output up to a resolution, given that of lower ones."""
        at = f"{size}x{size}_aux_"
        if at + "conv" not in self.dec:
            return output
        own: Tensor = self.dec[at + "conv"](functional.silu(self.dec[at + "norm"](x)))
        if output is None:
            return own
        below: Tensor = self.dec[at + "up"](output)
        return own + below

    def features(self, time: Tensor, labels: Tensor | None) -> Tensor:
        """Return the features of times (N,) and classes (N,)."""
        cosines, sines = self.map_noise(time).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)
        if self.options.label_dim:
            chosen = self.one_hot(labels, time) * math.sqrt(self.options.label_dim)
            embedding = embedding + self.map_label(chosen)
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(embedding))))


class DhariwalUNet(UNet):
    """ADM."""

    def __init__(self, o: Options) -> None:
        super().__init__(o, o.model_channels * o.channel_mult[0])
        self.map_noise = Waves(o.model_channels, o.model_channels // 2)
        if o.augment_dim:
            self.map_augment = nn.Linear(o.augment_dim, o.model_channels, bias=False)
        self.map_layer0 = nn.Linear(o.model_channels, o.features)
        self.map_layer1 = nn.Linear(o.features, o.features)
        if o.label_dim:
            self.map_label = nn.Linear(o.label_dim, o.features, bias=False)

    def block(self, inputs: int, outputs: int, heads: int = 0) -> Block:
        """Return a block that keeps the resolution, with attention if it has heads."""
        conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        return DhariwalBlock(inputs, outputs, self.options.features, conv0, skip, heads)

    def down(self, width: int) -> Block:
        """Return a block that halves height and width."""
        conv0 = DownConv(width, width, 3, (1, 1))
        return DhariwalBlock(width, width, self.options.features, conv0, Down((1, 1)))

    def up(self, width: int) -> Block:
        """Return a block that doubles height and width."""
        conv0 = UpConv(width, width, 3, (1, 1))
        return DhariwalBlock(width, width, self.options.features, conv0, Up((1, 1)))

    def heads(self, width: int) -> int:
        """Return one head for every 64 channels; below 64 there is no attention."""
        return width // 64

    def attends_up(self, size: int, i: int) -> bool:
        """Return whether block i on the way up has attention."""
        return size in self.options.attn_resolutions

    def add_exit(self, size: int, width: int) -> None:
        """Add the layers by which the output leaves at full resolution."""
        if size == self.options.img_resolution:
            self.out_norm = norm(width, 1e-5)
            self.out_conv = nn.Conv2d(width, self.options.out_channels, 3, padding=1)

    def left(self, size: int, x: Tensor, output: Tensor | None) -> Tensor | None:
        """Return the output at full resolution."""
        if size != self.options.img_resolution:
            return None
        own: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return own

    def features(self, time: Tensor, labels: Tensor | None) -> Tensor:
        """Return the features of times (N,) and classes (N,)."""
        features = self.map_layer1(functional.silu(self.map_layer0(self.map_noise(time))))
        if self.options.label_dim:
            features = features + self.map_label(self.one_hot(labels, time))
        return functional.silu(features)
