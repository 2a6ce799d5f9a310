"""Heads side by side: labels from cards, intervals over seeds, and errors that are known."""

import dataclasses
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis import heads
from analysis.gte import end_points
from analysis.measure import heads as measured_heads
from analysis.measure.case import Case
from analysis.measure.heads import end_by_head, without_head
from analysis.measure.statistics import Bootstrap
from analysis.methods import METHODS
from analysis.study.cells import Study
from analysis.study.keys import Keys
from analysis.study.store import Store
from problems import VP
from problems.images import checkpoints
from problems.images.head import Head, HeadConfig
from problems.images.score import Learned, load
from problems.images.training import stratified
from problems.images.unet import Config, ScoreNetwork
from tests.networks import TINY, randomised, states

RECIPE = {"steps": 10, "lr": 1e-3, "seed": 0}
OBJECTIVE = {"weight": "gamma2", "noise_input": False, "derivative_free": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with random weights and heads of it: two seeds of one recipe, and another recipe."""
    folder = tmp_path_factory.mktemp("heads")
    network = randomised(ScoreNetwork(Config(**dataclasses.asdict(TINY)), VP(start=0.5, stop=0.1))).float()
    card = {
        "kind": "score network",
        "config": dataclasses.asdict(TINY),
        "schedule": {"name": "VP", "start": 0.5, "stop": 0.1},
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


def paths(folder):
    return [str(folder / f"{name}.safetensors") for name in "abc"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def table(folder, out):
    monkey = pytest.MonkeyPatch()
    # Networks of 4x4 images have no data on which to compare derivatives.
    monkey.setattr(heads, "has_data", lambda network: True)
    monkey.setattr(heads, "derivative_error", half)
    arguments = ["--problem", str(folder / "net.safetensors"), "--heads", *paths(folder), "--samples", "12"]
    assert heads.command([*arguments, "--nfe", "3", "6", "--out", str(out)]) == 0
    monkey.undo()
    return pd.read_csv(out / "heads.csv")


def test_heads_of_one_recipe_are_one_row(table):
    assert list(table["head"].unique()) == ["none (DDIM)", "exact (TTM-2)", "standard", "noise input"]
    assert (table.set_index(["head", "nfe"])["seeds"] == [1, 1, 1, 1, 2, 2, 1, 1]).all()


def test_the_exact_derivative_and_none_are_the_methods_of_that_name(table, folder):
    case = Case(folder / "net.safetensors", 12)
    ends = end_points(case, ["ddim", "ttm2"], [3, 6], grids=["quadratic"])
    expected = ends.sort_values(["solver", "nfe"])["error"].to_numpy()
    assert table["error"].to_numpy()[:4] == pytest.approx(expected, rel=1e-12)


def test_one_head_by_the_function_is_one_seed(table, folder, out, written):
    """Its ends are in the store, under the weights of the head, wherever its checkpoint lies."""
    away = folder / "elsewhere.safetensors"
    for suffix in (".safetensors", ".json"):
        away.with_suffix(suffix).write_bytes((folder / "c").with_suffix(suffix).read_bytes())
    store = Store(out / "store.sqlite")
    case = Case(folder / "net.safetensors", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "has_data", lambda network: False)
        found = heads.head_errors(case, [away], [3, 6], study=Study(store))
    store.close()
    assert written == []
    assert list(found["head"].unique()) == ["none (DDIM)", "exact (TTM-2)", "standard"]
    assert found["derivative_error"].isna().all()
    kept = table[table["head"] != "standard"]["error"].to_numpy()
    assert found["error"].to_numpy() == pytest.approx(kept, rel=1e-15)


def test_an_end_by_a_head_travels_and_is_kept_by_its_weights(folder):
    case = without_head(Case(folder / "net.safetensors", 2))
    found = heads.contenders(case.problem, str(folder / "net.safetensors"), paths(folder))
    first, second = (c.head for c in found[2:4])
    usual = {"case": case, "method": METHODS["genie"], "steps": 2, "features": None}
    keys = [Keys().key(end_by_head, {**usual, "head": head}) for head in (first, second)]
    assert keys[0] != keys[1]
    there = pickle.loads(pickle.dumps({**usual, "head": first}))
    assert Keys().key(end_by_head, there) == keys[0]
    assert np.array_equal(end_by_head(**there)["error"], end_by_head(**usual, head=first)["error"])


def test_the_error_of_a_derivative_is_that_of_the_head_of_the_model(folder, monkeypatch):
    """What the head says, and the exact derivative, by the jets of the two models, weighted by γ."""
    monkeypatch.setattr(measured_heads, "PROBES", 20)
    model, _ = load(folder / "net.safetensors", folder / "a.safetensors")
    x0, schedule, source = states(20).float(), model.schedule, torch.Generator().manual_seed(0)
    monkeypatch.setattr(Learned, "sample", lambda self, n, t, source: x0[:n].double())
    case = Case(folder / "net.safetensors", 2, batch=7)
    found = measured_heads.derivative_error(case, model.head)["derivative_error"]
    gamma = schedule.gamma(stratified(20, schedule.stop, schedule.start, source))[:, None, None, None]
    xbar = (x0 + gamma * torch.randn(x0.shape, generator=source, dtype=torch.float64)).float()
    said, exact = (m.flow_jet(xbar, gamma.float(), 2)[1] for m in (model.distilled, model))
    expected = float((gamma * (said - exact)).norm() / (gamma * exact).norm())
    # Float32, in a dozen layers.
    assert found == pytest.approx(expected, rel=1e-4)


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
