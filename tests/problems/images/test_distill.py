"""What heads are taught: exact derivatives, the derivative-free estimate of them, and that teaching works."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch

from problems import VP, Gaussian
from problems.console import UsageError
from problems.images import checkpoints, distill, overhead, train
from problems.images.distill import Objective, derivative_free_targets, distil, targets
from problems.images.head import PARAMETERISATIONS, Head, HeadConfig
from problems.images.score import Learned, load
from problems.images.sources import Samples
from problems.images.training import Recipe, fit, generator, stratified
from problems.images.unet import PREDICTIONS
from tests.networks import TINY, network, states

F64 = torch.float64
CLASSES = replace(TINY, classes=3, data_std=0.7)
TIMES = torch.tensor([0.2, 0.4, 0.6], dtype=F64)
GAMMA = VP().gamma(TIMES)[:, None, None, None]
LABELS = torch.tensor([2, 0, 3])


def gaussian_data(std=0.7, config=TINY):
    """Endless samples of N(0, std²)."""
    shape = torch.Size((config.colours, config.size, config.size))

    def draw(n, source):
        return std * torch.randn(n, *shape, generator=source), None

    return Samples(draw, shape, std, 0, {"name": "gaussian", "std": std})


def exact_network(std=0.7):
    """The exact score of that: the skip, and a U-Net that says zero."""
    model = network(replace(TINY, data_std=std))
    model.unet.out.weight.zero_()
    model.unet.out.bias.zero_()
    return model


def agree(a, b, tolerance=1e-13):
    assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_are_nested_derivatives(prediction):
    """ε and dε/dγ, one class for each sample, and one of them without; by jvp of the plain network."""
    net = network(replace(CLASSES, prediction=prediction))
    xbar = states(3)
    eps, slope, expansion = targets(net, xbar, GAMMA, LABELS)
    for i in range(3):
        label = None if LABELS[i] == 3 else int(LABELS[i])
        nested = Learned(net, label).nested().flow_jet(xbar[i : i + 1], float(GAMMA[i]), 2)
        agree(eps[i : i + 1], nested[0])
        agree(slope[i : i + 1], nested[1])
    seen = []
    net.unet.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs[1], outputs[1])))
    agree(eps, net(xbar, GAMMA, LABELS), 1e-14)
    agree(expansion.embeddings[0], seen[0][0], 1e-14)
    agree(expansion.features[0], seen[0][1], 1e-14)


@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_targets_of_an_exact_score(t):
    """dε/dγ = s² x̄/(s² + γ²)² of N(0, s²)."""
    gamma = torch.full((3, 1, 1, 1), VP().gamma(t), dtype=F64)
    xbar = states(3)
    truth = Gaussian(torch.zeros(1, 4, 4, dtype=F64), 0.7).flow_jet(xbar, gamma, 2)
    eps, slope, _ = targets(exact_network(), xbar, gamma, None)
    agree(eps, truth[0])
    # Terms of size ε/γ cancel.
    assert (slope - truth[1]).norm() <= 1e-13 * float(slope.norm() + (eps / gamma).norm())


def posterior_noise(xbar, gamma, std, n):
    """Draws of the noise that made x̄ = x₀ + γ noise, given x̄: normal, as x₀ is."""
    total = std**2 + gamma**2
    z = torch.randn(n, *xbar.shape[1:], generator=torch.Generator().manual_seed(0), dtype=F64)
    return gamma * xbar / total + std / total**0.5 * z


@pytest.mark.parametrize("t", [0.1, 0.6])
def test_the_derivative_free_target_is_unbiased(t):
    """App. D: its mean over the noise given x_t is dε/dγ; as printed, without 1/σ² on v, it is not.

    Within 4 standard errors in each of 16 dimensions.
    """
    std, gamma, n = 0.7, VP().gamma(t), 2000
    xbar = 0.8 * states(1)
    noise = posterior_noise(xbar, gamma, std, n)
    many = torch.full((n, 1, 1, 1), gamma, dtype=F64)
    eps, estimate, _ = derivative_free_targets(exact_network(), xbar.expand(n, -1, -1, -1), many, None, noise)
    truth = Gaussian(torch.zeros(1, 4, 4, dtype=F64), std).flow_jet(xbar, gamma, 2)
    agree(eps, truth[0].expand_as(eps))
    error = 4.0 * estimate.std(0) / n**0.5
    assert ((estimate.mean(0) - truth[1][0]).abs() <= error).all()

    sigma, x = VP().sigma(t), VP().alpha(t) * xbar
    v = -sigma * (truth[0] / (1 + gamma**2) ** 0.5 - gamma * x / (1 + gamma**2))
    printed = estimate + v / sigma**2 - v
    assert ((printed.mean(0) - truth[1][0]).abs() > error).any()


def test_the_derivative_free_target_typed():
    """Of any network: the estimate of ∂ε/∂x dx/dγ from the noise, and the exact ∂ε/∂γ at fixed x."""
    net, xbar, noise = network(CLASSES), states(3), states(3, seed=9)
    eps, estimate, _ = derivative_free_targets(net, xbar, GAMMA, LABELS, noise)
    for i in range(3):
        g, e, z = GAMMA[i : i + 1], eps[i].flatten(), noise[i].flatten()
        label = None if LABELS[i] == 3 else int(LABELS[i])
        x = xbar[i : i + 1] / (1.0 + g**2) ** 0.5
        nested = Learned(net, label).nested()
        at_fixed_x = torch.func.jvp(
            lambda h, x=x, f=nested: f._eps(x, VP().time(h)), (g.reshape(()),), (torch.ones((), dtype=F64),)
        )[1].flatten()
        g = float(g)
        sigma = g / (1.0 + g**2) ** 0.5
        v = -sigma * (e / (1.0 + g**2) ** 0.5 - g * x.flatten() / (1.0 + g**2))
        score = -e / sigma
        typed = (z * (z @ v) - v) / sigma**2 - score * (score @ v) + at_fixed_x
        agree(estimate[i].flatten(), typed)


def run(tmp_path, objective=None, config=None, steps=100, batch=16, name="a", source=None, net=None):
    recipe = Recipe(steps=steps, batch=batch, lr=3e-3, warmup=10, ema=0.9)
    state = tmp_path / f"{name}.state"
    aim = objective or Objective()
    data = source or gaussian_data()
    teacher = net or network().float()
    head, course = distil(teacher, config or HeadConfig(8), data, recipe, state, aim, quiet=True)
    return head, course.losses


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A head of the paper's kind after 150 steps, and its losses."""
    return run(tmp_path_factory.mktemp("taught"), steps=150, net=exact_network().float())


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_distilling_lowers_the_loss(tmp_path, parameterisation, taught):
    """Its mean over the second fifty steps is less than three quarters of that over the first."""
    config = HeadConfig(8, 1, parameterisation)
    losses = (
        taught[1] if config == HeadConfig(8) else run(tmp_path, None, config, net=exact_network().float())[1]
    )
    assert len(losses) >= 2
    assert losses[1] < 0.75 * losses[0]


@pytest.mark.parametrize("noise_input", [False, True])
@pytest.mark.parametrize(
    ("weight", "factor"),
    [("gamma2", lambda g: g**2), ("one", lambda g: g**0), ("end-point", lambda g: g**4 / (1 + g**2))],
)
def test_the_loss_of_the_first_step(tmp_path, weight, factor, noise_input):
    """Eq. 15 on the batch that the first step draws: the mean of γ² |head - dε/dγ|², or otherwise weighed."""
    net = network().float()
    _, losses = run(tmp_path, Objective(weight, noise_input), steps=1, net=net)
    torch.manual_seed(0)
    untaught = Head(HeadConfig(8), 1, 8)
    source = generator(0, 0)
    x0, _ = gaussian_data().draw(16, source)
    gamma = VP().gamma(stratified(16, 1e-3, 1.0, source))[:, None, None, None]
    noise = torch.randn(16, 1, 4, 4, generator=source)
    xbar, gamma = (x0 + gamma * noise).float(), gamma.float()
    eps, slope, expansion = targets(net, xbar, gamma, None)
    fed = noise if noise_input else eps
    said = untaught(net, xbar, gamma, fed, expansion.features[0], expansion.embeddings[0])
    squares = (said - slope).detach().double().square() * factor(gamma.double())
    assert losses[0] == pytest.approx(float(squares.mean()), rel=1e-5)


@torch.no_grad()
def error(head, net):
    """Root mean square of γ(k - dε/dγ) over samples and times, relative to that of γ dε/dγ."""
    source = torch.Generator().manual_seed(5)
    t = torch.linspace(0.02, 1.0, 64, dtype=F64)
    gamma = VP().gamma(t)[:, None, None, None]
    x0, _ = gaussian_data().draw(64, source)
    xbar = (x0 + gamma * torch.randn(x0.shape, generator=source)).float()
    eps, slope, expansion = targets(net, xbar, gamma.float(), None)
    said = head(net, xbar, gamma.float(), eps, expansion.features[0], expansion.embeddings[0])
    return float(((said - slope) * gamma).norm() / (slope * gamma).norm())


def test_a_taught_head_knows_samples_that_it_has_not_seen(taught):
    """No derivative at all, which is DDIM, is off by 1."""
    assert error(taught[0], exact_network().float()) < 0.5


def conditional_data():
    shape = torch.Size((1, 4, 4))

    def draw(n, source):
        labels = torch.randint(3, (n,), generator=source)
        return 0.7 * torch.randn(n, *shape, generator=source) + labels[:, None, None, None] - 1.0, labels

    return Samples(draw, shape, 1.1, 3, {"name": "three"})


@pytest.mark.parametrize("objective", [Objective(), Objective(derivative_free=True)], ids=repr)
def test_distilling_leaves_the_network_alone(tmp_path, objective):
    """It is neither changed nor frozen, and goes on with its own weights."""
    net = network(CLASSES).float().requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    head, losses = run(tmp_path, objective, steps=5, source=conditional_data(), net=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert math.isfinite(losses[-1])
    assert not head.training


def interrupted(source, after):
    """The data, until the power fails."""
    left = iter(range(after))

    def draw(n, random):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return source.draw(n, random)

    return source._replace(draw=draw)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A folder in which a distillation of 60 steps was cut off; its last state is that of step 50."""
    folder = tmp_path_factory.mktemp("cut-off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "fit", functools.partial(fit, every=50))
        with pytest.raises(KeyboardInterrupt):
            run(folder, steps=60, batch=4, source=interrupted(gaussian_data(), 55))
    return folder


def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_been(cut_off, tmp_path):
    whole, losses = run(tmp_path, steps=60, batch=4)
    again, repeated = run(cut_off, steps=60, batch=4, source=interrupted(gaussian_data(), 10))
    assert repeated == losses
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize(
    "other",
    [
        {"net": network(seed=7).float()},
        {"objective": Objective(weight="one")},
        {"config": HeadConfig(8, 2)},
        {"source": gaussian_data(0.8)},
        {"steps": 70},
    ],
    ids=list,
)
def test_the_state_of_another_distillation_is_refused(cut_off, other):
    with pytest.raises(UsageError, match="other settings"):
        run(cut_off, **{"steps": 60, "batch": 4, **other})


# --- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of the embedded digits, hardly trained."""
    out = tmp_path_factory.mktemp("trained") / "digits"
    line = "--channels 8 --multipliers 1 --blocks 1 --steps 20 --batch 4"
    assert train.command([*line.split(), "--out", str(out)]) == 0
    return out.with_suffix(".safetensors")


def distilling(network, out, line=""):
    return distill.command(
        ["--network", str(network), "--out", str(out), "--steps", "20", "--batch", "4", *line.split()]
    )


def test_the_command_makes_a_head_that_loads(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overhead, "PASSES", 2)
    monkeypatch.setattr(overhead, "WARM_UPS", 1)
    assert distilling(trained, tmp_path / "head", "--blocks 2 --parameterisation residual --weight one") == 0
    assert "loss" in capsys.readouterr().out
    model, _ = load(trained, head=tmp_path / "head.safetensors")
    assert model.head.config == HeadConfig(8, 2, "residual")
    assert model.distilled.jet(torch.randn(2, 1, 8, 8), 0.4, 2)[1].shape == (2, 1, 8, 8)
    card = checkpoints.load(tmp_path / "head.safetensors", "head").card
    assert card["objective"]["weight"] == "one"
    assert card["recipe"]["steps"] == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.json", "head.safetensors"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--data digits-gaussians", "other data than digits-gaussians"),
        ("--data nowhere.zip", "nowhere.zip"),
        ("--channels 12", "multiple of 8"),
        ("--parameterisation all", "invalid choice"),
        ("--network nowhere.safetensors", "nowhere.safetensors is missing"),
    ],
)
def test_mistakes(trained, tmp_path, capsys, line, sentence):
    with pytest.raises(SystemExit) as left:
        distilling(trained, tmp_path / "head", line)
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1


def test_a_network_whose_card_names_no_data(trained, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    stored = checkpoints.load(trained, "score network")
    checkpoints.save(path, stored.tensors, {k: v for k, v in stored.card.items() if k != "data"})
    with pytest.raises(SystemExit) as left:
        distilling(path, tmp_path / "head")
    assert left.value.code == 2
    assert "data" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        distill.command(["--help"])
    assert left.value.code == 0
    assert "--derivative-free" in capsys.readouterr().out
