"""The race: who stays, who wins, and that the winner is measured on latents that did not choose it."""

import numpy as np
import pandas as pd
import pytest

from analysis import gte, recommend
from analysis.measure import race
from analysis.measure.case import Case
from analysis.measure.metrics import Moments, frechet
from analysis.measure.race import survivors
from analysis.methods import METHODS
from problems.images.data import LOSSY


def run(out, *arguments):
    assert recommend.command([*arguments, "--out", str(out)]) == 0
    return pd.read_csv(out / "recommend.csv")


def test_those_clearly_worse_leave_and_the_rest_is_cut(monkeypatch):
    monkeypatch.setattr(race, "SHOWN", 1)
    source = np.random.default_rng(0)
    base = source.lognormal(size=200)
    errors = np.stack([2.0 * base, base, base * source.lognormal(0.0, 0.05, 200), 50.0 * base])
    assert set(survivors(errors, 4)) == {1, 2}
    assert len(survivors(errors, 1)) == 1


def test_the_first_few_stay_in_any_case():
    base = np.linspace(1.0, 2.0, 100)
    errors = np.stack([(1.0 + k) * base for k in range(12)])
    assert survivors(errors, 12) == list(range(8))


def test_what_is_not_finite_leaves():
    errors = np.stack([np.full(50, np.nan), np.full(50, np.inf), np.linspace(1.0, 2.0, 50)])
    assert survivors(errors, 3) == [2]


def test_equals_all_stay():
    errors = np.broadcast_to(np.linspace(1.0, 2.0, 50), (3, 50))
    assert sorted(survivors(errors, 3)) == [0, 1, 2]


def test_on_one_gaussian_the_form_made_for_it_wins(tmp_path):
    """In the preconditioned form with the data's standard deviation, every method is exact on a Gaussian."""
    table = run(
        tmp_path,
        "--problem",
        "gaussian",
        "--samples",
        "64",
        "--nfe",
        "5",
        "--solvers",
        "ddim",
        "ab2",
        "--grids",
        "quadratic",
    )
    best = table.iloc[0]
    assert best["form"] == "preconditioned"
    assert best["error"] < 1e-10
    assert table["ratio"].iloc[0] == 1.0
    assert not table["worse"].iloc[0]


def test_the_winner_is_measured_as_gte_measures_it(tmp_path):
    common = [
        "--problem",
        "smooth",
        "--samples",
        "64",
        "--nfe",
        "6",
        "--grids",
        "quadratic",
        "--out",
        str(tmp_path),
    ]
    assert recommend.command([*common, "--solvers", "ddim", "ttm2", "ab2", "--forms", "ddim"]) == 0
    best = pd.read_csv(tmp_path / "recommend.csv").iloc[0]
    assert gte.command([*common, "--solvers", best["solver"], "--bill", "cost"]) == 0
    same = pd.read_csv(tmp_path / "gte.csv").iloc[0]
    assert best["error"] == pytest.approx(same["error"], rel=1e-12)
    assert best["steps"] == same["steps"]


def test_by_frechet_the_distance_is_that_of_the_samples(tmp_path, capsys, monkeypatch):
    """The mean of the numbers of the samples is the distance; the accurate solution's is told."""
    chosen = ["--problem", "smooth", "--samples", "64", "--nfe", "4", "--solvers", "ddim", "ttm2", "ab2"]
    chosen += ["--forms", "ddim", "--grids", "quadratic", "--by", "frechet"]
    monkeypatch.setattr(Case, "note", LOSSY)
    table = run(tmp_path, *chosen)
    case = Case("smooth", samples=64)
    truth = Moments.of(case.but(samples=race.DATA).data().numpy())
    ends, _ = case.sample(METHODS[table["solver"][0]], int(table["steps"][0]))
    assert table["frechet"][0] == pytest.approx(frechet(Moments.of(ends.numpy()), truth), rel=1e-9)
    exact = case.exact().x[-1].numpy()
    assert table["accurate"][0] == pytest.approx(frechet(Moments.of(exact), truth), rel=1e-9)
    printed = capsys.readouterr().out
    assert "accurate solution: " in printed
    assert printed.count(LOSSY) == 1


def test_a_dry_run_measures_nothing(tmp_path, capsys, written):
    """A table ends at t = 0, where methods in log t are no candidates in (x, t)."""
    line = ["--problem", "toy-table", "--samples", "320", "--nfe", "10", "--dry-run", "--out", str(tmp_path)]
    line += ["--solvers", "ddim", "exp-ttm2", "unipc2-b1", "--forms", "ddim", "pf"]
    assert recommend.command(line) == 0
    printed = capsys.readouterr().out
    assert "minutes in one process" in printed
    lines = [words.split()[1:4] for words in printed.splitlines() if words.startswith("10 ")]
    assert lines == [["1", "16", "20"], ["2", "16", "80"], ["last", "16", "320"]]
    assert written == []


def test_derivatives_are_billed_unless_told_otherwise(tmp_path):
    chosen = ["--problem", "smooth", "--samples", "64", "--nfe", "6", "--solvers", "ttm2", "--forms", "ddim"]
    chosen += ["--grids", "quadratic"]
    assert run(tmp_path / "billed", *chosen)["steps"].tolist() == [3]
    assert run(tmp_path / "free", *chosen, "--bill", "nfe")["steps"].tolist() == [6]


def test_all_that_can_solve_a_problem_enter(tmp_path, monkeypatch):
    """A network has a head, but no covariance of the data given a state."""
    entered = []

    def raced(case, rows, *others):
        entered.extend(row.solver for row in rows)
        raise ValueError("enough")

    monkeypatch.setattr(recommend, "raced", raced)
    with pytest.raises(SystemExit, match="2"):
        recommend.command(["--problem", "digits", "--out", str(tmp_path)])
    assert {"ddim", "genie", "unipc3"} < set(entered)
    assert not {"optimal-ddim", "ddpm", "rk45"} & set(entered)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "10"], "type --samples 64 or more"),
        (["--denoise", "both"], "leave out --denoise"),
        (["--features", "pixels"], "type --by frechet"),
        (["--solvers", "nothing"], "unknown solver 'nothing'"),
        (["--solvers", "f-pndm", "--nfe", "5"], "type a larger"),
        (["--solvers", "euler-maruyama", "--nfe", "5"], "no candidate"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        recommend.command([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
