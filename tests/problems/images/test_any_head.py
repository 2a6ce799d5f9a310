"""Heads of networks of any make: what they are taught and told, and that they are found again."""

import functools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from analysis import heads, overhead
from analysis.measure.case import Case
from analysis.measure.problems import opened
from problems import VP, Network, toy_mixture
from problems.console import UsageError
from problems.images import any_distill, any_head, checkpoints, distill
from problems.images import overhead as timing
from problems.images.any_distill import STEPS, States, classes_of, levels, march, on_data, targets, told
from problems.images.any_head import AnyHead, AnyHeadConfig, attached, laid, layer_of
from problems.images.checkpoints import CheckpointError
from problems.images.sources import Samples
from problems.images.training import Recipe, fit
from problems.models import door
from problems.models.naming import found, head_of
from problems.network import DistilledNetwork, digest
from problems.prediction import Denoiser
from tests.networks import randomised

F64 = torch.float64
SHAPE = (1, 4, 4)
STD = 0.7
GAMMA = VP().gamma(torch.tensor([0.2, 0.5, 0.9], dtype=F64))[:, None, None, None]


class Layers(nn.Module):
    """F = factor x, and layers beside it that are called."""

    def __init__(self, factor=0.5, classes=0):
        super().__init__()
        self.inner = nn.ModuleDict({"down": nn.Conv2d(1, 8, 3, stride=2, padding=1), "told": nn.Linear(1, 4)})
        self.factor = nn.Parameter(torch.tensor(factor))
        self.table = nn.Embedding(classes + 1, 1) if classes else None

    def forward(self, x, time, labels=None):
        beside = self.inner["down"](x).mean() + self.inner["told"](time[:, None]).mean()
        shift = 0.0 if labels is None else self.table(labels)[:, :, None, None]
        return self.factor * x + 0.0 * beside + shift


def linear(factor=0.5):
    """ε = factor x of a VP process, float64."""
    return Network(Layers(factor).double(), VP(), SHAPE)


def gaussian(dtype=torch.float32, **given):
    """The exact score of N(0, STD²): ε = γ x̄/(STD² + γ²)."""
    return Network(Layers(0.0).to(dtype), VP(), SHAPE, predicts=Denoiser(STD), data_std=STD, **given)


def normal_data():
    def draw(n, source):
        return STD * torch.randn(n, *SHAPE, generator=source), None

    return Samples(draw, torch.Size(SHAPE), STD, 0, {"name": "normal"})


def states(n=3):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_targets_of_a_linear_network():
    """ε = w α x̄, so dε/dγ = w α ε - w γ α³ x̄ with α = (1 + γ²)^(-1/2); and what a layer says at the state."""
    network, xbar = linear(), states()
    eps, slope, (heard,) = targets(network, States(xbar, GAMMA, None), ("inner.down",))
    alpha = (1.0 + GAMMA**2) ** -0.5
    torch.testing.assert_close(eps, 0.5 * alpha * xbar, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        slope, 0.5 * alpha * eps - 0.5 * GAMMA * alpha**3 * xbar, rtol=1e-10, atol=1e-14
    )
    torch.testing.assert_close(heard, network.module.inner["down"](alpha * xbar))


@pytest.mark.parametrize("listens", [(), ("inner.down",)])
@pytest.mark.parametrize("parameterisation", any_head.COMMON)
def test_before_training_the_derivative_is_zero(parameterisation, listens):
    config = AnyHeadConfig(1, 8, 1, parameterisation, listens, 8 if listens else 0)
    distilled = linear().with_head(AnyHead(config).double()).distilled
    eps, slope = distilled.flow_jet(states(), GAMMA, 2)
    assert torch.equal(eps, linear().flow_jet(states(), GAMMA, 1)[0])
    assert torch.equal(slope, torch.zeros_like(slope))


def test_the_outputs_mean_what_equation_14_says():
    """With constant outputs k the derivative is -k₁/γ + k₂ γ/(1 + γ²) + k₃/(γ (1 + γ²))."""
    head = AnyHead(AnyHeadConfig(1, 8)).double()
    head.out.bias.data = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    said = head(states(), GAMMA, states())
    one = 1.0 + GAMMA**2
    typed = -0.3 / GAMMA - 0.2 * GAMMA / one + 0.5 / (GAMMA * one)
    torch.testing.assert_close(said, typed.expand_as(said))
    apart = [head(states()[i : i + 1], float(GAMMA[i]), states()[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(apart), said)


def teach(folder, network=None, steps=100, draw=None, config=None, about="x"):
    recipe = Recipe(steps=steps, batch=16, lr=3e-3, warmup=10, ema=0.9)
    network = network or gaussian()
    draw = draw or on_data(network, normal_data())
    config = config or AnyHeadConfig(1, 8, data_std=STD)
    return any_distill.distil(network, config, draw, recipe, folder / "state", {"data": about}, quiet=True)


def error(head):
    """Relative error of dε/dγ = s² x̄/(s² + γ²)² on new samples, weighted by γ²."""
    source = torch.Generator().manual_seed(5)
    gamma = levels(torch.linspace(0.01, 1.0, 64, dtype=F64), VP()).float()[:, None, None, None]
    x0, _ = normal_data().draw(64, source)
    xbar = x0 + gamma * torch.randn(x0.shape, generator=source)
    total = STD**2 + gamma**2
    with torch.no_grad():
        said = head(xbar, gamma, gamma * xbar / total)
    truth = STD**2 * xbar / total**2
    return float((gamma * (said - truth)).norm() / (gamma * truth).norm())


def test_a_derivative_in_closed_form_is_learned(tmp_path, monkeypatch):
    """On data and on the network's own trajectories; no derivative at all is off by 1."""
    monkeypatch.setattr(any_distill, "TRAJECTORIES", 64)
    network = gaussian()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    assert error(teach(tmp_path / "a", network)[0]) < 0.5
    own = any_distill.on_trajectories(network, 0, 16)
    head, fitted = teach(tmp_path / "b", network, draw=own)
    assert error(head) < 0.5
    assert fitted.losses[-1] < fitted.losses[0]
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())


def test_trajectories_are_those_of_the_flow():
    """dx̄/dγ = γ x̄/(s² + γ²), so x̄ (s² + γ²)^(-1/2) stays; all levels are inside the schedule."""
    network, n = gaussian(F64), 5
    latents = torch.randn(n, *SHAPE, dtype=F64)
    xbar, gamma = march(network, latents, torch.linspace(0.0, 1.0, n, dtype=F64))
    first, last = VP().gamma(1.0), VP().gamma(VP().stop)
    start = latents / VP().alpha(1.0)
    truth = start * ((STD**2 + gamma**2) / (STD**2 + first**2)).sqrt()
    assert xbar.shape == (STEPS, n, *SHAPE)
    assert (gamma <= first * (1 + 1e-12)).all()
    assert (gamma >= last * (1 - 1e-12)).all()
    assert (gamma[1:] < gamma[:-1]).all()
    assert (xbar - truth).norm() < 0.01 * truth.norm()


def test_levels_are_equally_spaced_in_the_root():
    found = levels(torch.tensor([0.0, 0.5, 1.0], dtype=F64), VP())
    ends = [VP().gamma(VP().stop), VP().gamma(1.0)]
    middle = ((ends[0] ** (1 / 7) + ends[1] ** (1 / 7)) / 2) ** 7
    torch.testing.assert_close(found, torch.tensor([ends[0], middle, ends[1]], dtype=F64))


def test_labels_are_classes_and_no_class(monkeypatch):
    """Each state is told its own, and a trajectory keeps its label."""
    monkeypatch.setattr(any_distill, "TRAJECTORIES", 16)
    module = randomised(Layers(0.5, classes=3))
    network = Network(module, VP(), SHAPE, classes=3, no_class=3)
    labels = classes_of(network, 400, 0.25, torch.Generator().manual_seed(0))
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3]
    assert 60 < int((labels == 3).sum()) < 140
    eps = told(network, torch.tensor([3, 0, 3])).flow_jet(states(), GAMMA)[0]
    for row, of in ((0, network.labelled(None)), (1, network.labelled(0))):
        alone = of.flow_jet(states()[row : row + 1], GAMMA[row : row + 1])[0]
        torch.testing.assert_close(eps[row : row + 1], alone)
    drawn = any_distill.on_trajectories(network, 0, 16)(5, torch.Generator().manual_seed(0))
    assert drawn.xbar.shape == (5, *SHAPE)
    assert drawn.labels.shape == (5,)
    assert classes_of(linear(), 4, 0.1, torch.Generator()) is None


# --- features


def test_features_are_laid_out_on_the_grid_of_the_states():
    """Small images are repeated, large ones averaged, tokens of patches laid in rows."""
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    wide = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(laid(x, "a", (4, 4)), wide)
    assert torch.equal(laid(wide, "a", (2, 2)), x)
    assert torch.equal(laid(wide, "a", (4, 4)), wide)
    assert torch.equal(laid(x.flatten(2).transpose(1, 2), "a", (4, 4)), wide)
    tall = laid(torch.zeros(2, 8, 3), "a", (8, 4))
    assert tall.shape == (2, 3, 8, 4)


@pytest.mark.parametrize("shape", [(2, 20, 64), (2, 7, 3), (2, 100, 3), (2, 5)])
def test_features_that_cannot_be_laid_out(shape):
    with pytest.raises(ValueError, match=r"neither an image nor one token .* choose another"):
        laid(torch.zeros(shape), "blocks.3", (28, 28))


def test_names_of_layers():
    module = nn.ModuleDict(
        {"net": nn.ModuleDict({"up": nn.ModuleList([nn.SiLU(), nn.SiLU()])}), "b": nn.SiLU()}
    )
    module["c"] = nn.ModuleDict({"up": nn.SiLU()})
    assert layer_of(module, "net.up.1") == "net.up.1"
    assert layer_of(module, "up.1") == "net.up.1"
    with pytest.raises(ValueError, match=r"several layers are called 'up'; type one of net.up, c.up"):
        layer_of(module, "up")
    with pytest.raises(ValueError, match=r"no layer 'down'; it has net, net.up, b, c"):
        layer_of(module, "down")


# --- files


def stored(path, network, head):
    about = {"kind": "head", **any_head.card(network, head, timing.Tariff(1.5, 0.25))}
    checkpoints.save(path, head.state_dict(), about)


def test_a_stored_head_says_the_same_and_belongs_to_one_network(tmp_path):
    path, network = tmp_path / "a-head.safetensors", linear()
    head = randomised(AnyHead(AnyHeadConfig(1, 8, 2, "plain", ("inner.down",), 8, 0.3))).float()
    stored(path, network, head)
    again = attached(network, path)
    assert isinstance(again.distilled, DistilledNetwork)
    assert again.tariff == timing.Tariff(1.5, 0.25)
    said, read = (
        n.distilled.flow_jet(states(), GAMMA, 2)[1] for n in (network.with_head(head.double()), again)
    )
    torch.testing.assert_close(read, said, rtol=1e-12, atol=0)
    with pytest.raises(CheckpointError, match="was distilled from another network"):
        attached(linear(0.6), path)
    card = json.loads(path.with_suffix(".json").read_text())
    for nonsense in ({"config": {"channels": 8}}, {"config": None}, {"tariff": {"x": 1}}):
        path.with_suffix(".json").write_text(json.dumps({**card, **nonsense}))
        with pytest.raises(CheckpointError, match="describes no head"):
            attached(network, path)


@pytest.mark.parametrize("name", ["a.pth", "folder.of.a.model"])
def test_the_door_finds_the_head_beside_a_model(name, tmp_path, monkeypatch):
    """Beside a file without its suffix, beside a folder with its whole name; or where it is said to lie."""
    path, network = tmp_path / name, linear()
    monkeypatch.setattr(door, "bare", lambda path, **given: network)
    path.mkdir() if "folder" in name else path.touch()
    assert door.load(path).distilled is None
    place = tmp_path / ("a-head.safetensors" if name == "a.pth" else "folder.of.a.model-head.safetensors")
    stored(place, network, AnyHead(AnyHeadConfig(1, 8)))
    assert door.load(path).head.config == AnyHeadConfig(1, 8)
    assert found(str(path)).distilled is not None
    stored(tmp_path / "other.safetensors", network, AnyHead(AnyHeadConfig(1, 16)))
    assert door.load(path, head=tmp_path / "other.safetensors").head.config.channels == 16


def test_a_digest_is_that_of_names_dtypes_shapes_and_values():
    module = nn.Linear(2, 3)
    same = nn.Linear(2, 3)
    same.load_state_dict(module.state_dict())
    assert digest(module) == digest(same)
    others = [nn.Linear(3, 2), nn.Sequential(same), nn.Linear(2, 3), nn.Linear(2, 3).double()]
    others[0].weight.data = module.weight.data.reshape(2, 3)
    others[3].load_state_dict(module.state_dict())
    same_bytes = nn.Linear(2, 3)
    same_bytes.weight = nn.Parameter(module.weight.data.view(torch.int32), requires_grad=False)
    same_bytes.bias = module.bias
    assert len({digest(m) for m in (module, same_bytes, *others)}) == 6


# --- training that is cut off


def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    monkeypatch.setattr(any_distill, "fit", functools.partial(fit, every=50))
    network = gaussian()
    whole, first = teach(tmp_path / "whole", network, 60)
    draw, left = on_data(network, normal_data()), iter(range(55))

    def cut(n, random):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return draw(n, random)

    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "cut", network, 60, cut)
    for other in ({"network": linear().to(torch.empty(0))}, {"about": "y"}, {"config": AnyHeadConfig(1, 16)}):
        with pytest.raises(UsageError, match="other settings"):
            teach(tmp_path / "cut", **{"network": network, "steps": 60, **other})
    again, repeated = teach(tmp_path / "cut", network, 60)
    assert repeated.losses == first.losses
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


# --- the command

FILE = """
import torch
from torch import nn
from problems import VP, Network, toy_mixture

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed({seed})
        self.up_blocks = nn.ModuleList([nn.Conv2d(1, 8, 3, padding=1), nn.Linear(1, 8)])
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, time):
        h = self.up_blocks[0](x) + self.up_blocks[1](time[:, None])[:, :, None, None]
        return self.out(torch.nn.functional.silu(h))

def make():
    return Network(Small(), VP(), (1, 4, 4))

class Sorting(Small):
    def forward(self, x, time):
        return super().forward(x, time).flatten(1).sort()[0].reshape(x.shape).erfinv()

def sorting():
    return Network(Sorting(), VP(), (1, 4, 4))

def function():
    return Network(lambda x, time: x * x.mean(), VP(), (1, 4, 4))

def flat():
    return Network(Small(), VP(), (4,))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of a user, in the working directory, and timings that are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "PASSES", 2)
    monkeypatch.setattr(timing, "WARM_UPS", 1)
    monkeypatch.setattr(any_distill, "TRAJECTORIES", 8)
    path = tmp_path / "mine_of_heads.py"
    path.write_text(FILE.format(seed=0))
    return path


def distilling(line):
    return distill.command([*line.split(), "--steps", "3", "--batch", "4", "--channels", "8"])


def test_the_head_of_a_network_in_a_file_lies_beside_it_and_is_found(file, capsys):
    what = f"{file}:make"
    assert found(what).distilled is None
    assert distilling(f"--network {file.name}:make --features-at up_blocks.0") == 0
    place = file.with_name("mine_of_heads-make-head.safetensors")
    assert str(place.name) in capsys.readouterr().out
    assert head_of(what) == place
    network = opened(what)
    assert network.head.listens == ("up_blocks.0",)
    assert network.tariff.jvp > 0.0
    assert network.distilled.jet(states(2), 0.4, 2)[1].shape == (2, *SHAPE)
    card = checkpoints.load(place, "head").card
    assert card["data"] == {
        "name": "the network's own trajectories", "solver": "Heun", "steps": STEPS, "seed": 0
    }  # fmt: skip
    file.write_text(FILE.format(seed=1))
    with pytest.raises(CheckpointError, match="was distilled from another network"):
        found(what)
    assert distilling(f"--network {what} --weight one") == 0
    assert opened(what).head.listens == ()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--network mine_of_heads.py:make --features-at down", "the network has no layer 'down'"),
        ("--network mine_of_heads.py:make --features-at up_blocks.1", "neither an image nor one token"),
        ("--network mine_of_heads.py:make --noise-input", "for networks of this suite"),
        ("--network mine_of_heads.py:make --parameterisation residual", "mixed, plain, decaying, not"),
        (
            "--network mine_of_heads.py:make --data digits",
            "(1, 8, 8), the network takes (1, 4, 4)",
        ),
        ("--network mine_of_heads.py:function", "make it a torch.nn.Module"),
        ("--network mine_of_heads.py:sorting", "there is no rule of exact derivatives"),
        ("--network mine_of_heads.py:flat", "heads are for images"),
        ("--network mine_of_heads.py:toy_mixture", "is a Mixture"),
        ("--network mine_of_heads.py:none", "has no function 'none'"),
        ("--network nowhere", "there is no network 'nowhere'"),
        ("--network digits --features-at out", "leave --features-at out"),
    ],
)
def test_mistakes(file, capsys, line, sentence):
    with pytest.raises(SystemExit) as left:
        distilling(line)
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1


def test_a_head_that_says_zero_is_ddim_and_misses_all_of_the_derivative(tmp_path):
    network = gaussian(data=STD * torch.randn(100, *SHAPE))
    stored(tmp_path / "zero.safetensors", network, AnyHead(AnyHeadConfig(1, 8)))
    table = heads.head_errors(Case(network, 3), [tmp_path / "zero.safetensors"], [20]).set_index("head")
    error = table["error"]
    assert error["standard"] == pytest.approx(error["none (DDIM)"], rel=1e-12)
    assert error["exact (TTM-2)"] < 0.2 * error["standard"]
    assert table["derivative_error"]["standard"] == 1.0


def test_networks_of_other_makes_without_a_head_and_their_passes(file, capsys):
    with pytest.raises(SystemExit) as left:
        heads.command(["--problem", f"{file}:make", "--samples", "2"])
    assert left.value.code == 2
    assert "has no head; distil one by" in capsys.readouterr().err
    table = overhead.derivative_costs(f"{file}:make", samples=2)
    assert list(table["what"]) == ["eps", "jet1", "jet2", "jet3"]


def test_data_are_given_or_the_networks_own(monkeypatch):
    recipe = Recipe(steps=1, batch=4, lr=1e-3)
    x = torch.full((3, *SHAPE), 2.0)
    draw, about = any_distill.states(gaussian(data=x), None, recipe)
    assert about == {"name": "the network's own"}
    drawn = draw(1000, torch.Generator().manual_seed(0))
    noise = (drawn.xbar - 2.0) / drawn.gamma
    assert abs(float(noise.mean())) < 0.04
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    monkeypatch.setattr(any_distill, "samples", lambda name: SimpleNamespace(shape=torch.Size((3, 2, 2))))
    with pytest.raises(UsageError, match="the network takes"):
        any_distill.states(gaussian(), "x", recipe)


def test_what_is_no_network_has_no_head(tmp_path):
    assert toy_mixture().distilled is None
    assert found("nothing") is None
    assert head_of(str(tmp_path / "a.pth")) == tmp_path / "a-head.safetensors"
    assert head_of(str(tmp_path)) == tmp_path.with_name(f"{tmp_path.name}-head.safetensors")
