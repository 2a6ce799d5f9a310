"""Heads for networks of any make: dε/dγ from x, ε and, where they help, the features of one layer.

The parameterisation is Eq. 14. States are images. The head is told the noise level by waves of log γ, so it
needs nothing of the network but a state, ε, and what a layer returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.bill import Tariff
from problems.images import checkpoints
from problems.images.checkpoints import CheckpointError
from problems.images.head import PARAMETERISATIONS
from problems.images.layers import Conv, Dense, GroupNorm, SiLU
from problems.images.unet import EMBEDDINGS, Block
from problems.network import Network, digest, heard
from problems.series import Scalar

COMMON = ("mixed", "plain", "decaying")
"""Parameterisations that need nothing of the network."""


@dataclass(frozen=True)
class AnyHeadConfig:
    """The architecture of a head, as stored in the card of a checkpoint.

    Attributes
    ----------
    colours
        Channels of the states.
    channels, blocks
        Channels of the hidden layers; residual blocks.
    parameterisation
        What the outputs are: a name in ``COMMON``.
    listens
        The layer whose features the head is given; none or one name.
    features
        Channels of these features.
    data_std
        Standard deviation s of the data: the head is given x̄ (s² + γ²)^(-1/2).

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    colours: int
    channels: int = 32
    blocks: int = 1
    parameterisation: str = "mixed"
    listens: tuple[str, ...] = ()
    features: int = 0
    data_std: float = 0.5

    def __post_init__(self) -> None:
        if self.parameterisation not in COMMON:
            raise ValueError(
                f"outputs of heads of other makes are {', '.join(COMMON)}, not {self.parameterisation!r}"
            )
        if self.channels < 1 or self.channels % 8 or self.blocks < 1:
            raise ValueError("a head needs channels that are a multiple of 8, and at least one block")
        if len(self.listens) > 1 or bool(self.listens) != (self.features > 0):
            raise ValueError("a head listens to one layer that has channels, or to none")


class AnyHead(nn.Module):
    """A head: a convolution, residual blocks, normalisation, activation, a convolution to the outputs.

    Features are normalised, given the size of the state, and enter the first convolution. Before training the
    outputs are zero, and so is the derivative.

    Parameters
    ----------
    config
        The architecture.
    """

    def __init__(self, config: AnyHeadConfig) -> None:
        super().__init__()
        self.config, self.listens = config, config.listens
        channels, width = config.channels, 4 * config.channels
        self._parameterisation = PARAMETERISATIONS[config.parameterisation]
        self.dense1, self.act1 = Dense(2 * channels, width), SiLU()
        self.dense2, self.act2 = Dense(width, width), SiLU()
        self.heed = GroupNorm(1, config.features) if config.features else None
        self.stem = Conv(2 * config.colours + config.features, channels)
        self.blocks = nn.ModuleList(Block(channels, channels, width) for _ in range(config.blocks))
        self.norm, self.act = GroupNorm(8, channels), SiLU()
        self.out = Conv(channels, self._parameterisation.outputs * config.colours)
        for weights in self.out.parameters():
            nn.init.zeros_(weights)

    def forward(self, xbar: Tensor, gamma: Scalar, eps: Tensor, *heard: Tensor) -> Tensor:
        """Return dε/dγ along the flow, (N, colours, H, W).

        Parameters
        ----------
        xbar, eps
            States x/α and their ε, (N, colours, H, W).
        gamma
            Noise-to-signal ratio, which broadcasts against ``xbar``.
        heard
            What the layer in ``listens`` returned; see ``laid`` for shapes.
        """
        told = torch.as_tensor(gamma, dtype=xbar.dtype, device=xbar.device)
        inputs = [xbar * (self.config.data_std**2 + told * told) ** -0.5, eps]
        if self.heed is not None:
            inputs.append(self.heed(laid(heard[0], self.listens[0], xbar.shape[-2:])))
        embedding = self._told(told)
        h = self.stem(torch.cat(inputs, 1))
        for block in self.blocks:
            h = block(h, embedding)
        k = self.out(self.act(self.norm(h))).chunk(self._parameterisation.outputs, 1)
        slope: Tensor = self._parameterisation.combine(None, k, xbar, eps, told)
        return slope

    def _told(self, gamma: Tensor) -> Tensor:
        """Return the embedding of log γ, (N or 1, width)."""
        frequencies = EMBEDDINGS["log-snr"].frequencies(self.config.channels).to(gamma.device)
        phase = gamma.double().reshape(-1, 1).log() / 5.0 * frequencies
        waves = torch.cat([phase.sin(), phase.cos()], 1).to(gamma.dtype)
        embedding: Tensor = self.act2(self.dense2(self.act1(self.dense1(waves))))
        return embedding


def laid(features: Tensor, name: str, size: Sequence[int]) -> Tensor:
    """Return the features of a layer on the grid of the states, (N, C, H, W).

    Parameters
    ----------
    features
        (N, C, h, w), which is averaged or repeated to the size; or the tokens of square patches in rows,
        (N, h w, C) with H/h = W/w a whole number.
    name
        The name of the layer, for messages.
    size
        Height H and width W of a state.

    Raises
    ------
    ValueError
        If they are of another shape.
    """
    height, width = size
    if features.ndim == 3:
        patch = math.isqrt(height * width // features.shape[1])
        rows, columns = height // max(patch, 1), width // max(patch, 1)
        if rows * columns == features.shape[1] and (patch * rows, patch * columns) == (height, width):
            features = features.transpose(1, 2).reshape(len(features), -1, rows, columns)
    if features.ndim != 4:
        raise ValueError(
            f"the layer {name!r} returns {tuple(features.shape[1:])} for {height} x {width} states, which is "
            "neither an image nor one token for each square patch; choose another for --features-at"
        )
    if features.shape[-2:] == (height, width):
        return features
    return functional.interpolate(features, (height, width), mode="area")


def layer_of(module: nn.Module, name: str) -> str:
    """Return the full name of a layer: that name, or the only shallowest one that ends with it.

    Raises
    ------
    ValueError
        If there is none, or more than one.
    """
    names: list[str] = [full for full, _ in module.named_modules() if full]
    if name in names:
        return name
    ends = [full for full in names if full.endswith(f".{name}")]
    found = [full for full in ends if full.count(".") == min(end.count(".") for end in ends)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"several layers are called {name!r}; type one of {', '.join(found)}")
    top = [full for full in names if full.count(".") < 2]
    raise ValueError(f"the network has no layer {name!r}; it has {', '.join(top)}, and what is in them")


def channels_of(network: Network, name: str) -> int:
    """Return the number of channels of the features of a layer, after one evaluation of the network.

    Raises
    ------
    ValueError
        If they cannot be laid out on the grid of the states, or the layer is not called.
    """
    x = torch.zeros(1, *network.event_shape, dtype=network.dtype, device=network.device)
    one = network.labelled(0) if network.classes else network
    with torch.no_grad(), heard(network.module, [name]) as outputs:
        one.flow_jet(x, float(network.schedule.gamma(network.schedule.start)))
    if not isinstance(outputs.get(name), Tensor):
        raise ValueError(f"the layer {name!r} returns no tensor; choose another for --features-at")
    return laid(outputs[name], name, network.event_shape[-2:]).shape[1]


def beside(path: Path) -> Path:
    """Return where the head of a file or folder lies, if it has one."""
    stem = path.name if path.is_dir() else path.stem
    return path.with_name(f"{stem}-head.safetensors")


def card(network: Network, head: AnyHead, tariff: Tariff) -> dict[str, Any]:
    """Return the entries of the card of a head that ``attached`` reads."""
    return {"config": asdict(head.config), "network": digest(network.module), "tariff": asdict(tariff)}


def attached(network: Network, path: Path) -> Network:
    """Return a network with the head in a file, and with the prices on its card.

    Raises
    ------
    CheckpointError
        If the file cannot be used, or the head was distilled from another network.
    """
    stored = checkpoints.load(path, "head")
    if stored.card.get("network") != digest(network.module):
        raise CheckpointError(f"the head {path} was distilled from another network; distil one from this")
    try:
        config = checkpoints.described(AnyHeadConfig, stored.card["config"])
        costs = checkpoints.described(Tariff, stored.card["tariff"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} describes no head of this suite ({error})") from None
    head = checkpoints.built(lambda: AnyHead(config), stored, path)
    return network.with_head(head.to(network.device, network.dtype), costs)
