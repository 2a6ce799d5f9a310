"""The store: nothing measured twice, nothing lost, and stale results are not mistaken for fresh ones."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from analysis import study
from analysis.study import Cell, Store, run
from problems import VP
from solvers import Adams, Index, Taylor

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "deep" / "store.sqlite")
    yield store
    store.close()


def counting(calls, value=1.0, config=None, parts=()):
    def measure():
        calls.append(value)
        return {"error": np.array([value, np.pi, 1e-300, np.nan]), "nfe": np.array(7)}

    return Cell(config or {"n": 1}, parts, measure)


def test_a_cell_is_measured_once_and_read_back_bit_for_bit(store):
    calls = []
    first = run("x", [counting(calls)], store)[0]
    second = run("x", [counting(calls)], store)[0]
    assert calls == [1.0]
    np.testing.assert_array_equal(first.arrays["error"], second.arrays["error"])
    assert second.arrays["error"].dtype == np.float64
    assert second.arrays["nfe"] == 7


def test_fresh_measures_anew(store):
    calls = []
    run("x", [counting(calls)], store)
    again = run("x", [counting(calls, 2.0)], store, fresh=True)[0]
    assert calls == [1.0, 2.0]
    assert again.arrays["error"][0] == 2.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({"n": 1}, ()), ({"n": 2}, ())),
        (({"n": 1}, ("Method(a)",)), ({"n": 1}, ("Method(b)",))),
        (({"n": 1}, (Taylor(2),)), ({"n": 1}, (VP(),))),
    ],
)
def test_whatever_determines_a_result_tells_cells_apart(store, one, other):
    calls = []
    run("x", [counting(calls, 1.0, *one), counting(calls, 2.0, *other)], store)
    assert calls == [1.0, 2.0]


def test_an_edited_solver_is_measured_again_and_the_others_are_not(monkeypatch):
    before = {s: study._key("x", "{}", (s,)) for s in (Taylor(2), Adams(2, clock=Index()))}
    digest = study._digest
    monkeypatch.setattr(study, "_digest", lambda file: digest(file) + ("edited" if "adams" in file else ""))
    assert study._key("x", "{}", (Taylor(2),)) == before[Taylor(2)]
    assert study._key("x", "{}", (Adams(2, clock=Index()),)) != before[Adams(2, clock=Index())]


def test_clocks_and_starters_inside_a_solver_count_as_its_sources():
    files = study._sources((Adams(2, clock=Index(), start=Taylor(2)),))
    assert len(files) > len(study._sources((Taylor(2),)))


def test_an_interrupted_run_keeps_what_it_measured(store):
    calls = []

    def interrupt():
        raise KeyboardInterrupt

    cells = [counting(calls, 1.0), Cell({"n": 2}, (), interrupt)]
    with pytest.raises(KeyboardInterrupt):
        run("x", cells, store)
    run("x", [cells[0], counting(calls, 3.0, {"n": 2})], store)
    assert calls == [1.0, 3.0]


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from analysis.study import Cell, Store, run
store = Store(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    run("x", [Cell({"writer": sys.argv[2], "i": i}, (), lambda: {"i": np.array(i)})], store)
    print(i, flush=True)
"""


def _writer(path, name, count):
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), name, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def _never():
    raise AssertionError("measured twice")


@pytest.mark.slow
def test_kill_minus_nine_and_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "store.sqlite"
    steady, doomed = _writer(path, "steady", 60), _writer(path, "doomed", 100_000)
    seen = [int(next(doomed.stdout)) for _ in range(25)]
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    doomed.stdout.close()
    assert steady.wait() == 0
    steady.stdout.close()
    store = Store(path)
    cells = [Cell({"writer": "steady", "i": i}, (), _never) for i in range(60)]
    cells += [Cell({"writer": "doomed", "i": i}, (), _never) for i in seen]
    results = run("x", cells, store)
    store.close()
    assert [int(r.arrays["i"]) for r in results] == [*range(60), *seen]


def test_a_file_that_is_no_store_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "store.sqlite"
    path.write_text("these are not results, but long enough to be read as the header of a file")
    with pytest.raises(OSError, match="cannot be used as a results store"):
        Store(path)
    assert path.read_text().startswith("these are not")


def test_a_full_disk_is_told_in_one_sentence(store):
    store._db.execute("PRAGMA max_page_count = 5")
    big = Cell({"n": 1}, (), lambda: {"error": np.zeros(100_000)})
    with pytest.raises(OSError, match="what was measured before is kept"):
        run("x", [big], store)
