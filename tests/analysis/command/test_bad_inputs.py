"""What people type by mistake, or are handed: one sentence, exit code 2, nothing measured, no traceback."""

import dataclasses
import importlib
import json
import os
import sqlite3
import time
from dataclasses import asdict

import pytest
import torch

from analysis import gte
from problems import VP
from problems.images import checkpoints, classify, train
from problems.images.unet import ScoreNetwork
from tests.networks import TINY, network

HUGE = str(10**15)
SMALL = ["--samples", "4", "--nfe", "4", "--solvers", "ddim", "--grids", "quadratic"]

ARGUMENTS = {
    "lte --samples 10000000000000": "GB of memory",
    "gte --samples 1e13": "1e13 is not a positive whole number",
    f"gte --samples 4 --solvers ddim --nfe {HUGE}": "above 1,000,000",
    f"gte --samples 4 --solvers ddim --steps {HUGE}": "above 1,000,000",
    f"samples --samples 4 --steps {HUGE}": "above 1,000,000",
    f"schedule --samples 4 --candidates {HUGE}": "above 1,000,000",
    f"lte --points {HUGE}": "above 1,000,000",
    f"orders --finest {HUGE}": "above 1,000,000",
    "orders --start 0.1 --stop 0.5": "must hold",
    f"gte --seed {2**64}": "is no seed",
    f"gte --seed {2**63}": "is no seed",
    "gte --seed -1": "is no seed",
    "gte --device mps": "type --device cpu",
    "gte --device meta": "type --device cpu",
    "gte --device xpu": "type --device cpu",
    f"gte --workers {HUGE}": "above 1,024",
    "gte --out=": "'' is no folder",
    "gte --out /": "'/' is no folder",
    "derivatives --stencils 500": "above 100",
    f"derivatives --stencils {HUGE}": "above 100",
    "derivatives --t nan": "leaves no room",
    "lte --t nan": "outside",
    "guidance --scales 1e300": "no guidance scale",
    "guidance --scales nan": "no finite number",
}


def refused(command, line, capsys):
    """The sentence with which a command refuses its arguments, within seconds of the processor."""
    began = time.process_time()
    with pytest.raises(SystemExit) as left:
        command(line)
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "defect" not in message
    assert time.process_time() - began < 10.0
    return message


@pytest.mark.parametrize("line", ARGUMENTS)
def test_arguments(line, tmp_path, capsys, written):
    name, *words = line.split()
    command = importlib.import_module(f"analysis.{name}").command
    out = [] if "--out" in line else ["--out", str(tmp_path / "x")]
    assert ARGUMENTS[line] in refused(command, [*words, *out], capsys)
    assert not written


TRAINING = {
    "--lr 1e300": "lr below 3e38",
    "--lr inf": "lr below 3e38",
    f"--seed {2**64}": "is no seed",
    "--device meta": "type --device cpu",
    f"--batch {HUGE}": "above 1,000,000",
    "--channels 800000": "GB of memory",
    "--multipliers 1 100000": "GB of memory",
    "--blocks 1000000": "no such network",
    "--out=": "no name for files",
    "--out /": "no name for files",
}


@pytest.mark.parametrize("line", TRAINING)
def test_arguments_of_training(line, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("problems.images.sketches.TENSORS", 400)  # which are soon made
    out = [] if "--out" in line else ["--out", str(tmp_path / "x")]
    assert TRAINING[line] in refused(train.command, ["--steps", "2", *line.split(), *out], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["--noise nan", "--shift 8", "--features 1000000 --channels 1000000", "--halvings 1000000"]
)
def test_arguments_of_classifiers(line, tmp_path, capsys):
    refused(classify.command, ["--steps", "2", *line.split(), "--out", str(tmp_path / "x")], capsys)


def checkpoint(folder, change=lambda tensors: None, **card):
    """A checkpoint of random weights, changed in some way."""
    tensors = {name: t.clone() for name, t in network(TINY).float().state_dict().items()}
    change(tensors)
    about = {"config": asdict(TINY), "schedule": {"name": "VP", **asdict(VP())}, "data": {"name": "digits"}}
    for part, values in card.items():
        about[part] = {**about[part], **values}
    path = folder / "network.safetensors"
    checkpoints.save(path, tensors, {"kind": "score network", **about})
    return path


def spoilt(value):
    def change(tensors):
        tensors["unet.stem.weight"] = torch.full_like(tensors["unet.stem.weight"], value)

    return change


def complex_(tensors):
    tensors["unet.stem.weight"] = tensors["unet.stem.weight"].to(torch.complex64)


CARDS = {
    "NaN weights": ({"change": spoilt(torch.nan)}, "NaN or infinite numbers as unet.stem.weight"),
    "infinite weights": ({"change": spoilt(torch.inf)}, "NaN or infinite numbers"),
    "complex weights": ({"change": complex_}, "complex numbers as unet.stem.weight"),
    "a thousand million channels": ({"config": {"channels": 10**9}}, "channels"),
    "many channels": ({"config": {"channels": 800_000}}, "does not fit the architecture"),
    "many blocks": ({"config": {"blocks": 10**6}}, "does not fit the architecture"),
    "a large image": ({"config": {"size": 2**40}}, "size"),
    "many classes": ({"config": {"classes": 10**12}}, "classes"),
    "half a class": ({"config": {"classes": 1.5}}, "classes"),
    "an infinite standard deviation": ({"config": {"data_std": 1e999}}, "data_std"),
    "a schedule that runs up": ({"schedule": {"start": 0.1, "stop": 0.5}}, "0 <= stop < start"),
    "a stop that is NaN": ({"schedule": {"stop": float("nan")}}, "stop"),
    "a rate that is a text": ({"schedule": {"beta_max": "20"}}, "beta_max"),
    "noise that falls": ({"schedule": {"beta_min": -30.0}}, "describes no network"),
    "negative noise": ({"data": {"noise": -1.0}}, "noise"),
}


@pytest.mark.parametrize("name", CARDS)
def test_checkpoints(name, tmp_path, capsys, written):
    card, words = CARDS[name]
    path = checkpoint(tmp_path, **card)
    line = [*SMALL, "--problem", str(path), "--out", str(tmp_path / "x")]
    assert words in refused(gte.command, line, capsys)
    assert not written


def test_a_card_chooses_no_file_that_is_read(tmp_path, monkeypatch):
    """A path on a card, of data that can be read, is not followed; a name of the suite's own data is."""
    read = []
    monkeypatch.setattr("problems.images.data.load", read.append)
    model = importlib.import_module("problems.images.score").load
    assert model(checkpoint(tmp_path, data={"name": "digits"}))[0].has_data
    for name in (str(tmp_path), "cifar-10-python.tar.gz", "./digits", 3, ["digits"]):
        other, _ = model(checkpoint(tmp_path, data={"name": name}))
        assert not other.has_data
        with pytest.raises(ValueError, match="not at hand"):
            other.sample(1)
    assert not read


PROBLEMS = """
import torch
from problems import Mixture, Network, VP
def nan():
    return Mixture(torch.tensor([[0.0, torch.nan]], dtype=torch.float64), 0.5)
def up():
    return Mixture(torch.zeros(1, 2, dtype=torch.float64), 0.5, schedule=VP(start=0.1, stop=0.5))
class Lost(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
    def forward(self, x, t):
        return self.weight * x / (x - x)
def lost():
    return Network(Lost(), VP(), (2,))
"""


@pytest.mark.parametrize(
    ("name", "words"), [("nan", "the means of a mixture must be finite"), ("up", "0 <= stop < start")]
)
def test_problems_of_ones_own(name, words, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(PROBLEMS)
    line = [*SMALL, "--problem", f"{tmp_path}/mine.py:{name}", "--out", str(tmp_path / "x")]
    assert words in refused(gte.command, line, capsys)


def test_a_network_that_says_nothing_finite(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(PROBLEMS)
    line = [*SMALL, "--problem", f"{tmp_path}/mine.py:lost", "--out", str(tmp_path / "x")]
    assert gte.command(line) == 1
    said = capsys.readouterr().err
    assert "nothing could be measured: no trajectory stays finite" in said
    assert "defect" not in said


@pytest.mark.parametrize(
    "command",
    [
        lambda fifo, out: gte.command([*SMALL, "--problem", fifo, "--out", out]),
        lambda fifo, out: gte.command([*SMALL, "--plugin", fifo, "--out", out]),
        lambda fifo, out: train.command(["--data", fifo, "--steps", "2", "--out", f"{out}/x"]),
    ],
    ids=["problem", "plugin", "data"],
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(command, tmp_path, capsys):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert str(fifo) in refused(lambda _: command(str(fifo), str(tmp_path / "x")), [], capsys)


def test_a_negative_tariff_on_the_card_of_a_head(tmp_path, capsys):
    """With it, a budget would pay for steps without end."""
    from problems.images.score import weights

    for file in weights("digits").parent.glob("digits*"):
        if file.stem in ("digits", "digits-head"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    card = tmp_path / "digits-head.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "tariff": {"jvp": 1.0, "head": -2.0}}))
    line = ["--problem", str(tmp_path / "digits.safetensors"), "--solvers", "genie", "--bill", "cost"]
    assert "prices are at least zero" in refused(gte.command, [*line, "--out", str(tmp_path / "x")], capsys)


def test_a_store_that_is_locked_says_so_within_five_seconds(tmp_path, capsys, monkeypatch):
    from analysis.study import store

    assert store.PROMPT < 5.0
    monkeypatch.setattr(store, "PROMPT", 0.1)
    database = sqlite3.connect(tmp_path / "store.sqlite")
    database.execute("BEGIN EXCLUSIVE")
    assert gte.command([*SMALL, "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "is locked by another program; wait for it or end it, or give another --out" in message
    assert message.count("\n") == 1
    database.close()


def test_shapes_are_compared_before_anything_is_made(tmp_path, monkeypatch):
    """A network of other sizes than its file's is made without memory alone."""
    from problems.images import score

    made = []
    make = ScoreNetwork.__init__

    def seen(self, config, schedule):
        made.append(torch.empty(0).device.type)
        make(self, config, schedule)

    path = checkpoint(tmp_path)
    monkeypatch.setattr(ScoreNetwork, "__init__", seen)
    score.load(path)
    assert made == ["meta", "cpu"]
    card = json.loads(path.with_suffix(".json").read_text())
    card["config"] = dataclasses.asdict(dataclasses.replace(TINY, channels=16))
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
        score.load(path)
    assert made[2:] == ["meta"]
