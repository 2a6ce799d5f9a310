"""Samples compared with what a user has: data, statistics, features, a latent decoder, folders."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import linalg

from analysis import fid, gte, interpolate, samples, smoothness, weak
from analysis.measure import shards
from analysis.measure.case import Case
from analysis.measure.comparison import comparison
from analysis.measure.features import features
from analysis.measure.folders import folder_quality
from analysis.measure.given import given
from analysis.measure.interpolation import pairs
from analysis.measure.named import Decoder, Named
from analysis.measure.quality import Judge
from analysis.measure.rows import Row
from analysis.measure.statistics import Bootstrap
from analysis.methods import METHODS
from analysis.show import plots
from analysis.show import quality as pictures
from analysis.study.cells import Study
from analysis.study.keys import Keys
from analysis.study.pools import pool
from problems import Gaussian
from problems.console import UsageError
from problems.images.data import LOSSY

MINE = '''
import torch
from torch import nn

from problems import Network, VP
from problems.images.guided import GuidedImages


class Net(nn.Module):
    """A network of latents (2, 2, 2) with two classes and a label for none."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 8, 1), nn.SiLU(), nn.Conv2d(8, 2, 1))
        self.embed = nn.Embedding(3, 2)

    def forward(self, x, time, labels):
        return 0.5 * x + 0.1 * self.layers(x) + 0.1 * self.embed(labels)[:, :, None, None]


class Gain(nn.Module):
    """A network of images (1, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x, time):
        return self.gain * x


torch.manual_seed(0)
NET = Net()
DECODER = nn.Sequential(nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Tanh())
LATENTS = torch.randn(50, 2, 2, 2, dtype=torch.float64)


def latent():
    return Network(NET, VP(), (2, 2, 2), classes=3, no_class=2, data=LATENTS)


def guided():
    return GuidedImages(latent(), 1.0)


def flat():
    return Network(Gain(), VP(), (1, 4, 4))


def decode(z):
    return DECODER(z)


def statistics(x):
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x[:, 0, 0, 0]], 1)


def vectors(z):
    return z.flatten(1)


def broken(z):
    raise RuntimeError("no such layer")
'''

FILE = "mine_of_quality.py"

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr(pictures, "curves", lambda *_: Figure())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a file of a user, two folders of images, the first also as arrays, and TorchScript."""
    folder = tmp_path_factory.mktemp("home")
    (folder / FILE).write_text(MINE)
    levels = np.random.default_rng(0).integers(0, 256, (90, 4, 4), dtype=np.uint8)
    for name, images in (("photos", levels), ("half", levels[::2] // 2)):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{i:03d}.png")
    np.savez(folder / "photos.npz", levels[..., None])
    torch.manual_seed(1)
    layers = torch.nn.Conv2d(1, 3, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(12, 5)
    torch.jit.script(torch.nn.Sequential(*layers)).save(str(folder / "net.pt"))
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def by_other_means(folder):
    """What the scripted network sees in a folder."""
    x = np.stack([np.asarray(Image.open(file)) for file in sorted(Path(folder).glob("*.png"))])[:, None]
    with torch.no_grad():
        return torch.jit.load("net.pt")(torch.from_numpy(x).float() / 127.5 - 1.0).double().numpy()


def by_square_root(x, y):
    """The formula of pytorch-fid."""
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    apart = x.mean(0) - y.mean(0)
    return apart @ apart + np.trace(one) + np.trace(two) - 2.0 * np.trace(linalg.sqrtm(one @ two).real)


def run(command, folder, *words):
    """Run a command, and return what it wrote."""
    name = command.__name__.rpartition(".")[2]
    line = ["--samples", "30", "--solvers", "ddim", "--steps", "4", "--out", str(folder), *words]
    assert command.command(line) == 0
    return pd.read_csv(folder / f"{name}.csv")


def test_data_and_statistics_of_ours_and_of_others_give_the_same_distances(here, tmp_path, capsys):
    """A user's network, folder and scripted features; statistics written, read back, and made by others."""

    def measured(*words):
        own = ("--problem", f"{FILE}:flat", "--features", "net.pt", "--grids", "quadratic")
        table = run(fid, tmp_path, *own, *words)
        return table[(table["feature"] == "net") & (table["denoise"])].set_index("solver")

    whole = measured("--data", "photos", "--write-reference", str(tmp_path / "own.npz"))
    assert "compared with 90 of the 90 data in photos" in capsys.readouterr().out
    data = by_other_means("photos")
    np.savez_compressed(tmp_path / "theirs.npz", mu=data.mean(0), sigma=np.cov(data, rowvar=False))
    for file in ("own.npz", "theirs.npz"):
        other = measured("--reference", str(tmp_path / file))
        for name in ("frechet", "frechet_low", "frechet_high", "frechet_infinite"):
            np.testing.assert_allclose(other[name], whole[name], rtol=1e-6)
        assert other.loc["ddim", "gap"] == pytest.approx(whole.loc["ddim", "gap"], rel=1e-5)
        assert other["precision"].isna().all()
    assert whole["precision"].notna().all()
    case = Case(f"{FILE}:flat", 30)
    look = shards.View(features(["net.pt"], case.problem))
    made = shards.accurate(case, 0, look)["denoised net"]
    assert whole.loc["accurate", "frechet"] == pytest.approx(by_square_root(made, data), rel=1e-6)


def test_folders_are_compared_without_a_model(here, tmp_path):
    assert fid.command(["--folders", "half", "photos", "--features", "net.pt", "--out", str(tmp_path)]) == 0
    row = pd.read_csv(tmp_path / "fid-folders.csv").iloc[0]
    exact = by_square_root(by_other_means("half"), by_other_means("photos"))
    assert row["frechet"] == pytest.approx(exact, rel=1e-6)
    assert (row["images"], row["data"]) == (45, 90)
    assert row["frechet_low"] < exact < row["frechet_high"]
    written = tmp_path / "photos.npz"
    line = ["--folders", "photos.npz", "--features", "net.pt", "--write-reference", str(written)]
    assert fid.command([*line, "--out", str(tmp_path)]) == 0
    for data in ("photos.npz", written):
        found = folder_quality("half", data, ["net.pt"])
        assert found["frechet"][0] == pytest.approx(exact, rel=1e-6)
    assert (written.stat().st_size, found["data"][0]) > (0, 89)


def test_latents_are_decoded_before_they_are_seen(here, tmp_path, monkeypatch):
    """A latent model of a user through ``fid``, ``gte`` and ``samples``."""
    decoder = ("--decode", f"{FILE}:decode")
    case = Case(f"{FILE}:latent", 30)
    decode, own = Decoder(decoder[1], (2, 2, 2)), ("--problem", f"{FILE}:latent", "--grids", "quadratic")
    table = run(fid, tmp_path, *own, *decoder)
    row = table[table["solver"] == "ddim"].iloc[0]
    method = replace(METHODS["ddim"], denoise=True)
    x, _ = case.sample(method, 4, shards.initial(case, 0))
    assert row["feature"] == "pixels"
    images, data = decode(case.cast(x)).flatten(1).numpy(), []
    for i, n in enumerate((250, 250, 100)):
        source = torch.Generator().manual_seed(shards.seed_of(case, i, shards.DATA))
        data.append(decode(case.problem.sample(250, None, source)[:n]).flatten(1).numpy())
    assert row["frechet"] == pytest.approx(by_square_root(images, np.concatenate(data)), rel=1e-6)

    table = run(gte, tmp_path, *own, *decoder)
    x, _ = case.sample(METHODS["ddim"], 4)
    apart = decode(x) - decode(case.exact().x[-1])
    error = float(apart.flatten(1).norm(dim=1).mean())
    assert table["feature_error"][0] == pytest.approx(error, rel=1e-9)
    assert "The same in the decoded images, mean" in (tmp_path / "gte.md").read_text()

    shown = []
    monkeypatch.setattr(plots, "sheet", lambda ax, images, *size: shown.append(images.shape))
    run(samples, tmp_path, "--problem", f"{FILE}:latent", *decoder)
    assert shown == [(16, 1, 4, 4)] * 2

    shown.clear()
    line = ["--problem", f"{FILE}:latent", "--samples", "3", "--out", str(tmp_path)]
    words = ["--solvers", "ddim", "--nfe", "4", "--points", "2"]
    assert interpolate.command([*line, *words, *decoder]) == 0
    assert shown == [(4, 1, 4, 4)]
    case = Case(f"{FILE}:latent", 3)
    there, _ = case.encode(METHODS["ddim"], 4, pairs(case))
    found, _ = case.sample(method, 3, case.cast(there))
    apart = decode(found) - decode(case.denoise(pairs(case)))
    table = pd.read_csv(tmp_path / "interpolate.csv")
    expected = [float(part.flatten(1).norm(dim=1).mean()) for part in apart.chunk(2)]
    assert list(table["feature_error"]) == pytest.approx(expected, rel=1e-6)
    about = json.loads((tmp_path / "interpolate.json").read_text())["about"]
    assert about["features"] == "x, decoded images"
    assert about["model"].endswith(f"(Network, decoded by {FILE}:decode)")

    for command in (samples, interpolate, smoothness):
        networks = ["--networks", f"{FILE}:latent"] if command is smoothness else []
        with pytest.raises(SystemExit, match="2"):
            command.command([*line, *networks])


def test_guidance_data_and_features_of_a_user_are_the_same_on_workers(here, cluster_address):
    """Bit for bit; in batches to rounding."""
    case = Case(f"{FILE}:guided", 30, given=given("photos"))
    decoder = Decoder(f"{FILE}:decode", (2, 2, 2))
    compared = comparison(case, [f"{FILE}:statistics", "net.pt"], decoder=decoder)
    row = Row("ddim", METHODS["ddim"], 4, steps=4)
    data, _, made = shards.shards_of(case, [row], compared.view, compared.against)
    alone = Study().run("fid", [*data, *made])
    with pool(1, cluster_address) as who:
        workers = Study(pool=who).run("fid", [*data, *made])
    for one, other in zip(alone, workers, strict=True):
        assert one.arrays.keys() == other.arrays.keys() >= {"statistics", "net", "pixels"}
        assert all((one.arrays[name] == other.arrays[name]).all() for name in one.arrays)
    batches = shards.sampled(case.but(batch=7, given=None), 0, compared.view, row.method, 4)
    np.testing.assert_allclose(batches["pixels"], alone[-1].arrays["pixels"], atol=1e-5)


@pytest.mark.parametrize("command", [fid, weak, interpolate, gte])
def test_where_there_are_no_data_one_sentence_says_what_to_give(command, here, tmp_path, capsys):
    words = ["--encode"] if command is gte else []
    with pytest.raises(SystemExit) as left:
        run(command, tmp_path, "--problem", f"{FILE}:flat", *words) if command is not interpolate else (
            command.command(["--problem", f"{FILE}:flat", "--samples", "4", "--out", str(tmp_path)])
        )
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "has no data to compare with" in said
    assert "type --data with a folder, zip or npz file" in said
    assert said.count("\n") == 1


def test_data_are_the_law_of_weak_errors(here, tmp_path):
    """With data of the problem's own law the error of the mean is chance; with others their distance."""
    errors = []
    for name, shift in (("points.npz", 0.0), ("far.npz", 3.0)):
        np.savez(tmp_path / name, np.random.default_rng(0).normal([0.3 + shift, -0.2], 0.5, (400, 2)))
        case = Case("gaussian", 50, given=given(tmp_path / name))
        errors.append(weak.weak_errors(case, "ddim", [20], exact=400)["mean"].iloc[-1])
    assert errors[0] < 0.3
    assert errors[1] == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--data", "photos", "--problem", "toy"],
            "the data are of shape (1, 4, 4), and states of toy of (2,)",
        ),
        (["--data", "nowhere"], "nowhere cannot be read: No such file"),
        (["--data", "{out}/stats.npz"], "holds statistics, mu and sigma, not data; type --reference"),
        (["--reference", "{out}/stats.npz"], "holds mu (3,) and sigma (3, 3), and pixels have 16 dimensions"),
        (["--reference", "photos.npz"], "photos.npz holds no statistics; an npz file with mu and sigma"),
        (
            ["--data", "photos", "--features", f"{FILE}:broken"],
            "fails on states of shape (1, 4, 4): RuntimeError",
        ),
        (["--data", "photos", "--features", f"{FILE}:none"], f"{FILE} has no function 'none'"),
        (["--data", "photos", "--decode", f"{FILE}:vectors"], "images are (2, C, H, W)"),
        (["--folders", "photos"], "type two folders after --folders, or one and --write-reference"),
        (
            ["--folders", "photos", "half", "--features", "classifier"],
            "the digits classifier sees images of shape",
        ),
    ],
)
def test_mistakes_get_one_sentence_before_anything_is_measured(
    words, sentence, here, tmp_path, capsys, written
):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    line = [
        "--problem",
        f"{FILE}:flat",
        *(word.format(out=tmp_path) for word in words),
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit) as left:
        fid.command(line)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not written


def test_each_of_the_data_occurs_once_and_their_content_is_their_key(here, tmp_path):
    data, same = given("photos"), given("photos.npz")
    whole = torch.cat([data.in_turn(first, 40, 3) for first in (0, 40, 80)])
    assert whole.shape == (90, 1, 4, 4)
    assert {tuple(x.flatten().tolist()) for x in whole} == {
        tuple(x.flatten().tolist()) for x in same.in_turn(0, 90, 7)
    }
    key = Keys().key(shards.pictured, {"given": data})
    assert pickle.loads(pickle.dumps(data)) is data
    assert (
        key
        == Keys().key(shards.pictured, {"given": same})
        != Keys().key(shards.pictured, {"given": given("half")})
    )
    points = np.random.default_rng(0).normal(size=(9, 2))
    np.savez(tmp_path / "points.npz", x=points)
    assert torch.equal(
        given(tmp_path / "points.npz").in_turn(0, 9, 0).sort(0)[0], torch.from_numpy(points).sort(0)[0]
    )


def test_code_of_a_user_stands_in_keys_by_what_it_is(here, tmp_path, monkeypatch):
    """Function, weights and scripts; they travel by name."""
    first = Named(f"{FILE}:decode")
    assert pickle.loads(pickle.dumps(first)).function is first.function

    def key(value):
        return Keys().key(by_square_root, {"x": value})

    before, other = key(first), key(Named(f"{FILE}:vectors"))
    with torch.no_grad():
        first.function.__globals__["DECODER"][0].bias += 1.0
    assert len({before, other, key(first)}) == 3
    first.function.__globals__["DECODER"][0].bias.data -= 1.0

    class Detector(torch.nn.Module):
        """Is called as NVIDIA's detectors are."""

        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            assert return_features
            return x.float().flatten(1)

    torch.jit.script(Detector()).save(str(tmp_path / "detector.pt"))
    problem = Gaussian(torch.zeros(1, 2, 2, dtype=torch.float64), 1.0)
    (look,) = features([str(tmp_path / "detector.pt")], problem)
    x = torch.tensor([-1.0, 1.0, 0.0, 3.0]).reshape(1, 1, 2, 2)
    assert look.of(x).tolist() == [[0.0, 255.0, 128.0, 255.0]]
    (net,) = features(["net.pt"], Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), 1.0))
    assert key(look) != key(net) == key(pickle.loads(pickle.dumps(net)))


def test_jpegs_are_told_of_wherever_a_distance_to_them_is_printed(here, tmp_path, capsys):
    (tmp_path / "jpegs").mkdir()
    for i, image in enumerate(given("photos").in_turn(0, 9, 0)):
        levels = ((image[0] + 1.0) * 127.5).round().to(torch.uint8).numpy()
        Image.fromarray(levels).save(tmp_path / "jpegs" / f"{i}.jpg")
    run(fid, tmp_path, "--problem", f"{FILE}:flat", "--data", str(tmp_path / "jpegs"), "--grids", "quadratic")
    assert capsys.readouterr().out.count(LOSSY) == 2
    np.savez(tmp_path / "large.npz", np.zeros((5, 8, 8), dtype=np.uint8))
    with pytest.raises(UsageError, match=r"photos and .* differ in shape"):
        folder_quality("photos", tmp_path / "large.npz")


def test_the_paired_interval_covers_the_difference_and_is_narrower():
    """Of N(0.3, 1) and N(0.1, 1.1²), from the same numbers, to N(0, 1): d² is μ² + (σ - 1)² a dimension."""
    source = np.random.default_rng(0)
    data = source.standard_normal((20_000, 2))
    exact = 2 * 0.3**2 - 2 * (0.1**2 + 0.1**2)
    judge, hits = Judge(data, Bootstrap(400)), 0
    for _ in range(40):
        z = source.standard_normal((400, 2))
        one, other = judge.distance(0.3 + z), judge.distance(0.1 + 1.1 * z)
        found = judge.gap(one, other)
        hits += found["gap_low"] <= exact <= found["gap_high"]
        alone = 1.96 * (one.influence.var() / 400 + other.influence.var() / 400) ** 0.5
        assert found["gap_high"] - found["gap_low"] < 2.0 * alone
    assert hits >= 34
