"""Grids of sample quality: known distances, failures, budgets; the same table for any workers."""

import math
import multiprocessing
import os
import signal
import sqlite3
import time

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from matplotlib.figure import Figure

from analysis import fid
from analysis.measure import shards
from analysis.measure.case import Case
from analysis.measure.features import Features, flat, pixels
from analysis.measure.problems import PROBLEMS
from analysis.measure.shards import SIZE
from analysis.methods import METHODS
from analysis.show import plots
from analysis.show import quality as pictures
from analysis.study.cells import Study
from analysis.study.store import Store
from problems import VP, Gaussian
from tests.conftest import draft

CURVES = pictures.curves
SMALL = ["--problem", "gaussian", "--samples", "300", "--grids", "quadratic", "--denoise", "off"]
MEAN, STD = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5


def blank(*_):
    """Draw nothing: layouts cost more than all else here."""
    return Figure()


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr(pictures, "curves", blank)


def quality(*solvers, nfe=(5,), samples=300, **options):
    case = Case("gaussian", samples)
    return fid.sample_quality(case, solvers, nfe, grids=["quadratic"], denoise="off", **options)


@pytest.fixture(scope="module")
def table():
    return quality("ddim", "f-pndm", "rk45", nfe=(5, 20))


def test_the_distance_of_ddim_on_a_gaussian_is_known(table):
    """DDIM multiplies x̄ - μ by a known number, so its samples are Gaussian with known moments.

    300 samples and 10,000 data know the squared distance to within sampling errors: the interval, widened
    by the bias of (d + d(d+1)/2)/n standard units, must hold it.
    """
    row = table[(table["solver"] == "ddim") & (table["nfe_budget"] == 5)].iloc[0]
    schedule = VP()
    t = (1.0 - (1.0 - 1e-3**0.5) * np.arange(6) / 5) ** 2
    gamma = np.array([schedule.gamma(float(s)) for s in t])
    variance = STD**2 + gamma**2
    growth = np.prod(1.0 + np.diff(gamma) * gamma[:-1] / variance[:-1])
    alpha = [schedule.alpha(1.0), schedule.alpha(1e-3)]
    # x̄ at t = 1 is N(0, 1/α²); around μ it is shrunk by the growth.
    mean = alpha[1] * (MEAN.numpy() * (1.0 - growth))
    std = alpha[1] * growth / alpha[0]
    exact = ((mean - MEAN.numpy()) ** 2).sum() + 2 * (std - STD) ** 2
    slack = 3 * 5 / 300 * STD**2
    assert row["frechet_low"] - slack < exact < row["frechet_high"] + slack
    assert row["nfe"] == row["steps"] == 5


def test_a_budget_that_does_not_reach_is_a_row_with_its_reason(table):
    row = table[(table["solver"] == "f-pndm") & (table["nfe_budget"] == 5)].iloc[0]
    assert "at least 12 NFE" in row["note"]
    assert math.isnan(row["frechet"])


def test_errors_are_those_against_the_accurate_samples(table):
    row = table[(table["solver"] == "ddim") & (table["nfe_budget"] == 20)].iloc[0]
    parts, look = [Case("gaussian", SIZE), Case("gaussian", 50)], shards.View((pixels(Gaussian(MEAN, STD)),))
    made = [shards.sampled(part, i, look, METHODS["ddim"], 20)["coordinates"] for i, part in enumerate(parts)]
    exact = [shards.accurate(part, i, look)["coordinates"] for i, part in enumerate(parts)]
    apart = np.concatenate(made) - np.concatenate(exact)
    assert row["error"] == pytest.approx(np.linalg.norm(apart, axis=1).mean(), rel=1e-12)


def test_a_method_that_chooses_its_own_steps_stands_at_its_own_cost(table):
    row = table[table["solver"] == "rk45"].iloc[0]
    assert row["nfe_budget"] == row["nfe"] > 10


def test_features_of_ones_own_are_compared_too(monkeypatch):
    monkeypatch.setattr(shards, "COMPARED", SIZE)
    found = quality("ddim", features=[Features("mine", flat)]).set_index(["feature", "solver"])
    for measure in ("frechet", "kernel", "recall", "error"):
        assert found.loc["mine", "ddim"][measure] == found.loc["coordinates", "ddim"][measure]


def run(folder, *arguments, code=0):
    assert fid.command([*SMALL, *arguments, "--out", str(folder)]) == code
    return pd.read_csv(folder / "fid.csv")


def test_tables_are_written_as_markdown_and_latex_beside_the_figure(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "curves", lambda *a: drawn.append(CURVES(*a)) or drawn[0])
    run(tmp_path, "--solvers", "ddim", "heun", "--nfe", "5", "9")
    text = (tmp_path / "fid.md").read_text()
    for title in ("Fréchet distance (coordinates)", "Improved recall", "Kernel distance", "Mean L2 error"):
        assert f"## {title}" in text
    assert "FID" not in text
    assert "\\toprule" in (tmp_path / "fid.tex").read_text()
    titles = [ax.get_title() for ax in drawn[0].axes]
    assert titles == ["Fréchet, coordinates", "above the accurate, coordinates", "mean $L_2$ error in $x$"]
    assert {tuple(line.get_xdata()) for line in drawn[0].axes[2].lines} == {(5, 9)}


def test_more_samples_keep_the_shards_that_are_there(tmp_path, written):
    store = Store(tmp_path / "store.sqlite")
    quality("ddim", study=Study(store))
    first = len(written)
    assert first == 24 + 2 + 2  # data, accurate samples, one row
    quality("ddim", study=Study(store), samples=3 * SIZE)
    # 20 data for each sample, 10,000 at most; a shard of 50 samples becomes a whole one, and one more comes.
    assert len(written) == first + 16 + 2 + 2
    store.close()


def fragile(case, index, view, method, steps):
    if steps == 6:
        raise FloatingPointError("7 of 250 samples are not finite")
    return {**shards.data(case, index, view), "nfe": steps, "jvp": 0, "head": 0}


def test_a_row_that_fails_is_shown_with_its_reason(tmp_path, monkeypatch, capsys):
    """The others go on; it is one failure, however many of its shards fail."""
    monkeypatch.setattr(shards, "sampled", fragile)
    table = run(tmp_path, "--solvers", "ddim", "--nfe", "5", "6", code=1)
    failed = table[table["nfe_budget"] == 6].iloc[0]
    assert failed["note"] == "7 of 250 samples are not finite"
    assert math.isnan(failed["frechet"])
    assert table[table["nfe_budget"] == 5].iloc[0]["frechet"] > 0
    printed = capsys.readouterr().out
    assert "N/A: ddim 7 of 250 samples are not finite" in printed
    told = printed.split("Could not be measured")[1]
    assert told.count("7 of 250 samples are not finite") == 1


def test_where_all_rows_fail_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(shards, "sampled", fragile)
    with pytest.raises(ArithmeticError, match="no row could be measured; ddim: 7 of 250"):
        quality("ddim", nfe=(6,))
    monkeypatch.setattr(shards, "accurate", lambda case, index, view: 1 / 0)
    with pytest.raises(ArithmeticError, match="accurate samples could not be made: division by zero"):
        quality("ddim")


def test_a_dry_run_measures_nothing(tmp_path, capsys, written):
    assert fid.command([*SMALL, "--solvers", "ddim", "--nfe", "5", "--dry-run", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "28 of 28 shards of 250 samples" in text
    assert "minutes in one process" in text
    assert not written
    assert not (tmp_path / "fid.csv").exists()


def test_sheets_show_the_first_samples_of_each_row(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "COMPARED", SIZE)
    mean = torch.full((1, 4, 4), 0.2, dtype=torch.float64)
    monkeypatch.setitem(PROBLEMS, "gaussian", lambda: Gaussian(mean, STD))
    shown = []
    monkeypatch.setattr(plots, "sheet", lambda ax, images, *size: shown.append(images))
    run(tmp_path, "--solvers", "ddim", "heun", "--steps", "3", "--sheets", "--features", "pixels")
    names = [f"{name}-ddim-quadratic-3.{kind}" for name in ("ddim", "heun") for kind in ("pdf", "png")]
    assert sorted(file.name for file in (tmp_path / "fid-sheets").iterdir()) == names
    assert [images.shape for images in shown] == [(64, 1, 4, 4)] * 2
    part = Case("gaussian", SIZE)
    first = shards.sampled(part, 0, shards.View((pixels(part.problem),)), METHODS["heun"], 3)["pixels"]
    assert (shown[1] == first[:64].reshape(64, 1, 4, 4)).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--samples", "3"], "3 samples have no neighbours; type --samples 4 or more"),
        (["--sheets"], "gaussian has no images; leave out --sheets"),
        (["--features", "classifier"], "the digits classifier sees images of shape (1, 8, 8)"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_mistakes_get_one_sentence(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_TIMEOUT", "0.2")
    with pytest.raises(SystemExit) as left:
        fid.command([*SMALL, "--solvers", "ddim", *arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


# --- workers

GRID = ("--solvers", "ddim", "euler-maruyama", "s-pndm", "--nfe", "5", "10")
FEW = 1000
"""Data, in four shards: with the accurate samples and six rows of two shards each, 18 cells."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The CSV that this process alone makes, at once."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "COMPARED", FEW)
        patch.setattr(pictures, "curves", blank)
        run(folder, *GRID)
    assert cells(folder) == 18
    return (folder / "fid.csv").read_bytes()


def cells(folder):
    """How many cells the store of a folder holds."""
    try:
        with sqlite3.connect(f"file:{folder / 'store.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_two_workers_one_of_which_is_killed_make_the_same_table(
    tmp_path, monkeypatch, whole, cluster_address
):
    """Bit for bit: numbers belong to samples and every shard is computed in one thread.

    What the killed one was measuring is measured by the other one, or by the one that takes its place.
    """
    monkeypatch.setattr(shards, "COMPARED", FEW)
    with Client(cluster_address) as client:
        doomed = next(iter(client.run(os.getpid).values()))
    write, number = Store.write, [0]

    def deadly(self, *cell):
        write(self, *cell)
        number[0] += 1
        if number[0] == 5:
            os.kill(doomed, signal.SIGKILL)

    monkeypatch.setattr(Store, "write", deadly)
    run(tmp_path, *GRID, "--scheduler", cluster_address)
    assert number == [18]
    assert (tmp_path / "fid.csv").read_bytes() == whole


def child(line):
    """Run the command in a process of its own, with the figures and the data of the tests."""
    plots.save, pictures.curves, shards.COMPARED = draft, blank, FEW
    raise SystemExit(fid.command(line))


def test_killed_three_times_and_run_twice_at_once_the_table_is_the_same(tmp_path, whole):
    """The processes are forks of a server that imports the suite once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.analysis.test_fid"])

    def start():
        running = context.Process(target=child, args=([*SMALL, *GRID, "--out", str(tmp_path)],))
        running.start()
        return running

    for enough in (2, 8, 14):
        running = start()
        while cells(tmp_path) < enough and running.is_alive():
            time.sleep(0.002)
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
        assert not (tmp_path / "fid.csv").exists()
    both = [start() for _ in range(2)]
    for running in both:
        running.join()
    assert [running.exitcode for running in both] == [0, 0]
    assert (tmp_path / "fid.csv").read_bytes() == whole
    assert cells(tmp_path) == 18
