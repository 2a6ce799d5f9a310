"""Grids of sample quality: known distances, shards, failures, budgets; the same table whoever measures."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from analysis import fid, shards, study
from analysis.methods import METHODS
from analysis.shards import SIZE, Shard
from problems import VP

ROOT = Path(__file__).parents[1]
SMALL = ["--problem", "gaussian", "--samples", "300", "--grids", "quadratic", "--denoise", "off"]
MEAN, STD = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5


def run(folder, *arguments):
    assert fid.command([*SMALL, *arguments, "--out", str(folder)]) == 0
    return pd.read_csv(folder / "fid.csv")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fid"), "--solvers", "ddim", "f-pndm", "--nfe", "5", "20")


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
    part = Shard("gaussian", "float64", "cpu", ("pixels",), 0, 0)
    apart = shards.sampled(part, METHODS["ddim"], 20)["coordinates"] - shards.exact(part)["coordinates"]
    rest = Shard("gaussian", "float64", "cpu", ("pixels",), 0, 1)
    more = shards.sampled(rest, METHODS["ddim"], 20)["coordinates"] - shards.exact(rest)["coordinates"]
    expected = np.linalg.norm(np.concatenate([apart, more])[:300], axis=1).mean()
    assert row["error"] == pytest.approx(expected, rel=1e-12)


def test_a_method_that_chooses_its_own_steps_stands_at_its_own_cost(tmp_path):
    table = run(tmp_path, "--solvers", "rk45", "--nfe", "5").iloc[-1]
    assert table["nfe_budget"] == table["nfe"] > 10


def test_tables_are_written_as_markdown_and_latex(tmp_path):
    run(tmp_path, "--solvers", "ddim", "--nfe", "5")
    text = (tmp_path / "fid.md").read_text()
    for title in ("Fréchet distance (coordinates)", "Improved recall", "Kernel distance", "Mean L2 error"):
        assert f"## {title}" in text
    assert "FID" not in text
    assert "\\toprule" in (tmp_path / "fid.tex").read_text()


def test_more_samples_keep_the_shards_that_are_there(tmp_path, monkeypatch):
    written = []
    write = study.Store.write
    monkeypatch.setattr(study.Store, "write", lambda self, *a: (written.append(a[0]), write(self, *a)))
    run(tmp_path, "--solvers", "ddim", "--nfe", "5")
    first = len(written)
    assert first == 40 + 2 + 2  # data, accurate samples, one row
    run(tmp_path, "--solvers", "ddim", "--nfe", "5", "--samples", str(3 * SIZE))
    assert len(written) == first + 2


def test_a_sample_does_not_depend_on_how_many_there_are():
    part = Shard("gaussian", "float64", "cpu", ("pixels",), 0, 3)
    whole = shards.sampled(part, METHODS["euler-maruyama"], 3)["coordinates"]
    again = shards.sampled(part, METHODS["euler-maruyama"], 3)["coordinates"]
    other = shards.sampled(Shard("gaussian", "float64", "cpu", ("pixels",), 0, 4), METHODS["ddim"], 3)
    assert (whole == again).all()
    assert (whole != other["coordinates"]).all()


def test_a_row_that_fails_is_shown_with_its_reason(tmp_path, monkeypatch, capsys):
    sampled = shards.sampled

    def fragile(shard, method, steps):
        if steps == 6:
            raise FloatingPointError("7 of 250 samples are not finite")
        return sampled(shard, method, steps)

    fragile.__module__ = sampled.__module__
    monkeypatch.setattr(shards, "sampled", fragile)
    table = run(tmp_path, "--solvers", "ddim", "--nfe", "5", "6")
    failed = table[table["nfe_budget"] == 6].iloc[0]
    assert failed["note"] == "7 of 250 samples are not finite"
    assert math.isnan(failed["frechet"])
    assert "7 of 250 samples are not finite" in capsys.readouterr().out


def test_where_all_rows_fail_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    def broken(shard, method, steps):
        raise FloatingPointError("7 of 250 samples are not finite")

    broken.__module__ = shards.sampled.__module__
    monkeypatch.setattr(shards, "sampled", broken)
    assert fid.command([*SMALL, "--solvers", "ddim", "--nfe", "5", "--out", str(tmp_path)]) == 1
    assert "no row could be measured; ddim: 7 of 250" in capsys.readouterr().err


def test_a_dry_run_measures_nothing(tmp_path, capsys):
    assert fid.command([*SMALL, "--nfe", "5", "--dry-run", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "50 of 50 shards" in text or "shards of 250 samples" in text
    assert "minutes in one process" in text
    assert not (tmp_path / "fid.csv").exists()


@pytest.mark.slow
def test_two_workers_make_the_same_table(tmp_path):
    """Bit for bit: numbers belong to samples and every shard is computed in one thread."""
    arguments = ("--solvers", "ddim", "euler-maruyama", "--nfe", "5")
    run(tmp_path / "here", *arguments)
    run(tmp_path / "there", *arguments, "--workers", "2")
    assert (tmp_path / "here" / "fid.csv").read_bytes() == (tmp_path / "there" / "fid.csv").read_bytes()


def cells(folder):
    """How many cells the store of a folder holds."""
    try:
        with sqlite3.connect(f"file:{folder / 'store.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.Error:
        return 0


def start(folder, *arguments):
    line = [sys.executable, "-m", "analysis.fid", *SMALL, *arguments, "--out", str(folder)]
    return subprocess.Popen(
        line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_killed_three_times_and_run_twice_at_once_the_table_is_the_same(tmp_path):
    arguments = ("--solvers", "ddim", "euler-maruyama", "s-pndm", "--nfe", "5", "10", "15")
    run(tmp_path / "whole", *arguments)
    for enough in (3, 20, 45):
        running = start(tmp_path / "killed", *arguments)
        while cells(tmp_path / "killed") < enough and running.poll() is None:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "fid.csv").exists()
    both = [start(tmp_path / "killed", *arguments) for _ in range(2)]
    assert [running.wait() for running in both] == [0, 0]
    whole, again = ((tmp_path / name / "fid.csv").read_bytes() for name in ("whole", "killed"))
    assert again == whole
    assert cells(tmp_path / "killed") == cells(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path):
    arguments = ("--solvers", "ddim", "euler-maruyama", "s-pndm", "--nfe", "5", "10", "15")
    run(tmp_path / "whole", *arguments)
    running = start(tmp_path / "killed", *arguments, "--workers", "2")
    while cells(tmp_path / "killed") < 20 and running.poll() is None:
        time.sleep(0.002)
    workers = [
        child
        for child in psutil.Process(running.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    assert workers
    workers[0].kill()
    assert running.wait() == 0
    whole, again = ((tmp_path / name / "fid.csv").read_bytes() for name in ("whole", "killed"))
    assert again == whole


def test_no_scheduler_gets_one_sentence(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as left:
        fid.command([*SMALL, "--scheduler", "tcp://127.0.0.1:9", "--out", str(tmp_path)])
    assert left.value.code == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
