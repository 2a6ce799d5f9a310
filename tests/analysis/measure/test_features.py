"""Features: one interface to what images are compared in, whatever the states come as."""

import pickle

import pytest
import torch
from torch import nn

from analysis.measure import features as module
from analysis.measure.features import Features, Seen, classifier, features, inception, pixels, stored
from analysis.study.keys import Keys
from problems import Gaussian, digits_mixture, toy_mixture
from problems.console import UsageError
from problems.images import classifier as classifiers
from problems.images import inception as inceptions

DIGITS, TOY = digits_mixture(), toy_mixture()


def shaped(*shape):
    """A problem whose states have this shape."""
    return Gaussian(torch.zeros(shape, dtype=torch.float64), 0.5)


def images(n, *shape, spread=0.5):
    shape = shape or (1, 8, 8)
    return spread * torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain(vectors, n, d):
    assert vectors.shape == (n, d)
    assert vectors.dtype == torch.float64
    assert vectors.device.type == "cpu"
    assert not vectors.is_inference()
    assert not vectors.requires_grad
    return vectors


def test_pixels_are_the_states():
    x = images(5)
    made = plain(pixels(DIGITS).of(x.clone().requires_grad_()), 5, 64)
    assert torch.equal(made, x.reshape(5, 64))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(plain(pixels(DIGITS).of(x.to(dtype)), 5, 64), x.to(dtype).double().reshape(5, 64))
    assert torch.equal(plain(pixels(TOY).of(x[:, 0, 0, :2]), 5, 2), x[:, 0, 0, :2])
    assert [pixels(p).name for p in (DIGITS, TOY)] == ["pixels", "coordinates"]


def test_the_classifier_sees_all_states_in_batches(monkeypatch):
    found = classifier(DIGITS)
    x = images(module.BATCH + 7)
    known = classifiers.shipped().features(x.float()).double()
    made = plain(found.of(x.clone().requires_grad_()), len(x), 64)
    # Four convolutions and a layer, of sums of at most 288 products in float32: 5 · 288 · 2⁻²⁴ = 9e-5.
    assert (made - known).norm() < 1e-4 * known.norm()
    assert torch.equal(found.of(x.float()), made)
    rough = x.to(torch.bfloat16)
    assert torch.equal(found.of(rough), found.of(rough.double()))
    sizes = []
    see = classifiers.Classifier.features
    monkeypatch.setattr(
        classifiers.Classifier, "features", lambda self, x: (sizes.append((len(x), x.dtype)), see(self, x))[1]
    )
    found.of(x)
    assert sizes == [(module.BATCH, torch.float32), (7, torch.float32)]
    assert classifier(TOY) is None
    assert classifier(shaped(3, 8, 8)) is None


def test_eight_bits():
    """Levels stay, what lies between goes to the nearest, what lies outside to the ends."""
    levels = torch.arange(256.0, dtype=torch.float64) / 127.5 - 1.0
    assert (stored(levels) - levels).abs().max() < 2.0**-51
    for dtype in (torch.float32, torch.float64):
        kept = stored(levels.to(dtype))
        for part in (-0.49, 0.49):
            assert torch.equal(stored((levels + part / 127.5).to(dtype)), kept)
        assert torch.equal(stored(torch.tensor([-7.0, 1.02, 3.0], dtype=dtype)), kept[[0, 255, 255]])
    assert len(set(stored(torch.linspace(-2, 2, 9999)).tolist())) == 256


class Means(nn.Module):
    """Stands in for the network: the mean of each image, and its size."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    def features(self, x):
        assert torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32
        self.seen.append(x)
        return self.weight * torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), float(x.shape[-1]))], 1)


def test_inception_sees_eight_bits_in_batches(monkeypatch, tmp_path):
    network, before = Means(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(inceptions, "load", lambda path: network)
    x = images(module.BATCH + 1, 3, 4, 4, spread=1.0)
    made = plain(inception(tmp_path / "w.pth").of(x), len(x), 2)
    assert [len(part) for part in network.seen] == [module.BATCH, 1]
    assert torch.equal(torch.cat(network.seen), stored(x.float()))
    assert torch.cat(network.seen).abs().max() == 1.0
    assert torch.backends.cudnn.allow_tf32 == before
    assert (made[:, 0] - stored(x).mean((1, 2, 3))).abs().max() < 48 * 2.0**-24
    assert (made[:, 1] == 4.0).all()


@pytest.fixture(scope="module")
def weights():
    """Small in a file: tensors of equal numbers, with which layers take means and add a half."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in inceptions.Inception().state_dict().items()}
    return {
        n: torch.tensor(1.0 / s[1:].numel() if "conv" in n else 0.5).expand(s)
        for n, s in shapes.items()
        if not n.endswith("batches_tracked")
    }


def key(found, keys=None):
    return (keys or Keys()).key(plain, {"features": found})


def test_inception_of_a_file(weights, tmp_path):
    """The key of its features is that of the weights, whatever file they are in."""
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    found = inception(path)
    x = images(1)
    made = plain(found.of(x), 1, 2048)
    assert torch.isfinite(made).all()
    assert (made > 0.0).all()
    assert torch.equal(made, plain(found.of(stored(x).expand(-1, 3, -1, -1)), 1, 2048))
    assert pickle.loads(pickle.dumps(found)).of is found.of

    twin = inception(path.rename(path.with_name("elsewhere.pth")))
    torch.save({**weights, "Mixed_5b.branch1x1.bn.bias": torch.zeros(64)}, path.with_name("elsewhere.pth"))
    other = inception(path.with_name("elsewhere.pth"))
    assert found.name == twin.name == other.name == "Inception-v3"
    keys = Keys()
    assert key(found, keys) == key(twin, keys) != key(other, keys)


def test_features_are_told_apart_in_the_store():
    assert key(classifier(DIGITS)) == key(classifier(DIGITS))
    assert key(pixels(DIGITS)) == key(pixels(DIGITS))
    assert key(classifier(DIGITS)) != key(pixels(DIGITS))

    def weighing(value):
        network = Means()
        nn.init.constant_(network.weight, value)
        return Features("means", Seen(network, stored, (weighing, (value,))))

    assert key(weighing(1.0)) == key(weighing(1.0)) != key(weighing(1.0 + 2.0**-23))


def test_features_travel_by_what_makes_them():
    """To another process, without the weights."""
    for found in (classifier(DIGITS), pixels(DIGITS), pixels(TOY)):
        sent = pickle.dumps(found)
        assert len(sent) < 500
        assert pickle.loads(sent) == found
        assert pickle.loads(sent).of is found.of


def test_only_inception_has_an_fid():
    distances = [found.distance for found in (classifier(DIGITS), pixels(DIGITS), pixels(TOY))]
    assert distances == [
        "Fréchet distance (digits classifier)",
        "Fréchet distance (pixels)",
        "Fréchet distance (coordinates)",
    ]
    assert Features("Inception-v3", lambda x: x).distance == "FID"


def test_names_become_features(weights, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    found = features(["pixels", "classifier", str(path), "pixels"], DIGITS)
    assert [f.name for f in found] == ["pixels", "digits classifier", "Inception-v3"]
    assert [f.name for f in features([str(path)], shaped(3, 4, 4))] == ["Inception-v3"]
    assert features([], DIGITS) == ()


@pytest.mark.parametrize(
    ("name", "problem", "sentence"),
    [
        (
            "clasifier",
            DIGITS,
            "unknown features 'clasifier'; choose from classifier, pixels, or type the path",
        ),
        ("", DIGITS, "unknown features ''"),
        (
            "classifier",
            TOY,
            "the digits classifier sees images of shape (1, 8, 8), and this problem's states",
        ),
        ("{folder}/w.pth", TOY, "Inception-v3 sees images of one or three colours"),
        ("{folder}/w.pth", shaped(2, 8, 8), "have shape (2, 8, 8); type --features pixels"),
        ("{folder}/w.pth", DIGITS, "w.pth is missing; use pt_inception-2015-12-05-6726825d.pth"),
        ("{folder}/w.pt", DIGITS, "w.pt is not a file of weights alone; use pt_inception"),
        ("{folder}/cut.pth", DIGITS, "cut.pth is damaged, or holds more than weights; use pt_inception"),
    ],
)
def test_mistakes_get_one_sentence(name, problem, sentence, tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK")
    with pytest.raises(UsageError) as caught:
        features([name.format(folder=tmp_path)], problem)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
