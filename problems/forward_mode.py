"""What torch's forward mode cannot differentiate, or differentiates wrongly, in layers that networks have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def differentiable() -> Iterator[None]:
    """Make layers differentiable by nested forward mode, while the context is entered.

    Attention is computed by its formula, transformer layers do not use their fused kernel, and normalisations
    and SiLU are written out: the kernel of layer normalisation has wrong second derivatives, that of group
    normalisation none for inputs that are not contiguous, and that of SiLU none without gradients.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(_WrittenOut())
        yield


def _normalised(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    centred = x - x.mean(list(axes), keepdim=True)
    return centred * ((centred * centred).mean(list(axes), keepdim=True) + eps) ** -0.5


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    value = _normalised(x, range(-len(shape), 0), eps)
    value = value if weight is None else value * weight
    return value if bias is None else value + bias


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    value = _normalised(x.reshape(x.shape[0], groups, -1), (-1,), eps).reshape(x.shape)
    shape = (-1, *([1] * (x.ndim - 2)))
    value = value if weight is None else value * weight.reshape(shape)
    return value if bias is None else value + bias.reshape(shape)


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    return x * torch.sigmoid(x)


_BY_HAND: dict[Any, Callable[..., Tensor]] = {
    functional.layer_norm: _layer_norm,
    functional.group_norm: _group_norm,
    functional.silu: _silu,
}


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _BY_HAND.get(func, func)(*args, **(kwargs or {}))
