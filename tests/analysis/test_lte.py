"""Local truncation errors: order plus one, and the leading term of theory."""

import numpy as np
import pytest

from analysis import lte
from analysis.measure import reference
from analysis.measure.case import Case
from analysis.measure.steps import single_step
from analysis.methods import METHODS
from analysis.study.values import Aside

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


SOLVERS = (*LINEAR, "heun", "midpoint", "rk4", "dpm-solver-2", "ttm2-pf")


@pytest.fixture(scope="module")
def smooth():
    return lte.local_errors(Case("smooth", 12), SOLVERS, (0.15, 0.3), 17)


def asymptotic(table, name, t):
    rows = table[(table["solver"] == name) & (table["t"] == t)].reset_index(drop=True)
    return rows[lte.asymptotic(rows, 2.2e-16)]


@pytest.mark.parametrize("t", [0.15, 0.3])
@pytest.mark.parametrize("name", SOLVERS)
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


@pytest.mark.parametrize(
    ("name", "known"), [("ddim", 3.91e-6), ("ttm2", 5.20e-8), ("ttm3", 6.9e-10), ("ab2", 1.29e-7)]
)
def test_figures_known_independently(name, known):
    """Known from an independent implementation: at t = 0.5, Δt = 0.0025 on the toy, in x."""
    times = Aside((0.5 + 0.0025, 0.5, 0.5 - 0.0025))
    found = single_step(Case("toy"), METHODS[name], 0.5, 0.0025, times)
    # The known figures have two or three digits and come from other draws of 1,000 latents (3% of standard
    # error on each side).
    assert found["error"].mean() == pytest.approx(known, rel=0.10)


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


def test_local_errors_on_a_network_are_the_leading_terms(monkeypatch):
    """On the shipped network, at a step of 0.0045: 5% for the next term, which is of relative size Δt/t."""
    monkeypatch.setattr(reference, "STEPS", (64, 128))  # enough for neighbouring states of one trajectory
    t, dt = 0.2, 0.0045
    found = {
        name: single_step(Case("digits", 2), METHODS[name], t, dt, Aside((t, t - dt)))
        for name in ("ddim", "ttm2", "genie")
    }
    ratios = [found[n]["theory"].mean() / found[n]["error"].mean() for n in ("ddim", "ttm2")]
    assert ratios == pytest.approx([1.0, 1.0], abs=0.05)
    # The head errs in the derivative, so its error is of the order of DDIM's, and smaller.
    ddim, ttm2, genie = (found[name]["error"].mean() for name in ("ddim", "ttm2", "genie"))
    assert ttm2 < genie < ddim
