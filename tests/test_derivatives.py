"""Finite differences: their order, their leading term, their direction."""

import numpy as np
import pandas as pd
import pytest

from analysis import derivatives


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_differences_have_the_order_of_their_points(direction, tmp_path):
    arguments = ["--problem", "smooth", "--t", "0.3", "--samples", "50", "--points", "15"]
    arguments += ["--stencils", "1", "2", "3", "--direction", direction]
    assert derivatives.command([*arguments, "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "derivatives.csv")
    for k in (1, 2, 3):
        rows = table[table["stencil"] == k]
        # Below a relative error of 1e-9 the rounding of ε, divided by Δγ, shows.
        rows = rows[rows["error"] > 1e-9 * rows["derivative"]].head(5)
        slope = np.polyfit(np.log(rows["dt"]), np.log(rows["error"]), 1)[0]
        assert slope == pytest.approx(k, abs=0.1)
        assert rows["theory"].iloc[0] == pytest.approx(rows["error"].iloc[0], rel=0.02)
