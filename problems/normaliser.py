"""Power series of what is normalised over groups of numbers, one coefficient at a time.

The result is y = c/τ, with c the input x minus its mean and τ = √(mean c² + ε), one number for each group.
From τ τ' = mean c c' and mean y = 0 follows τ' = ⟨y, x'⟩, where ⟨·, ·⟩ is the mean of a product. So

    j τⱼ = Σ_{i=1..j} i ⟨y_{j-i}, xᵢ⟩  and  τ₀ yⱼ = cⱼ - Σ_{i=1..j} τᵢ y_{j-i}.

The terms with xⱼ are the Jacobian of a normalisation, which is symmetric, so torch's kernels for the backward
pass compute them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

aten = torch.ops.aten

LONG = 1024
"""Length from which a scalar product is faster by a product of matrices than by a sum of products."""

Push = Callable[[Tensor], Tensor]
"""Takes the next coefficient of the input, returns that of the result."""


def normalised_groups(groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Push:
    """Begin a normalisation over groups of channels.

    Parameters
    ----------
    groups
        Number of groups of the channels of an input (N, C, …).
    weight, bias
        The affine part, (C,), or None.
    eps
        What is added to the variance.
    """
    memory = _Memory()

    def push(x: Tensor) -> Tensor:
        value: Tensor
        x = x.contiguous()
        about = (x.shape[0], x.shape[1], math.prod(x.shape[2:]), groups)
        rows = x.view(x.shape[0] * groups, -1)
        if not memory.path:
            value, mean, scale = torch.native_group_norm(x, weight, bias, *about, eps)
            memory.begin(rows, mean, scale)
            return value
        value, _, _ = aten.native_group_norm_backward(
            x, memory.path[0].view_as(x), *memory.moments, None, *about, [True, False, False]
        )
        memory.finish(rows, value.view_as(rows))
        return value if weight is None else value * weight.view(-1, *([1] * (x.ndim - 2)))

    return push


def normalised_axes(shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Push:
    """Begin a normalisation over the last axes, of sizes ``shape``; see ``normalised_groups``."""
    memory = _Memory()

    def push(x: Tensor) -> Tensor:
        value: Tensor
        x = x.contiguous()
        rows = x.view(-1, math.prod(shape))
        if not memory.path:
            value, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
            memory.begin(rows, mean, scale)
            return value
        value, _, _ = aten.native_layer_norm_backward(
            x, memory.path[0].view_as(x), shape, *memory.moments, None, None, [True, False, False]
        )
        memory.finish(rows, value.view_as(rows))
        return value if weight is None else value * weight

    return push


class _Memory:
    """What is known of rows of numbers, each of which is normalised."""

    def __init__(self) -> None:
        self.path: list[Tensor] = []
        self.moments: tuple[Tensor, Tensor]
        self._mean: Tensor
        self._scale: Tensor
        # Coefficients 1, 2, … of y and of τ; coefficients 2, 3, … of τ without their terms ⟨y₀, xⱼ⟩.
        self._values: list[Tensor] = []
        self._roots: list[Tensor] = []
        self._rests: list[Tensor] = []

    def begin(self, x: Tensor, mean: Tensor, scale: Tensor) -> None:
        """Take coefficient 0, with its means and 1/τ₀ as the kernel of the forward pass returns them."""
        self.path.append(x)
        self.moments = mean, scale
        self._mean, self._scale = mean.reshape(-1, 1), scale.reshape(-1, 1)

    def finish(self, x: Tensor, value: Tensor) -> None:
        """Add to ``value``, the terms with the newest coefficient ``x``, all the others."""
        j = len(self.path)
        if j > 1:
            rest = _dots(self._values[j - 2], self.path[1]).div_(j)
            for i in range(2, j):
                rest.add_(_dots(self._values[j - i - 1], self.path[i]), alpha=i / j)
            newest = self._onto_first(j - 1)
            self._roots.append(newest.add_(self._rests[-1]) if self._rests else newest)
            for i, root in enumerate(self._roots, 1):
                value.addcmul_(self._values[j - i - 1], root * self._scale, value=-1.0)
            gain = rest * self._scale * self._scale
            value.addcmul_(self.path[0], gain, value=-1.0).add_(gain.mul_(self._mean))
            self._rests.append(rest)
        self.path.append(x)
        self._values.append(value)

    def _onto_first(self, i: int) -> Tensor:
        """Return ⟨y₀, xᵢ⟩."""
        means = self.path[i].mean(-1, keepdim=True)
        return _dots(self.path[0], self.path[i]).addcmul_(self._mean, means, value=-1.0).mul_(self._scale)


def _dots(x: Tensor, y: Tensor) -> Tensor:
    """Return the means of x y over rows, (R, 1)."""
    if x.shape[-1] < LONG:
        return (x * y).mean(-1, keepdim=True)
    return torch.bmm(x[:, None], y[:, None].mT)[..., 0].div_(x.shape[-1])
