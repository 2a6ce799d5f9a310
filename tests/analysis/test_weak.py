"""Weak errors: known variances on Gaussians, the floor of chance, the study's rules."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from analysis import weak
from analysis.measure.case import Case
from analysis.measure.distances import exact_samples
from analysis.measure.laws import MEASURES
from analysis.methods import METHODS, Method
from analysis.show import plots
from analysis.study.cells import Study
from problems import VP
from solvers import Taylor, grids

EXACT = 2000
"""Exact samples, of which each costs its distances from all others."""


def test_ddim_and_ddpm_on_a_gaussian_have_known_variances():
    """x̄ - μ is stretched by Π(1 + h γ/(s² + γ²)); by DDPM as its recursion of moments says."""
    case = Case("gaussian", 500)
    table = weak.weak_errors(case, ["ddim", "ddpm"], steps=(4, 12), denoise="both", exact=EXACT)
    schedule, std = VP(), 0.5
    for _, row in table[table["solver"] != "exact"].iterrows():
        gamma = [float(schedule.gamma(t)) for t in grids.power(int(row["steps"])).tolist()]
        variance = 1.0 / schedule.alpha(1.0) ** 2
        for a, b in itertools.pairwise(gamma):
            # The slope of ε is γ/(s² + γ²).
            slope = a / (std**2 + a * a)
            if row["solver"] == "ddim":
                variance *= (1.0 + (b - a) * slope) ** 2
            else:
                r = (b / a) ** 2
                variance = variance * (1.0 - (1.0 - r) * a * slope) ** 2 + b * b * (1.0 - r)
        exact = std**2 + gamma[-1] ** 2
        error = abs(variance / exact - 1.0)
        # The identity matrix times a number, in proportion to another.
        assert 0.98 * row["covariance_low"] <= error <= 1.02 * row["covariance_high"]
        assert row["nfe"] == row["steps"] + row["denoise"]
        assert row["random"] == (row["solver"] == "ddpm")
    assert "occupancy" not in table
    exact = table[table["solver"] == "exact"]
    assert list(exact["denoise"]) == [False, True]
    assert (exact["mean_low"] == 0).all()


class Wild(Taylor):
    """Goes wild."""

    def step(self, eq, y, s0, s1, past):
        y, node = super().step(eq, y, s0, s1, past)
        return y * math.inf, node


def run(out, *arguments, code=0):
    assert weak.command([*arguments, "--out", str(out)]) == code
    return pd.read_csv(out / "weak.csv")


@pytest.fixture
def _wild(monkeypatch):
    monkeypatch.setattr(weak, "EXACT", EXACT)
    monkeypatch.setitem(METHODS, "wild", Method(Wild()))


@pytest.mark.usefixtures("_wild")
def test_a_second_run_measures_nothing_and_writes_the_same(tmp_path, written, capsys, monkeypatch):
    """A method that goes wild is a cell in plain sight."""
    solvers = ["ddpm", "adaptive-sde", "ttm2", "f-pndm", "wild"]
    arguments = ["--samples", "40", "--solvers", *solvers, "--nfe", "5", "12"]
    first = run(tmp_path, *arguments)
    assert len(written) == 1 + 2 + 1 + 2 + 1 + 2
    printed = capsys.readouterr().out
    for title in MEASURES.values():
        assert title in printed
    assert "exact samples: " in printed
    assert "Methods that choose their own steps" in printed
    assert "f-pndm needs at least 12 NFE" in printed
    assert "inf" in printed
    for suffix in (".png", ".pdf", ".md", ".tex"):
        assert (tmp_path / f"weak{suffix}").stat().st_size > 0
    assert json.loads((tmp_path / "weak.json").read_text())["arguments"]["samples"] == 40
    written.clear()
    monkeypatch.setattr(plots, "save", lambda figure, path: plt.close(figure) or [])
    pd.testing.assert_frame_equal(run(tmp_path, *arguments), first)
    assert not written
    values = first[first["note"].isna()].set_index("solver")[list(MEASURES)]
    assert np.isposinf(values.loc["wild"]).all(axis=None)
    assert np.isfinite(values.drop("wild")).all(axis=None)
    own = first[first["solver"] == "adaptive-sde"].iloc[0]
    assert own["grid"] == "own"
    assert own["nfe"] % 1 > 0  # a mean over samples, two for each attempt of each: a multiple of 2/40
    assert own["nfe"] * 20 == pytest.approx(round(own["nfe"] * 20), abs=1e-9)


class Broken(Wild):
    """Does not work."""

    def step(self, eq, y, s0, s1, past):
        raise ArithmeticError("a step too far")


def test_a_row_that_fails_is_left_out(monkeypatch):
    """The others go on; where none is left it is said why."""
    case, methods = Case("toy", 20), {"broken": Method(Broken()), "ddim": METHODS["ddim"]}
    study = Study()
    table = weak.weak_errors(case, methods, steps=(3, 5), exact=100, study=study)
    assert list(table["solver"]) == ["exact", "ddim", "ddim"]
    assert [failed.config["steps"] for failed in study.failures] == [3, 5]
    with pytest.raises(ArithmeticError, match="nothing could be measured: a step too far"):
        weak.weak_errors(case, {"broken": Method(Broken())}, steps=(3,), exact=100)
    monkeypatch.setattr(weak, "chance", lambda case, denoised, exact: 1 / 0)
    with pytest.raises(ArithmeticError, match="nothing could be measured: division by zero"):
        weak.weak_errors(case, "ddim", steps=(3,), exact=100)


def test_exact_samples_are_at_the_floor():
    """An accurate method is as far as other exact samples are, within what chance does."""
    case = Case("toy", 400)
    table = weak.weak_errors(case, ["ttm2", "ddim"], steps=(80, 4), grids=["log-snr"], exact=EXACT)
    table = table.set_index(["solver", "steps"])
    for name in MEASURES:
        fine = table.loc["ttm2", 80][name]
        exact = table.loc["exact"].iloc[0]
        assert fine <= exact[f"{name}_high"]
        assert exact[name] <= table.loc["ttm2", 80][f"{name}_high"]
    assert table.loc["ddim", 4]["energy_low"] > table.loc["exact"].iloc[0]["energy_high"]


def test_exact_samples_and_others_belong_to_the_seed():
    one, same, other = (
        weak.weak_errors(Case("toy", 30, seed), "ddpm", (5,), exact=300) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, same)
    assert (one["energy_high"] != other["energy_high"]).all()
    drawn = [exact_samples(Case("toy", 30, seed), 30, False, stream) for seed in (0, 1) for stream in (1, 2)]
    assert len({float(x.sum()) for x in drawn}) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--samples", "3"],
        ["--samples", "0"],
        ["--solvers", "nobody"],
        ["--solvers", "ddim", "--nfe", "1", "--denoise", "on"],
        ["--solvers", "f-pndm", "--nfe", "5"],
        ["--grids", "cubic"],
        ["--problem", "nowhere"],
        ["--nfe", "5", "--steps", "5"],
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        weak.command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob("weak*"))


def test_images_are_compared_flat():
    case = Case("digits-gaussians", 16, dtype="float32")
    table = weak.weak_errors(case, "ddpm", steps=(3,), exact=200)
    assert np.isfinite(table[list(MEASURES)].to_numpy()).all()
    assert torch.get_default_dtype() == torch.float32
