"""Networks of images that were averaged: data, notes, heads, classifiers, all on a tiny zip of JPEGs."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import fid
from analysis.measure import shards
from analysis.measure.given import fitting, given
from problems.console import UsageError
from problems.images import checkpoints, classify, data, distill, train
from problems.images.classify import Split, Variation
from problems.images.guided import GuidedImages
from problems.images.score import load
from problems.images.sources import samples
from problems.labelled import InTurn

LABELS = [0, 1, 0, 1, 1, 0]
QUICK = ["--steps", "1", "--batch", "4"]


def written(path, kind, seed=0):
    """A zip of six coloured images of 8 x 8, smooth enough for JPEG."""
    source = np.random.default_rng(seed)
    suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(len(LABELS)):
            levels = source.integers(0, 256, (2, 2, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(levels).save(file, kind)
            archive.writestr(f"img{k}.{suffix}", file.getvalue())
        pairs = [[f"img{k}.{suffix}", label] for k, label in enumerate(LABELS)]
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with data, a network of it averaged to 4 x 4, and its head, all trained by the commands."""
    folder = tmp_path_factory.mktemp("averaged")
    written(folder / "data.zip", "JPEG")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        kind = (
            "--resolution 4 --noise 0 --flip --conditional --channels 8 --multipliers 1 --blocks 1 --patch 2"
        )
        line = [*QUICK, "--data", "data.zip", *kind.split(), "--levels", "log-normal", "--halves"]
        assert train.command([*line, "--out", "net"]) == 0
        line = [*QUICK, "--network", "net.safetensors", "--data", "data.zip", "--halves"]
        assert distill.command([*line, "--out", "net-head"]) == 0
    return folder


def opened(folder):
    return load(folder / "net.safetensors", folder / "net-head.safetensors")[0]


def test_the_card_says_what_the_data_are(here):
    card = json.loads((here / "net.json").read_text())
    assert card["data"]["resolution"] == 4
    assert card["data"]["note"] == data.LOSSY
    assert card["images_seen"] == 4
    assert card["levels"] == "log-normal"


def test_images_are_averaged_and_lossless_ones_have_no_note(tmp_path):
    """Squares of equal pixels, of which PNG loses nothing, have means that are the pixels."""
    path = str(written(tmp_path / "x.zip", "PNG"))
    whole, small = samples(path), samples(path, resolution=2)
    assert "note" not in small.card
    assert "resolution" not in whole.card
    x = whole.draw(5, torch.Generator().manual_seed(0))[0]
    averaged = small.draw(5, torch.Generator().manual_seed(0))[0]
    assert torch.equal(averaged, x[:, :, ::4, ::4])
    assert torch.equal(averaged.repeat_interleave(4, 2).repeat_interleave(4, 3), x)


def test_a_card_names_no_file_to_be_read_and_data_of_a_user_are_averaged_to_the_states(here, monkeypatch):
    monkeypatch.chdir(here)
    with pytest.raises(ValueError, match="not at hand"):
        opened(here).sample(2)
    found = fitting("data.zip", (3, 4, 4))
    assert torch.equal(
        found.in_turn(0, len(LABELS), 0).sum(0),
        data.load("data.zip", 4).batch(torch.arange(len(LABELS))).double().sum(0),
    )
    assert found.note == f"{data.LOSSY}; the data were averaged to 4 x 4"
    assert pickle.loads(pickle.dumps(found)).shape == (3, 4, 4)
    assert fitting("data.zip", (3, 5, 5)).shape == given("data.zip").shape


def test_a_head_on_patches_is_found_and_stored_in_half_precision(here):
    model = opened(here)
    model = model.labelled(InTurn(2)).to(torch.zeros((), dtype=torch.float64))
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    eps, slope = model.distilled.flow_jet(x, 0.7, 2)
    assert torch.equal(eps, model.flow_jet(x, 0.7, 1)[0])
    assert slope.shape == x.shape
    assert slope.isfinite().all()
    for name in ("net", "net-head"):
        kinds = {t.dtype for t in checkpoints.read(here / f"{name}.safetensors")[0].values()}
        assert kinds == {torch.float16}


def test_notes_follow_the_data(here):
    model = opened(here)
    assert model.note == model.labelled(1).note == GuidedImages(model, 1.0).note == data.LOSSY


def test_distances_are_told_with_the_note(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    monkeypatch.setattr(shards, "SIZE", 8)
    monkeypatch.setattr(shards, "COMPARED", 16)
    monkeypatch.setattr(shards, "TOLERANCE", 0.1)
    line = "--problem net.safetensors --data data.zip --features pixels"
    line += " --samples 8 --solvers ddim --nfe 3 --grids quadratic"
    assert fid.command([*line.split(), "--out", "out"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("the data are JPEGs") == 2  # under the best variants, and under all of them


def test_a_classifier_is_tested_on_data_of_its_own(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(here)
    written(here / "test.zip", "JPEG", seed=2)
    found = classify.task("data.zip", Split(), Variation(0.0, 0), resolution=4, test="test.zip")
    assert found.images.shape == (6, 3, 4, 4)
    assert torch.equal(found.images, data.load("test.zip", 4).batch(torch.arange(6)))
    assert found.source.card["test"]["name"] == "test.zip"
    drawn = found.source.draw(100, torch.Generator().manual_seed(0))[0]
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 6  # all of them: none is held out
    line = "--data data.zip --test test.zip --resolution 4 --channels 2 --halvings 1 --features 4 --halves"
    assert classify.command([*QUICK, *line.split(), "--out", str(tmp_path / "c")]) == 0
    assert "of 6 held-out images" in capsys.readouterr().out
    with pytest.raises(UsageError, match="other images or more classes"):
        classify.task("data.zip", Split(), Variation(), resolution=4, test="digits")
