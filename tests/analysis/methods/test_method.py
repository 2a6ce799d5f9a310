"""Methods made of several solvers, and methods of several names."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from analysis import orders
from analysis.measure.problems import latents
from analysis.methods import ALIASES, FORMS, GRIDS, METHODS, Method
from problems import DDIM, smooth_mixture, toy_mixture
from solvers import Adams, Index, Taylor, final, march


def test_aliases_name_methods():
    assert set(ALIASES.values()) <= set(METHODS)
    assert not set(ALIASES) & set(METHODS)


def test_an_alias_is_the_method_under_its_own_name(tmp_path):
    arguments = ["--samples", "8", "--finest", "16", "--forms", "ddim", "--grids", "linear", "--start", "0.3"]
    names = ["dpm-solver-1", "ddim", "edm", "rho-deis3"]
    assert orders.command([*arguments, "--solvers", *names, "--out", str(tmp_path)]) == 0
    assert pd.read_csv(tmp_path / "orders.csv")["solver"].tolist() == ["ddim", "heun", "lms"]


def test_help_tells_the_aliases(capsys):
    with pytest.raises(SystemExit):
        orders.command(["--help"])
    text = " ".join(capsys.readouterr().out.split("also known as:")[1].split())
    alike = [group.split(" = ") for group in text.split(", ")]
    assert {alias: name for name, *others in alike for alias in others} == ALIASES


def test_dpm_solver_pp_1_is_ddim_to_rounding():
    problem = toy_mixture()
    x = latents(problem, 50, 0)
    ddim, data = (replace(METHODS["ddim"], form=FORMS[f]).sample(problem, 10, x) for f in ("ddim", "data"))
    assert (ddim - data).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_last_steps_are_taken_by_the_last_solvers(steps):
    """``last=(a, b)``: the last step by b, that before it by a."""
    problem = toy_mixture()
    x = latents(problem, 5, 0)
    method = Method(Adams(3), last=(Taylor(3), Taylor(2)))
    solvers = [*[Adams(3)] * (steps - 2), Taylor(3), Taylor(2)][-steps:]
    times = GRIDS["quadratic"].times(steps, problem.schedule)
    by_hand = final(march(DDIM(problem), solvers, times, x)).x
    assert torch.equal(method.sample(problem, steps, x), by_hand)


@pytest.mark.parametrize(
    ("solver", "last", "order"),
    [
        (Taylor(3), (Taylor(1),), 2),
        (Taylor(3), (Taylor(2),), 3),
        (Taylor(3), (Taylor(2), Taylor(1)), 2),
        (Taylor(1), (Taylor(1),), 1),
        (Taylor(2), (Taylor(5),), 2),
    ],
)
def test_one_step_of_a_lower_order_is_felt_once(solver, last, order):
    assert Method(solver, last=last).order == order


def test_the_order_on_grids_is_that_of_what_the_solver_is_there():
    solver = Adams(3, clock=Index(), start=Taylor(2))
    orders_ = {
        grid: Method(solver, FORMS["pf"], GRIDS[grid]).order for grid in ("linear", "quadratic", "rough")
    }
    assert orders_ == {"linear": 3, "quadratic": 2, "rough": 1}


def test_what_a_lower_order_at_the_end_changes_vanishes_with_the_order():
    """DPM-Solver++(2M) with its last step by DDIM differs by one local error, h² m'/2."""
    problem = smooth_mixture()
    x = latents(problem, 50, 0)

    def difference(steps):
        plain, lower = (
            replace(METHODS[name], grid=GRIDS["log-snr"]).sample(problem, steps, x)
            for name in ("dpm-solver++2m", "dpm-solver++2m-lower")
        )
        return float((plain - lower).norm(dim=1).mean())

    assert difference(160) / difference(320) == pytest.approx(4.0, rel=0.1)
