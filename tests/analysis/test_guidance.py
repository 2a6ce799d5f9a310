"""Guidance: orders and bills on a small network, and networks of which everything is known in closed form."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import guidance
from analysis.command.experiment import Outcome
from analysis.measure.case import Case
from analysis.measure.guided import guided as guided_model
from analysis.measure.guided import guided_end, in_turn
from analysis.measure.problems import PROBLEMS, latents
from analysis.measure.reference import reference
from analysis.methods import GRIDS, METHODS
from analysis.show import plots
from analysis.show.guidance import by_scale
from analysis.study.cells import Result, Study
from analysis.study.keys import Keys
from analysis.study.store import Store
from problems import VP
from problems.images.score import Learned
from solvers import grids
from tests.networks import TINY, head, network

CLASSES = replace(TINY, classes=3, data_std=0.7)
SCHEDULE = VP(start=0.3, stop=0.15)
STEPS = (4, 8, 16, 32)
SCALE = 6.0
"""Large, for random weights know little of their classes: ε_c and ε_u hardly differ."""


def model(with_head=False):
    """A small conditional network with random weights, on a part of the schedule."""
    return Learned(network(CLASSES, SCHEDULE), head=head(config=CLASSES) if with_head else None)


def silent():
    """A network whose U-Net says zero, of any class: the exact score of N(0, 0.7²)."""
    net = network(CLASSES)
    torch.nn.init.zeros_(net.unet.out.weight)
    torch.nn.init.zeros_(net.unet.out.bias)
    return Learned(net)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("guidance")


@pytest.fixture(scope="module")
def table(folder):
    arguments = ["--scales", "0", f"{SCALE}", "--samples", "4", "--steps", *map(str, STEPS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROBLEMS, "ours", model)
        assert guidance.command(["--problem", "ours", *arguments, "--out", str(folder)]) == 0
    return pd.read_csv(folder / "guidance.csv")


def curve(table, scale, solver):
    rows = table[(table["scale"] == scale) & (table["solver"] == solver)]
    assert tuple(rows["steps"]) == STEPS
    return rows


@pytest.mark.parametrize(
    ("scale", "solver", "order"),
    [
        (0.0, "ddim", 1),
        (0.0, "ttm2", 2),
        (0.0, "ttm2-combined", 2),
        (SCALE, "ddim", 1),
        (SCALE, "ttm2", 2),
        (SCALE, "ttm2-combined", 1),
    ],
)
def test_orders(table, scale, solver, order):
    """Eq. 81 combines derivatives along other flows than the guided one, and leaves order one of two.

    Slopes settle like p + O(h): at 8 to 32 steps of a short interval, to a few hundredths.
    """
    rows = curve(table, scale, solver)
    assert rows["order"].iloc[0] == pytest.approx(order, abs=0.1)
    assert list(rows["fitted"]) == [False, True, True, True]
    assert (rows["order_low"] <= rows["order"]).all()
    assert (rows["order"] <= rows["order_high"]).all()


def test_exact_derivatives_beat_combined_ones_by_the_missing_order(table):
    """In the limit the ratio of their errors doubles with the steps."""
    combined, exact = (curve(table, SCALE, s)["error"].to_numpy() for s in ("ttm2-combined", "ttm2"))
    ratio = combined / exact
    assert ratio[1:] / ratio[:-1] == pytest.approx(np.full(3, 2.0), abs=0.2)


def test_no_guidance_is_the_conditional_network_alone(table):
    """At w = 0 the combination is 1 · ε_c - 0 · ε_u, and so are its derivatives, however they are taken."""
    problem, x = model(), latents(model(), 4, 0)
    alone = problem.labelled(torch.arange(4) % 3)
    exact = reference(alone, x, (SCHEDULE.start, SCHEDULE.stop))
    for solver in ("ddim", "ttm2"):
        for n, error in curve(table, 0.0, solver)[["steps", "error"]].to_numpy():
            plain = METHODS[solver].sample(alone, int(n), x)
            expected = float((plain - exact.x[-1]).flatten(1).norm(dim=1).mean())
            # Sums of at most 144 terms in a dozen layers: some tens of roundings of states of order one.
            assert error == pytest.approx(expected, abs=1e-12)
    together = [curve(table, 0.0, s)["error"].to_numpy() for s in ("ttm2", "ttm2-combined")]
    assert np.abs(together[0] - together[1]).max() <= 1e-12


def test_every_evaluation_is_paid_for_twice(table):
    assert (table["nfe"] == 2 * table["steps"]).all()
    derivatives = table["solver"] != "ddim"
    assert (table["jvp"] == 2 * table["steps"] * derivatives).all()
    assert (table["head"] == 0).all()


def test_ratios_are_to_ddim_of_the_same_scale_and_steps(table):
    for _, row in table.iterrows():
        same = (table[["scale", "steps"]] == row[["scale", "steps"]]).all(axis=1)
        ddim = table[same & (table["solver"] == "ddim")].iloc[0]
        assert row["ratio"] == pytest.approx(row["error"] / ddim["error"], rel=1e-12)
    assert (table[table["solver"] == "ddim"]["ratio"] == 1.0).all()


def zero(case, labels, scale):
    """Exact ends that cost nothing, where errors do not matter."""
    if scale > 5.0:
        raise ArithmeticError("too large")
    return {"x": np.zeros((case.samples, 1, 4, 4)), "error": 0.0}


def test_heads_are_combined_and_billed_where_there_are_any(monkeypatch):
    monkeypatch.setattr(guidance, "guided_exact", zero)
    found = guidance.guided_errors(Case(model(with_head=True), 4), [2.0], [6, 3])
    table = found.set_index(["solver", "steps"])
    x, labels = latents(model(), 4, 0), torch.arange(4) % 3
    contenders = guidance.contenders(GRIDS["quadratic"], head=True)
    assert list(contenders) == ["ddim", "ttm2", "ttm2-combined", "genie"]
    assert table.loc[("genie", 6), ["nfe", "jvp", "head"]].tolist() == [12, 0, 12]
    # One step of TTM-2 by hand: x̄ += h ε + ½h² dε/dγ, both of Eq. 81, with what the two heads say.
    method, combined = contenders["genie"]
    guided = guided_model(model(with_head=True), tuple(labels.tolist()), 2.0, combined=combined)
    times = (SCHEDULE.start, SCHEDULE.stop)
    gamma, alpha = ([float(f(t)) for t in times] for f in (SCHEDULE.gamma, SCHEDULE.alpha))
    h = gamma[1] - gamma[0]
    jets = [model(with_head=True).labelled(label).distilled.jet(x, times[0], 2) for label in (labels, None)]
    eps, slope = (3.0 * c - 2.0 * u for c, u in zip(*jets, strict=True))
    expected = alpha[1] * (x / alpha[0] + h * eps + 0.5 * h * h * slope)
    found = method.sample(guided, 1, x)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_where_both_networks_agree_every_scale_is_ddim_of_a_gaussian():
    """ε_c = ε_u, so (1 + w) ε_c - w ε_u is the same for every w: the score of N(0, s²), in closed form.

    DDIM stretches x̄ in each step by 1 + h γ/(s² + γ²), the flow by √((s² + γ²)/(s² + γ₀²)).
    """
    table = guidance.guided_errors(Case(silent(), 5), [0.0, 4.0], [7])
    schedule, x = VP(), latents(silent(), 5, 0)
    gamma = [float(schedule.gamma(t)) for t in grids.power(7, 2.0).tolist()]
    ddim = math.prod(1.0 + (b - a) * a / (0.49 + a * a) for a, b in pairwise(gamma))
    flow = math.sqrt((0.49 + gamma[-1] ** 2) / (0.49 + gamma[0] ** 2))
    gain = float(schedule.alpha(schedule.stop) / schedule.alpha(schedule.start)) * abs(ddim - flow)
    expected = gain * float(x.flatten(1).norm(dim=1).mean())
    # Relative to |x̄| at t = 1, of some hundreds, both sides are good to some tens of roundings.
    errors = table[table["solver"] == "ddim"]["error"].to_numpy()
    assert errors == pytest.approx(np.full(2, expected), abs=1e-11)


def test_errors_near_that_of_the_reference_are_left_out_of_fits(capsys):
    """h² down to a floor of 9e-5: the slope is two over the points that stand, whatever lies below."""
    steps, weights = (5, 10, 20, 40, 80, 160), np.linspace(1.0, 2.0, 30)

    def measured(solver, order):
        errors = [np.maximum(n**-order * weights, 9e-5) for n in steps]
        none = {"nfe": np.array(0), "jvp": np.array(0), "head": np.array(0)}
        return [
            Result({"scale": 1.0, "solver": solver, "steps": n}, {"error": error, **none})
            for n, error in zip(steps, errors, strict=True)
        ]

    results = measured("ddim", 1.0) + measured("ttm2", 2.0)
    table = guidance.tabulated(results, {1.0: 5e-5 / 3}, 1e-16).set_index(["solver", "steps"])
    exact = table.loc["ttm2"]
    assert exact["order"].to_numpy() == pytest.approx(np.full(6, 2.0), abs=1e-12)
    assert list(exact["stands"]) == [True] * 4 + [False] * 2  # 1.5/40² = 9.4e-4, 1.5/80² = 2.3e-4
    assert list(exact["fitted"]) == [False, True, True, True, False, False]
    assert table.loc["ddim"]["stands"].all()
    guidance.report(None, Outcome(table.reset_index()))
    assert "TTM-2 at 80 steps, w = 1; TTM-2 at 160 steps, w = 1" in capsys.readouterr().out
    rounded = guidance.tabulated(results, {1.0: 0.0}, 2.0**-23).set_index(["solver", "steps"])
    # 80 steps round by 80 times 2⁻²³ = 9.5e-6 at worst, 30 times of which is 2.9e-4.
    assert list(rounded.loc["ttm2"]["stands"]) == [True] * 4 + [False] * 2
    few = guidance.tabulated(results, {1.0: 1e-2}, 1e-16).set_index(["solver", "steps"])
    assert few.loc["ttm2"]["order"].isna().all()  # none or one stands


def test_a_second_run_by_the_function_measures_nothing(table, folder, written):
    store = Store(folder / "store.sqlite")
    again = guidance.guided_errors(Case(model(), 4, name="ours"), [SCALE, 0.0], STEPS, study=Study(store))
    store.close()
    assert written == []
    pd.testing.assert_frame_equal(again, table, check_dtype=False)  # a CSV does not tell 6 from 6.0


def test_batches_keep_the_classes_of_their_states():
    case, target = Case(model(), 4), np.zeros((4, 1, 4, 4))
    whole, parts = (
        guided_end(c, in_turn(c), SCALE, METHODS["ttm2"], False, 8, target) for c in (case, case.but(batch=3))
    )
    # Sums of at most 144 terms in a dozen layers: some tens of roundings of states of order one.
    assert parts["x"] == pytest.approx(whole["x"], abs=1e-12)
    assert (parts["nfe"], parts["jvp"]) == (whole["nfe"], whole["jvp"]) == (16, 16)


def test_the_key_of_an_end_has_its_labels_its_scale_and_its_target():
    case, target = Case(model(), 2), np.zeros((2, 1, 4, 4))
    usual = {"labels": (0, 1), "scale": 2.0, "combined": False, "steps": 3, "target": target}
    others = {"labels": (1, 0), "scale": 2.5, "combined": True, "target": target + 1e-9}
    keys = Keys()
    found = {
        keys.key(guided_end, {"case": case, "method": METHODS["ttm2"], **usual, **change})
        for change in ({}, {}, *({name: value} for name, value in others.items()))
    }
    assert len(found) == 5


def test_a_scale_that_cannot_be_solved_is_left_out(monkeypatch):
    study = Study()
    monkeypatch.setattr(guidance, "guided_exact", zero)
    found = guidance.guided_errors(Case(model(), 2), [0.0, 9.0], [2], study=study)
    assert set(found["scale"]) == {0.0}
    assert [failure.failure for failure in study.failures] == ["too large"]


def test_figures(table, folder):
    for name in ("guidance", "guidance-samples"):
        width = int.from_bytes((folder / f"{name}.png").read_bytes()[16:20], "big")
        assert width == 135  # 6.75 inches at 20 dots each


def test_a_sheet_without_the_images_of_a_scale_is_white_there():
    images = {0.0: np.zeros((2, 1, 4, 4)), 1.0: np.ones((2, 1, 4, 4))}
    figure = by_scale({"few": {0.0: images[0.0]}, "exact": images}, [0.0, 1.0], 2)
    few = figure.axes[0].images[0].get_array()
    plots.plt.close(figure)
    assert (few[:4, :4] == 0.5).all()
    assert (few[5:, :4] == 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--problem", "toy"], "toy is no class-conditional network"),
        (["--problem", "digits"], "choose one, such as --problem digits-classes"),
        (["--scales", "-1"], "-1 is no guidance scale; type one from 0"),
        (["--grid", "cubic"], "unknown grid 'cubic'"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        guidance.command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("guidance*"))
