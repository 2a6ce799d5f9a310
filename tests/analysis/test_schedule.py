"""Schedules fitted to a problem: programming against brute force, known optima, fair judgement."""

import itertools
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import gte, schedule
from analysis.measure.case import Case
from analysis.measure.schedules import best_paths, mesh, step_costs
from analysis.methods import GRIDS, METHODS, Grid, grid_of, striding
from analysis.methods.grids import in_power
from analysis.study.keys import Keys
from problems import VP, Gaussian, Network

F64 = torch.float64


@pytest.fixture(scope="module")
def table():
    """Schedules of ten evaluations fitted to the smooth mixture, judged on it and on the toy."""
    return schedule.schedules(
        Case("smooth", 40),
        ["ddim", "ttm2"],
        [10],
        candidates=20,
        fitted=4,
        rhos=(2.0,),
        transfer=["toy"],
    )


@pytest.mark.parametrize("seed", range(5))
def test_programming_finds_what_brute_force_finds(seed):
    """Every subset of the inner candidates of a random matrix."""
    cost = np.random.default_rng(seed).random((8, 8))
    paths = best_paths(cost, 7)

    def total(path):
        return sum(cost[i, j] for i, j in itertools.pairwise(path))

    for steps, path in enumerate(paths, start=1):
        every = ((0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1))
        assert path == list(min(every, key=total))


def test_programming_spreads_what_costs_its_square():
    """Σ (j - i)² over a path of given length is least where all steps are equal."""
    place = np.arange(13)
    assert best_paths((place[:, None] - place) ** 2.0, 4)[3] == [0, 3, 6, 9, 12]


def exact_eps(x, gamma):
    """ε of the same Gaussian, which a network would be."""
    gamma = gamma[:, None]
    return gamma * (x * (1.0 + gamma**2) ** 0.5 - MEAN) / (0.25 + gamma**2)


MEAN = torch.tensor([0.3, -0.2], dtype=F64)


def as_network():
    about = {"data_std": 0.5, "time": VP().gamma}
    return Network(exact_eps, VP(), (2,), **about).to(MEAN)


@pytest.mark.parametrize(
    ("solved", "steps"), [(lambda: Gaussian(MEAN, 0.5), 6), (as_network, 2)], ids=["exact", "network"]
)
def test_one_step_costs_its_error_where_it_ends(solved, steps):
    """A Gaussian, closed form: Euler's step in x̄ from γ₀ to γ₁, and the flow's growth from there on."""
    case = Case(solved(), 20)
    problem, x, times = Gaussian(MEAN, 0.5), case.latents, mesh(case, steps)
    cost = step_costs(case, METHODS["ddim"], steps)["cost"]
    gamma = [problem.schedule.gamma(t) for t in times]
    root = np.sqrt(0.25 + np.array(gamma) ** 2)
    begin = (x / problem.schedule.alpha(1.0) - problem.mean).norm(dim=1)
    for i, j in itertools.combinations(range(steps + 1), 2):
        there = begin * root[i] / root[0]
        euler = 1.0 + (gamma[j] - gamma[i]) * gamma[i] / (0.25 + gamma[i] ** 2)
        error = there * abs(euler - root[j] / root[i]) * root[-1] / root[j]
        expected = error.clamp(max=2 * problem.data_std * 2**0.5).mean().item()
        # The growth is that of a difference of 1e-6 between states of size 150, known to 1e-12.
        assert cost[i, j] == pytest.approx(expected, rel=1e-3)


def test_costs_in_batches():
    case = Case(Gaussian(MEAN, 0.5), 20)
    costs = [step_costs(one, METHODS["ddim"], 3)["cost"] for one in (case, case.but(batch=8))]
    np.testing.assert_allclose(*costs, rtol=1e-4)


def test_a_straight_flow_costs_nothing_anywhere():
    """Of a point mass DDIM makes no error."""
    case = Case(Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.0), 5)
    assert step_costs(case, METHODS["ddim"], 8)["cost"].max() < 1e-10


def test_a_fitted_schedule_gains_on_what_it_was_not_fitted_to(table):
    """The interval of the gain is above 1."""
    own = table[(table["judged_on"] == "smooth") & (table["schedule"] == "dp")].set_index("solver")
    assert (own["gain_low"] > 1.0).all()
    assert list(own.index) == ["ddim", "ttm2"]


def test_quadratic_striding_gains_nothing_over_itself(table):
    own = table[table["schedule"].isin(["quadratic", "rho"])]
    assert (own["gain_low"] <= 1.0).all()
    assert (own["gain_high"] >= 1.0).all()
    assert own["gain"].to_numpy() == pytest.approx(1.0, abs=1e-4)


def test_what_is_printed_is_what_was_judged(table):
    """A schedule pasted into --grids gives the error of the table, on the same latents of either problem."""
    assert set(table["fitted_to"]) == {"smooth"}
    assert set(table["judged_on"]) == {"smooth", "toy"}
    assert len(table[["solver", "schedule", "times"]].drop_duplicates()) == 6
    cases = {name: Case(name, 40) for name in ("smooth", "toy")}
    for _, row in table.iterrows():
        case, exactly = cases[row["judged_on"]], row["schedule"] == "quadratic"
        grid = GRIDS["quadratic"] if exactly else grid_of(row["times"])
        end, _ = case.sample(replace(METHODS[row["solver"]], grid=grid), row["steps"])
        error = float((end - case.exact().x[-1]).norm(dim=1).mean())
        assert row["error"] == pytest.approx(error, rel=1e-9 if exactly else 1e-3)


def test_all_is_measured_once(tmp_path, written):
    """A larger budget needs no further costs of steps."""
    arguments = ["--problem", "smooth", "--samples", "4", "--fitted", "4", "--candidates", "6"]
    arguments += ["--solvers", "ddim", "--out", str(tmp_path)]
    assert schedule.command([*arguments, "--nfe", "3"]) == 0
    assert len(written) == 1 + 1 + 3
    first = (tmp_path / "schedule.csv").read_bytes()
    assert schedule.command([*arguments, "--nfe", "3"]) == 0
    assert (tmp_path / "schedule.csv").read_bytes() == first
    assert len(written) == 5
    schedule.command([*arguments, "--nfe", "3", "4"])
    assert len(written) == 5 + 1 + 3
    assert len(pd.read_csv(tmp_path / "schedule.csv")) == 6


def test_the_best_power_is_one_whose_errors_are_numbers(monkeypatch):
    monkeypatch.setattr(schedule, "rho_errors", nearly)
    found = schedule.schedules(Case("gaussian", 2), "ddim", [2], candidates=3, fitted=2, rhos=(1.0, 3.0, 2.0))
    assert list(found["grid"]) == ["quadratic", "dp", "rho2"]


def nearly(case, method, steps, rhos):
    return {"error": np.array([np.nan, 2.0, 1.0])}


@pytest.mark.parametrize("grid", [grid_of("1,0.3,0.001"), striding(3.3), GRIDS["quadratic"]], ids=str)
def test_a_grid_made_on_the_fly_is_a_value(grid):
    """It travels to other processes, and is digested by its times, not by its name alone."""
    again = pickle.loads(pickle.dumps(grid))
    assert torch.equal(again.times(2, VP()), grid.times(2, VP()))
    assert Keys().value(again) == Keys().value(grid)
    other = Grid(grid.name, partial(in_power, 3.4), grid.variable, grid.smooth, grid.steps)
    assert Keys().value(other)[0] != Keys().value(grid)[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--solvers", "rk45"], "takes no deterministic steps"),
        (["--solvers", "euler-maruyama"], "takes no deterministic steps"),
        (["--transfer", "nowhere"], "unknown problem"),
        (["--nfe", "20", "--candidates", "10"], "type --candidates 40 or more"),
        (["--solvers", "f-pndm", "--nfe", "5"], "type a larger --nfe"),
        (["--samples", "1"], "at least two trajectories"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        schedule.command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("1,0.1,0.2,0.001", "do not fall"),
        ("1,a,0.001", "no list of times"),
        ("0.9,0.001", "must begin at 1"),
        ("1,0.5,0.001", "has a grid of 2 steps, and 10 NFE pay for 10"),
    ],
)
def test_lists_of_times_that_do_not_fit(grid, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        gte.command(["--solvers", "ddim", "--nfe", "10", "--grids", grid, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_list_of_times_is_a_grid_like_any_other():
    case = Case("toy", 20)
    typed = grid_of(
        ",".join(f"{t:.17g}" for t in GRIDS["quadratic"].times(5, case.problem.schedule).tolist())
    )
    table = gte.end_points(case, "ddim", [5], grids=["quadratic", typed])
    assert table["error"][0] == pytest.approx(table["error"][1], rel=1e-12)
    assert len(table) == 2
