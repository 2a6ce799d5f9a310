"""Operators that are written in terms of others when a function is traced, so that they need no rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from problems.graph.calls import NoRuleError

aten = torch.ops.aten

STANDARD = [
    aten._fused_rms_norm,
    aten._log_softmax,
    aten._prelu_kernel,
    aten.addcdiv,
    aten.addcmul,
    aten.baddbmm,
    aten.celu,
    aten.elu,
    aten.glu,
    aten.hardsigmoid,
    aten.hardswish,
    aten.leaky_relu,
    aten.lerp,
    aten.log_sigmoid_forward,
    aten.logsumexp,
    aten.mish,
    aten.native_dropout,
    aten.norm,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.rsub,
    aten.selu,
    aten.softplus,
    aten.threshold,
]
"""Those that torch itself can decompose."""


def _variance(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return _mean_and_variance(x, dim, **options)[0]


def _mean_and_variance(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = 1.0, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    axes = list(range(x.ndim)) if dim is None else list(dim)
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    total = (centred * centred).sum(axes, keepdim=keepdim)
    return total / max(count - (1.0 if correction is None else correction), 0.0), (
        mean if keepdim else mean.squeeze(axes)
    )


def _deviation(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return _mean_and_variance(x, dim, **options)[0].sqrt()


def _relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def _clamp(x: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.where(x < low, low, x)
    return x if high is None else torch.where(x > high, high, x)


def _hardtanh(x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return _clamp(x, low, high)


def _absolute(x: Tensor) -> Tensor:
    return x * x.sign()


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if ord != 2:
        raise NoRuleError(aten.linalg_vector_norm.default, f"of order {ord}")
    axes = list(range(x.ndim)) if dim is None else list(dim)
    return (x * x).sum(axes, keepdim=keepdim).sqrt()


def _smaller(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x < y, x, y)


def _larger(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > y, x, y)


def _log1p(x: Tensor) -> Tensor:
    return torch.log(1.0 + x)


def _patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Any:
    """Write a transposed convolution without overlaps, which makes images of patches, as a faster product."""
    kernel = list(weight.shape[2:])
    apart = (
        stride == kernel and not any(padding) and not any(output_padding) and dilation == [1] * len(kernel)
    )
    if not (transposed and apart and len(kernel) == 2 and groups == 1 and x.device.type == "cpu"):
        return NotImplemented
    n, inputs, rows, columns = x.shape
    outputs = weight.shape[1]
    numbers = x.permute(0, 2, 3, 1).reshape(-1, inputs) @ weight.reshape(inputs, -1)
    parts = numbers.view(n, rows, columns, outputs, *kernel).permute(0, 3, 1, 4, 2, 5)
    image = parts.reshape(n, outputs, rows * kernel[0], columns * kernel[1])
    return image if bias is None else image + bias.view(-1, 1, 1)


OWN: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _patches,
    aten.var.correction: _variance,
    aten.var_mean.correction: _mean_and_variance,
    aten.std.correction: _deviation,
    aten.relu.default: _relu,
    aten.relu6.default: lambda x: _clamp(x, 0.0, 6.0),
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda x, high: _clamp(x, None, high),
    aten.hardtanh.default: _hardtanh,
    aten.abs.default: _absolute,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.log1p.default: _log1p,
    aten.minimum.default: _smaller,
    aten.maximum.default: _larger,
    aten.square.default: lambda x: x * x,
    aten.pow.Scalar: lambda base, x: torch.exp(math.log(base) * x),
}
"""Those of this suite."""
