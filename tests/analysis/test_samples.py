"""Shares of samples: what they must be for the exact distribution, and that solvers approach it."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from analysis import samples
from analysis.command.experiment import Outcome
from analysis.measure.case import Case
from analysis.methods import chosen
from analysis.study.cells import Study


def test_shares_of_the_exact_samples_and_of_solvers(tmp_path):
    arguments = ["--samples", "600", "--steps", "5", "40", "--out", str(tmp_path)]
    assert samples.command(arguments) == 0
    assert (tmp_path / "samples.png").stat().st_size > 2_000
    table = pd.read_csv(tmp_path / "samples.csv").set_index(["solver", "steps"])
    exact = table.loc[("exact", 0)]
    assert exact["elsewhere"] == 0.0
    # 1% lie outside the region of 99% by definition; 600 Bernoulli trials, five standard errors.
    assert abs(exact["sparse"] - 0.01) < 5 * (0.01 * 0.99 / 600) ** 0.5
    for name in ("ddim", "ttm2"):
        assert table.loc[(name, 40), "sparse"] < table.loc[(name, 5), "sparse_low"]
        assert table.loc[(name, 40), "elsewhere"] < table.loc[(name, 5), "elsewhere_low"]
    for steps in (5, 40):  # Fig. 2: GENIE leaves fewer samples between the modes
        assert table.loc[("ttm2", steps), "sparse_high"] < table.loc[("ddim", steps), "sparse_low"]


def test_a_sheet_of_images(monkeypatch):
    monkeypatch.setattr(samples, "DRAWS", 100)
    case = Case("digits-mixture", 5)
    results = samples._measured(case, chosen("ttm2"), [3], Study())
    assert [r.arrays["x"].shape for r in results] == [(5, 1, 8, 8)] * 2
    figure = samples.draw(None, Outcome(samples._tabulated(case, results), extra=results))
    assert [len(ax.images) for ax in figure.axes] == [1, 1]
    plt.close(figure)


def test_batches_of_samples_have_the_same_shares(monkeypatch):
    monkeypatch.setattr(samples, "DRAWS", 1000)
    whole, parts = (samples.sample_shares(Case("toy", 20, batch=n), "ttm2", [4]) for n in (20, 9))
    assert list(parts["error"]) == pytest.approx(list(whole["error"]), rel=1e-9)
    assert parts[["sparse", "elsewhere"]].equals(whole[["sparse", "elsewhere"]])
