"""Activations and norms along a path, against their formulas in power-series arithmetic."""

import math

import pytest
import torch

from problems.normaliser import normalised_axes, normalised_groups
from problems.pointwise import Composed, gelu, gelu_by_tanh, silu
from problems.series import Series, erf, power, sigmoid, tanh

LENGTH = 6


def path(*shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(LENGTH)]


def close(found, truth):
    for j, (a, b) in enumerate(zip(found, truth.coefficients, strict=True)):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12 * float(b.abs().max())), j


ACTIVATIONS = {
    "silu": (silu, lambda x: x * sigmoid(x)),
    "gelu": (gelu, lambda x: 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))),
    "gelu by tanh": (
        gelu_by_tanh,
        lambda x: 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x)))),
    ),
}


@pytest.mark.parametrize(("expanded", "formula"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_is_expanded_as_its_formula(expanded, formula):
    given = path(50)
    composed = Composed(expanded)
    close([composed.push(c) for c in given], formula(Series(given)))


@pytest.mark.parametrize("columns", [6, 2048])
@pytest.mark.parametrize("kind", ["groups", "axes"])
def test_a_norm_is_expanded_as_its_formula(kind, columns):
    """Short rows and long ones take their scalar products in different ways."""
    given, eps = path(3, columns), 1e-3
    centred = Series([c - c.mean(-1, keepdim=True) for c in given])
    square = Series([c.mean(-1, keepdim=True) for c in (centred * centred).coefficients])
    push = (
        normalised_groups(1, None, None, eps)
        if kind == "groups"
        else normalised_axes([columns], None, None, eps)
    )
    close([push(c) for c in given], centred * power(square + eps, -0.5))
