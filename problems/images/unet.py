"""A compact U-Net after Ho et al. (2020) with a choice of time embeddings, and the score network around it.

Both map Taylor coefficients (see ``layers``): with a tape, the next coefficient of a path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.images.layers import Attention, Conv, Dense, GroupNorm, SiLU, Tape, product
from problems.prediction import Outer
from problems.schedule import Schedule
from problems.series import Series, cos, log, sin, sqrt


@dataclass(frozen=True)
class Embedding:
    """An embedding of the time by sines and cosines of ω τ.

    Attributes
    ----------
    tau
        Returns τ as a function of γ, for a schedule.
    frequencies
        Returns n frequencies ω, float64.
    """

    tau: Callable[[Schedule, Series], Series]
    frequencies: Callable[[int], Tensor]


EMBEDDINGS = {
    # Low frequencies of log γ = -log_snr/2, slow compared with the steps of a sampler.
    "log-snr": Embedding(
        lambda _, gamma: log(gamma) / 5.0,
        lambda n: torch.logspace(math.log10(0.25), math.log10(4.0), n, dtype=torch.float64, device="cpu"),
    ),
    # The positional embedding of Ho et al. (2020) for a thousand steps.
    "positional": Embedding(
        lambda schedule, gamma: 999.0 * schedule.time(gamma),
        lambda n: torch.logspace(-4.0, 0.0, n, dtype=torch.float64, device="cpu"),
    ),
    # The random Fourier features of Song et al. (2021), scale 16.
    "fourier": Embedding(
        lambda schedule, gamma: 2.0 * math.pi * schedule.time(gamma),
        lambda n: (
            16.0
            * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
        ),
    ),
}
"""Embeddings by name. The last two vary so fast in t that derivatives of ε by the network mean little."""

PREDICTIONS: dict[str, Callable[[float], float]] = {
    "skip": lambda data_std: data_std,
    "v": lambda _: 1.0,
    "eps": lambda _: math.inf,
}
"""What the U-Net predicts: the standard deviation of Gaussian data for which zero output is the exact ε."""


MODULATIONS = ("shift", "scale-shift")
"""What an embedding does in a block: it is added, or it also multiplies (Dhariwal & Nichol 2021)."""


@dataclass(frozen=True)
class Config:
    """The architecture of a score network, as stored in the card of a checkpoint.

    Attributes
    ----------
    size, colours
        Height and width of the images; their channels.
    channels, multipliers
        Channels of the U-Net, and their multiples at full resolution and after each halving.
    blocks
        Residual blocks at each resolution, on the way down and again on the way up.
    classes
        Number of classes; 0 if the network takes no labels.
    embedding
        The time embedding: a name in ``EMBEDDINGS``.
    prediction
        What the U-Net F predicts: a name in ``PREDICTIONS``. With a standard deviation s,

            ε = γ x̄/(s² + γ²) + s (s² + γ²)^(-1/2) F(x̄ (s² + γ²)^(-1/2), γ).

        "skip": s is that of the data, so input and output of F have variance one; this is the
        preconditioning of Karras et al. (2022). "v": s = 1, and F is the v of Salimans & Ho (2022). "eps":
        s = ∞, and F is ε with input x.
    data_std
        Standard deviation of the data, per dimension.
    patch
        Side of the squares of pixels that the U-Net takes as the channels of one place.
    attention
        Whether blocks at the lowest resolution end with self-attention.
    modulation
        What the embedding does in a block: an entry of ``MODULATIONS``.
    """

    size: int = 8
    colours: int = 1
    channels: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    classes: int = 0
    embedding: str = "log-snr"
    prediction: str = "skip"
    data_std: float = 1.0
    patch: int = 1
    attention: bool = False
    modulation: str = "shift"

    def __post_init__(self) -> None:
        tables: dict[str, Collection[str]] = {
            "embedding": EMBEDDINGS,
            "prediction": PREDICTIONS,
            "modulation": MODULATIONS,
        }
        for field, table in tables.items():
            if getattr(self, field) not in table:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; choose from {', '.join(table)}")
        halvings = len(self.multipliers) - 1
        counts = (self.channels, self.blocks, self.colours, self.patch, *(self.multipliers or (0,)))
        if min(counts) < 1 or self.channels % 8:
            raise ValueError(
                "channels must be a multiple of 8; blocks, patch, colours and multipliers at least 1"
            )
        if self.classes < 0 or not 0.0 < self.data_std < math.inf:
            raise ValueError("classes must not be negative, data_std must be positive and finite")
        if self.size < 1 or self.size % (self.patch * 2**halvings):
            patches = f"in patches of {self.patch} " if self.patch > 1 else ""
            raise ValueError(
                f"images of size {self.size} {patches}cannot be halved {halvings} times; "
                "use fewer multipliers"
            )


class Block(nn.Module):
    """A residual block, told the embedding after its first convolution or after its second normalisation.

    Parameters
    ----------
    inputs, outputs
        Numbers of channels.
    width
        Dimension of the embedding.
    modulation
        What the embedding does: with "shift" it is added after the first convolution, with "scale-shift" it
        scales and shifts what the second normalisation returns.
    attention
        Whether the block ends with self-attention.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, modulation: str = "shift", attention: bool = False
    ) -> None:
        super().__init__()
        self._scales = modulation == "scale-shift"
        self.norm1 = GroupNorm(8, inputs)
        self.act1 = SiLU()
        self.conv1 = Conv(inputs, outputs)
        self.shift = Dense(width, 2 * outputs if self._scales else outputs)
        self.norm2 = GroupNorm(8, outputs)
        self.act2 = SiLU()
        self.conv2 = Conv(outputs, outputs)
        nn.init.zeros_(self.conv2.weight)
        self.bypass = Conv(inputs, outputs, 1) if inputs != outputs else None
        self.attention = Attention(outputs) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, tape: Tape | None = None) -> Tensor:
        """Map a coefficient (N, inputs, H, W), given the same one of the embedding, (N or 1, width)."""
        h = self.conv1(self.act1(self.norm1(x, tape), tape), tape)
        told = self.shift(embedding, tape)[:, :, None, None]
        if self._scales:
            scale, shift = told.chunk(2, 1)
            h = self.norm2(h, tape)
            h = h + product(torch.mul, h, scale, tape) + shift
        else:
            h = self.norm2(h + told, tape)
        h = self.conv2(self.act2(h, tape), tape)
        y: Tensor = h + (x if self.bypass is None else self.bypass(x, tape))
        return y if self.attention is None else self.attention(y, tape)


class UNet(nn.Module):
    """The U-Net: residual blocks at decreasing and increasing resolution, with skip connections.

    Parameters
    ----------
    config
        The architecture.
    width
        Dimension of the embedding.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        channels = [config.channels * m for m in config.multipliers]
        pixels = config.colours * config.patch**2
        self.stem = Conv(pixels, channels[0])
        self._blocks, self._patch = config.blocks, config.patch
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        path = [c for c in channels for _ in range(config.blocks)]
        lowest = len(path) - config.blocks
        for i, (inputs, outputs) in enumerate(pairwise([channels[0], *path])):
            attends = config.attention and i >= lowest
            self.down.append(Block(inputs, outputs, width, config.modulation, attends))
        self.middle = Block(path[-1], path[-1], width, config.modulation, config.attention)
        for i, (inputs, outputs) in enumerate(pairwise([path[-1], *reversed(path)])):
            attends = config.attention and i < config.blocks
            self.up.append(Block(inputs + outputs, outputs, width, config.modulation, attends))
        inputs = path[0]
        self.norm = GroupNorm(8, inputs)
        self.act = SiLU()
        self.out = Conv(inputs, pixels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, embedding: Tensor, tape: Tape | None = None) -> tuple[Tensor, Tensor]:
        """Map a coefficient (N, colours, H, W), given the same one of the embedding, (N or 1, width).

        Returns
        -------
        The coefficients of the output, of the shape of ``x``, and of the last features, (N, channels, H, W),
        with H and W those of the patches.
        """
        h = self.stem(functional.pixel_unshuffle(x, self._patch), tape)
        joined = []
        for i, block in enumerate(self.down):
            if i > 0 and i % self._blocks == 0:
                h = functional.avg_pool2d(h, 2)
            h = block(h, embedding, tape)
            joined.append(h)
        h = self.middle(h, embedding, tape)
        for i, block in enumerate(self.up):
            if i > 0 and i % self._blocks == 0:
                h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, joined.pop()], 1), embedding, tape)
        features = self.act(self.norm(h, tape), tape)
        return functional.pixel_shuffle(self.out(features, tape), self._patch), features


class ScoreNetwork(nn.Module):
    """ε as a network: embeddings of time and class, the U-Net, and its preconditioning (see ``Config``).

    Parameters
    ----------
    config
        The architecture.
    schedule
        The noise schedule. Only embeddings of t depend on it; the inputs of the network are (x̄, γ).
    """

    def __init__(self, config: Config, schedule: Schedule) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        width = 4 * config.channels
        self._frequencies = EMBEDDINGS[config.embedding].frequencies(config.channels)
        self.dense1 = Dense(2 * config.channels, width)
        self.act1 = SiLU()
        self.dense2 = Dense(width, width)
        self.act2 = SiLU()
        self.classes = nn.Embedding(config.classes + 1, width) if config.classes else None
        self.unet = UNet(config, width)

    def waves(self, gamma: Series) -> list[Tensor]:
        """Return the coefficients of sin ωτ and cos ωτ along a path γ(h), each (N or 1, 2·channels)."""
        tau = EMBEDDINGS[self.config.embedding].tau(self.schedule, gamma)
        columns = (torch.as_tensor(c, dtype=torch.float64).reshape(-1, 1) for c in tau.coefficients)
        phase = Series([c * self._frequencies.to(c.device) for c in columns])
        pairs = zip(sin(phase).coefficients, cos(phase).coefficients, strict=True)
        return [torch.cat([torch.as_tensor(s), torch.as_tensor(c)], 1) for s, c in pairs]

    def embed(self, waves: Tensor, labels: Tensor | None, tape: Tape | None = None) -> Tensor:
        """Map a coefficient of the waves to that of the embedding, (N or 1, width)."""
        h = self.dense2(self.act1(self.dense1(waves, tape), tape), tape)
        if labels is not None and self.classes is not None and (tape is None or tape.order == 0):
            h = h + self.classes(labels)
        embedding: Tensor = self.act2(h, tape)
        return embedding

    def factors(self, gamma: Series) -> tuple[Series, Series, Series]:
        """Return the series of skip, gain and scale in ε = skip x̄ + gain F(scale x̄)."""
        std = PREDICTIONS[self.config.prediction](self.config.data_std)
        if math.isinf(std):
            zero = 0.0 * gamma
            return zero, 1.0 + zero, 1.0 / sqrt(1.0 + gamma * gamma)
        total = std**2 + gamma * gamma
        scale = 1.0 / sqrt(total)
        return gamma / total, std * scale, scale

    def forward(self, xbar: Tensor, gamma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ε of shape (N, colours, H, W).

        Parameters
        ----------
        xbar
            States x/α, (N, colours, H, W).
        gamma
            Noise-to-signal ratios, (N, 1, 1, 1), or one for all states.
        labels
            Classes (N,); the number ``config.classes`` stands for the unconditional score.
        """
        return Expansion(self, Series([gamma]), labels).push(xbar)


class Expansion:
    """The Taylor coefficients of ε of a network along a path, one after the other.

    Attributes
    ----------
    features
        The known coefficients of the last features of the U-Net, each (N, channels, H, W).
    embeddings
        The known coefficients of the embedding, each (N or 1, width).
    """

    def __init__(self, network: ScoreNetwork, gamma: Series, labels: Tensor | None = None) -> None:
        self.features: list[Tensor] = []
        self.embeddings: list[Tensor] = []
        self._network, self._labels = network, labels
        self._waves = network.waves(gamma)
        self._outer = Outer(network.factors(gamma))
        self._tape = Tape() if len(gamma) > 1 else None

    def push(self, coefficient: Tensor) -> Tensor:
        """Take the next coefficient of x̄, (N, colours, H, W); return that of ε."""
        j = len(self.features)
        if self._tape is not None:
            self._tape.advance()
        waves = self._waves[j].to(coefficient)
        embedding = self._network.embed(waves, self._labels, self._tape)
        scaled = self._outer.inwards(coefficient)
        output, features = self._network.unet(scaled, embedding, self._tape)
        self.features.append(features)
        self.embeddings.append(embedding)
        return self._outer.outwards(output)
