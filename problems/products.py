"""Power series of products of two paths and of the softmax, one coefficient at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Times = Callable[[Tensor, Tensor], Tensor]
"""A bilinear product."""


def multiplied(times: Times, *, same: bool = False) -> Callable[..., Tensor]:
    """Return what takes coefficient j of a and of b, for j = 0, 1, …, to that of their product, Σ aᵢ b_{j-i}.

    Parameters
    ----------
    times
        The product.
    same
        Whether a and b are one path.
    """
    left: list[Tensor] = []
    right: list[Tensor] = left if same else []
    add = _FUSED.get(times)

    def push(*pair: Tensor) -> Tensor:
        left.append(pair[0])
        if not same:
            right.append(pair[1])
        j = len(left) - 1
        if j > 0 and times is aten.bmm.default and _thin(left[0], right[0]):
            return torch.bmm(torch.cat(left, -1), torch.cat(right[::-1], -2))
        total = times(left[0], right[j])
        for i in range(1, j + 1):
            if add is None:
                total = total + times(left[i], right[j - i])
            else:
                add(total, left[i], right[j - i])
        return total

    return push


def _thin(a: Tensor, b: Tensor) -> bool:
    """Return whether factors are smaller than their product, so that one longer product is cheaper."""
    return a.shape[-1] * (a.shape[-2] + b.shape[-1]) < a.shape[-2] * b.shape[-1]


_FUSED: dict[Any, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    aten.mul.Tensor: Tensor.addcmul_,
    aten.mm.default: Tensor.addmm_,
    torch.mm: Tensor.addmm_,
    aten.bmm.default: Tensor.baddbmm_,
}
"""Products that are added in place in one kernel."""


def softmaxed(dim: int) -> Callable[[Tensor], Tensor]:
    """Return what takes coefficient j of x, for j = 0, 1, …, to that of p = exp(x)/Σ exp(x) over an axis.

    p = p₀ e, from e' = (x' - μ') e, where μ is such that Σ p₀ e stays 1.

    With zⱼ = xⱼ + Σ_{i=1..j-1} (i/j) (xᵢ - μᵢ) e_{j-i}: μⱼ = ⟨p₀, zⱼ⟩ and eⱼ = zⱼ - μⱼ.
    """
    values: list[Tensor] = []
    # Of coefficients 1, 2, …: x, z and μ; and x - μ and e, where they have been needed.
    newest: list[tuple[Tensor, Tensor, Tensor]] = []
    known: list[tuple[Tensor, Tensor]] = []

    def push(x: Tensor) -> Tensor:
        if not values:
            values.append(torch.softmax(x, dim))
            return values[0]
        j = len(newest) + 1
        for at, total, mean in newest[len(known) :]:
            rate = at - mean
            known.append((rate, rate if total is at else total.sub_(mean)))
        z = x
        for i in range(1, j):
            term = (known[i - 1][0], known[j - i - 1][1])
            z = torch.addcmul(x, *term, value=i / j) if i == 1 else z.addcmul_(*term, value=i / j)
        value = values[0] * z
        mean = value.sum(dim, keepdim=True)
        newest.append((x, z, mean))
        return value.addcmul_(values[0], mean, value=-1.0)

    return push
