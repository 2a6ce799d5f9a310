"""Heads side by side: labels from cards, intervals over seeds, and errors that are known."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import heads
from analysis.measure.statistics import Bootstrap
from problems import VP
from problems.images import checkpoints
from problems.images.head import Head, HeadConfig
from problems.images.unet import Config, ScoreNetwork
from tests.networks import TINY, randomised

RECIPE = {"steps": 10, "lr": 1e-3, "seed": 0}
OBJECTIVE = {"weight": "gamma2", "noise_input": False, "derivative_free": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with random weights and heads of it: two seeds of one recipe, and another recipe."""
    folder = tmp_path_factory.mktemp("heads")
    network = randomised(ScoreNetwork(Config(**dataclasses.asdict(TINY)), VP())).float()
    card = {
        "kind": "score network",
        "config": dataclasses.asdict(TINY),
        "schedule": {"name": "VP"},
        "data": {"name": "digits-gaussians"},
    }
    checkpoints.save(folder / "net.safetensors", network.state_dict(), card)
    owner = json.loads((folder / "net.json").read_text())["sha256"]
    for name, seed, objective in (
        ("a", 0, OBJECTIVE),
        ("b", 1, OBJECTIVE),
        ("c", 0, {**OBJECTIVE, "noise_input": True}),
    ):
        head = randomised(Head(HeadConfig(8), 1, 8), seed).float()
        about = {
            "kind": "head",
            "config": dataclasses.asdict(head.config),
            "objective": objective,
            "recipe": {**RECIPE, "seed": seed},
            "network": owner,
            "tariff": {"jvp": 1.0, "head": 0.1},
        }
        checkpoints.save(folder / f"{name}.safetensors", head.state_dict(), about)
    return folder


def half(case, head):
    return {"derivative_error": 0.5}


@pytest.fixture(scope="module")
def table(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    paths = [str(folder / f"{name}.safetensors") for name in "abc"]
    monkey = pytest.MonkeyPatch()
    # Networks of 4x4 images have no data on which to compare derivatives.
    monkey.setattr(heads, "has_data", lambda network: True)
    monkey.setattr(heads, "derivative_error", half)
    arguments = ["--problem", str(folder / "net.safetensors"), "--heads", *paths, "--samples", "12"]
    assert heads.command([*arguments, "--nfe", "3", "6", "--out", str(out)]) == 0
    monkey.undo()
    return pd.read_csv(out / "heads.csv")


def test_heads_of_one_recipe_are_one_row(table):
    assert list(table["head"].unique()) == ["none (DDIM)", "exact (TTM-2)", "standard", "noise input"]
    assert (table.set_index(["head", "nfe"])["seeds"] == [1, 1, 1, 1, 2, 2, 1, 1]).all()


def test_the_exact_derivative_and_none_are_the_methods_of_that_name(table, folder):
    from analysis import gte

    out = folder / "gte"
    line = ["--problem", str(folder / "net.safetensors"), "--solvers", "ddim", "ttm2", "--grids", "quadratic"]
    assert gte.command([*line, "--nfe", "3", "6", "--samples", "12", "--out", str(out)]) == 0
    expected = pd.read_csv(out / "gte.csv").sort_values(["solver", "nfe"])["error"].to_numpy()
    assert table["error"].to_numpy()[:4] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({}, "standard"),
        ({"blocks": 2}, "blocks 2"),
        ({"noise_input": True}, "noise input"),
        ({"weight": "one", "steps": 20}, "weight one, steps 20"),
    ],
)
def test_labels_say_what_differs(change, label):
    first = {"blocks": 1, "noise_input": False, "weight": "gamma2", "steps": 10}
    assert heads.difference({**first, **change}, first) == label


def test_switching_off_what_the_first_one_has():
    assert heads.difference({"noise_input": False}, {"noise_input": True}) == "no noise input"


def test_intervals_over_seeds_are_those_of_student():
    errors = np.random.default_rng(0).random((4, 50)) + np.arange(4)[:, None]
    mean, low, high = heads.over_seeds(errors, Bootstrap(50))
    expected = stats.ttest_1samp(errors.mean(1), 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(errors.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_the_interval_over_trajectories():
    errors = np.random.default_rng(0).random((1, 50))
    bootstrap = Bootstrap(50)
    assert heads.over_seeds(errors, bootstrap) == tuple(float(v[0]) for v in bootstrap.means(errors))


def test_a_head_of_another_network_gets_one_sentence(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        heads.command(["--heads", str(folder / "a.safetensors"), "--out", str(tmp_path)])
    assert left.value.code == 2
    assert "distilled from another network" in capsys.readouterr().err


def test_a_problem_without_a_network_gets_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        heads.command(["--problem", "toy", "--out", str(tmp_path)])
    assert left.value.code == 2
    assert "toy is no network" in capsys.readouterr().err
