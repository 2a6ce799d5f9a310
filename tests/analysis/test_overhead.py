"""Costs of derivatives: what is timed, in which batches, and that nothing is kept."""

import sqlite3

import pandas as pd

from analysis import overhead
from analysis.measure.case import Case
from problems.images import overhead as timing


def test_every_kind_of_pass_is_timed_and_none_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "WARM_UPS", 0)
    monkeypatch.setattr(timing, "PASSES", 3)
    assert overhead.command(["--samples", "1", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "overhead.csv").set_index("what")
    assert list(table.index) == ["eps", "head", "jet1", "jet2", "jet3"]
    assert table.loc["eps", "ratio"] == 1.0
    assert (table["median_seconds"] > 0.0).all()
    with sqlite3.connect(tmp_path / "store.sqlite") as store:
        assert store.execute("SELECT count(*) FROM results").fetchone() == (0,)


def test_a_pass_sees_a_batch_at_most():
    assert overhead.in_a_pass(Case("digits", 5, batch=3)) == 3
    assert overhead.in_a_pass(Case("digits", 2, batch=3)) == 2
