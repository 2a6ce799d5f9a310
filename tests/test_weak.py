"""Weak errors: closed forms on Gaussians, intervals that cover as often as they say, the study's rules."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats
from scipy.spatial.distance import cdist

from analysis import study, weak
from analysis.laws import Law
from analysis.methods import METHODS, Method
from analysis.statistics import Bootstrap
from problems import VP
from solvers import Taylor, grids

N, M = 200, 4000
BOOTSTRAP = Bootstrap(N, 200)


def normal(n, seed, shift=(0.0, 0.0), scale=1.0):
    return np.array(shift) + scale * np.random.default_rng(seed).standard_normal((n, len(shift)))


def energy_of_shifted_normals(shift):
    """√(2 E|X - Y| - 2 E|X - X′|) in the plane: |X - Y| has Rice's distribution, of mean √π L_½(-|μ|²/4)."""
    q = shift**2 / 4
    laguerre = math.exp(-q / 2) * ((1 + q) * special.i0(q / 2) + q * special.i1(q / 2))
    return math.sqrt(2 * math.sqrt(math.pi) * (laguerre - 1))


# --- the distances


def test_the_energy_distance_is_its_definition():
    x, y = normal(50, 0), normal(100, 1, (0.5, 0.0))
    off = [z.sum() / (len(z) * (len(z) - 1)) for z in (cdist(x, x), cdist(y, y))]
    expected = math.sqrt(2 * cdist(x, y).mean() - sum(off))
    assert Law(y).compare(x, Bootstrap(50, 20))["energy"][0] == pytest.approx(expected, rel=1e-12)


def test_the_energy_distance_is_scipys_on_a_line():
    """Whose pairs include those of a sample with itself."""
    x, y = normal(60, 0, (0.0,)), normal(120, 1, (0.7,))
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    extra = sum(cdist(z, z).sum() / len(z) ** 2 / (len(z) - 1) for z in (x, y))
    value = Law(y).compare(x, Bootstrap(60, 20))["energy"][0]
    assert value == pytest.approx(math.sqrt(biased - extra), rel=1e-10)


def test_the_sliced_distance_is_its_definition():
    """Each sample is as good as m/n equal ones, which the optimal plan pairs in their order."""
    x, y = normal(40, 0), normal(120, 1, (0.5, 0.2))
    law = Law(y, directions=5)
    assert np.linalg.norm(law.directions, axis=1) == pytest.approx(np.ones(5))
    squares = [((np.sort(np.repeat(x @ v, 3)) - np.sort(y @ v)) ** 2).mean() for v in law.directions]
    value = law.compare(x, Bootstrap(40, 20))["sliced"][0]
    assert value == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-12)


def test_moments_and_occupancy_are_their_definitions():
    """The squares of errors, less the variance that chance gives them."""
    x, y = normal(40, 0, scale=2.0), normal(80, 1, (0.5, 0.2))
    labels, exact = (x[:, 0] > 0).astype(np.int64), np.repeat([0, 1, 2, 0], 20)
    found = Law(y, exact, 3).compare(x, Bootstrap(40, 20), labels)
    variance = sum(np.trace(np.cov(z.T)) / len(z) for z in (x, y))
    error = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert found["mean"][0] == pytest.approx(math.sqrt(max(0.0, error - variance)))
    chance = 0.0
    for z in (x, y):
        products = [np.outer(d, d) for d in z - z.mean(0)]
        chance += (np.mean([(p**2).sum() for p in products]) - (np.cov(z.T) ** 2).sum()) / len(z)
    scale = np.linalg.norm(np.cov(y.T))
    error = ((np.cov(x.T) - np.cov(y.T)) ** 2).sum()
    assert found["covariance"][0] == pytest.approx(math.sqrt(error - chance) / scale)
    shares = np.bincount(labels, minlength=3) / 40
    assert found["occupancy"][0] == pytest.approx(0.5 * np.abs(shares - [0.5, 0.25, 0.25]).sum())


@pytest.fixture(scope="module")
def repeated():
    """Samples of N((2, 0), I) and of N(0, 1.5² I) against those of N(0, I), many times."""
    found = []
    for seed in range(40):
        y = normal(M, (seed, 0))
        law = Law(y, (y[:, 0] > 0).astype(np.int64), 2, directions=6)
        runs = {}
        for name, x in {
            "shifted": normal(N, (seed, 1), (2.0, 0.0)),
            "wide": normal(N, (seed, 2), scale=1.5),
            "exact": normal(N, (seed, 3)),
        }.items():
            runs[name] = law.compare(x, BOOTSTRAP, (x[:, 0] > 0).astype(np.int64))
        runs["projected"] = {"sliced": math.sqrt(((2.0 * law.directions[:, 0]) ** 2).mean())}
        found.append(runs)
    return found


TRUTHS = {
    ("shifted", "mean"): 2.0,
    ("shifted", "energy"): energy_of_shifted_normals(2.0),
    ("shifted", "occupancy"): stats.norm.cdf(2.0) - 0.5,
    ("shifted", "covariance"): 0.0,
    ("wide", "covariance"): 1.25,
    ("wide", "sliced"): 0.5,
    ("wide", "mean"): 0.0,
    ("exact", "mean"): 0.0,
    ("exact", "covariance"): 0.0,
    ("exact", "energy"): 0.0,
}


@pytest.mark.parametrize(("case", "measure"), TRUTHS, ids=str)
def test_intervals_cover_the_truth(case, measure, repeated):
    """At least as often as 93% of 40 allow at a significance of 1e-3."""
    truth = TRUTHS[case, measure]
    hits = sum(run[case][measure][1] <= truth <= run[case][measure][2] for run in repeated)
    assert hits >= stats.binom.ppf(1e-3, len(repeated), 0.93)


def test_the_interval_covers_the_sliced_distance_of_a_shift(repeated):
    """√(mean (θ·μ)²) for these directions."""
    hits = sum(
        r["shifted"]["sliced"][1] <= r["projected"]["sliced"] <= r["shifted"]["sliced"][2] for r in repeated
    )
    assert hits >= stats.binom.ppf(1e-3, len(repeated), 0.93)


def test_intervals_are_not_wide(repeated):
    """The mean of n samples has standard error 1/√n: half widths of 1.96 of these, on average."""
    widths = [r["shifted"]["mean"][2] - r["shifted"]["mean"][1] for r in repeated]
    expected = 2 * 1.96 / math.sqrt(N) * math.sqrt(1 + N / M)
    assert np.mean(widths) == pytest.approx(expected, rel=0.05)


def test_samples_that_are_not_finite_are_infinitely_far():
    x = normal(N, 0)
    x[3, 1] = math.nan
    found = Law(normal(M, 1), np.zeros(M, dtype=np.int64), 1).compare(
        x, BOOTSTRAP, np.zeros(N, dtype=np.int64)
    )
    assert set(found) == set(weak.MEASURES)
    assert all(np.isposinf(v).all() for v in found.values())


@pytest.mark.parametrize("n", [1, 3])
def test_numbers_of_samples_that_do_not_divide(n):
    with pytest.raises(ValueError, match="cannot be compared"):
        Law(normal(10, 0)).compare(normal(n, 1), Bootstrap(n, 20))


# --- the command


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    """Exact samples, of which each costs its distances from all others."""
    monkeypatch.setattr(weak, "EXACT", 2000)


def run(out, *arguments):
    assert weak.command([*arguments, "--out", str(out)]) == 0
    return pd.read_csv(out / "weak.csv")


def test_ddim_and_ddpm_on_a_gaussian_have_known_variances(tmp_path):
    """x̄ - μ is stretched by Π(1 + h γ/(s² + γ²)); by DDPM as its recursion of moments says."""
    arguments = ["--problem", "gaussian", "--solvers", "ddim", "ddpm", "--steps", "4", "12"]
    table = run(tmp_path, *arguments, "--samples", "1000", "--denoise", "both")
    schedule, std = VP(), 0.5
    for _, row in table[table["solver"] != "exact"].iterrows():
        gamma = [float(schedule.gamma(t)) for t in grids.power(int(row["steps"])).tolist()]
        variance = 1.0 / schedule.alpha(1.0) ** 2
        for a, b in itertools.pairwise(gamma):
            # The slope of ε is γ/(s² + γ²).
            slope = a / (std**2 + a * a)
            if row["solver"] == "ddim":
                variance *= (1.0 + (b - a) * slope) ** 2
            else:
                r = (b / a) ** 2
                variance = variance * (1.0 - (1.0 - r) * a * slope) ** 2 + b * b * (1.0 - r)
        exact = std**2 + gamma[-1] ** 2
        error = abs(variance / exact - 1.0)
        # The identity matrix times a number, in proportion to another.
        assert 0.98 * row["covariance_low"] <= error <= 1.02 * row["covariance_high"]
        assert row["nfe"] == row["steps"] + row["denoise"]
        assert row["random"] == (row["solver"] == "ddpm")
    assert "occupancy" not in table
    exact = table[table["solver"] == "exact"]
    assert list(exact["denoise"]) == [False, True]
    assert (exact["mean_low"] == 0).all()


def test_a_second_run_measures_nothing_and_draws_the_same(tmp_path, monkeypatch, capsys):
    arguments = ["--samples", "40", "--solvers", "ddpm", "adaptive-sde", "ttm2", "f-pndm", "--nfe", "5", "12"]
    first = run(tmp_path, *arguments)
    printed = capsys.readouterr().out
    for title in weak.MEASURES.values():
        assert title in printed
    assert "exact samples: " in printed
    assert "Methods that choose their own steps" in printed
    assert "f-pndm needs at least 12 NFE" in printed
    for suffix in (".png", ".pdf", ".md", ".tex"):
        assert (tmp_path / f"weak{suffix}").stat().st_size > 0
    assert json.loads((tmp_path / "weak.json").read_text())["arguments"]["samples"] == 40
    written = []
    monkeypatch.setattr(study.Store, "write", lambda self, *cell: written.append(cell))
    pd.testing.assert_frame_equal(run(tmp_path, *arguments), first)
    assert not written
    own = first[first["solver"] == "adaptive-sde"].iloc[0]
    assert own["grid"] == "own"
    assert own["nfe"] % 1 > 0  # a mean over samples, two for each attempt of each: a multiple of 2/40
    assert own["nfe"] * 20 == pytest.approx(round(own["nfe"] * 20), abs=1e-9)


class Wild(Taylor):
    """Goes wild."""

    def step(self, eq, y, s0, s1, past):
        y, node = super().step(eq, y, s0, s1, past)
        return y * math.inf, node


def test_a_wild_method_is_a_cell_in_plain_sight(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "wild", Method(Wild()))
    table = run(tmp_path, "--samples", "20", "--solvers", "wild", "ddim", "--nfe", "5")
    values = table.set_index("solver")[list(weak.MEASURES)]
    assert np.isposinf(values.loc["wild"]).all()
    assert np.isfinite(values.loc["ddim"]).all()
    assert "inf" in capsys.readouterr().out


def test_exact_samples_are_at_the_floor(tmp_path):
    """An accurate method is as far as other exact samples are, within what chance does."""
    arguments = ["--samples", "400", "--solvers", "ttm2", "ddim", "--steps", "80", "4", "--grids", "log-snr"]
    table = run(tmp_path, *arguments).set_index(["solver", "steps"])
    for name in weak.MEASURES:
        fine = table.loc["ttm2", 80][name]
        exact = table.loc["exact"].iloc[0]
        assert fine <= exact[f"{name}_high"]
        assert exact[name] <= table.loc["ttm2", 80][f"{name}_high"]
    assert table.loc["ddim", 4]["energy_low"] > table.loc["exact"].iloc[0]["energy_high"]


def test_labels_and_samples_belong_to_the_seed(tmp_path):
    arguments = ["--samples", "30", "--solvers", "ddpm", "--nfe", "5"]
    one, same, other = (
        run(tmp_path / name, *arguments, "--seed", seed)
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    pd.testing.assert_frame_equal(one, same)
    assert (one["energy_high"] != other["energy_high"]).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--samples", "3"],
        ["--samples", "0"],
        ["--solvers", "nobody"],
        ["--solvers", "ddim", "--nfe", "1", "--denoise", "on"],
        ["--solvers", "f-pndm", "--nfe", "5"],
        ["--grids", "cubic"],
        ["--problem", "nowhere"],
        ["--nfe", "5", "--steps", "5"],
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        weak.command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob("weak*"))


def test_images_are_compared_flat(tmp_path):
    arguments = ["--problem", "digits-gaussians", "--samples", "16", "--solvers", "ddpm", "--steps", "3"]
    table = run(tmp_path, *arguments, "--dtype", "float32")
    assert np.isfinite(table[list(weak.MEASURES)].to_numpy()).all()
    assert torch.get_default_dtype() == torch.float32
