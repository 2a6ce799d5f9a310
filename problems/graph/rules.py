"""Rules: how an operator of torch maps the Taylor coefficients of its arguments to those of its result.

A rule is given a call of an operator and returns a function that takes coefficient j of every moving argument
and returns coefficient j of the result, for j = 0, 1, … in turn.

Most operators are linear in what moves, so a coefficient is mapped like a value. A product is a convolution.
Functions of one variable, normalisations and the softmax are in ``functions``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from problems.graph import functions
from problems.graph.calls import Call, NoRuleError, Push, Rule
from problems.products import multiplied

aten = torch.ops.aten

# --- linear in what moves


def linear(call: Call) -> Push:
    """Each coefficient is mapped like a value."""
    return call.value


def cast(call: Call) -> Push:
    """Cast to another precision; a cast to integers has no derivative."""
    dtype = call.kwargs.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise NoRuleError(call.target, f"to make integers of what moves (dtype {dtype})")
    if dtype is not None:
        call.kwargs = {**call.kwargs, "dtype": torch.promote_types(dtype, call.dtype)}
    return call.value


def affine(*biases: int) -> Callable[[Call], Push]:
    """Linear but for arguments, by their places, that count for coefficient 0 only."""

    def zeroed(call: Call) -> list[Any]:
        args = list(call.args)
        for place in biases:
            if place < len(args) and not call.moves(place):
                args[place] = _zero(args[place])
        return args

    return lambda call: _twofold(call, zeroed)


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else None if value is None else 0.0


def _twofold(call: Call, later: Callable[[Call], Sequence[Any]]) -> Push:
    """Map coefficient 0 by the call, and all others by the call with other arguments."""
    first = True

    def push(*coefficients: Any) -> Any:
        nonlocal first
        value = call.value(*coefficients)
        if first:
            first, call.args = False, tuple(later(call))
        return value

    return push


def convolution(call: Call) -> Push:
    """Convolve with fixed weights; the bias counts for coefficient 0 only."""
    if len(call.moving) != 1 or not call.moves(0):
        raise NoRuleError(call.target, "with weights that move")
    return _twofold(call, lambda call: [*call.args[:2], None, *call.args[3:]])


def joined(call: Call) -> Push:
    """Concatenate; parts that stay as they are count for coefficient 0 only."""

    def zeroed(call: Call) -> list[Any]:
        parts = [p if isinstance(p, Node) else torch.zeros_like(p) for p in call.args[0]]
        return [parts, *call.args[1:]]

    return _twofold(call, zeroed)


def sums(call: Call) -> Push:
    """Return the rule of a ± αb; an addend that stays as it is counts for coefficient 0 only."""
    a, b = call.args[:2]
    if isinstance(a, Node) and isinstance(b, Node):
        return call.value
    factor = call.kwargs.get("alpha", 1) * (-1 if call.target is aten.sub.Tensor else 1)
    if isinstance(a, Node):
        factor = 1
    shape: torch.Size | None = None

    def push(x: Tensor) -> Tensor:
        nonlocal shape
        if shape is None:
            value: Tensor = call.value(x)
            shape = value.shape
            return value
        return (x if factor == 1 else factor * x).expand(shape)

    return push


def selection(call: Call) -> Push:
    """Where a settled condition holds, one argument, elsewhere the other."""
    if call.moves(0):
        raise NoRuleError(call.target, "with a condition that moves")
    return affine(1, 2)(call)


def masked(call: Call) -> Push:
    """Put a number in place of what a mask hides; it counts for coefficient 0 only."""
    return affine(2)(call)


# --- products


def product(call: Call) -> Push:
    """Multiply two arguments: mul, mm, bmm, mv."""
    a, b = call.args[:2]
    if not (isinstance(a, Node) and isinstance(b, Node)):
        return call.value
    return multiplied(call.target, same=a is b)


def biased_product(call: Call) -> Push:
    """Return the rule of bias + a b, of matrices; what does not move counts for coefficient 0 only."""
    if (call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)) != (1, 1):
        raise NoRuleError(call.target, "with factors")
    bias, a, b = call.args[:3]
    factors = [p for p in dict.fromkeys((a, b)) if isinstance(p, Node)]
    both = isinstance(a, Node) and isinstance(b, Node)
    times: Push = multiplied(torch.mm, same=a is b) if both else lambda x: _times(a, b, x)
    first = True

    def push(*coefficients: Tensor) -> Any:
        nonlocal first
        values = dict(zip(call.moving, coefficients, strict=True))
        terms = [times(*(values[p] for p in factors))] if factors else []
        if first and not factors:
            terms.append(torch.mm(a, b))
        if isinstance(bias, Node) or first:
            terms.append(values[bias] if isinstance(bias, Node) else bias)
        first = False
        return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])

    return push


def _times(a: Tensor | Node, b: Tensor | Node, x: Tensor) -> Tensor:
    """Return a b with ``x`` in place of the factor that moves."""
    return torch.mm(x if isinstance(a, Node) else a, x if isinstance(b, Node) else b)


def quotient(call: Call) -> Push:
    """a/b: from a = q b, q_j = (a_j - Σ_{i=1..j} bᵢ q_{j-i})/b₀."""
    a, b = call.args[:2]
    if call.kwargs.get("rounding_mode") is not None:
        raise NoRuleError(call.target, "with rounding")
    if not isinstance(b, Node):
        return call.value
    return _divided(a if not isinstance(a, Node) else None, same=a is b)


def _divided(numerator: Any, *, same: bool = False) -> Push:
    below: list[Tensor] = []
    values: list[Tensor] = []

    def push(*coefficients: Tensor) -> Tensor:
        below.append(coefficients[-1])
        j = len(values)
        if j == 0:
            values.append((coefficients[0] if numerator is None else numerator) / below[0])
        else:
            rest = coefficients[0] if numerator is None else 0.0
            for i in range(1, j + 1):
                rest = rest - below[i] * values[j - i]
            values.append(torch.as_tensor(rest / below[0]))
        return values[j]

    return push


def reciprocal(_: Call) -> Push:
    """Return 1/b, a quotient."""
    return _divided(1.0)


# --- others


def item(call: Call) -> Push:
    """Element of a tuple of results."""
    return call.value


def pooled(call: Call) -> Push:
    """Largest values in windows: where they are is settled by coefficient 0."""
    places: list[Tensor] = []

    def push(x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not places:
            value, where = call.value(x)
            places.append(where)
            return value, where
        where = places[0]
        return x.flatten(-2).gather(-1, where.flatten(-2)).view(where.shape), None

    return push


def extremes(call: Call) -> Push:
    """Largest or smallest values along axes: where they are is settled by coefficient 0."""
    mask: list[Tensor] = []
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", ())
    kept = bool(call.args[2]) if len(call.args) > 2 else call.kwargs.get("keepdim", False)

    def push(x: Tensor) -> Tensor:
        axes = list(dim) or list(range(x.ndim))
        if not mask:
            value: Tensor = call.value(x)
            whole = value if kept else _restored(value, axes, x.ndim)
            equal = (x == whole).to(x.dtype)
            mask.append(equal / equal.sum(axes, keepdim=True))
            return value
        return (x * mask[0]).sum(axes, keepdim=kept)

    return push


def _restored(value: Tensor, axes: list[int], ndim: int) -> Tensor:
    for axis in sorted(axis % ndim for axis in axes):
        value = value.unsqueeze(axis)
    return value


LINEAR = (
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default),
    *(aten.transpose.int, aten.t.default, aten.expand.default, aten.unsqueeze.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.slice.Tensor, aten.select.int),
    *(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.clone.default),
    *(aten.contiguous.default, aten.alias.default, aten.detach.default, aten.flip.default),
    *(aten.roll.default, aten.repeat.default, aten.diagonal.default, aten.unfold.default),
    *(aten.lift_fresh_copy.default, aten.index_select.default, aten.gather.default, aten.index.Tensor),
    aten._unsafe_index.Tensor,
    *(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.replication_pad1d.default),
    *(aten.replication_pad2d.default, aten.upsample_nearest1d.default, aten.upsample_nearest2d.default),
    *(aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.default, aten.upsample_bilinear2d.default),
    *(aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.default, aten.upsample_bicubic2d.vec),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default),
    *(aten.mean.default, aten.mean.dim, aten.sum.default, aten.sum.dim_IntList, aten.neg.default),
    *(aten.cumsum.default, aten.mul.Scalar, aten.div.Scalar, aten.tril.default, aten.triu.default),
    *(aten.im2col.default, aten.col2im.default, aten.as_strided.default, aten.channel_shuffle.default),
)
"""Operators that are linear in their one moving argument."""

RULES: dict[Any, Rule] = {
    **dict.fromkeys(LINEAR, linear),
    **dict.fromkeys((aten.mul.Tensor, aten.mm.default, aten.bmm.default, aten.mv.default), product),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar), sums),
    **dict.fromkeys((aten.cat.default, aten.stack.default), joined),
    **dict.fromkeys((aten.amax.default, aten.amin.default), extremes),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), masked),
    operator.getitem: item,
    aten._to_copy.default: cast,
    aten.constant_pad_nd.default: affine(2),
    aten.convolution.default: convolution,
    aten.where.self: selection,
    aten.addmm.default: biased_product,
    aten.div.Tensor: quotient,
    aten.div.Tensor_mode: quotient,
    aten.reciprocal.default: reciprocal,
    aten.max_pool2d_with_indices.default: pooled,
    aten.select_scatter.default: affine(0, 1),
    aten.slice_scatter.default: affine(0, 1),
    aten.copy.default: affine(0, 1),
}
"""The rule of every operator that has one."""

RULES.update(functions.RULES)

SETTLED = frozenset(
    (
        *(aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.lt.Scalar, aten.lt.Tensor),
        *(aten.le.Scalar, aten.le.Tensor, aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor),
        *(aten.sign.default, aten.isnan.default, aten.isinf.default, aten.zeros_like.default),
        *(aten.ones_like.default, aten.full_like.default, aten.empty_like.default),
        *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default),
    )
)
"""Operators whose result does not change along a path, or only jumps where a comparison changes."""
