"""The head of GENIE (Dockhorn et al. 2022), a small network for dε/dγ beside that of ε."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.models.blocks import Block, conv3, few


@dataclass(frozen=True)
class Config:
    """Architecture of a head.

    Attributes
    ----------
    features
        Channels of the features that it takes from its network.
    width
        Channels inside.
    blocks
        Number of residual blocks.
    channels
        Channels of an image.
    normalise
        Whether the features are normalised first.
    activate
        Whether there is a SiLU after the first convolution.
    rescale
        Whether sums of two branches are divided by √2.
    """

    features: int
    width: int
    blocks: int
    channels: int = 3
    normalise: bool = False
    activate: bool = False
    rescale: bool = True


class Head(nn.Module):
    """A head, which maps x, ε and features of the network of ε to dε/dγ.

    Parameters
    ----------
    config
        The architecture.
    listens
        Names of layers of the network: first the one whose result enters its last normalisation, then those
        whose results sum up to the embedding of the time.
    """

    def __init__(self, config: Config, listens: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.listens = config, listens
        inputs, width, embedded = config.features + 2 * config.channels, config.width, 4 * config.features
        layers: list[nn.Module] = [conv3(inputs, width)]
        layers += [Block(width, width, embedded, few, config.rescale) for _ in range(config.blocks)]
        layers += [nn.GroupNorm(few(width), width, eps=1e-6), conv3(width, 3 * config.channels)]
        if config.normalise:
            layers.insert(0, nn.GroupNorm(few(config.features), config.features, eps=1e-6))
        self.all_modules = nn.ModuleList(layers)

    def forward(
        self, xbar: Tensor, gamma: Tensor, eps: Tensor, features: Tensor, *embedded: Tensor
    ) -> Tensor:
        """Return dε/dγ along the flow dx̄/dγ = ε of a variance-preserving process.

        With the three images h of the last layer it is -h₁/γ + h₂ γ/(1 + γ²) + h₃/(γ (1 + γ²)).

        Parameters
        ----------
        xbar
            x/α, shape (N, channels, H, W).
        gamma
            Noise-to-signal ratio, of a shape that broadcasts against ``xbar``.
        eps
            ε, the shape of ``xbar``.
        features, embedded
            What the layers that it listens to returned.
        """
        square = 1.0 + gamma * gamma
        layers = iter(self.all_modules)
        if self.config.normalise:
            features = next(layers)(features)
        h = next(layers)(torch.cat([xbar / square**0.5, eps, features], dim=1))
        if self.config.activate:
            h = functional.silu(h)
        embedding = torch.stack(embedded).sum(0) if len(embedded) > 1 else embedded[0]
        for _ in range(self.config.blocks):
            h = next(layers)(h, embedding)
        h = next(layers)(h)
        first, second, third = next(layers)(functional.silu(h)).chunk(3, dim=1)
        slope: Tensor = (-first + (second * gamma * gamma + third) / square) / gamma
        return slope
