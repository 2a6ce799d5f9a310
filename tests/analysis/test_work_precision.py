"""Work and precision: what the front is, what is billed, what is not compared."""

import numpy as np
import pandas as pd
import pytest

from analysis import gte, work_precision
from analysis.work_precision import pareto

COMMON = ["--problem", "gaussian", "--samples", "40", "--nfe", "4", "8"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("work")
    chosen = ["--solvers", "ddim", "ttm2", "heun", "rk45", "euler-maruyama", "--grids", "log-snr"]
    assert work_precision.command([*COMMON, *chosen, "--out", str(out)]) == 0
    assert {p.suffix for p in out.iterdir()} >= {".csv", ".pdf", ".png", ".json", ".md", ".tex"}
    return pd.read_csv(out / "work_precision.csv")


def brute_force(work, error):
    """Straight from the definition."""
    points = list(zip(work, error, strict=True))

    def beaten(w, e):
        return any((a <= w and b <= e) and (a < w or b < e) for a, b in points)

    return [bool(np.isfinite(e)) and not beaten(w, e) for w, e in points]


def test_the_front_is_what_nothing_beats():
    source = np.random.default_rng(0)
    for _ in range(50):
        work, error = source.integers(1, 6, 12).astype(float), source.integers(1, 6, 12).astype(float)
        error[source.random(12) < 0.1] = np.nan
        assert pareto(work, error).tolist() == brute_force(work, error)


def test_the_front_falls(table):
    for work in ("nfe", "cost", "seconds"):
        front = table[table[f"pareto_{work}"]].sort_values(work)
        assert (front["error"].diff().dropna() < 0).all()
        assert len(front) > 0


def test_an_exact_derivative_is_billed_as_an_evaluation(table):
    """The Gaussian has no measured tariff; four evaluations then pay for two steps of TTM-2."""
    row = table[(table["solver"] == "ttm2") & (table["budget"] == 4)].iloc[0]
    assert (row["nfe"], row["jvp"], row["cost"], row["steps"]) == (2, 2, 4, 2)


def test_random_methods_have_no_error_of_end_points(table):
    assert set(table["solver"]) == {"ddim", "ttm2", "heun", "rk45"}


def test_the_errors_are_those_of_gte_and_come_from_the_same_store(table, tmp_path, written):
    arguments = [*COMMON, "--solvers", "ddim", "--grids", "log-snr", "--out", str(tmp_path)]
    assert gte.command(arguments) == 0
    ends = list(written)
    assert work_precision.command(arguments) == 0
    assert len(written) == 2 * len(ends)  # seconds alone are new
    here = pd.read_csv(tmp_path / "work_precision.csv")
    there = table[table["solver"] == "ddim"]
    assert here["error"].to_numpy() == pytest.approx(there["error"].to_numpy(), rel=1e-12)
    assert here["error"].to_numpy() == pytest.approx(
        pd.read_csv(tmp_path / "gte.csv")["error"].to_numpy(), rel=1e-12
    )


def test_wrong_names_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        work_precision.command(["--solvers", "ddin"])
    assert "unknown solver 'ddin'" in capsys.readouterr().err
