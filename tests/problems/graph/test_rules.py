"""Rules of operators: the Taylor coefficients of f(x(h)) against nested forward-mode differentiation.

Normalisations are compared with their formulas: torch's nested derivatives of its layer norm are wrong.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from problems.graph import NoRuleError, Traced
from problems.graph.trace import traceable
from problems.series import Series, exp

ORDERS = 4


def moving():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(ORDERS)]


def along(function, path):
    """The Taylor coefficients of a function along a polynomial path, by nested Jacobian-vector products."""

    def at(h):
        return function(sum(c * h**k for k, c in enumerate(path)))

    def slope(f):
        return lambda h: torch.func.jvp(f, (h,), (torch.ones_like(h),))[1]

    found, f, factorial = [], at, 1.0
    zero = torch.zeros((), dtype=torch.float64)
    for j in range(len(path)):
        found.append(f(zero) / factorial)
        f, factorial = slope(f), factorial * (j + 1)
    return found


def pushed(function, path):
    expansion = Traced(function, path[:1]).expand()
    with torch.no_grad():
        return [expansion.push(c) for c in path]


def in_place(x):
    y = x.clone()
    y[:, 0] = 2.0 * x[:, 1]
    y[:, 1] = y[:, 0] * x[:, 2]
    return y.add_(1.0).mul_(x)


def normalised(x, axes, eps=1e-5):
    centred = x - x.mean(axes, keepdim=True)
    return centred * ((centred * centred).mean(axes, keepdim=True) + eps) ** -0.5


def seeded(module):
    generator = torch.Generator().manual_seed(1)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return module.double().eval().requires_grad_(False)


ONES = torch.ones(6, 3, dtype=torch.float64)
FUNCTIONS = {
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid and tanh": lambda x: torch.sigmoid(x) * torch.tanh(2.0 * x),
    "exp, sin, cos": lambda x: torch.exp(-x) + torch.sin(x) * torch.cos(2.0 * x) + torch.expm1(0.5 * x),
    "log, erf": lambda x: torch.log(2.0 + x * x) + torch.erf(x) + torch.log1p(x * x),
    "roots": lambda x: torch.sqrt(1.0 + x**2) * torch.rsqrt(2.0 + x.square()) + (1.0 + x * x) ** -1.3,
    "cube": lambda x: x**3 + 2.0**x * x.pow(1),
    "mish, softplus": lambda x: F.mish(x) + F.softplus(x) + F.logsigmoid(x),
    "hardswish, elu, selu": lambda x: F.hardswish(x) + F.elu(x) * F.selu(x),
    "kinks": lambda x: F.relu(x) * x + F.leaky_relu(x, 0.2) + x.clamp(-1.0, 1.0) * F.relu6(x) + x.abs() ** 3,
    "minimum, maximum": lambda x: torch.minimum(x, x * x) * torch.maximum(x, 0.5 - x),
    "where": lambda x: torch.where(x > 0.3, x * x, 0.1) + torch.where(x < 0.0, 1.0, x),
    "quotients": lambda x: x / (2.0 + x * x) + 1.0 / (3.0 + x) + torch.reciprocal(2.0 + x * x) + x / 3.0,
    "differences": lambda x: (1.0 - x) * (x - torch.ones(4, 1, 1, dtype=torch.float64)) - torch.sub(2.0, x),
    "softmax": lambda x: torch.softmax(3.0 * x, -1) + torch.log_softmax(x, 1) - torch.logsumexp(x, 2, True),
    "attention": lambda x: F.scaled_dot_product_attention(x, 2.0 * x, x * x),
    "products of matrices": lambda x: torch.einsum("bchw,bdhw->bcd", x, x * x) @ x.flatten(2),
    "fixed matrices": lambda x: ONES.T @ x @ ONES,
    "affine maps": lambda x: F.linear(x, ONES.T, torch.arange(3.0, dtype=torch.float64)),
    "moving affine maps": lambda x: torch.addmm(x[0, 0], x[0, 1], x[1, 2]),
    "moving bias": lambda x: (
        torch.addmm(x[0, 0, :, :3], x[0, 1], ONES) + torch.addmm(x[0, 0, :, :3], ONES, ONES.T[:, :3])
    ),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[1], x[0] * x[1]),
    "expanded": lambda x: torch.ones(2, 1, 1, 1, dtype=torch.float64) + x.mean((2, 3), keepdim=True),
    "joined": lambda x: torch.cat([x, torch.ones_like(x), x * x], 1).chunk(2, 1)[1],
    "stacked": lambda x: torch.stack([x, 2.0 * x * x], 0).sum(0).roll(1, 2).flip(3),
    "padded": lambda x: F.pad(x, (1, 0, 2, 1), value=3.0) + F.pad(x, (1, 0, 2, 1), mode="reflect") ** 2,
    "pooled": lambda x: F.max_pool2d(x * x, 2) + F.avg_pool2d(x, 2) * F.adaptive_avg_pool2d(x, 1),
    "extremes": lambda x: (x - x.amax(1, keepdim=True)) * x.amin((2, 3))[:, :, None, None],
    "resampled": lambda x: (
        F.interpolate(x * x, scale_factor=2, mode="nearest")
        + F.interpolate(x, scale_factor=2, mode="bilinear")
    ),
    "shuffled": lambda x: F.pixel_shuffle(x * x, 2).repeat(1, 4, 1, 1),
    "unfolded": lambda x: F.unfold(x * x, 3),
    "cumulative": lambda x: x.cumsum(1) * x.movedim(1, -1).movedim(-1, 1).contiguous(),
    "moments": lambda x: (
        x.std(dim=1, keepdim=True) + x.var(dim=(1, 2, 3), keepdim=True) * x.norm(dim=-1, keepdim=True)
    ),
    "in place": in_place,
    "constant": lambda x: 0.0 * x + 1.0,
    "rotary": lambda x: torch.cat([-x[..., 3:], x[..., :3]], -1) * x,
    "masked": lambda x: x.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf).softmax(-1),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_is_expanded_as_nested_forward_mode_does(function):
    path = moving()
    with traceable(), torch.enable_grad():
        expected = along(function, path)
    for j, (found, truth) in enumerate(zip(pushed(function, path), expected, strict=True)):
        assert torch.allclose(found, truth, rtol=1e-11, atol=1e-11 * float(truth.abs().max() + 1.0)), j


MODULES = {
    "group norm": (nn.GroupNorm(2, 4), lambda x: normalised(x.view(2, 2, 2, 6, 6), (2, 3, 4)).view(x.shape)),
    "layer norm": (nn.LayerNorm((6, 6)), lambda x: normalised(x, (2, 3))),
    "layer norm of one axis": (nn.LayerNorm(6), lambda x: normalised(x, (3,))),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), lambda x: normalised(x, (2, 3))),
    "RMS norm": (nn.RMSNorm(6, eps=1e-5), lambda x: x * ((x * x).mean(-1, keepdim=True) + 1e-5) ** -0.5),
}


@pytest.mark.parametrize(("module", "formula"), MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_expanded_as_its_formula(module, formula, affine):
    module, path = seeded(module), moving()

    def written(x):
        if not affine:
            return formula(x)
        shape = (1, 4, 1, 1) if module.weight.shape == (4,) else module.weight.shape
        bias = getattr(module, "bias", None)
        return formula(x) * module.weight.view(shape) + (0.0 if bias is None else bias.view(shape))

    plain = module
    if not affine:
        plain = seeded(type(module)(*(v for v in vars_of(module)), **NO_WEIGHTS[type(module)]))
    for found, truth in zip(pushed(plain, path), along(written, path), strict=True):
        assert torch.allclose(found, truth, rtol=1e-10, atol=1e-10 * float(truth.abs().max()))


NO_WEIGHTS = {
    nn.GroupNorm: {"affine": False},
    nn.LayerNorm: {"elementwise_affine": False},
    nn.InstanceNorm2d: {"affine": False},
    nn.RMSNorm: {"elementwise_affine": False, "eps": 1e-5},
}


def vars_of(module):
    if isinstance(module, nn.GroupNorm):
        return module.num_groups, module.num_channels
    if isinstance(module, nn.InstanceNorm2d):
        return (module.num_features,)
    return (module.normalized_shape,)


LAYERS = {
    "strided convolution": nn.Conv2d(4, 3, 3, stride=2, padding=1),
    "grouped convolution": nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "transposed convolution": nn.ConvTranspose2d(4, 2, 4, 2, 1),
    "patches to an image": nn.ConvTranspose2d(4, 2, (2, 3), (2, 3)),
    "batch norm": nn.BatchNorm2d(4),
    "PReLU": nn.PReLU(),
    "dropout": nn.Dropout(0.5),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_expanded_as_nested_forward_mode_does(layer):
    layer, path = seeded(layer), moving()
    for found, truth in zip(pushed(layer, path), along(layer, path), strict=True):
        assert torch.allclose(found, truth, rtol=1e-11, atol=1e-11)


def test_a_transformer_layer_is_expanded_as_its_parts():
    torch.manual_seed(0)
    layer = seeded(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"))
    attention = layer.self_attn

    def by_hand(x):
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = [part.view(2, 5, 2, 4).transpose(1, 2) for part in (q, k, v)]
        weights = torch.softmax(heads[0] @ heads[1].mT / 2.0, -1)
        mixed = (weights @ heads[2]).transpose(1, 2).reshape(2, 5, 8)
        h = x + F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
        h = normalised(h, (2,)) * layer.norm1.weight + layer.norm1.bias
        out = layer.linear2(F.gelu(layer.linear1(h)))
        return normalised(h + out, (2,)) * layer.norm2.weight + layer.norm2.bias

    path = [torch.randn(2, 5, 8, dtype=torch.float64) for _ in range(ORDERS)]
    for found, truth in zip(pushed(layer, path), along(by_hand, path), strict=True):
        assert torch.allclose(found, truth, rtol=1e-10, atol=1e-10)


def test_the_softmax_is_expanded_to_high_order_as_its_formula():
    generator = torch.Generator().manual_seed(0)
    path = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(6)]
    exponentials = exp(Series(path))
    formula = exponentials / Series([c.sum(-1, keepdim=True) for c in exponentials.coefficients])
    found = pushed(lambda x: torch.softmax(x, -1), path)
    for a, b in zip(found, formula.coefficients, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


def test_what_stays_is_not_expanded():
    """f(x, y) = x·y² with y fixed for a path, and another y for the next."""
    x, dx = torch.randn(3), torch.randn(3)
    graph = Traced(lambda x, y: x * (y * y), [x], [torch.ones(3)])
    for y in (torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)):
        expansion = graph.expand(y)
        assert torch.allclose(expansion.push(x), x * y * y)
        assert torch.allclose(expansion.push(dx), dx * y * y)


def test_an_embedding_of_labels_stays_and_weights_are_constants():
    table = nn.Embedding(5, 3)
    graph = Traced(lambda x, y: x * table(y), [torch.ones(2, 3)], [torch.tensor([0, 1])])
    expansion = graph.expand(torch.tensor([4, 2]))
    assert torch.equal(expansion.push(torch.ones(2, 3)), table.weight[[4, 2]])
    assert torch.equal(expansion.push(2.0 * torch.ones(2, 3)), 2.0 * table.weight[[4, 2]])


def test_two_inputs_move():
    x, y = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expansion = Traced(lambda x, y: x * torch.exp(y), [x, y]).expand()
    expansion.push(x, y)
    assert torch.allclose(expansion.push(y, x), y * y.exp() + x * x * y.exp())


def test_casts_to_a_lower_precision_only_round():
    x = torch.randn(3, dtype=torch.float64)
    found = Traced(lambda x: torch.sin(x.float()).to(x), [x]).expand().push(x)
    assert torch.allclose(found, torch.sin(x), rtol=1e-15)


REFUSED = {
    "a table of the time": (lambda x: torch.arange(9.0)[x.abs().long().clamp(0, 8)], "aten._to_copy"),
    "a fourier transform": (lambda x: torch.fft.rfft(x).real, "aten._fft_r2c"),
    "a norm of order 1": (lambda x: x.norm(p=1, dim=-1), r"aten.linalg_vector_norm.default of order 1"),
    "rounding": (lambda x: x.round() * x, "aten.round"),
    "sorting": (lambda x: x.sort().values, "aten.sort"),
    "a scale that moves": (lambda x: F.group_norm(x, 1, x[0, :, 0, 0]), "aten.native_group_norm"),
    "weights that move": (lambda x: F.conv2d(x, x[:, :, :3, :3]), "aten.convolution"),
}


@pytest.mark.parametrize(("function", "name"), REFUSED.values(), ids=REFUSED)
def test_an_operator_without_a_rule_is_named(function, name):
    x = torch.ones(2, 2, 4, 4)
    with pytest.raises(NoRuleError, match=name) as error:
        Traced(function, [x]).expand().push(x)
    assert "methods that need no derivatives still run" in str(error.value)
