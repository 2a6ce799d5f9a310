"""Coefficients of layers against values of mpmath, and what a tape must keep apart."""

import pytest
import torch
from mpmath import mp, mpf
from torch import nn
from torch.nn import functional

from problems.images.layers import Attention, Conv, Dense, GroupNorm, SiLU, Tape, nestable, product, softmax
from problems.images.unet import Block
from tests.networks import randomised

F64 = torch.float64
LENGTH = 7
IMAGES = (2, 8, 2, 2)


def path(shape=IMAGES, seed=0, length=LENGTH):
    """Coefficients of a path: of order one, so that no order hides behind another."""
    return list(torch.randn(length, *shape, generator=torch.Generator().manual_seed(seed), dtype=F64))


def through(layer, coefficients, tape=None):
    """The coefficients of the output of a layer."""
    tape, outputs = tape or Tape(), []
    for c in coefficients:
        tape.advance()
        outputs.append(layer(c, tape))
    return outputs


def exact(f, coefficients):
    """Taylor coefficients of f(x(h)) by Cauchy's integral; f maps lists of complex numbers of mpmath.

    With n nodes on a circle of radius r, coefficient j + n comes in with rⁿ: at 1e-12 and 12 nodes, nothing.
    """
    n, radius = 12, mpf(10) ** -12
    with mp.workdps(150):
        columns = [[mpf(v) for v in c] for c in torch.stack(coefficients).flatten(1).T.tolist()]
        nodes = [radius * mp.expjpi(mpf(2 * m) / n) for m in range(n)]
        values = [f([mp.polyval(c[::-1], h) for c in columns]) for h in nodes]
        entries = list(zip(*values, strict=True))
        rows = [
            [float(mp.re(mp.fsum(v / h**j for v, h in zip(e, nodes, strict=True))) / n) for e in entries]
            for j in range(len(coefficients))
        ]
    return torch.tensor(rows, dtype=F64).view(len(coefficients), *coefficients[0].shape)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def silu(values):
    return [v / (1 + mp.exp(-v)) for v in values]


def group_norm(layer):
    """Normalisation of Wu & He (2018), typed: the groups of a sample lie one after the other."""
    _, channels, height, width = IMAGES
    size = channels // layer.num_groups * height * width

    def f(values):
        out = []
        for first in range(0, len(values), size):
            group = values[first : first + size]
            mean = mp.fsum(group) / size
            variance = mp.fsum((v - mean) ** 2 for v in group) / size
            for k, v in enumerate(group):
                channel = (first + k) // (height * width) % channels
                gain, bias = mpf(float(layer.weight[channel])), mpf(float(layer.bias[channel]))
                out.append(gain * (v - mean) / mp.sqrt(variance + mpf(layer.eps)) + bias)
        return out

    return f


def normalisation(groups):
    return randomised(nn.ModuleDict({"norm": GroupNorm(groups, IMAGES[1])}))["norm"]


def test_coefficients_of_silu():
    """A recurrence of seven terms of order one: a few roundings of 1e-16 each."""
    x = path((3, 5))
    for value, truth in zip(through(SiLU(), x), exact(silu, x), strict=True):
        assert relative(value, truth) <= 2e-15


@pytest.mark.parametrize("shift", [-30.0, 30.0])
def test_coefficients_of_silu_far_out(shift):
    """Where the sigmoid is saturated: s - s² is off by a rounding of 1, and the slope by 30 of them."""
    x = path((3, 5))
    x[0] = x[0] + shift
    for value, truth in zip(through(SiLU(), x), exact(silu, x), strict=True):
        assert relative(value, truth) <= 2e-14


def test_coefficients_of_the_softmax():
    """The one row of three scores: exp(x)/Σ exp(x), typed."""

    def typed(values):
        powers = [mp.exp(v) for v in values]
        return [p / mp.fsum(powers) for p in powers]

    x = path((3,))
    for value, truth in zip(through(softmax, x), exact(typed, x), strict=True):
        assert relative(value, truth) <= 5e-15


def test_coefficients_of_a_product_are_those_of_the_product_of_polynomials():
    x, y = path((2, 3)), path((3, 2), seed=1)
    tape, values = Tape(), []
    for a, b in zip(x, y, strict=True):
        tape.advance()
        values.append(product(torch.matmul, a, b, tape))
    for j, value in enumerate(values):
        assert relative(value, sum(x[i] @ y[j - i] for i in range(j + 1))) <= 1e-15
    assert torch.equal(product(torch.matmul, x[0], y[0], None), values[0])


def test_attention_is_torchs():
    """Torch's own layer of two heads, given the same weights, with the residual connection around it."""
    layer = randomised(Attention(128))
    peer = nn.MultiheadAttention(128, 2, batch_first=True, dtype=F64).requires_grad_(False)
    peer.in_proj_weight.copy_(layer.ask.weight[:, :, 0, 0])
    peer.in_proj_bias.copy_(layer.ask.bias)
    peer.out_proj.weight.copy_(layer.out.weight[:, :, 0, 0])
    peer.out_proj.bias.copy_(layer.out.bias)
    x = path((2, 128, 2, 3))[0]
    places = layer.norm(x).flatten(2).transpose(1, 2)
    truth = x + peer(places, places, places)[0].transpose(1, 2).reshape(x.shape)
    assert relative(layer(x), truth) <= 1e-14


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_coefficients_of_group_norm(groups):
    """Sums of up to seven products of three coefficients each: a few tens of roundings of 1e-16."""
    layer, x = normalisation(groups), path()
    for value, truth in zip(through(layer, x), exact(group_norm(layer), x), strict=True):
        assert relative(value, truth) <= 5e-15


def test_group_norm_of_a_path_on_a_line_through_the_origin():
    """Scaling the input changes nothing but by ε: all coefficients after the first vanish with it."""
    layer, x = normalisation(2), path()
    layer.eps = 1e-30
    for value in through(layer, [x[0], 0.3 * x[0], -0.2 * x[0], 0.7 * x[0]])[1:]:
        assert value.abs().max() <= 1e-14


@pytest.mark.parametrize("make", [lambda: Conv(8, 4), lambda: Conv(8, 4, 1)])
def test_convolutions_map_each_coefficient_and_add_the_bias_once(make):
    layer, x = randomised(make()), path()
    plain = functional.conv2d(x[0], layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
    bias = layer.bias[:, None, None]
    assert torch.equal(layer(x[0]), plain)
    values = through(layer, [x[0]] * 3)
    assert torch.equal(values[0], plain)
    for value in values[1:]:
        assert torch.allclose(value, plain - bias, rtol=0.0, atol=1e-14)


def test_dense_layers_map_each_coefficient_and_add_the_bias_once():
    layer, x = randomised(Dense(5, 3)), path((4, 5))
    values = through(layer, x)
    assert torch.equal(layer(x[0]), values[0])
    assert relative(values[0], x[0] @ layer.weight.T + layer.bias) <= 1e-15
    for value, c in zip(values[1:], x[1:], strict=True):
        assert relative(value, c @ layer.weight.T) <= 1e-15


@pytest.mark.parametrize("make", [SiLU, lambda: normalisation(4), lambda: randomised(Conv(8, 8))])
def test_without_a_tape_a_layer_is_torchs(make):
    layer, x = make(), path()[0]
    truth = {
        SiLU: lambda: functional.silu(x),
        GroupNorm: lambda: functional.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps),
        Conv: lambda: functional.conv2d(x, layer.weight, layer.bias, padding=1),
    }[type(layer)]()
    assert torch.equal(layer(x), truth)
    assert relative(through(layer, [x])[0], truth) <= 1e-15


@pytest.mark.parametrize("make", [SiLU, lambda: normalisation(4), lambda: randomised(Conv(8, 8))])
def test_float32_stays_float32_and_is_right_to_its_digits(make):
    """A few tens of roundings of 6e-8."""
    layer, x = make(), path()
    double, single = through(layer, x), through(layer.float(), [c.float() for c in x])
    for a, b in zip(single, double, strict=True):
        assert a.dtype == torch.float32
        assert relative(a.double(), b) <= 2e-6


def test_memory_format_does_not_matter():
    layer, x = normalisation(4), path()
    last = [c.contiguous(memory_format=torch.channels_last) for c in x]
    for a, b in zip(through(layer, last), through(layer, x), strict=True):
        assert relative(a, b) <= 1e-15


def block(**kind):
    return randomised(Block(8, 16, 8, **kind))


def pushed(network, coefficients, embedding, tape, between=lambda: None):
    values = []
    for c, e in zip(coefficients, embedding, strict=True):
        tape.advance()
        values.append(network(c, e, tape))
        between()
    return values


@pytest.mark.parametrize("kind", [{}, {"modulation": "scale-shift", "attention": True}], ids=repr)
def test_a_block_is_its_layers_one_after_the_other(kind):
    """Three derivatives of a residual block by nested forward mode, without a tape."""
    network, x, e = block(**kind), path(length=4), path((1, 8), seed=1, length=4)
    plain = nestable(block(**kind))

    def along(h):
        def at(c):
            return c[0] + h * (c[1] + h * (c[2] + h * c[3]))

        return plain(at(x), at(e))

    def slope(f):
        return lambda h: torch.func.jvp(f, (h,), (torch.ones_like(h),))[1]

    f, factorial, zero = along, 1.0, torch.zeros((), dtype=F64)
    for j, value in enumerate(pushed(network, x, e, Tape())):
        if j > 0:
            f, factorial = slope(f), factorial * j
        assert relative(value, f(zero) / factorial) <= 1e-13


def test_paths_do_not_disturb_each_other():
    """Two batches of different sizes and a plain evaluation, through one network, in turn."""
    network, other = block(), Tape()
    x, e = path(length=4), path((1, 8), seed=1, length=4)
    y = iter(path((5, 8, 2, 2), seed=3, length=4))
    alone = pushed(network, x, e, Tape())

    def between():
        other.advance()
        network(next(y), e[0], other)
        network(x[0], e[0])

    for a, b in zip(pushed(network, x, e, Tape(), between), alone, strict=True):
        assert torch.equal(a, b)


def test_a_path_that_stands_still_has_one_coefficient():
    network, x, e = block(), path(length=1), path((1, 8), seed=1, length=1)
    still = [torch.zeros_like(x[0])] * 3
    values = pushed(network, x + still, e + [torch.zeros_like(e[0])] * 3, Tape())
    assert relative(values[0], network(x[0], e[0])) <= 1e-15
    assert all(v.abs().max() == 0.0 for v in values[1:])


def test_coefficients_do_not_depend_on_those_that_follow():
    """Coefficient j is the same however many are asked for: each pass adds one and changes none."""
    network, x, e = block(), path(length=4), path((1, 8), seed=1, length=4)
    long, short = pushed(network, x, e, Tape()), pushed(network, x[:2], e[:2], Tape())
    assert all(torch.equal(a, b) for a, b in zip(long, short, strict=False))


def test_batches_and_single_embeddings_broadcast():
    """An embedding that moves for all alike, after labels made the first coefficient one per sample."""
    layer, x = SiLU(), [path((4, 5))[0], *path((1, 5), seed=1)[1:]]
    full = [c.expand(4, 5) for c in x]
    for a, b in zip(through(layer, x), through(layer, full), strict=True):
        assert torch.equal(a.expand(4, 5), b)


def test_nestable_changes_nothing_but_how_it_is_differentiated():
    network, x, e = block(), path(length=3), path((1, 8), seed=1, length=3)
    plain, jets = network(x[0], e[0]), pushed(network, x, e, Tape())
    nested = nestable(block())
    assert relative(nested(x[0], e[0]), plain) <= 1e-15
    assert all(torch.equal(a, b) for a, b in zip(pushed(nested, x, e, Tape()), jets, strict=True))
