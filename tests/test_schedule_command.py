"""Schedules fitted to a problem: programming against brute force, known optima, fair judgement."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import schedule
from analysis.methods import GRIDS, METHODS
from analysis.problems import PROBLEMS, latents
from analysis.reference import reference
from problems import Gaussian
from solvers.grids import log_snr

F64 = torch.float64


def run(folder, *arguments):
    assert schedule.command([*arguments, "--out", str(folder)]) == 0
    return pd.read_csv(folder / "schedule.csv")


@pytest.mark.parametrize("seed", range(5))
def test_programming_finds_what_brute_force_finds(seed):
    """Every subset of the inner candidates of a random matrix."""
    cost = np.random.default_rng(seed).random((8, 8))
    paths = schedule.best_paths(cost, 7)

    def total(path):
        return sum(cost[i, j] for i, j in itertools.pairwise(path))

    for steps, path in enumerate(paths, start=1):
        every = ((0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1))
        assert path == list(min(every, key=total))


def test_programming_spreads_what_costs_its_square():
    """Σ (j - i)² over a path of given length is least where all steps are equal."""
    place = np.arange(13)
    assert schedule.best_paths((place[:, None] - place) ** 2.0, 4)[3] == [0, 3, 6, 9, 12]


def test_one_step_costs_its_error_where_it_ends():
    """A Gaussian, closed form: Euler's step in x̄ from γ₀ to γ₁, and the flow's growth from there on."""
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5)
    x = latents(problem, 20, 0)
    times = log_snr(6, problem.schedule).tolist()
    cost = schedule.step_costs(problem, METHODS["ddim"], x, times)
    gamma = [problem.schedule.gamma(t) for t in times]
    root = np.sqrt(0.25 + np.array(gamma) ** 2)
    begin = (x / problem.schedule.alpha(1.0) - problem.mean).norm(dim=1)
    for i, j in itertools.combinations(range(7), 2):
        there = begin * root[i] / root[0]
        euler = 1.0 + (gamma[j] - gamma[i]) * gamma[i] / (0.25 + gamma[i] ** 2)
        error = there * abs(euler - root[j] / root[i]) * root[-1] / root[j]
        expected = error.clamp(max=2 * problem.data_std * 2**0.5).mean().item()
        # The growth is that of a difference of 1e-6 between states of size 150, known to 1e-12.
        assert cost[i, j] == pytest.approx(expected, rel=1e-3)


def test_a_straight_flow_costs_nothing_anywhere():
    """Of a point mass DDIM makes no error."""
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.0)
    x = latents(problem, 5, 0)
    cost = schedule.step_costs(problem, METHODS["ddim"], x, log_snr(8, problem.schedule).tolist())
    assert cost.max() < 1e-10


def test_quadratic_striding_gains_nothing_over_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "RHOS", (2.0,))
    table = run(tmp_path, "--samples", "50", "--fitted", "20", "--nfe", "6", "--solvers", "ddim", "ab2")
    own = table[table["schedule"].isin(["quadratic", "rho"])]
    assert (own["gain_low"] <= 1.0).all()
    assert (own["gain_high"] >= 1.0).all()
    # Times are typed with six digits.
    assert own["gain"].to_numpy() == pytest.approx(1.0, abs=1e-4)


def test_what_is_printed_is_what_was_judged(tmp_path):
    """A schedule pasted into --grids gives the error of the table, on the same latents."""
    table = run(tmp_path, "--samples", "40", "--fitted", "20", "--nfe", "5", "--solvers", "ttm2")
    problem = PROBLEMS["toy"]()
    x = latents(problem, 40, 0)
    end = reference(problem, x, (1.0, 1e-3)).x[-1]
    for _, row in table.iterrows():
        grid = schedule.grid_of(row["times"])
        errors = schedule.end_errors(problem, METHODS["ttm2"], grid, 5, x, end)
        assert row["error"] == pytest.approx(errors.mean(), rel=1e-3)


def test_a_fitted_schedule_gains_on_what_it_was_not_fitted_to(tmp_path):
    """DDIM on the toy at ten steps: the interval of the gain is above 1, and all is measured once."""
    arguments = ["--samples", "300", "--fitted", "100", "--nfe", "10", "--solvers", "ddim"]
    table = run(tmp_path, *arguments).set_index("schedule")
    assert table.loc["dp", "gain_low"] > 1.0
    first = (tmp_path / "schedule.csv").read_bytes()
    run(tmp_path, *arguments)
    assert (tmp_path / "schedule.csv").read_bytes() == first


def test_transfer_is_judged_on_the_other_problem(tmp_path):
    small = ["--samples", "30", "--fitted", "20", "--nfe", "5", "--solvers", "ddim", "--candidates", "12"]
    table = run(tmp_path, *small, "--transfer", "smooth")
    assert set(table["judged_on"]) == {"toy", "smooth"}
    assert set(table["fitted_to"]) == {"toy"}
    times = table.groupby("schedule")["times"].nunique()
    assert (times == 1).all()
    problem = PROBLEMS["smooth"]()
    x = latents(problem, 30, 0)
    end = reference(problem, x, (1.0, 1e-3)).x[-1]
    errors = schedule.end_errors(problem, METHODS["ddim"], GRIDS["quadratic"], 5, x, end)
    row = table[(table["judged_on"] == "smooth") & (table["schedule"] == "quadratic")].iloc[0]
    assert row["error"] == pytest.approx(errors.mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--solvers", "rk45"], "takes no deterministic steps"),
        (["--solvers", "euler-maruyama"], "takes no deterministic steps"),
        (["--problem", "digits"], "no exact trajectories"),
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
    from analysis import gte

    with pytest.raises(SystemExit) as left:
        gte.command(["--solvers", "ddim", "--nfe", "10", "--grids", grid, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_list_of_times_is_a_grid_of_every_command(tmp_path):
    from analysis import gte

    times = ",".join(f"{t:.17g}" for t in GRIDS["quadratic"].times(5, PROBLEMS["toy"]().schedule).tolist())
    arguments = ["--solvers", "ddim", "--nfe", "5", "--samples", "20", "--grids", "quadratic", times]
    assert gte.command([*arguments, "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "gte.csv")
    assert table["error"][0] == pytest.approx(table["error"][1], rel=1e-12)
    assert len(table) == 2
