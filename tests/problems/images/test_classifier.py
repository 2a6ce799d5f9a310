"""The classifier: what its card says is so, its features are smooth, and its training can be cut off."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from problems.images import checkpoints, classify, training
from problems.images.checkpoints import CheckpointError
from problems.images.classifier import SHIPPED, Classifier, ClassifierConfig, load, shipped
from problems.images.classify import Split, Variation, accuracy, task
from problems.makers import digits
from tests.conftest import fitted_order

SMALL = ["--steps", "210", "--batch", "8", "--channels", "2", "--features", "4"]


def of_card() -> classify.Task:
    """Return the task that the card of the shipped classifier describes."""
    about = load(SHIPPED)[1]["data"]
    found = task(about["name"], Split(**about["split"]), Variation(**about["variation"]))
    assert found.source.card == about  # the hash of the data included
    return found


def test_the_shipped_classifier_is_what_its_card_says():
    classifier, card = load(SHIPPED)
    _, images, labels = of_card()
    assert accuracy(classifier, images, labels) == card["test"]
    assert card["test"]["accuracy"] >= 0.98
    assert card["test"]["images"] == 359  # a fifth of every class
    assert {t.dtype for t in classifier.state_dict().values()} == {torch.float32}
    assert SHIPPED.stat().st_size < 300_000


def test_held_out_images_are_not_trained_on():
    source, images, _ = task("digits", Split(), Variation(noise=0.0, shift=0))
    held = {x.numpy().tobytes() for x in images}
    drawn, _ = source.draw(40_000, torch.Generator().manual_seed(0))
    seen = {x.numpy().tobytes() for x in drawn}
    assert not held & seen
    everything = {x.float().numpy().tobytes() for x in digits()[0]}
    assert len(everything) == 1797
    assert seen | held == everything  # so many draws miss one of 1438 with probability 1e-9


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_splits_are_stratified_and_seeded(share):
    labels = digits()[1]
    kept, held = Split(share).of(labels)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1797))
    counts = labels.bincount()
    assert labels[held].bincount().tolist() == [round(share * int(n)) for n in counts]
    assert torch.equal(Split(share).of(labels)[1], held)
    assert not torch.equal(Split(share, seed=1).of(labels)[1], held)


def test_shifts_and_mirrors_of_an_image():
    x = torch.arange(30.0).reshape(1, 1, 5, 6).expand(400, 2, 5, 6)
    moved = Variation(noise=0.0, shift=1, flip=False)(x, torch.Generator().manual_seed(0))
    known = {}
    for down, right in itertools.product((0, 1, 2), repeat=2):  # edges filled by the nearest pixel
        rows = [min(max(i + down - 1, 0), 4) for i in range(5)]
        columns = [min(max(j + right - 1, 0), 5) for j in range(6)]
        known[x[0, 0][rows][:, columns].numpy().tobytes()] = 0
    for image in moved:
        assert torch.equal(image[0], image[1])  # the colours move together
        known[image[0].numpy().tobytes()] += 1  # and nothing else is made of it
    assert min(known.values()) > 0

    mirrored = Variation(noise=0.0, shift=0, flip=True)(x, torch.Generator().manual_seed(0))
    straight = (mirrored == x).flatten(1).all(1)
    assert torch.equal(mirrored[~straight], x[~straight].flip(-1))
    assert abs(int(straight.sum()) - 200) < 5 * 10  # five standard deviations of a fair coin


def test_noise_has_its_standard_deviation():
    x = torch.zeros(1000, 1, 8, 8)
    noisy = Variation(noise=0.05, shift=0)(x, torch.Generator().manual_seed(0)).double()
    assert float(noisy.std()) == pytest.approx(0.05, rel=5 / math.sqrt(2 * x.numel()))
    assert abs(float(noisy.mean())) < 5 * 0.05 / math.sqrt(x.numel())


def test_accuracy_has_wilsons_interval():
    """k of n right, by the interval (p + z²/2n ± z √(p(1-p)/n + z²/4n²))/(1 + z²/n)."""
    classifier = Classifier(ClassifierConfig(channels=1))
    with torch.no_grad():
        classifier.last.weight.zero_()
        classifier.last.bias.copy_(torch.eye(10)[3])  # it says 3, whatever it sees
    n, k, z = 1200, 1140, 1.959963984540054
    labels = torch.full((n,), 3).index_fill(0, torch.arange(n - k), 4)
    told = accuracy(classifier, torch.zeros(n, 1, 8, 8), labels)
    p = k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert told["images"] == n
    assert told["accuracy"] == p
    assert told["low"] == pytest.approx((centre - half) / (1 + z * z / n), rel=1e-12)
    assert told["high"] == pytest.approx((centre + half) / (1 + z * z / n), rel=1e-12)


def test_features_are_smooth():
    """Central differences of fourth order converge to the derivative as they do where there is no kink."""
    classifier = shipped().double()
    x = digits()[0][:64]
    v = 0.5 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = classifier.features
    value, slope = torch.func.jvp(f, (x,), (v,))
    assert value.dtype == slope.dtype == torch.float64
    assert value.shape == (64, 64)
    assert torch.isfinite(value).all()
    assert torch.isfinite(f(100.0 * x)).all()
    steps, errors = [64, 128, 256], []
    for n in steps:
        h = 1.0 / n
        near, far = f(x + h * v) - f(x - h * v), f(x + 2 * h * v) - f(x - 2 * h * v)
        errors.append(float(((8 * near - far) / (12 * h) - slope).norm()))
    assert fitted_order(steps, errors) == pytest.approx(4.0, abs=0.05)


def test_features_tell_where_they_differ():
    """No feature is constant on the digits, and the last layer alone makes logits of them."""
    classifier = shipped()
    x = digits()[0].float()
    features = classifier.features(x)
    assert (features.std(0) > 1e-2 * features.std()).all()
    logits = features @ classifier.last.weight.T + classifier.last.bias
    # The same sums of 65 float32 terms, in another order.
    bound = 65 * 2.0**-23 * float((features.abs() @ classifier.last.weight.abs().T).max())
    assert (classifier(x) - logits).abs().max() < bound


def test_other_sizes():
    classifier = Classifier(ClassifierConfig(32, 3, channels=8, halvings=3, features=48, classes=7))
    x = torch.zeros(2, 3, 32, 32)
    assert classifier.features(x).shape == (2, 48)
    assert classifier(x).shape == (2, 7)
    with pytest.raises(ValueError, match="size 12 cannot be halved 3 times"):
        ClassifierConfig(12, halvings=3)
    with pytest.raises(ValueError, match="at least 1"):
        ClassifierConfig(classes=0)


def stored(path, tensors=None, **changes):
    """Write a copy of the shipped checkpoint whose card or weights say something else."""
    card = {**load(SHIPPED)[1], **changes}
    checkpoints.save(path, load_file(SHIPPED) if tensors is None else tensors, card)
    return path


def test_other_checkpoints_are_refused(tmp_path):
    def refusal(path):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path = tmp_path / "it.safetensors"
    assert torch.equal(load(stored(path))[0].last.weight, shipped().last.weight)
    assert "is a score network, where a classifier is needed" in refusal(stored(path, kind="score network"))
    assert "describes no classifier" in refusal(stored(path, config={"size": 8, "depth": 3}))
    assert "describes no classifier" in refusal(stored(path, config={"size": 9}))
    assert "describes no classifier" in refusal(stored(path, config=None))
    assert "does not fit the architecture" in refusal(stored(path, config={"channels": 8}))
    assert "does not fit the architecture" in refusal(stored(path, {"last.bias": torch.zeros(10)}))
    stored(path).write_bytes(SHIPPED.read_bytes()[:-1])
    assert "do not belong together" in refusal(path)
    path.with_suffix(".json").unlink()
    assert "is missing" in refusal(path)


def test_a_run_that_was_cut_off_ends_the_same(tmp_path, monkeypatch, capsys):
    def run(name, *more):
        return classify.command([*SMALL, "--out", str(tmp_path / name), *more])

    assert run("whole") == 0
    drawn = []

    def cut(seed, step):
        drawn.append(step)
        if len(drawn) == 205:
            raise KeyboardInterrupt
        return torch.Generator().manual_seed((seed << 32) + step)

    monkeypatch.setattr(training, "generator", cut)
    assert run("parts") == 130
    assert not (tmp_path / "parts.safetensors").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run("parts", "--shift", "2")
    assert left.value.code == 2
    assert "belongs to a run with other settings" in capsys.readouterr().err
    assert run("parts") == 0
    assert drawn[205:] == list(range(200, 210))  # it did go on, not begin again
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    cards = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "parts")]
    assert cards[0]["losses"] == cards[1]["losses"]
    assert cards[0]["test"] == cards[1]["test"]
    assert cards[1]["losses"][-1] < cards[1]["losses"][0]
    assert not (tmp_path / "parts.state").exists()
    assert not load(tmp_path / "parts.safetensors")[0].last.weight.requires_grad


@pytest.fixture
def unlabelled(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 8), 80 * k, np.uint8)).save(folder / f"{k}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "digits-gaussians"], "digits-gaussians has no class labels"),
        (["--data", "{folder}"], "pictures has no class labels"),
        (["--data", "{folder}/none.zip"], "none.zip cannot be read: No such file"),
        (["--data", "{folder}/0.png"], "0.png is neither a folder, zip or npz file"),
        (["--halvings", "4"], "images of size 8 cannot be halved 4 times"),
        (["--held-out", "0.0001"], "leaves none to test on"),
        (["--held-out", "0.9999"], "leaves none to train on"),
        (["--held-out", "1"], "1 is not between 0 and 1"),
        (["--shift", "-1"], "-1 is negative"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_mistakes_get_one_sentence(arguments, sentence, unlabelled, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        classify.command(
            [a.format(folder=unlabelled) for a in arguments] + ["--out", str(tmp_path / "classifier")]
        )
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("classifier*"))


def test_images_must_be_square(tmp_path, capsys):
    for name in "ab":
        folder = tmp_path / "oblong" / name
        folder.mkdir(parents=True)
        for k in range(5):
            Image.fromarray(np.zeros((8, 4), np.uint8)).save(folder / f"{k}.png")
    with pytest.raises(SystemExit) as left:
        classify.command(["--data", str(tmp_path / "oblong"), "--out", str(tmp_path / "classifier")])
    assert left.value.code == 2
    assert "images must be square" in capsys.readouterr().err
