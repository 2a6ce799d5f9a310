"""The store: nothing measured twice, nothing lost, and stale results are not mistaken for fresh ones."""

import functools
import io
import pickle
import re
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from analysis.study.cells import Cell, ForeignCodeError, Study, measured, proven, sent
from analysis.study.keys import Keys
from analysis.study.pools import Here, Pool
from analysis.study.progress import Progress, preparing
from analysis.study.store import Store


class Calls(list):
    """A count of calls, on which no result depends."""

    def __key__(self):
        return None


CALLS = Calls()


def number(value, n=1, beside=None):
    """A measurement that can be counted."""
    CALLS.append(value)
    return {"error": np.array([value, np.pi, 1e-300, np.nan]), "nfe": np.array(n)}


def failing(why):
    raise ArithmeticError(why)


def interrupted():
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _uncounted():
    CALLS.clear()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "deep" / "store.sqlite")
    yield store
    store.close()


def cell(value=1.0, n=1, **config):
    return Cell(config or {"n": n}, number, {"value": value, "n": n})


def test_a_cell_is_measured_once_and_read_back_bit_for_bit(store):
    first = Study(store).run("x", [cell()])[0]
    second = Study(store).run("x", [cell()])[0]
    assert CALLS == [1.0]
    np.testing.assert_array_equal(first.arrays["error"], second.arrays["error"])
    assert second.arrays["error"].dtype == np.float64
    assert second.arrays["nfe"] == 1


def test_equal_cells_of_one_run_are_measured_once_and_keep_their_names(store):
    a, b = Study(store).run("x", [cell(called="a"), cell(called="b")])
    assert CALLS == [1.0]
    assert (a.config["called"], b.config["called"]) == ("a", "b")


def test_fresh_measures_anew(store):
    Study(store).run("x", [cell()])
    Study(store, fresh=True).run("x", [cell()])
    assert CALLS == [1.0, 1.0]


def test_arguments_tell_cells_apart_and_names_do_not(store):
    Study(store).run("x", [cell(1.0), cell(2.0), cell(1.0, 3), cell(1.0, note="the same")])
    assert CALLS == [1.0, 2.0, 1.0]


def test_without_a_store_nothing_is_kept():
    for _ in range(2):
        Study().run("x", [cell()])
    assert CALLS == [1.0, 1.0]


def test_a_failure_has_its_reason_and_the_rest_goes_on(store):
    study = Study(store)
    results = study.run("x", [Cell({"n": 0}, failing, {"why": "no room"}), cell()])
    assert [r.failure for r in results] == ["no room", ""]
    assert [r.config for r in study.failures] == [{"n": 0}]
    assert measured(results) == results[1:]
    with pytest.raises(ArithmeticError, match="nothing could be measured: no room"):
        measured(results[:1])


def test_an_interrupted_run_keeps_what_it_measured(store):
    with pytest.raises(KeyboardInterrupt):
        Study(store).run("x", [cell(), Cell({}, interrupted, {})])
    Study(store).run("x", [cell(), cell(3.0)])
    assert CALLS == [1.0, 3.0]


def test_what_has_no_fingerprint_is_measured_every_time_with_one_line(store, capsys):
    nameless = {"value": 1.0, "n": 1, "beside": (i for i in range(3))}
    for _ in range(2):
        Study(store).run("x", [Cell({}, number, nameless)])
    assert len(CALLS) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("not kept in the store, as" in line and "cannot be written down" in line for line in lines)


@pytest.mark.parametrize("blob", [b"", b"garbage", None, "text"])
def test_a_cell_that_cannot_be_read_is_measured_again_with_one_warning(store, capsys, blob):
    Study(store).run("x", [cell(1.0), cell(2.0)])
    with store._db:
        whole = store._db.execute("SELECT arrays FROM results").fetchone()[0]
        store._db.execute(
            "UPDATE results SET arrays = ?", (whole[: len(whole) // 2] if blob is None else blob,)
        )
    found = Study(store).run("x", [cell(1.0), cell(2.0)])
    assert [r.arrays["error"][0] for r in found] == [1.0, 2.0]
    assert len(CALLS) == 4
    assert capsys.readouterr().err.count("is measured again") == 1


def test_a_cell_with_a_flipped_bit_is_a_missing_cell(store):
    """Of every byte of what is stored one bit."""
    arrays = {"error": np.array([1.5, -0.0, np.nan]), "nfe": np.array(7.0)}
    store.write("key", "x", "{}", arrays)
    blob = store._db.execute("SELECT arrays FROM results").fetchone()[0]
    for place in range(len(blob)):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << (5 * place % 8)
        with store._db:
            store._db.execute("UPDATE results SET arrays = ?", (bytes(flipped),))
        assert store.read("key") is None
    with store._db:
        store._db.execute("UPDATE results SET arrays = ?", (blob,))
    found = store.read("key")
    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in arrays.items()}


def test_cells_of_earlier_versions_are_read(store):
    blob = io.BytesIO()
    np.savez(blob, error=np.array([1.5, 2.5]))
    store.write("key", "x", "{}", {"error": np.zeros(1)})
    with store._db:
        store._db.execute("UPDATE results SET arrays = ?", (blob.getvalue(),))
    assert store.read("key")["error"].tolist() == [1.5, 2.5]


def test_at_most_so_many_cells_are_under_way_as_the_pool_is_wide(store):
    """Answers come in late, one at a time; meanwhile two cells wait, and never three."""
    waiting, most = [], []

    def answer(future, call):
        waiting.append((future, call))
        most.append(len(waiting))
        if len(waiting) == 2:
            threading.Timer(0.01, release).start()

    def release():
        while waiting:
            future, call = waiting.pop(0)
            future.set_result(call())

    Study(store, Pool(Elsewhere(answer), 2)).run("x", [cell(float(i)) for i in range(6)])
    assert max(most) == 2
    assert sorted(CALLS) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_store_that_is_locked_while_a_cell_is_written_is_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("analysis.study.store.PROMPT", 0.05)
    store = Store(tmp_path / "store.sqlite")
    other = sqlite3.connect(tmp_path / "store.sqlite", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, other.rollback).start()
    Study(store).run("x", [cell()])
    assert "is locked by another program; waiting for it" in capsys.readouterr().err
    assert store.read(Keys().key(number, {"value": 1.0, "n": 1})) is not None
    other.close()
    store.close()


class Terminal(io.StringIO):
    """A terminal that keeps what it showed."""

    def isatty(self):
        return True


def test_progress_on_a_terminal_says_what_is_begun_and_how_fast_it_goes(store, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    Study(store).run("ends", [cell(float(i), solver=f"solver {i}") for i in range(3)])
    shown = sys.stderr.getvalue()
    assert "ends: what is known" in shown
    assert "0 of 3 cells, solver 0" in shown
    bar = Progress("ends", 10, 10.0)
    bar.done(1.0)
    time.sleep(0.12)
    bar.at("ddim")
    assert re.search(r"ends:  10%.*1 of 10 cells, [\d.]+/s, ddim", sys.stderr.getvalue())
    with bar:
        pass


def test_a_quiet_study_shows_nothing(store, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    Study(store, quiet=True).run("ends", [cell()])
    with preparing("ends", quiet=True):
        pass
    assert sys.stderr.getvalue() == ""


def test_a_store_with_other_columns_is_kept_aside_and_measured_again(tmp_path, capsys):
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE results (key TEXT, value REAL)")
        db.execute("INSERT INTO results VALUES ('a', 1.0)")
    db.close()
    store = Store(path)
    assert Study(store).run("x", [cell()])[0].arrays["nfe"] == 1
    assert "other columns" in capsys.readouterr().err
    kept = [row[0] for row in store._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert len(kept) == 2
    store.close()
    again = Store(path)
    Study(again).run("x", [cell()])
    again.close()
    assert CALLS == [1.0]


class Elsewhere(Executor):
    """A pool whose workers answer in a way of their own."""

    def __init__(self, answer):
        self.answer = answer

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.answer(future, functools.partial(fn, *args, **kwargs))
        return future


def test_a_worker_with_other_code_measures_nothing(store):
    """Keys of the worker differ from those of the process that asks."""

    def answer(future, call):
        key, measure, arguments = pickle.loads(call.args[0])
        try:
            future.set_result(proven("0" + key[1:] if key[0] != "0" else "1" + key[1:], measure, arguments))
        except ForeignCodeError as error:
            future.set_exception(error)

    with pytest.raises(OSError, match="other code or other versions"):
        Study(store, Pool(Elsewhere(answer), 1, True)).run("x", [cell()])
    assert CALLS == []


def test_a_worker_that_cannot_read_a_cell_says_so():
    lacking = pickle.dumps(("0", number, {})).replace(b"number", b"figure")
    with pytest.raises(
        ForeignCodeError, match=r"cannot read what it was sent \(.*figure.*\); install the same"
    ):
        sent(lacking)


def test_a_worker_with_the_same_code_measures(store):
    pool = Pool(Elsewhere(lambda future, call: future.set_result(call())), 2, True)
    assert Study(store, pool).run("x", [cell()])[0].arrays["nfe"] == 1
    key = Keys().key(number, {"value": 1.0, "n": 1})
    assert store.read(key) is not None


def test_a_pool_that_dies_ends_the_run_and_what_was_measured_is_kept(store):
    answered = []

    def answer(future, call):
        if answered:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            answered.append(future.set_result(call()))

    with pytest.raises(OSError, match="the Dask scheduler is gone; what was measured is kept"):
        Study(store, Pool(Elsewhere(answer), 1, True)).run("x", [cell(1.0), cell(2.0)])
    Study(store).run("x", [cell(1.0), cell(2.0)])
    assert CALLS == [1.0, 2.0]


def test_a_pool_that_no_longer_answers_is_noticed(store, monkeypatch):
    monkeypatch.setattr("analysis.study.cells.PATIENCE", 0.01)
    silent = Pool(Elsewhere(lambda future, call: None), 1, True, lambda: False)
    with pytest.raises(OSError, match="is gone"):
        Study(store, silent).run("x", [cell()])


def test_here_answers_before_it_is_asked_twice():
    assert Here().submit(max, 1, 2).result() == 2
    assert isinstance(Here().submit(failing, "no").exception(), ArithmeticError)


def write(path, value, count, told):
    """Measure and keep so many cells, and tell of each that is kept."""
    store = Store(path)
    for i in range(count):
        Study(store).run("x", [cell(value, i)])
        told.send(i)


@pytest.mark.slow
def test_kill_minus_nine_and_two_writers_lose_nothing(tmp_path, forks):
    path = tmp_path / "store.sqlite"
    (heard, told), (_, unheard) = forks.Pipe(False), forks.Pipe(False)
    steady = forks.Process(target=write, args=(path, 1.0, 30, unheard))
    doomed = forks.Process(target=write, args=(path, 2.0, 100_000, told))
    steady.start()
    doomed.start()
    seen = [heard.recv() for _ in range(25)]
    doomed.kill()
    doomed.join()
    steady.join()
    assert (steady.exitcode, doomed.exitcode) == (0, -signal.SIGKILL)
    store = Store(path)
    cells = [cell(1.0, i) for i in range(30)] + [cell(2.0, i) for i in seen]
    results = Study(store).run("x", cells)
    store.close()
    assert CALLS == []
    assert [int(r.arrays["nfe"]) for r in results] == [*range(30), *seen]


def test_a_file_that_is_no_store_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "store.sqlite"
    path.write_text("these are not results, but long enough to be read as the header of a file")
    with pytest.raises(OSError, match="cannot be used as a results store"):
        Store(path)
    assert path.read_text().startswith("these are not")


def big():
    return {"error": np.zeros(100_000)}


def test_a_full_disk_is_told_in_one_sentence(store):
    store._db.execute("PRAGMA max_page_count = 5")
    with pytest.raises(OSError, match="what was measured before is kept"):
        Study(store).run("x", [Cell({}, big, {})])
