"""Training: killed and resumed it ends with the same bits; schedules; draws; mistakes."""

import functools
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from problems import VP, digits
from problems.console import UsageError
from problems.images import checkpoints, train, training
from problems.images.score import load
from problems.images.sources import Samples, samples
from problems.images.training import LEVELS, Recipe, fit, generator, stratified
from problems.images.unet import Config

LINE = ["--channels", "8", "--multipliers", "1", "--blocks", "1", "--batch", "4", "--warmup", "20"]


def command(out, *more):
    return train.command([*LINE, *more, "--out", str(out)])


# --- resuming


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    """Five steps after its first state: SIGKILL leaves the files as they are at that moment."""

    def noted(seed, step):
        if step == 55 and not state.exists():
            assert load(tmp_path / "whole.safetensors")[1]["steps"] == 50
            shutil.copy(tmp_path / "whole.state", state)
        return generator(seed, step)

    monkeypatch.setattr(training, "generator", noted)
    monkeypatch.setattr(train, "fit", functools.partial(fit, every=50))
    line, state = ["--steps", "60"], tmp_path / "cut.state"
    assert command(tmp_path / "whole", *line) == 0
    assert state.exists()
    assert command(tmp_path / "cut", *line) == 0
    whole, cut = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "cut"))
    assert cut == whole
    cards = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "cut")]
    assert cards[0]["losses"] == cards[1]["losses"]
    assert all(card["seconds"] > 0.0 for card in cards)
    assert not state.exists()


class Line(torch.nn.Module):
    """The smallest thing that can be trained."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))


def fitted(state, steps=150, stop=None, identity=None, scale=1.0, **others):
    module, target = Line(), torch.tensor([1.0, -2.0, 3.0])
    asked = iter(range(10**9 if stop is None else stop))

    def loss(source):
        if next(asked, None) is None:
            raise KeyboardInterrupt
        noise = torch.randn(3, generator=source)
        return scale * (module.weight - target + 0.1 * noise).square().sum()

    recipe = Recipe(steps=steps, batch=1, **{"lr": 0.05, "warmup": 10, "ema": 0.9, **others})
    return fit(module, loss, recipe, state, identity or {}, every=50, quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not cut off."""
    return fitted(tmp_path_factory.mktemp("whole") / "state")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The state of a run that was cut off."""
    state = tmp_path_factory.mktemp("interrupted") / "cut.state"
    with pytest.raises(KeyboardInterrupt):
        fitted(state, stop=60)
    return state


@pytest.mark.parametrize("stop", [50, 51, 99, 100, 149])
def test_cut_off_anywhere(tmp_path, stop, whole):
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", stop=stop)
    assert (tmp_path / "cut").exists()
    again = fitted(tmp_path / "cut", stop=150 - stop // 50 * 50)
    assert again.losses == whole.losses
    assert torch.equal(again.tensors["weight"], whole.tensors["weight"])


def test_cut_off_twice(tmp_path, whole):
    for stop in (75, 60):
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "cut", stop=stop)
    assert torch.equal(fitted(tmp_path / "cut", stop=50).tensors["weight"], whole.tensors["weight"])


@pytest.mark.parametrize(
    "other", [{"lr": 0.01}, {"seed": 1}, {"steps": 200}, {"ema": 0.0}, {"identity": {"data": "x"}}], ids=repr
)
def test_the_state_of_another_run_is_refused(interrupted, other):
    with pytest.raises(UsageError, match="other settings"):
        fitted(interrupted, **other)


def test_what_was_reached_is_told_each_time_the_state_is_kept(tmp_path, whole):
    told = []
    module = Line()
    target = torch.tensor([1.0, -2.0, 3.0])

    def loss(source):
        return (module.weight - target + 0.1 * torch.randn(3, generator=source)).square().sum()

    recipe = Recipe(steps=150, batch=1, lr=0.05, warmup=10, ema=0.9)
    fit(module, loss, recipe, tmp_path / "x", {}, every=50, quiet=True, kept=told.append)
    assert [found.steps for found in told] == [50, 100]
    assert [found.losses for found in told] == [whole.losses[:1], whole.losses[:2]]
    assert not torch.equal(told[0].tensors["weight"], told[1].tensors["weight"])


def test_weight_decay_pulls_weights_to_zero(tmp_path):
    """Decoupled (Loshchilov & Hutter 2019): without a gradient, each step multiplies by 1 - lr decay."""
    module = Line()
    module.weight.data += 1.0
    recipe = Recipe(steps=4, batch=1, lr=0.1, warmup=0, decay="constant", ema=0.0, weight_decay=0.5)
    found = fit(module, lambda _: 0.0 * module.weight.sum(), recipe, tmp_path / "x", {}, quiet=True)
    assert found.tensors["weight"] == pytest.approx(torch.full((3,), 0.95**4), rel=1e-6)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_state(tmp_path, keep, interrupted):
    state = tmp_path / "cut.state"
    state.write_bytes(interrupted.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"cut\.state is not a whole safetensors file"):
        fitted(state)


@pytest.mark.parametrize("what", ["step", "losses", "weight", "moment"])
def test_a_state_that_was_edited_is_refused(tmp_path, what, interrupted):
    tensors, about = checkpoints.read(interrupted)
    if what in about:
        about[what] = about[what].replace("5", "6", 1)
    else:
        tensors["module.weight" if what == "weight" else "adam.0.exp_avg"][0] += 1e-7
    state = tmp_path / "cut.state"
    save_file(tensors, state, about)
    with pytest.raises(UsageError, match=r"cut\.state was changed after it was written"):
        fitted(state)


# --- what is computed


def test_a_mean_is_learnt(tmp_path):
    """The minimum is at the target: 5 standard deviations of what noise of 0.1 leaves at a small rate."""
    weight = fitted(tmp_path / "x", steps=600, ema=0.99).tensors["weight"]
    assert torch.allclose(weight, torch.tensor([1.0, -2.0, 3.0]), atol=0.05)


def test_adam_with_clipping_and_averages_typed(tmp_path):
    """Kingma & Ba (2015), the gradient cut to norm 1 before, the average begun with the first weights."""
    steps, recipe = 5, Recipe(steps=5, batch=1, lr=0.05, warmup=2, ema=0.9)
    target, w, m, v = torch.tensor([1.0, -2.0, 3.0]).double(), 0.0, 0.0, 0.0
    average, losses = None, []
    for step in range(steps):
        noise = torch.randn(3, generator=generator(0, step)).double()
        distance = w - target + 0.1 * noise
        losses.append(distance.square().sum())
        g = 2.0 * distance
        g = g * min(1.0, 1.0 / (float(g.norm()) + 1e-6))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = recipe.rate(step)
        mean, variance = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        w = w - rate * mean / (variance.sqrt() + 1e-8)
        average = w if average is None else 0.9 * average + 0.1 * w
    result = fitted(tmp_path / "x", steps=5, warmup=2)
    assert torch.allclose(result.tensors["weight"].double(), average, rtol=1e-5)
    assert result.losses == [pytest.approx(float(sum(losses)) / 5, rel=1e-5)]


def test_without_an_average_the_last_weights_are_kept(tmp_path):
    rough, smooth = (fitted(tmp_path / f"{ema}", ema=ema, decay="constant").tensors for ema in (0.0, 0.99))
    assert not torch.allclose(rough["weight"], smooth["weight"], atol=1e-4)


def test_losses_are_means_of_fifty_steps(tmp_path):
    assert [len(fitted(tmp_path / f"{n}", steps=n).losses) for n in (1, 50, 51, 149)] == [1, 1, 2, 3]


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(tmp_path, scale):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fitted(tmp_path / "x", scale=scale)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("decay", "at"),
    [
        ("cosine", lambda p: 0.5 + 0.5 * math.cos(math.pi * p)),
        ("linear", lambda p: 1.0 - p),
        ("constant", lambda p: 1.0),
    ],
)
def test_learning_rates(decay, at):
    """Warm-up (n + 1)/10 of the rate; then from all of it to what is left one step before the end."""
    recipe = Recipe(steps=110, batch=1, lr=0.2, warmup=10, decay=decay)
    for step in range(10):
        assert recipe.rate(step) == pytest.approx(0.02 * (step + 1), rel=1e-14)
    for step in range(10, 110):
        assert recipe.rate(step) == pytest.approx(0.2 * at((step - 10) / 100), rel=1e-13)


def test_learning_rates_without_a_warm_up_or_with_nothing_else():
    assert Recipe(steps=10, batch=1, lr=0.2, warmup=0).rate(0) == 0.2
    assert Recipe(steps=10, batch=1, lr=0.2, warmup=20).rate(9) == pytest.approx(0.1)


@pytest.mark.parametrize("n", [1, 2, 128, 1000])
def test_stratified_numbers(n):
    """One in each nth part, in an order of their own, and anywhere in it."""
    u = stratified(n, -1.0, 3.0, generator(0, 0))
    places = (u + 1.0) / 4.0 * n
    assert u.dtype == torch.float64
    assert torch.equal(places.sort().values.floor(), torch.arange(n, dtype=torch.float64))
    assert n < 100 or not torch.equal(u, u.sort().values)
    # The place within its part is uniform: mean 1/2 with standard error (12 n)^(-1/2).
    assert n < 100 or abs(float((places % 1.0).mean()) - 0.5) <= 4.0 / (12.0 * n) ** 0.5


def test_generators_differ_by_seed_and_step():
    draws = {float(torch.rand((), generator=generator(seed, step))) for seed in range(4) for step in range(4)}
    assert len(draws) == 16


def test_seeds_of_any_size_are_streams_of_their_own():
    """No step of a run of a million is one of another run, for the first thousand seeds."""
    first = torch.tensor([generator(seed, 0).initial_seed() for seed in range(1000)]).sort().values
    gaps = torch.cat([first.diff(), first[:1] + 2**32 - first[-1:]])
    assert int(gaps.min()) > 1_000_000
    assert float(torch.rand((), generator=generator(10**15, 0))) != float(
        torch.rand((), generator=generator(0, 0))
    )


CONFIG = Config(size=2, channels=8, multipliers=(1,), blocks=1, data_std=0.7)


def gaussian(draw_labels=False, classes=0):
    def draw(n, source):
        labels = torch.arange(n) % 3 if draw_labels else None
        return 0.7 * torch.randn(n, 1, 2, 2, generator=source), labels

    return Samples(draw, torch.Size((1, 2, 2)), 0.7, classes, {"name": "gaussian"})


def test_the_loss_of_the_first_step(tmp_path):
    """The mean of |said - ε|² on the batch that the first step draws."""
    recipe = Recipe(steps=1, batch=16, lr=1e-3, seed=3)
    _, course = train.train(CONFIG, VP(), gaussian(), recipe, tmp_path / "x", quiet=True)
    losses = course.losses
    torch.manual_seed(3)
    network = train.ScoreNetwork(CONFIG, VP())
    source = generator(3, 0)
    x0 = 0.7 * torch.randn(16, 1, 2, 2, generator=source)
    gamma = VP().gamma(stratified(16, 1e-3, 1.0, source))[:, None, None, None]
    eps = torch.randn(16, 1, 2, 2, generator=source)
    said = network((x0 + gamma * eps).float(), gamma.float())
    assert losses[0] == pytest.approx(float((said - eps).square().mean().detach()), rel=1e-5)


def test_hidden_labels(tmp_path):
    """A share of them, replaced by the class of none; the others stay what they are."""
    config, seen = replace(CONFIG, classes=3), []
    original = train.ScoreNetwork.embed

    def spy(self, waves, labels, tape=None):
        seen.append(labels)
        return original(self, waves, labels, tape)

    recipe = Recipe(steps=4, batch=300, lr=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.ScoreNetwork, "embed", spy)
        train.train(config, VP(), gaussian(True, 3), recipe, tmp_path / "x", forget=0.25, quiet=True)
    hidden = torch.stack(seen) == 3
    # 1200 draws of probability 1/4: 4 standard errors are 0.05.
    assert float(hidden.double().mean()) == pytest.approx(0.25, abs=0.05)
    assert torch.equal(torch.stack(seen)[~hidden], (torch.arange(300) % 3).expand(4, -1)[~hidden])


def test_training_a_network_lowers_the_loss_to_that_of_the_exact_score(tmp_path):
    """Of N(0, s²) it is the mean over t of 1 - γ²/(s² + γ²): what of ε is not known from x̄.

    A network that predicts v is wrong at the start, where its U-Net says zero, unless s is 1.
    """
    recipe, config = Recipe(steps=100, batch=64, lr=3e-3, warmup=20), replace(CONFIG, prediction="v")
    _, course = train.train(config, VP(), gaussian(), recipe, tmp_path / "x", quiet=True)
    losses = course.losses
    t = torch.linspace(1e-3, 1.0, 10001, dtype=torch.float64)
    gamma = VP().gamma(t)
    floor = float((0.49 / (0.49 + gamma**2)).mean())
    # 50 batches of 64 images of 4 pixels: 12,800 squares of mean 0.16 and standard deviation about 0.4.
    assert losses[-1] == pytest.approx(floor, abs=4.0 * 0.4 / 12_800**0.5 + 0.1 * floor)
    assert losses[-1] < losses[0]


def test_log_normal_levels():
    """Nine in ten are N(-1, 1.3²) in log γ, one in ten uniform over the schedule's: exact to the strata."""
    n = 2000
    gamma = LEVELS["log-normal"].gamma(VP(), n, generator(0, 0)).log().sort().values
    low, high = math.log(VP().gamma(1e-3)), math.log(VP().gamma(1.0))
    normal = torch.distributions.Normal(-1.0, 1.3)
    share = 0.1 * (gamma - low) / (high - low) + 0.9 * normal.cdf(gamma)
    inside = (gamma > low + 1e-9) & (gamma < high - 1e-9)  # what lies outside the schedule is put on its ends
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert inside.double().mean() > 0.99
    assert (share - places)[inside].abs().max() <= 2.0 / n
    assert gamma.min() >= low - 1e-12
    assert gamma.max() <= high + 1e-12


def test_log_normal_weights_make_the_error_of_the_u_net():
    """|ε - ε'|² times the weight is |F - F'|², ε = skip x̄ + s (s² + γ²)^(-1/2) F."""
    gamma, std = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64), 0.5
    gain = std * (std**2 + gamma**2) ** -0.5
    assert torch.allclose(LEVELS["log-normal"].weight(gamma, std) * gain**2, torch.ones(3).double())


# --- the command


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    assert command(folder / "a", "--steps", "3", "--conditional", "--prediction", "v") == 0
    return folder


def test_what_is_written(short):
    assert sorted(p.name for p in short.iterdir()) == ["a.json", "a.safetensors"]
    model, card = load(short / "a.safetensors")
    assert model.network.config.classes == 10
    assert model.network.config.prediction == "v"
    assert model.event_shape == (1, 8, 8)
    assert card["recipe"]["steps"] == 3
    assert card["data"]["name"] == "digits"
    assert card["data"]["sha256"]
    assert card["versions"]["torch"] == torch.__version__
    assert card["command"].startswith("python -m problems.images.train --channels 8")
    assert len(card["losses"]) == 1
    x = torch.randn(2, 1, 8, 8)
    assert model.jet(x, 0.4, 2)[1].isfinite().all()


def test_the_standard_deviation_of_the_digits(short):
    """The square root of the mean variance of pixels, and of the noise of 0.05."""
    assert samples("digits").draw(1, torch.Generator())[0].shape == (1, 1, 8, 8)
    spread = digits()[0].double().flatten(1).var(0, unbiased=False).mean()
    card = checkpoints.load(short / "a.safetensors", "score network").card
    assert card["config"]["data_std"] == pytest.approx(float((spread + 0.05**2) ** 0.5), rel=1e-6)


def test_seeds_give_other_weights_and_the_same_seed_the_same(short, tmp_path):
    more = ("--steps", "3", "--conditional", "--prediction", "v")
    command(tmp_path / "b", *more)
    command(tmp_path / "c", *more, "--seed", "1")
    a, b, c = (p.read_bytes() for p in (short / "a.safetensors", *sorted(tmp_path.glob("*.safetensors"))))
    assert a == b
    assert a != c


MISTAKES = {
    "--data nowhere.zip": "nowhere.zip",
    "--data digits-gaussians --conditional": "no class labels",
    "--channels 12": "multiple of 8",
    "--multipliers 1 1 1 1 1": "cannot be halved 4 times",
    "--steps 0": "0 is not a positive whole number",
    "--decay slowly": "invalid choice: 'slowly'",
    "--embedding smooth": "invalid choice: 'smooth'",
    "--device quantum": "type --device cpu or --device cuda",
    "--lr -1": "lr",
    "--ema 2": "ema",
    "--clip 0": "clip",
    "--warmup -1": "warm",
    "--noise -1": "noise",
    "--beta2 1": "beta2",
    "--weight-decay -1": "weight decay",
    "--patch 3": "in patches of 3",
    "--resolution 3": "blocks do not divide",
    "--resume nowhere.safetensors": "nowhere.safetensors is missing",
    "--data digits-gaussians --resolution 4": "cannot be mirrored or averaged",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(line, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        command(tmp_path / "x", "--steps", "2", *line.split())
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert MISTAKES[line] in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_other_settings_leaves_with_2_and_fresh_begins_anew(tmp_path, capsys, interrupted):
    shutil.copy(interrupted, tmp_path / "x.state")
    with pytest.raises(SystemExit) as left:
        command(tmp_path / "x", "--steps", "2")
    assert left.value.code == 2
    assert "other settings" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
    assert command(tmp_path / "x", "--steps", "2", "--fresh") == 0
    assert not (tmp_path / "x.state").exists()


def test_resuming_from_weights_begins_with_them_and_keeps_their_architecture(short, tmp_path, capsys):
    """With a learning rate of 1e-30 nothing moves: what is written is what was given, in half precision."""
    more = ("--steps", "1", "--lr", "1e-30", "--halves", "--conditional")
    assert command(tmp_path / "b", *more, "--resume", str(short / "a")) == 0
    (given, before), (found, card) = load(short / "a.safetensors"), load(tmp_path / "b.safetensors")
    assert found.network.config == given.network.config
    assert card["resumed"] == before
    assert card["images_seen"] == 4 + before["images_seen"] == 16
    for a, b in zip(found.network.parameters(), given.network.parameters(), strict=True):
        assert torch.equal(a, b.half().float())
    stored = checkpoints.read(tmp_path / "b.safetensors")[0]
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    with pytest.raises(SystemExit):
        command(tmp_path / "c", "--steps", "1", "--resume", str(short / "a.safetensors"))
    assert "10 classes and 1 x 8 pixels does not fit data of 0 classes" in capsys.readouterr().err


def test_a_diverging_run_leaves_with_1(tmp_path, capsys):
    assert command(tmp_path / "x", "--steps", "20", "--lr", "1e30", "--warmup", "0") == 1
    message = capsys.readouterr().err
    assert "lower the learning rate" in message
    assert message.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        train.command(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for option in train.arguments()._actions:
        assert all(name in said for name in option.option_strings)


def test_examples_of_help_parse(capsys):
    examples = [line for line in train.arguments().epilog.splitlines() if "python -m" in line]
    assert len(examples) == 3
    for line in examples:
        train.arguments().parse_args(line.split()[3:])
