"""Networks as models: jets against nested automatic differentiation, closed forms, heads, bills."""

import functools
import math
from dataclasses import replace

import pytest
import torch

from problems import (
    DDIM,
    EDM,
    VE,
    VP,
    AnalyticFirst,
    Autodiff,
    Bill,
    CosineVP,
    Gaussian,
    Guided,
    GuidedHeads,
    Ideal,
    Preconditioned,
    ProbabilityFlow,
)
from problems.images import score as module
from problems.images.head import PARAMETERISATIONS, Head, HeadConfig
from problems.images.layers import nestable
from problems.images.score import Distilled, Learned
from problems.images.sources import samples
from problems.images.unet import EMBEDDINGS, PREDICTIONS, Config
from problems.posterior import Average
from problems.series import Series
from solvers import Taylor, final, grids, march
from tests.networks import TINY, head, network, states

F64 = torch.float64
CLASSES = replace(TINY, classes=3, data_std=0.7)
FORMS = {
    "ddim": DDIM,
    "probability flow": ProbabilityFlow,
    "data": lambda m: Preconditioned(m, 0.0),
    "preconditioned": lambda m: Preconditioned(m, m.data_std),
}


def agree(jet, other, tolerance=1e-13):
    """Sums of at most 144 terms in each of a dozen layers: some tens of roundings of 1e-16."""
    for a, b in zip(jet, other, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


# --- the jets


@pytest.mark.parametrize(("embedding", "prediction"), list(zip(EMBEDDINGS, PREDICTIONS, strict=True)))
def test_jets_are_those_of_nested_differentiation(embedding, prediction):
    """Every embedding and every prediction once: they meet in a product that does not know either."""
    model = Learned(network(replace(CLASSES, classes=0, embedding=embedding, prediction=prediction)))
    x = states(3)
    agree(model.jet(x, 0.4, 4), model.nested().jet(x, 0.4, 4))


def test_jets_of_patches_attention_and_scaled_embeddings():
    config = replace(CLASSES, size=8, colours=2, patch=2, attention=True, modulation="scale-shift")
    model, x = Learned(network(config), torch.tensor([2, 0, 1])), states(3, config)
    agree(model.jet(x, 0.4, 3), model.nested().jet(x, 0.4, 3))


def test_patches_are_the_channels_of_a_network_of_their_places():
    config = replace(TINY, size=8, patch=2)
    whole, of_places = network(config), network(replace(TINY, size=4, colours=4))
    assert {k: v.shape for k, v in whole.state_dict().items()} == {
        k: v.shape for k, v in of_places.state_dict().items()
    }
    x, gamma = states(3, config), torch.full((1, 1, 1, 1), 0.7, dtype=F64)

    def places(images):
        return torch.stack([images[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)

    assert torch.equal(places(whole(x, gamma)), of_places(places(x), gamma))


def test_jets_of_order_five():
    model, x = Learned(network()), states(1)
    agree(model.jet(x, 0.4, 5), model.nested().jet(x, 0.4, 5))


@pytest.mark.parametrize("labels", [None, 1, torch.tensor([2, 0, 1])])
@pytest.mark.parametrize(
    "t", [0.4, torch.tensor(0.4, dtype=F64), torch.tensor([0.2, 0.4, 0.6], dtype=F64)], ids=repr
)
def test_labels_and_times(labels, t):
    """A class for all or one each, a time for all or one each; the two are independent of each other."""
    model, x = Learned(network(CLASSES), labels), states(3)
    jet = model.jet(x, t, 3)
    agree(jet[:2], model.nested().jet(x, t, 2))
    times = torch.as_tensor(t, dtype=F64).expand(3).tolist()
    for i, time in enumerate(times):
        each = labels if labels is None or isinstance(labels, int) else int(labels[i])
        alone = Learned(network(CLASSES), each).jet(x[i : i + 1], time, 3)
        agree([d[i : i + 1] for d in jet], alone)


@pytest.mark.parametrize("schedule", [CosineVP(), VE(), EDM(start=3.0)])
def test_other_schedules(schedule):
    model, x = Learned(network(CLASSES, schedule), 1), states(3)
    agree(model.jet(x, 0.4, 3), model.nested().jet(x, 0.4, 3))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_jets_of_every_form(form):
    """The coefficients in the data form cancel: y = x̄/γ and u = 1/γ turn about each other."""
    model = Learned(network(CLASSES), torch.tensor([2, 0, 1]))
    taylor, nested = form(model), form(model.nested())
    x = states(3)
    y, s = taylor.enter(x, 0.4), taylor.s(0.4)
    agree(taylor.jet(y, s, 4), nested.jet(y, s, 4), 1e-12)


def test_lower_orders_are_the_beginning_of_higher_ones():
    """Taped or not, a coefficient is the same: the plain pass of order 1 takes torch's own kernels."""
    model, x = Learned(network(CLASSES)), states(3)
    longest = model.jet(x, 0.4, 4)
    for order in (1, 2, 3):
        agree(model.jet(x, 0.4, order), longest[:order], 1e-15)
    plain = model.network(x / VP().alpha(0.4), VP().gamma(0.4), torch.tensor([3]))
    agree([plain], longest[:1], 1e-15)


def test_float32_keeps_its_digits():
    model, x = Learned(network(CLASSES)), states(3)
    single = model.to(torch.zeros(())).jet(x.float(), 0.4, 4)
    assert all(d.dtype == torch.float32 for d in single)
    agree([d.double() for d in single], model.jet(x, 0.4, 4), 1e-5)


def test_order_of_ttm3_on_a_network():
    """Twice the steps, an eighth of the error: the jets belong to the flow that the steps follow."""
    model, x = Learned(network()), states(2)
    ends = [
        final(march(DDIM(model), Taylor(p), grids.log_snr(n, VP(), 0.5, 0.2), x)).x
        for p, n in ((5, 32), (3, 16), (3, 32))
    ]
    errors = [float((end - ends[0]).norm()) for end in ends[1:]]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3.0, abs=0.3)


# --- what the U-Net predicts


def silent(prediction, std):
    """A network whose U-Net says zero."""
    model = network(replace(TINY, prediction=prediction, data_std=std))
    torch.nn.init.zeros_(model.unet.out.weight)
    torch.nn.init.zeros_(model.unet.out.bias)
    return model


@pytest.mark.parametrize(("prediction", "std"), [("skip", 0.7), ("v", 1.0)])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_output_of_zero_is_the_exact_gaussian(prediction, std, form):
    """ε = γ x̄/(s² + γ²), of N(0, s²) for the skip of the data's s, and of N(0, 1) for v."""
    gaussian = Gaussian(torch.zeros(1, 4, 4, dtype=F64), std)
    x = gaussian.sample(3, 0.4, torch.Generator().manual_seed(0))
    learned, truth = form(Learned(silent(prediction, std))), form(gaussian)
    y, s = truth.enter(x, 0.4), truth.s(0.4)
    # Where a straight line is the solution, roundings of terms like these are left of the rest.
    terms = [math.factorial(j) * float(y.norm()) / s ** (j + 1) for j in range(4)]
    for a, b, term in zip(learned.jet(y, s, 4), truth.jet(y, s, 4), terms, strict=True):
        assert (a - b).norm() <= 1e-13 * (float(b.norm()) + term)


def with_output(prediction, std=0.7):
    """A network whose U-Net says something, and what it says: F."""
    model = network(replace(TINY, prediction=prediction, data_std=std))
    said = []
    model.unet.register_forward_hook(lambda *call: said.append((call[1][0], call[2][0])))
    return model, said


@pytest.mark.parametrize("gamma", [0.011, 0.6, 150.0])
def test_v_prediction(gamma):
    """ε = α v + σ x, and v is told x itself (Salimans & Ho 2022)."""
    model, said = with_output("v")
    alpha = (1.0 + gamma**2) ** -0.5
    sigma, x = gamma * alpha, states(3)
    eps = model(x / alpha, torch.tensor(gamma, dtype=F64))
    told, v = said[0]
    assert torch.allclose(told, x, rtol=1e-14)
    assert torch.allclose(eps, alpha * v + sigma * x, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.011, 0.6, 150.0])
def test_eps_prediction(gamma):
    model, said = with_output("eps")
    x = states(3)
    eps = model(x * (1.0 + gamma**2) ** 0.5, torch.tensor(gamma, dtype=F64))
    told, output = said[0]
    assert torch.allclose(told, x, rtol=1e-14)
    assert torch.equal(eps, output)


@pytest.mark.parametrize("gamma", [0.011, 0.6, 150.0])
def test_skip_prediction_is_the_preconditioning_of_edm(gamma):
    """D = c_skip x̄ + c_out F(c_in x̄) of Karras et al. (2022), Table 1, and ε = (x̄ - D)/γ; F changes sign."""
    std, (model, said) = 0.7, with_output("skip")
    xbar = states(3)
    eps = model(xbar, torch.tensor(gamma, dtype=F64))
    told, output = said[0]
    total = gamma**2 + std**2
    denoised = std**2 / total * xbar - gamma * std / total**0.5 * output
    assert torch.allclose(told, xbar / total**0.5, rtol=1e-14)
    # x̄ - D loses the digits that x̄/γ has more than ε.
    assert torch.allclose(eps, (xbar - denoised) / gamma, rtol=1e-12, atol=1e-13 / gamma)


@pytest.mark.parametrize(
    ("embedding", "frequencies", "tau"),
    [
        # log-spaced from 1/4 to 4, of (log γ)/5
        ("log-snr", [0.25 * 16 ** (i / 7) for i in range(8)], lambda t, g: math.log(g) / 5),
        # 10000^(-i/(n-1)), of 999 t: Ho et al. (2020)
        ("positional", [10000 ** (-i / 7) for i in reversed(range(8))], lambda t, g: 999 * t),
    ],
)
@pytest.mark.parametrize("t", [1e-3, 0.4, 1.0])
def test_embeddings(embedding, frequencies, tau, t):
    model, schedule = network(replace(TINY, embedding=embedding)), VP()
    gamma = schedule.gamma(t)
    phases = [f * tau(t, gamma) for f in frequencies]
    expected = torch.tensor([[*map(math.sin, phases), *map(math.cos, phases)]], dtype=F64)
    # A phase of 999 has a rounding of 1e-13, and t of γ one of a few units.
    assert torch.allclose(model.waves(Series([gamma]))[0], expected, atol=2e-12)


def test_random_fourier_features():
    """Frequencies of scale 16, the same in every network, of 2πt."""
    frequencies = EMBEDDINGS["fourier"].frequencies(4096)
    assert float(frequencies.std()) == pytest.approx(16.0, rel=4.0 / (2 * 4096) ** 0.5)
    assert abs(float(frequencies.mean())) <= 4.0 * 16.0 / 4096**0.5
    config = replace(TINY, embedding="fourier")
    phases = 2.0 * math.pi * 0.4 * EMBEDDINGS["fourier"].frequencies(8)
    expected = torch.cat([phases.sin(), phases.cos()])[None]
    for seed in (0, 5):
        waves = network(config, seed=seed).waves(Series([VP().gamma(0.4)]))[0]
        assert torch.allclose(waves, expected, atol=1e-12)


# --- heads


@pytest.mark.parametrize(
    ("channels", "parameters"), [(128, 526_473), (192, 1_170_633), (96, 302_217 - 3 * 96 * 9)]
)
def test_heads_have_the_published_sizes(channels, parameters):
    """CIFAR-10 and LSUN; ImageNet and Cats base; Cats upsampler (Table 5 and the authors' architecture).

    The last is fed the image of low resolution too: three more channels for a kernel of nine.
    """
    head = Head(HeadConfig(channels), 3, channels)
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize("gamma", [0.011, 0.6, 150.0])
def test_mixed_parameterisation(gamma):
    """Eqs. 14 and 66 with the outputs of the head in this order."""
    k1, k2, k3 = states(3), states(3, seed=3), states(3, seed=4)
    value = PARAMETERISATIONS["mixed"].combine(network(), (k1, k2, k3), k1, k1, gamma)
    expected = -k1 / gamma + gamma / (1 + gamma**2) * k2 + k3 / (gamma * (1 + gamma**2))
    assert torch.allclose(value, expected, rtol=1e-13, atol=1e-15 / gamma)


@pytest.mark.parametrize("gamma", [0.011, 0.6, 150.0])
def test_mixed_outputs_of_a_single_data_point(gamma):
    """App. C.2.3: for x₀ = 0, ε = x/σ, and the three parts of dε/dγ are those with kᵢ = -x/σ.

    The parts are ∂ε/∂x along either term of dx/dγ (Eq. 11) and ∂ε/∂γ; the sum is zero, as flow lines are
    straight.
    """

    def eps(x, g):
        return x * (1.0 + g**-2) ** 0.5

    x, g = states(3), torch.tensor(gamma, dtype=F64)
    value, one = eps(x, g), 1.0 + gamma**2
    rates = [(value / one**0.5, 0.0), (-gamma * x / one, 0.0), (torch.zeros_like(x), 1.0)]
    zero, parts = torch.zeros_like(x), []
    for i, (dx, dg) in enumerate(rates):
        truth = torch.func.jvp(eps, (x, g), (dx, torch.tensor(dg, dtype=F64)))[1]
        k = [zero, zero, zero]
        k[i] = -value
        parts.append(PARAMETERISATIONS["mixed"].combine(network(), k, x * one**0.5, value, gamma))
        agree([parts[-1]], [truth])
    whole = PARAMETERISATIONS["mixed"].combine(network(), [-value] * 3, x * one**0.5, value, gamma)
    exact = Gaussian(torch.zeros(1, 4, 4, dtype=F64), 0.0).flow_jet(x * one**0.5, gamma, 2)[1]
    # √(1 + γ²)/γ less itself.
    assert (whole - exact).norm() <= 1e-15 * sum(float(part.norm()) for part in parts)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [0.011, 0.6, 150.0])
def test_residual_parameterisation_with_the_exact_residual(prediction, gamma):
    """ε = skip x̄ + gain F: a head that says dF/d(log γ) along the flow gives dε/dγ, whatever F is."""
    model, std = network(replace(CLASSES, prediction=prediction)), {"skip": 0.7, "v": 1.0, "eps": math.inf}
    s = std[prediction]
    xbar = states(3)

    def gain(g):
        return 1.0 if math.isinf(s) else s / (s * s + g * g) ** 0.5

    def skip(g):
        return 0.0 if math.isinf(s) else g / (s * s + g * g)

    eps, slope = Learned(model).flow_jet(xbar, gamma, 2)
    # F = (ε - skip x̄)/gain and its derivative along dx̄/dγ = ε, dε/dγ = slope, by forward mode.
    g = torch.tensor(gamma, dtype=F64)
    output = lambda x, e, g: (e - skip(g) * x) / gain(g)  # noqa: E731
    residual = gamma * torch.func.jvp(output, (xbar, eps, g), (eps, slope, torch.ones_like(g)))[1]
    value = PARAMETERISATIONS["residual"].combine(model, [residual], xbar, eps, gamma)
    # At large γ the parts are up to x̄/γ² and ε/γ.
    assert (value - slope).norm() <= 1e-14 * float(slope.norm() + xbar.norm() / gamma**2 + eps.norm() / gamma)


def test_plain_parameterisation_is_the_output():
    k = states(3)
    assert PARAMETERISATIONS["plain"].combine(network(), [k], k + 1.0, k + 2.0, 0.3) is k


def distilled(parameterisation="mixed", labels=None):
    return Learned(network(CLASSES), labels, head(parameterisation, CLASSES)).distilled


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("t", [0.4, torch.tensor([0.2, 0.4, 0.6], dtype=F64)], ids=repr)
def test_a_distilled_jet_is_eps_and_what_the_head_says(parameterisation, t):
    """The head is fed x_t, the network's own ε, its last features and its embedding of the time."""
    labels, x = torch.tensor([2, 0, 1]), states(3)
    model, plain = distilled(parameterisation, labels), network(CLASSES)
    times = torch.as_tensor(t, dtype=F64).expand(3)[:, None, None, None]
    xbar, gamma = x / VP().alpha(times), VP().gamma(times)
    seen = []
    plain.unet.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs[1], outputs[1])))
    eps = plain(xbar, gamma, labels)
    embedding, features = seen[0]
    h = head(parameterisation, CLASSES)
    inside = h.stem(torch.cat([features, x, eps], 1))
    k = h.out(h.act(h.norm(h.blocks[0](inside, embedding))))
    said = PARAMETERISATIONS[parameterisation].combine(plain, k.split(1, 1), xbar, eps, gamma)
    agree(model.jet(x, t, 1), [eps], 1e-14)
    agree(model.jet(x, t, 2), [eps, said], 1e-14)


def test_the_derivative_of_a_head_by_the_chain_rule():
    """On the probability flow, df/dt from ε and dε/dγ of the head by Eq. 46."""
    model, x, t = distilled(), states(3), 0.4
    beta, rate = 0.1 + 19.9 * t, 19.9
    alpha, sigma, gamma = VP().alpha(t), VP().sigma(t), VP().gamma(t)
    eps, slope = model.jet(x, t, 2)
    f = -0.5 * beta * (x - eps / sigma)
    gamma_rate, sigma_rate = 0.5 * beta * (1.0 + gamma**2) / gamma, 0.5 * beta * alpha**2 / sigma
    second = (rate / beta - 0.5 * beta) * f
    second = second + 0.5 * beta * (slope * gamma_rate / sigma - sigma_rate * eps / sigma**2)
    agree(ProbabilityFlow(model).jet(x, t, 2), [f, second], 1e-13)


def test_a_head_has_no_second_derivative():
    with pytest.raises(ValueError, match="first derivative"):
        distilled().jet(states(3), 0.4, 3)


def test_without_a_head_there_is_no_distilled_model():
    plain, with_head = Learned(network(CLASSES)), Learned(network(CLASSES), head=head(config=CLASSES))
    assert plain.distilled is None
    assert with_head.distilled.distilled is None
    assert AnalyticFirst(plain, 1.0).distilled is None
    assert isinstance(AnalyticFirst(with_head, 1.0).distilled, AnalyticFirst)
    for pair in ((plain, with_head), (with_head, plain), (plain, plain)):
        assert Guided(*pair, 1.0).distilled is None


def test_variances_that_a_network_does_not_have():
    """None exactly; no average without data, or where each state has a score of its own."""
    images = functools.partial(samples, "digits")
    labels = torch.tensor([0, 1, 2])
    known = Learned(network(CLASSES), data=images)
    assert isinstance(known.average_variance, Average)
    assert known.posterior_variance is None
    assert AnalyticFirst(known, 1.0).average_variance is known.average_variance
    for model in (
        Learned(network(CLASSES)),
        Learned(network(CLASSES), labels, data=images),
        Guided(known, known, 1.0),
        known.nested(),
    ):
        assert model.average_variance is None
        assert model.posterior_variance is None
        assert Ideal(model).average_variance is None
        assert Ideal(model).posterior_variance is None


@pytest.mark.parametrize("choice", [{"channels": 12}, {"blocks": 0}, {"parameterisation": "mxied"}], ids=repr)
def test_heads_that_cannot_be(choice):
    with pytest.raises(ValueError, match=r"parameterisation|multiple of 8"):
        HeadConfig(**choice)


@pytest.mark.parametrize(
    "choice",
    [
        {"channels": 12},
        {"blocks": 0},
        {"multipliers": (1, 2, 2, 2)},
        {"multipliers": ()},
        {"classes": -2},
        {"data_std": 0.0},
        {"data_std": math.nan},
        {"embedding": "smooth"},
        {"prediction": "x0"},
        {"modulation": "both"},
        {"patch": 0},
    ],
    ids=repr,
)
def test_networks_that_cannot_be(choice):
    with pytest.raises(ValueError, match=next(iter(choice))):
        Config(**{"size": 4, **choice})


# --- labels


@pytest.mark.parametrize("labels", [-1, 3, torch.tensor([0, 3, 1])], ids=repr)
def test_classes_that_there_are_not(labels):
    with pytest.raises(ValueError, match="classes 0 to 2"):
        Learned(network(CLASSES), labels)


def test_a_network_without_classes_takes_no_labels():
    with pytest.raises(ValueError, match="no classes"):
        Learned(network(), 0)


def test_labelled_is_the_same_network_for_other_classes():
    model, x = Learned(network(CLASSES), head=head(config=CLASSES)), states(3)
    model(x, 0.4)
    one = model.labelled(1)
    assert one.spent == Bill()
    assert torch.equal(one(x, 0.4), Learned(network(CLASSES), 1)(x, 0.4))
    assert not torch.allclose(one(x, 0.4), model(x, 0.4), rtol=1e-3)
    assert torch.equal(one.labelled(None)(x, 0.4), model(x, 0.4))
    assert torch.equal(one.distilled.jet(x, 0.4, 2)[1], distilled(labels=1).jet(x, 0.4, 2)[1])


# --- copies


def test_the_network_is_copied_and_frozen():
    net = network()
    net.requires_grad_(True)
    model, x = Learned(net), states(3)
    before = model(x, 0.4)
    for p in net.parameters():
        p.data.zero_()
    assert torch.equal(model(x, 0.4), before)
    assert not before.requires_grad
    assert not model.network.training


@pytest.mark.parametrize("like", [torch.zeros(()), torch.zeros((), device="meta")], ids=["float32", "meta"])
def test_to_leaves_the_original_as_it_is(like):
    model, x = Learned(network(CLASSES), 1, head(config=CLASSES)), states(3)
    before = model.distilled.jet(x, 0.4, 2)
    other, there = model.to(like), x.to(like)
    for order in (1, 3):
        jet = other.jet(there, 0.4, order)
        assert all((d.shape, d.dtype, d.device) == (x.shape, like.dtype, like.device) for d in jet)
    assert other.distilled.jet(there, 0.4, 2)[1].dtype == like.dtype
    assert other.spent == Bill(3, 2, 1)
    assert model.spent == Bill(1, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.distilled.jet(x, 0.4, 2), before, strict=True))


def test_the_shape_of_an_event():
    assert Learned(network(replace(TINY, colours=3))).event_shape == (3, 4, 4)


# --- bills


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_what_jets_of_a_network_cost(order):
    model = Learned(network())
    model.jet(states(3), 0.4, order)
    assert model.spent == Bill(1, order - 1)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_five_steps_of_ttm2(form):
    """Of the network, of its head, of two classes guided, and of two heads combined."""
    x = states(3)

    def cost(model):
        before = model.spent
        list(march(form(model), Taylor(2), grids.log_snr(5, VP(), 0.9, 0.1), x))
        return model.spent - before

    pair = [Learned(network(CLASSES), label, head(config=CLASSES)) for label in (0, None)]
    assert cost(pair[0]) == Bill(5, 5)
    assert cost(pair[0].distilled) == Bill(5, 0, 5)
    assert cost(Guided(*pair, 1.5)) == Bill(10, 10)
    heads = Guided(*pair, 1.5).distilled
    assert isinstance(heads, GuidedHeads)
    assert isinstance(heads.conditional, Distilled)
    assert cost(heads) == Bill(10, 0, 10)


def test_a_head_is_billed_to_its_network():
    model = Learned(network(CLASSES), 0, head(config=CLASSES))
    model.distilled.jet(states(3), 0.4, 2)
    assert model.spent == model.distilled.spent == Bill(1, 0, 1)
    assert [model.distilled.price(j) for j in range(2)] == [Bill(1), Bill(head=1)]


def test_guided_networks():
    """Exact derivatives of the guided ε along its own flow, and the paper's combination of two (Eq. 16)."""
    c, u, x, w = Learned(network(CLASSES), 1), Learned(network(CLASSES)), states(3), 1.5

    nested = [nestable(network(CLASSES)) for _ in range(2)]

    def eps(y, t):
        xbar, gamma = y / VP().alpha(t), VP().gamma(t)
        said = [net(xbar, gamma, torch.tensor([label])) for net, label in zip(nested, (1, 3), strict=True)]
        return (1 + w) * said[0] - w * said[1]

    agree(Guided(c, u, w).jet(x, 0.4, 3), Autodiff(eps, VP()).jet(x, 0.4, 3))
    combined = [(1 + w) * a - w * b for a, b in zip(c.jet(x, 0.4, 3), u.jet(x, 0.4, 3), strict=True)]
    agree(GuidedHeads(c, u, w).jet(x, 0.4, 3), combined)


def test_states_in_blocks_have_the_jets_of_the_whole(monkeypatch):
    """Each with a time and a class of its own: blocks of two, and one state that is left."""
    config = replace(TINY, classes=3)
    x, t = states(5), torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    model = Learned(network(config), torch.tensor([2, 0, 1, 1, 2]))
    whole = model.jet(x, t, 3)
    monkeypatch.setattr(module, "REMEMBERED", 2 * 8 * 16)
    for found, expected in zip(model.jet(x, t, 3), whole, strict=True):
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
