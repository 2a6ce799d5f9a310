"""Layers that act on the Taylor coefficients of their input, one after the other.

If the input of a layer moves along a path x₀ + x₁h + x₂h² + …, so does its output. A linear layer maps each
coefficient by itself. For a nonlinear one, coefficient j of the output follows from coefficients 0 to j of
the input by a recurrence (Griewank & Walther 2008, ch. 13). The earlier coefficients are remembered outside
the layer, on a ``Tape``. A network is written once: its plain evaluation is the pass of coefficient 0, and
the pass of coefficient j costs little more, for every j.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.normaliser import normalised_groups
from problems.pointwise import Composed, silu
from problems.products import Times, multiplied, softmaxed

S = TypeVar("S")


class Tape:
    """The memory of the nonlinear layers of one network for one path.

    Each pass of the network maps the next coefficient. The layers are called in the same order in every pass,
    and this order identifies their memories.

    Attributes
    ----------
    order
        Index of the coefficient of the current pass; -1 before the first.
    """

    def __init__(self) -> None:
        self.order = -1
        self._memories: list[Any] = []
        self._next = 0

    def advance(self) -> None:
        """Begin the pass of the next coefficient."""
        self.order += 1
        self._next = 0

    def recall(self, make: Callable[[], S]) -> S:
        """Return the memory of the calling layer; ``make`` creates it in the first pass."""
        if self.order == 0:
            self._memories.append(make())
        self._next += 1
        memory: S = self._memories[self._next - 1]
        return memory


class Conv(nn.Conv2d):
    """A convolution that keeps height and width; the bias is added to coefficient 0 only.

    Parameters
    ----------
    inputs, outputs
        Numbers of channels.
    width
        Width of the kernel, odd.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 3) -> None:
        super().__init__(inputs, outputs, width, padding=width // 2)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Map a coefficient, (N, inputs, H, W), to (N, outputs, H, W)."""
        bias = self.bias if tape is None or tape.order == 0 else None
        return functional.conv2d(x, self.weight, bias, padding=self.padding)


class Dense(nn.Linear):
    """A linear map; the bias is added to coefficient 0 only."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Map a coefficient, (N, inputs), to (N, outputs)."""
        bias = self.bias if tape is None or tape.order == 0 else None
        return functional.linear(x, self.weight, bias)


class SiLU(nn.Module):
    """The activation x·sigmoid(x), for any shape."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Map a coefficient, any shape."""
        return functional.silu(x) if tape is None else tape.recall(lambda: Composed(silu)).push(x)


def product(times: Times, x: Tensor, y: Tensor, tape: Tape | None) -> Tensor:
    """Map coefficients of two paths to that of their bilinear product, ``times``."""
    return times(x, y) if tape is None else tape.recall(lambda: multiplied(times))(x, y)


def softmax(x: Tensor, tape: Tape | None) -> Tensor:
    """Map a coefficient of scores to that of exp(x)/Σ exp(x) over the last axis."""
    return x.softmax(-1) if tape is None else tape.recall(lambda: softmaxed(-1))(x)


class Attention(nn.Module):
    """Self-attention over the positions of an image (Vaswani et al. 2017), with a residual connection.

    Parameters
    ----------
    channels
        Number of channels, a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(8, channels)
        self.ask = Conv(channels, 3 * channels, 1)
        self.out = Conv(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        self._heads = max(1, channels // 64)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Map a coefficient, (N, channels, H, W)."""
        parts = self.ask(self.norm(x, tape), tape).flatten(2).unflatten(1, (3, self._heads, -1))
        query, key, value = parts.unbind(1)
        scores = product(torch.matmul, query.transpose(2, 3) * query.shape[2] ** -0.5, key, tape)
        said = product(torch.matmul, value, softmax(scores, tape).transpose(2, 3), tape)
        y: Tensor = x + self.out(said.reshape(x.shape), tape)
        return y


class GroupNorm(nn.GroupNorm):
    """Normalisation over groups of channels, (N, C, H, W)."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Map a coefficient, (N, C, H, W)."""
        about = (self.num_groups, self.weight, self.bias, self.eps)
        if tape is None:
            return functional.group_norm(x, *about)
        return tape.recall(lambda: normalised_groups(*about))(x)


def nestable(network: nn.Module) -> nn.Module:
    """Replace the activations of a network by ones that nested forward mode can differentiate, in place.

    Under no_grad the derivative of torch's SiLU has no forward-mode rule.
    """
    for name, layer in network.named_children():
        if isinstance(layer, SiLU):
            setattr(network, name, _NestableSiLU())
        nestable(layer)
    return network


class _NestableSiLU(SiLU):
    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        return x * torch.sigmoid(x) if tape is None else super().forward(x, tape)
