"""Rules of functions of one variable, of normalisations and of the softmax.

For f(x(h)) with d = f'(x(h)), coefficient j is Σ_{i=1..j} (i/j) xᵢ d_{j-i} (Griewank & Walther 2008, ch. 13).
The last term is linear in xⱼ. Torch's kernels for the backward pass compute it, because the Jacobians of
these functions are symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from problems.graph.calls import Call, NoRuleError, Push, Rule
from problems.normaliser import Normaliser
from problems.series import Series, cos, erf, exp, power, sigmoid, sin, tanh

aten = torch.ops.aten

Map = Callable[[Tensor], Tensor]

Bend = Callable[[Tensor], tuple[Map, Map]]
"""Takes x₀; returns x ↦ f'(x₀) x and x ↦ ½ f''(x₀) x, whose results are new tensors."""


def pointwise(slope: Callable[[Series], Series], bend: Bend | None = None) -> Rule:
    """Return the rule of a function of one variable.

    Parameters
    ----------
    slope
        f' as a function of series.
    bend
        A cheaper way to the first two derivatives at one point.
    """

    def rule(call: Call) -> Push:
        path: list[Tensor] = []
        slopes: list[Any] = []
        maps: list[Map] = []

        def push(x: Tensor) -> Tensor:
            path.append(x)
            j = len(path) - 1
            if j == 0:
                value: Tensor = call.value(x)
                return value
            if bend is not None and not maps:
                maps.extend(bend(path[0]))
            if maps and j < 3:
                total = maps[0](x)
                return total if j == 1 else total.addcmul_(maps[1](path[1]), path[1])
            if len(slopes) < j:
                slopes[:] = slope(Series(path[:j])).coefficients
            total = torch.as_tensor(slopes[0] * x)
            for i in range(1, j):
                rate = slopes[j - i]
                if isinstance(rate, Tensor):
                    total.addcmul_(path[i], rate, value=i / j)
                else:
                    total.add_(path[i], alpha=rate * i / j)
            return total

        return push

    return rule


def _gelu(call: Call) -> Push:
    if call.kwargs.get("approximate", "none") == "tanh":
        return pointwise(_gelu_tanh_slope, _gelu_tanh_bend)(call)
    return pointwise(_gelu_slope, _gelu_bend)(call)


def _silu_slope(x: Series) -> Series:
    s = sigmoid(x)
    return s + x * (s - s * s)


def _silu_bend(at: Tensor) -> tuple[Map, Map]:
    """With s = sigmoid(x), w = s (1 - s): f' = s + x w by torch's kernel, ½ f'' = w + ½ x w (1 - 2 s)."""

    def second(x: Tensor) -> Tensor:
        s = torch.sigmoid(at)
        rate: Tensor = aten.sigmoid_backward(x, s)
        change = torch.addcmul(rate, rate, s, value=-2.0)
        return rate.addcmul_(at, change, value=0.5)

    return lambda x: aten.silu_backward(x, at), second


def _gelu_bend(at: Tensor) -> tuple[Map, Map]:
    """f' = Φ(x) + x φ(x) by torch's kernel, ½ f'' = φ(x) (1 - ½ x²)."""

    def second(x: Tensor) -> Tensor:
        square = at * at
        bell = (square * -0.5).exp_()
        return square.neg_().add_(2.0).mul_(bell).mul_(0.5 / math.sqrt(2.0 * math.pi)).mul_(x)

    return lambda x: aten.gelu_backward(x, at), second


def _gelu_tanh_bend(at: Tensor) -> tuple[Map, Map]:
    """With T = tanh u, w = ½ (1 - T²) u': f' = ½ (1 + T) + x w, ½ f'' = w + x (¼ u'' (1 - T²) - T u' w)."""
    rate = math.sqrt(2.0 / math.pi)
    square = at * at
    th = (square * (0.044715 * rate)).add_(rate).mul_(at).tanh_()
    rise = square.mul_(0.0670725 * rate).add_(0.5 * rate)
    sech = (th * th).neg_().add_(1.0)
    w = sech * rise
    first = (th * 0.5).add_(0.5).addcmul_(at, w)

    def second(x: Tensor) -> Tensor:
        inner = (sech * at).mul_(0.0670725 * rate).addcmul_(th * rise, w, value=-2.0)
        return torch.addcmul(w, inner, at).mul_(x)

    return first.mul, second


def _sigmoid_slope(x: Series) -> Series:
    s = sigmoid(x)
    return s - s * s


def _tanh_slope(x: Series) -> Series:
    th = tanh(x)
    return 1.0 - th * th


def _gelu_slope(x: Series) -> Series:
    """Return Φ(x) + x φ(x), with the distribution function and density of the standard normal."""
    density = exp(-0.5 * (x * x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return 0.5 * erf(x * math.sqrt(0.5)) + 0.5 + x * density


def _gelu_tanh_slope(x: Series) -> Series:
    """Return the derivative of x (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³)."""
    rate, cubic, square = math.sqrt(2.0 / math.pi), 0.044715, x * x
    th = tanh(rate * (x + cubic * (square * x)))
    return 0.5 * th + 0.5 + 0.5 * x * (1.0 - th * th) * (rate + 3.0 * rate * cubic * square)


def _power(call: Call) -> Push:
    """x to a fixed power; by products where the power is a small whole number, so that x may be zero."""
    base, exponent = call.args
    if not isinstance(base, Node) or isinstance(exponent, Node):
        raise NoRuleError(call.target, "with an exponent that moves")
    return pointwise(lambda x: float(exponent) * power(x, float(exponent) - 1.0))(call)


def _root(exponent: float) -> Rule:
    return pointwise(lambda x: exponent * power(x, exponent - 1.0))


def softmax(call: Call) -> Push:
    """p = exp(x)/Σ exp(x), from p' = p (x' - ⟨p, x'⟩).

    With mᵢ = Σ_{k=1..i} ⟨p_{i-k}, k x_k⟩ and uᵢ = i xᵢ - mᵢ, j p_j = Σ_{i=1..j} p_{j-i} uᵢ. Coefficient 2 is
    what coefficient 1 would be with x₂ + ½ u₁² in place of x₁.
    """
    dim = call.args[1]
    path: list[Tensor] = []
    values: list[Tensor] = []
    slopes: list[Tensor] = []

    def centred(weighted: Tensor) -> Tensor:
        """Return p₀ (x - ⟨p₀, x⟩), given p₀ x, which is overwritten."""
        return weighted.addcmul_(values[0], weighted.sum(dim, keepdim=True), value=-1.0)

    def slope(i: int) -> Tensor:
        total = sum((values[i - k] * (k * path[k])).sum(dim, keepdim=True) for k in range(1, i + 1))
        return i * path[i] - total

    def push(x: Tensor) -> Tensor:
        j = len(values)
        path.append(x)
        if j == 0:
            value = torch.softmax(x, dim)
        elif j == 1:
            value = centred(values[0] * x)
        elif j == 2:
            slopes.append(path[1] - (values[0] * path[1]).sum(dim, keepdim=True))
            value = centred((slopes[0] * slopes[0]).mul_(0.5).add_(x).mul_(values[0]))
        else:
            slopes.extend(slope(i) for i in range(len(slopes) + 1, j + 1))
            value = values[0] * slopes[j - 1]
            for i in range(1, j):
                value.addcmul_(values[j - i], slopes[i - 1])
            value.div_(j)
        values.append(value)
        return value

    return push


def group_norm(call: Call) -> Push:
    """Normalisation over groups of channels; the affine part is fixed."""
    _, weight, bias, n, channels, size, groups, eps = call.args
    _only_states_move(call)
    return _normalised(weight, bias, n, channels, size, groups, eps)


def _only_states_move(call: Call) -> None:
    if call.moving != [call.args[0]]:
        raise NoRuleError(call.target, "with weights that move")


def instance_norm(call: Call) -> Push:
    """Batch normalisation: an affine map in evaluation, a normalisation of each channel in training."""
    _, weight, bias, mean, variance, *rest = call.args
    eps = rest[-1]
    _only_states_move(call)
    if len(rest) == 2 or not rest[0]:
        return _fixed_norm(weight, bias, mean, variance, eps)
    pushes: list[Push] = []

    def push(x: Tensor) -> tuple[Any, ...]:
        n, channels = x.shape[:2]
        if n != 1:
            raise NoRuleError(call.target, "in training mode over a batch")
        if not pushes:
            size = math.prod(x.shape[2:])
            pushes.append(_normalised(weight, bias, n, channels, size, channels, eps))
        value: tuple[Any, ...] = pushes[0](x)
        return value

    return push


def _fixed_norm(weight: Any, bias: Any, mean: Tensor, variance: Tensor, eps: float) -> Push:
    gain = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - gain * mean
    first = True

    def push(x: Tensor) -> tuple[Any, ...]:
        nonlocal first
        shape = (1, -1, *([1] * (x.ndim - 2)))
        value = x * gain.view(shape)
        if first:
            value = value + shift.view(shape)
            first = False
        return value, None, None

    return push


def _normalised(weight: Any, bias: Any, n: int, channels: int, size: int, groups: int, eps: float) -> Push:
    memory = Normaliser(groups)
    about = (n, channels, size, groups)

    def push(x: Tensor) -> tuple[Any, ...]:
        x = x.contiguous()
        if not memory.path:
            value, memory.mean, memory.scale = torch.native_group_norm(x, weight, bias, *about, eps)
        else:
            value, _, _ = aten.native_group_norm_backward(
                x, memory.path[0], memory.mean, memory.scale, None, *about, [True, False, False]
            )
            if len(memory.path) > 1:
                memory.add_rest(value)
            if weight is not None:
                value = value * weight.view(-1, *([1] * (x.ndim - 2)))
        memory.path.append(x)
        return value, None, None

    return push


def layer_norm(call: Call) -> Push:
    """Normalisation over the last axes; the affine part is fixed."""
    _, shape, weight, bias, eps = call.args
    _only_states_move(call)
    memory = Normaliser(1)
    axes = len(shape)

    def push(x: Tensor) -> tuple[Any, ...]:
        x = x.contiguous()
        rows = x.reshape(math.prod(x.shape[: x.ndim - axes]), -1)
        if not memory.path:
            value, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
            memory.mean, memory.scale = mean.reshape(-1, 1), scale.reshape(-1, 1)
            memory.path.append(rows)
            return value, None, None
        first = memory.path[0].view_as(x)
        places = (*x.shape[: x.ndim - axes], *([1] * axes))
        value, _, _ = aten.native_layer_norm_backward(
            x,
            first,
            shape,
            memory.mean.view(places),
            memory.scale.view(places),
            None,
            None,
            [True, False, False],
        )
        if len(memory.path) > 1:
            memory.add_rest(value)
        memory.path.append(rows)
        return value if weight is None else value * weight, None, None

    return push


RULES: dict[Any, Rule] = {
    aten.silu.default: pointwise(_silu_slope, _silu_bend),
    aten.gelu.default: _gelu,
    aten.sigmoid.default: pointwise(_sigmoid_slope),
    aten.tanh.default: pointwise(_tanh_slope),
    aten.exp.default: pointwise(exp),
    aten.expm1.default: pointwise(exp),
    aten.exp2.default: pointwise(lambda x: math.log(2.0) * exp(math.log(2.0) * x)),
    aten.log.default: pointwise(lambda x: 1.0 / x),
    aten.sin.default: pointwise(cos),
    aten.cos.default: pointwise(lambda x: -sin(x)),
    aten.erf.default: pointwise(lambda x: 2.0 / math.sqrt(math.pi) * exp(-1.0 * (x * x))),
    aten.sqrt.default: _root(0.5),
    aten.rsqrt.default: _root(-0.5),
    aten.pow.Tensor_Scalar: _power,
    aten._softmax.default: softmax,
    aten._safe_softmax.default: softmax,
    aten.native_group_norm.default: group_norm,
    aten.native_layer_norm.default: layer_norm,
    aten.native_batch_norm.default: instance_norm,
    aten._native_batch_norm_legit.default: instance_norm,
    aten._native_batch_norm_legit_no_training.default: instance_norm,
}
"""The rule of every operator of these kinds."""
