"""The head of GENIE: a small network on top of the score network that predicts dε/dγ along the flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.images.layers import Conv, GroupNorm, SiLU
from problems.images.unet import Block, ScoreNetwork
from problems.series import Scalar, Series

Combine = Callable[[Any, Sequence[Tensor], Tensor, Tensor, Scalar], Tensor]


@dataclass(frozen=True)
class Parameterisation:
    """How dε/dγ is computed from the outputs of a head.

    Attributes
    ----------
    outputs
        Number of outputs, each of the shape of the images.
    combine
        Returns dε/dγ from the score network, the outputs, x̄, ε and γ. Only "residual" asks the network, which
        must be one of this suite.
    """

    outputs: int
    combine: Combine


def _mixed(_: object, k: Sequence[Tensor], xbar: Tensor, eps: Tensor, gamma: Scalar) -> Tensor:
    one = 1.0 + gamma * gamma
    return (-1.0 / gamma) * k[0] + (gamma / one) * k[1] + (1.0 / (gamma * one)) * k[2]


def _plain(_: object, k: Sequence[Tensor], xbar: Tensor, eps: Tensor, gamma: Scalar) -> Tensor:
    return k[0]


def _decaying(_: object, k: Sequence[Tensor], xbar: Tensor, eps: Tensor, gamma: Scalar) -> Tensor:
    return (1.0 / (gamma * (1.0 + gamma * gamma))) * k[0]


def _residual(network: ScoreNetwork, k: Sequence[Tensor], xbar: Tensor, eps: Tensor, gamma: Scalar) -> Tensor:
    skip, gain, _ = network.factors(Series.variable(gamma, 2))
    output = eps - skip[0] * xbar
    known = skip[1] * xbar + skip[0] * eps + (gain[1] / gain[0]) * output
    return torch.as_tensor(known + (gain[0] / gamma) * k[0])


PARAMETERISATIONS = {
    # Eqs. 14 and 66: the outputs are the coefficients of the three terms of a single data point's derivative.
    "mixed": Parameterisation(3, _mixed),
    # Table 2, "no mixed": the output is the derivative.
    "plain": Parameterisation(1, _plain),
    # The last term of Eq. 14 alone: where noise prevails, γ dε/dγ falls like 1/γ², and so does an error of k.
    "decaying": Parameterisation(1, _decaying),
    # The output is dF/d(log γ) in the derivative of ε = skip x̄ + gain F; the other terms are known.
    "residual": Parameterisation(1, _residual),
}
"""Parameterisations by name: the paper's, its ablation, and two of this suite."""


@dataclass(frozen=True)
class HeadConfig:
    """The architecture of a head, as stored in the card of a checkpoint.

    Attributes
    ----------
    channels
        Channels of the hidden layers.
    blocks
        Residual blocks; two are the "bigger model" of Table 2.
    parameterisation
        The meaning of the outputs: a name in ``PARAMETERISATIONS``.
    """

    channels: int = 16
    blocks: int = 1
    parameterisation: str = "mixed"

    def __post_init__(self) -> None:
        if self.parameterisation not in PARAMETERISATIONS:
            names = ", ".join(PARAMETERISATIONS)
            raise ValueError(f"unknown parameterisation {self.parameterisation!r}; choose from {names}")
        if self.channels < 1 or self.channels % 8 or self.blocks < 1:
            raise ValueError("a head needs channels that are a multiple of 8, and at least one block")


class Head(nn.Module):
    """The prediction head k_ψ of App. C.2: dε/dγ from x_t, ε, the last features and the time embedding.

    A convolution, residual blocks, normalisation, activation, a convolution to the outputs.

    Parameters
    ----------
    config
        The architecture.
    colours
        Channels of the images.
    features
        Channels of the score network's last features; the dimension of its embedding is four times this.
    patch
        Side of the squares of pixels that the score network takes as one place.
    """

    def __init__(self, config: HeadConfig, colours: int, features: int, patch: int = 1) -> None:
        super().__init__()
        self.config = config
        channels, self._parameterisation = config.channels, PARAMETERISATIONS[config.parameterisation]
        self._patch = patch
        self.stem = Conv(2 * colours * patch**2 + features, channels)
        self.blocks = nn.ModuleList(Block(channels, channels, 4 * features) for _ in range(config.blocks))
        self.norm = GroupNorm(8, channels)
        self.act = SiLU()
        self.out = Conv(channels, self._parameterisation.outputs * colours * patch**2)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        network: ScoreNetwork,
        xbar: Tensor,
        gamma: Scalar,
        eps: Tensor,
        features: Tensor,
        embedding: Tensor,
    ) -> Tensor:
        """Return dε/dγ along the flow, (N, colours, H, W).

        Parameters
        ----------
        network
            The score network.
        xbar, gamma
            States x/α, (N, colours, H, W), and their noise-to-signal ratio.
        eps, features, embedding
            ε, the last features and the embedding of the score network at this state.
        """
        x = xbar * (1.0 + gamma * gamma) ** -0.5
        images = functional.pixel_unshuffle(torch.cat([x, eps], 1), self._patch)
        h = self.stem(torch.cat([features, images], 1))
        for block in self.blocks:
            h = block(h, embedding)
        outputs = functional.pixel_shuffle(self.out(self.act(self.norm(h))), self._patch)
        k = outputs.chunk(self._parameterisation.outputs, 1)
        return self._parameterisation.combine(network, k, xbar, eps, gamma)
