"""Networks of one's own: every prediction of one exact score, on every kind of schedule, with derivatives."""

import pickle

import pytest
import torch
from torch import nn

from analysis.measure.case import Case
from problems import EDM, PREDICTIONS, VE, VP, FlowMatching, Gaussian, InTurn, Network, Table
from problems import network as networks
from problems.bill import Bill
from problems.forward_mode import differentiable
from problems.graph import NoGraphError, NoRuleError
from problems.prediction import Denoiser
from problems.score import denoise
from problems.series import log
from problems.wrappers import Guided

MEAN, STD = 0.3, 0.5
F64 = torch.float64


class Exact(nn.Module):
    """The exact ε of N(0.3, 0.5²), converted to what a network would predict; it is told log γ."""

    def __init__(self, kind, alpha):
        super().__init__()
        self.kind, self.alpha = kind, alpha
        self.mean = nn.Parameter(torch.tensor(MEAN, dtype=F64))

    def forward(self, x, time):
        gamma = torch.exp(time)[:, None]
        alpha = self.alpha(gamma)
        eps = gamma * (x / alpha - self.mean) / (STD**2 + gamma**2)
        data = x / alpha - gamma * eps
        return {
            "eps": eps,
            "v": alpha * eps - alpha * gamma * data,
            "x0": data,
            "score": -eps / (alpha * gamma),
            "velocity": eps - data,
            "velocity-to-data": data - eps,
        }[self.kind]


ALPHA = {
    VP: lambda gamma: (1.0 + gamma**2) ** -0.5,
    Table: lambda gamma: (1.0 + gamma**2) ** -0.5,
    VE: torch.ones_like,
    EDM: torch.ones_like,
    FlowMatching: lambda gamma: 1.0 / (1.0 + gamma),
}
"""The signal coefficient as a function of the noise-to-signal ratio."""

CASES = [
    *((kind, schedule) for kind in ("eps", "v", "x0", "score") for schedule in (VP(), Table.linear())),
    *((kind, VE()) for kind in ("eps", "x0", "score")),
    *((kind, EDM()) for kind in ("eps", "x0", "score")),
    *((kind, FlowMatching()) for kind in ("eps", "x0", "score", "velocity", "velocity-to-data")),
]


@pytest.mark.parametrize(
    ("kind", "schedule"), CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_every_prediction_is_the_same_score(kind, schedule):
    network = Network(
        Exact(kind, ALPHA[type(schedule)]),
        schedule,
        (2,),
        predicts=kind,
        time=lambda t: log(schedule.gamma(t)),
    )
    truth = Gaussian(torch.full((2,), MEAN, dtype=F64), STD, schedule)
    x = torch.tensor([[0.2, -1.0], [1.5, 0.4], [0.3, 0.3]], dtype=F64)
    for gamma in (0.07, 1.3, torch.tensor([[0.4], [2.0], [0.9]], dtype=F64)):
        pairs = zip(network.flow_jet(x, gamma, 4), truth.flow_jet(x, gamma, 4), strict=True)
        for found, expected in pairs:
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_all_predictions_are_tried():
    assert {kind for kind, _ in CASES} == set(PREDICTIONS)


def test_what_is_not_predicted_is_named():
    with pytest.raises(ValueError, match="predicts one of eps, v, x0"):
        Network(nn.Identity(), VP(), (2,), predicts="noise")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused(half):
    with pytest.raises(ValueError, match=r"give module\.float\(\)"):
        Network(nn.Linear(2, 2).to(half), VP(), (2,))


class Small(nn.Module):
    """A convolution, a norm, an embedding of the time and of labels."""

    def __init__(self, classes=0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 1, 3, padding=1)
        self.table = nn.Embedding(classes + 1, 4) if classes else None
        for p in self.parameters():
            p.data = 0.4 * torch.randn(p.shape, generator=generator)

    def forward(self, x, time, labels=None):
        told = torch.stack([torch.sin((k + 1) * time) for k in range(4)], 1)
        if labels is not None:
            told = told + self.table(labels)
        return self.out(nn.functional.silu(self.norm(self.conv(x)) + told[:, :, None, None]))


def states(n, dtype=torch.float32):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)


def conditional(labels=None, no_class=3):
    return Network(Small(3), VP(), (1, 4, 4), classes=3, no_class=no_class, labels=labels)


def test_the_module_is_copied_frozen_and_put_into_evaluation_mode():
    module = Small()
    network = Network(module, VP(), (1, 4, 4))
    before = network(states(2), 0.4)
    module.conv.weight.data.zero_()
    assert module.training
    assert module.conv.weight.requires_grad
    assert not network.module.training
    assert not any(p.requires_grad for p in network.module.parameters())
    assert torch.equal(network(states(2), 0.4), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_states_of_any_precision_are_answered_in_it(dtype):
    network = Network(Small(), VP(), (1, 4, 4))
    exact = network.flow_jet(states(3), 0.7, 3)
    for found, expected in zip(network.flow_jet(states(3, dtype), 0.7, 3), exact, strict=True):
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected, rtol=0.1, atol=0.1)


class Faint(nn.Module):
    """A network that says little, so that ε is nearly that of Gaussian data of the denoiser's width."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.01))

    def forward(self, x, time):
        return self.size * torch.tanh(x)


def test_derivatives_of_a_denoiser_are_right_in_float32_where_the_noise_is_large():
    """At σ = 60 terms of the size of ε/γ cancel to less than a thousandth of it."""
    network = Network(Faint(), EDM(), (1, 4, 4), predicts=Denoiser(0.5))
    x = 60.0 * states(3)
    eps, found = network.flow_jet(x, 60.0, 2)
    exact = network.to(torch.zeros((), dtype=F64)).flow_jet(x.double(), 60.0, 2)[1]
    assert exact.norm() <= 1e-3 * eps.norm() / 60.0
    assert (found - exact).norm() <= 1e-5 * exact.norm()


def test_float64_agrees_with_nested_forward_mode():
    network = conditional(torch.tensor([2, 0, 3 - 1])).to(torch.zeros((), dtype=F64))
    x, gamma = states(3, F64), torch.tensor([0.3, 1.0, 4.0], dtype=F64).reshape(3, 1, 1, 1)
    for found, expected in zip(
        network.flow_jet(x, gamma, 4), network.nested().flow_jet(x, gamma, 4), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "alone"),
    [
        (None, [3, 3, 3, 3]),
        (1, [1, 1, 1, 1]),
        (torch.tensor([2, 0, 1, 1]), [2, 0, 1, 1]),
        (InTurn(3), [0, 1, 2, 0]),
    ],
    ids=["no class", "one", "each", "in turn"],
)
def test_labels(labels, alone):
    network, x = conditional(labels), states(4)
    gamma = VP().gamma(0.4)
    together = network.flow_jet(x, gamma, 2)
    for i, label in enumerate(alone):
        module = network.module
        time = torch.tensor([0.4])
        xi = x[i : i + 1]
        direct = module(VP().alpha(0.4) * xi, time, torch.tensor([label]))
        assert torch.allclose(together[0][i : i + 1], direct, rtol=1e-5, atol=1e-6)
    pieces = [network.part(torch.tensor(rows), 4).flow_jet(x[rows], gamma, 2) for rows in ([2, 0], [3])]
    for piece, rows in zip(pieces, ([2, 0], [3]), strict=True):
        for found, whole in zip(piece, together, strict=True):
            assert torch.allclose(found, whole[rows], rtol=1e-5, atol=1e-6)


def test_a_network_without_a_label_for_no_class_takes_all_in_turn():
    assert torch.equal(
        conditional(None, None)(states(4), 0.4), conditional(torch.tensor([0, 1, 2, 0]), None)(states(4), 0.4)
    )


@pytest.mark.parametrize("labels", [3, -1, torch.tensor([0, 5])], ids=repr)
def test_classes_that_there_are_not(labels):
    with pytest.raises(ValueError, match="classes 0 to 2"):
        conditional(labels)


@pytest.mark.parametrize("labels", [0, InTurn(2)], ids=repr)
def test_labels_without_classes(labels):
    with pytest.raises(ValueError, match="no classes"):
        Network(Small(), VP(), (1, 4, 4), labels=labels)


def test_blocks_change_nothing(monkeypatch):
    network, x = conditional(torch.arange(7) % 3), states(7)
    gamma = torch.linspace(0.2, 3.0, 7).reshape(7, 1, 1, 1)
    whole = network.flow_jet(x, gamma, 3)
    monkeypatch.setattr(networks, "REMEMBERED", 3 * network._largest)
    assert network._block(x, 3) == 3
    for found, expected in zip(network.flow_jet(x, gamma, 3), whole, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_graphs_are_recorded_once_for_each_shape(monkeypatch):
    made = []
    traced = networks.Traced
    monkeypatch.setattr(networks, "Traced", lambda *a: (made.append(a[1][0].shape), traced(*a))[1])
    network = Network(Small(), VP(), (1, 4, 4))
    for n in (2, 3, 2, 3, 2):
        network.flow_jet(states(n), 0.5, 2)
        network.part(torch.arange(n), n).flow_jet(states(n), 0.5, 3)
        network(states(n), 0.5)
    assert [shape[0] for shape in made] == [1, 2, 3]


def test_jets_in_inference_mode_are_those_outside():
    """Inference mode has other operators for resampling."""

    class Resampled(Small):
        def forward(self, x, time, labels=None):
            x = nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
            return super().forward(x, time, labels)

    outside = Network(Resampled(), VP(), (1, 4, 4)).flow_jet(states(2), 0.5, 3)
    with torch.inference_mode():
        inside = Network(Resampled(), VP(), (1, 4, 4)).flow_jet(states(2), 0.5, 3)
    for a, b in zip(inside, outside, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bills():
    network = Network(Small(), VP(), (1, 4, 4))
    network.flow_jet(states(4), 0.5, 3)
    assert network.spent == Bill(nfe=1, jvp=2)
    network.part(torch.tensor([0]), 4).flow_jet(states(1), 0.5)
    assert network.spent == Bill(nfe=1.25, jvp=2)
    assert network.labelled(None).spent == Bill()


def test_a_copy_by_pickle_is_the_same_network():
    network = conditional(1)
    network.flow_jet(states(2), 0.5, 2)
    other = pickle.loads(pickle.dumps(network))
    assert other._graphs is not network._graphs
    for a, b in zip(other.flow_jet(states(2), 0.5, 2), network.flow_jet(states(2), 0.5, 2), strict=True):
        assert torch.equal(a, b)


def test_keys_are_weights_labels_time_and_prediction():
    def key(**changes):
        options = {"classes": 3, "no_class": 3, "labels": 1, "predicts": "eps"}
        module = changes.pop("module", Small(3))
        return Case(Network(module, VP(), (1, 4, 4), **{**options, **changes})).digest

    other = Small(3)
    other.out.bias.data += 1e-6
    keys = [key(), key(labels=2), key(predicts="v"), key(time=lambda t: 999.0 * t), key(module=other)]
    assert len(set(keys)) == 5
    evaluated = Network(Small(3), VP(), (1, 4, 4), classes=3, no_class=3, labels=1)
    evaluated.flow_jet(states(2), 0.5, 2)
    assert Case(evaluated).digest == key()


def test_to_shares_a_network_that_is_there_already():
    network = Network(Small(), VP(), (1, 4, 4))
    assert network.to(torch.zeros(())).module is network.module
    assert network.to(torch.zeros((), dtype=F64)).dtype == F64


def test_data():
    images = states(5)
    source = torch.Generator().manual_seed(3)
    drawn = Network(Small(), VP(), (1, 4, 4), data=images).sample(50, generator=source)
    assert drawn.dtype == F64
    assert all(any(torch.equal(x, y.double()) for y in images) for x in drawn)
    with pytest.raises(ValueError, match="not at hand"):
        Network(Small(), VP(), (1, 4, 4)).sample(1)


def test_a_function_is_a_network_too():
    truth = Gaussian(torch.zeros(2, dtype=F64), 1.0, VP())
    network = Network(lambda x, time: VP().sigma(time)[:, None].to(x) * x, VP(), (2,))
    x = torch.tensor([[0.3, -2.0]])
    for a, b in zip(network.jet(x, 0.5, 3), truth.jet(x.double(), 0.5, 3), strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


class Sorted(nn.Module):
    def forward(self, x, time):
        return x.sort(1).values


def test_without_a_rule_there_is_no_derivative_but_a_value():
    network = Network(Sorted(), VP(), (3,))
    x = torch.tensor([[2.0, 1.0, 3.0]])
    assert torch.allclose(network.flow_jet(x, 1e-9)[0], torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.isfinite(denoise(network, x, 0.5)).all()
    with pytest.raises(NoRuleError, match=r"aten\.sort"):
        network.flow_jet(x, 0.5, 2)


def test_control_flow_by_values_leaves_values_alone():
    network = Network(lambda x, time: x if bool(x.sum() > 0.0) else -x, VP(), (3,))
    x = torch.tensor([[2.0, 1.0, 3.0]])
    assert torch.isfinite(network(x, 0.5)).all()
    with pytest.raises(NoGraphError, match="cannot be recorded"):
        network.flow_jet(x, 0.5, 2)


class Doubling(nn.Module):
    """A head that hears a layer: dε/dγ = 2 x̄ + γ ε + its mean."""

    listens = ("norm", "conv")

    def forward(self, xbar, gamma, eps, normed, convolved):
        return 2.0 * xbar + gamma * eps + normed.mean(1, keepdim=True) + convolved.sum()


def test_a_head_hears_the_layers_that_it_names():
    network = conditional(torch.tensor([2, 0])).with_head(Doubling())
    model, x = network.distilled, states(2)
    eps, slope = model.flow_jet(x, 0.7, 2)
    t = VP().time(0.7)
    scaled = VP().alpha(t) * x
    convolved = network.module.conv(scaled)
    expected = 2.0 * x + 0.7 * eps + network.module.norm(convolved).mean(1, keepdim=True) + convolved.sum()
    assert torch.allclose(slope, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(eps, network.flow_jet(x, 0.7)[0])
    assert network.spent == Bill(nfe=2, head=1)
    alone = model.part(torch.tensor([1]), 2).flow_jet(x[1:], 0.7)[0]
    assert torch.allclose(alone, eps[1:], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="first derivative"):
        model.flow_jet(x, 0.7, 3)


def test_a_layer_that_there_is_not():
    head = Doubling()
    head.listens = ("nowhere",)
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        Network(Small(), VP(), (1, 4, 4), head=head).distilled.flow_jet(states(1), 0.5, 2)


def test_guidance_is_expanded_along_the_guided_flow():
    c, u = conditional(1), conditional(None)
    guided = Guided(c, u, 1.5)
    x, gamma = states(2, F64), 0.8
    both = [m.to(torch.zeros((), dtype=F64)) for m in (c, u)]
    nested = Guided(both[0].nested(), both[1].nested(), 1.5).flow_jet(x, gamma, 3)
    for found, expected in zip(guided.flow_jet(x, gamma, 3), nested, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nested_second_derivatives_of_layer_norm_are_right():
    """Torch's own are not; against the closed form of x/√(x²/2 + ε) for states (x, -x)."""
    x = torch.tensor(0.7, dtype=F64)

    def f(h):
        return nn.functional.layer_norm(torch.stack([h, -h]), (2,), eps=0.1)[0]

    def twice(f):
        def first(h):
            return torch.func.jvp(f, (h,), (torch.ones_like(h),))[1]

        return torch.func.jvp(first, (x,), (torch.ones_like(x),))[1]

    with differentiable():
        found = twice(f)
    closed = -3.0 * 0.1 * 0.7 * (0.7**2 + 0.1) ** -2.5
    assert abs(float(found) - closed) < 1e-12
