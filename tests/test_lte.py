"""Local truncation errors: order plus one, and the leading term of theory."""

import numpy as np
import pandas as pd
import pytest

from analysis import lte
from analysis.methods import METHODS

LINEAR = (
    "ddim",
    "ttm2",
    "ttm3",
    "ttm4",
    "ab2",
    "ab3",
    "adams22",
    "s-pndm",
    "f-pndm",
    "tab-deis2",
    "dpm-solver++2m",
)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    out = tmp_path_factory.mktemp("lte")
    solvers = [*LINEAR, "heun", "midpoint", "rk4", "dpm-solver-2", "ttm2-pf"]
    arguments = ["--problem", "smooth", "--t", "0.15", "0.3", "--samples", "60", "--points", "17"]
    assert lte.command([*arguments, "--solvers", *solvers, "--out", str(out)]) == 0
    return pd.read_csv(out / "lte.csv")


def asymptotic(table, name, t):
    rows = table[(table["solver"] == name) & (table["t"] == t)].reset_index(drop=True)
    return rows[lte.asymptotic(rows, 2.2e-16)]


@pytest.mark.parametrize("t", [0.15, 0.3])
@pytest.mark.parametrize("name", [*LINEAR, "heun", "midpoint", "rk4", "dpm-solver-2", "ttm2-pf"])
def test_slope_is_order_plus_one(smooth, name, t):
    rows = asymptotic(smooth, name, t)
    slope = np.polyfit(np.log(rows["dt"]), np.log(rows["error"]), 1)[0]
    assert slope == pytest.approx(METHODS[name].solver.local_order, abs=0.1)


@pytest.mark.parametrize("t", [0.15, 0.3])
@pytest.mark.parametrize("name", LINEAR)
def test_theory_meets_measurement_at_small_steps(smooth, name, t):
    rows = asymptotic(smooth, name, t)
    # The ratio goes to one as the step goes to zero, linearly, by the next term of the error.
    _, limit = np.polyfit(rows["dt"], rows["theory"] / rows["error"], 1)
    assert limit == pytest.approx(1.0, abs=0.02)
    if METHODS[name].solver.local_order <= 3:
        assert rows["theory"].iloc[0] == pytest.approx(rows["error"].iloc[0], rel=0.01)


def test_figures_known_independently(tmp_path):
    """Known from an independent implementation: at t = 0.5, Δt = 0.0025 on the toy, in x."""
    known = {"ddim": 3.91e-6, "ttm2": 5.20e-8, "ttm3": 6.9e-10, "ab2": 1.29e-7}
    solvers = ["--solvers", *known]
    lte.command(["--t", "0.5", "--samples", "1000", "--points", "25", *solvers, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "lte.csv")
    for name, error in known.items():
        rows = table[table["solver"] == name]
        at = np.exp(np.interp(np.log(0.0025), np.log(rows["dt"]), np.log(rows["error"])))
        # The known figures have two or three digits and come from other draws of 1,000 latents (3% of
        # standard error on each side); the interpolation adds less than 1%.
        assert at == pytest.approx(error, rel=0.10)


def test_steps_reach_the_cut_off_and_no_further():
    sizes = lte.step_sizes(0.5, 1e-3, 25)
    assert len(sizes) == 25
    assert sizes[0] == pytest.approx(1e-4)
    assert sizes[-1] == 0.5 - 1e-3
    assert lte.step_sizes(0.0011, 1e-3, 5)[0] < 1e-4


def test_multistep_rows_end_where_their_past_would_leave_the_schedule(smooth):
    f_pndm = smooth[(smooth["solver"] == "f-pndm") & (smooth["t"] == 0.3)]
    assert (0.3 + 3 * f_pndm["dt"] <= 1.0).all()
    assert len(f_pndm) < 17


def test_local_errors_on_a_network_are_the_leading_terms(tmp_path):
    """On the shipped network, at a step of 0.0045: 5% for the next term, which is of relative size Δt/t."""
    line = "--problem digits --t 0.2 --points 3 --samples 4 --solvers ddim ttm2 genie"
    assert lte.command([*line.split(), "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "lte.csv")
    rows = table[(table["dt"] > 1e-3) & (table["dt"] < 1e-2)].set_index("solver")
    assert list(rows.loc[["ddim", "ttm2"], "theory"] / rows.loc[["ddim", "ttm2"], "error"]) == pytest.approx(
        [1.0, 1.0], abs=0.05
    )
    # The head errs in the derivative, so its error is of the order of DDIM's, and smaller.
    assert rows.loc["ttm2", "error"] < rows.loc["genie", "error"] < rows.loc["ddim", "error"]
