"""Rules of functions of one variable, of normalisations and of the softmax.

Their series are in ``problems.pointwise``, ``problems.normaliser`` and ``problems.products``, which the
suite's own layers use too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from problems.graph.calls import Call, NoRuleError, Push, Rule
from problems.normaliser import normalised_axes, normalised_groups
from problems.pointwise import Composed, Expanded, gelu, gelu_by_tanh, series_terms, silu
from problems.products import softmaxed
from problems.series import Series, cos, exp, power, sigmoid, sin, tanh

aten = torch.ops.aten


def pointwise(slope: Callable[[Series], Series]) -> Rule:
    """Return the rule of a function of one variable, given its derivative as a function of series."""
    return lambda call: Composed(lambda x: (call.value(x), series_terms(slope, x))).push


def _activation(expanded: Expanded) -> Rule:
    return lambda _: Composed(expanded).push


def _gelu(call: Call) -> Push:
    by_tanh = call.kwargs.get("approximate", "none") == "tanh"
    return Composed(gelu_by_tanh if by_tanh else gelu).push


def _sigmoid_slope(x: Series) -> Series:
    s = sigmoid(x)
    return s - s * s


def _tanh_slope(x: Series) -> Series:
    th = tanh(x)
    return 1.0 - th * th


def _power(call: Call) -> Push:
    """x to a fixed power; by products where the power is a small whole number, so that x may be zero."""
    base, exponent = call.args
    if not isinstance(base, Node) or isinstance(exponent, Node):
        raise NoRuleError(call.target, "with an exponent that moves")
    return pointwise(lambda x: float(exponent) * power(x, float(exponent) - 1.0))(call)


def _root(exponent: float) -> Rule:
    return pointwise(lambda x: exponent * power(x, exponent - 1.0))


def softmax(call: Call) -> Push:
    """p = exp(x)/Σ exp(x)."""
    return softmaxed(call.args[1])


def group_norm(call: Call) -> Push:
    """Normalisation over groups of channels; the affine part is fixed."""
    _, weight, bias, *_, groups, eps = call.args
    _only_states_move(call)
    return _first_of_three(normalised_groups(groups, weight, bias, eps))


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

    def push(x: Tensor) -> tuple[Tensor, None, None]:
        if x.shape[0] != 1:
            raise NoRuleError(call.target, "in training mode over a batch")
        if not pushes:
            pushes.append(normalised_groups(x.shape[1], weight, bias, eps))
        return pushes[0](x), None, None

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


def layer_norm(call: Call) -> Push:
    """Normalisation over the last axes; the affine part is fixed."""
    _, shape, weight, bias, eps = call.args
    _only_states_move(call)
    return _first_of_three(normalised_axes(shape, weight, bias, eps))


def _first_of_three(push: Push) -> Push:
    return lambda x: (push(x), None, None)


RULES: dict[Any, Rule] = {
    aten.silu.default: _activation(silu),
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
