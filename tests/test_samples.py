"""Shares of samples: what they must be for the exact distribution, and that solvers approach it."""

import pandas as pd

from analysis import samples


def test_shares_of_the_exact_samples_and_of_solvers(tmp_path):
    arguments = ["--samples", "2000", "--steps", "5", "40", "--out", str(tmp_path)]
    assert samples.command(arguments) == 0
    table = pd.read_csv(tmp_path / "samples.csv").set_index(["solver", "steps"])
    exact = table.loc[("exact", 0)]
    assert exact["elsewhere"] == 0.0
    # 1% lie outside the region of 99% by definition; 2,000 Bernoulli trials, five standard errors.
    assert abs(exact["sparse"] - 0.01) < 5 * (0.01 * 0.99 / 2000) ** 0.5
    for name in ("ddim", "ttm2"):
        assert table.loc[(name, 40), "sparse"] < table.loc[(name, 5), "sparse_low"]
        assert table.loc[(name, 40), "elsewhere"] < table.loc[(name, 5), "elsewhere_low"]
    for steps in (5, 40):  # Fig. 2: GENIE leaves fewer samples between the modes
        assert table.loc[("ttm2", steps), "sparse_high"] < table.loc[("ddim", steps), "sparse_low"]


def test_a_sheet_of_images(tmp_path):
    arguments = ["--problem", "digits-mixture", "--samples", "5", "--steps", "3", "--solvers", "ttm2"]
    assert samples.command([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "samples.png").stat().st_size > 2_000
