"""Who measures: this process, or workers beside it; what is said where there are none."""

import os
import sys
import time

import pytest

from analysis.study.pools import HERE, NoPoolError, pool


def test_one_worker_is_this_process():
    with pool(1, None) as who:
        assert who is HERE
        assert not who.elsewhere
        assert who.executor.submit(os.getpid).result() == os.getpid()
        assert isinstance(who.executor.submit(int, "one").exception(), ValueError)


@pytest.mark.slow
def test_several_workers_are_other_processes_that_end_with_the_pool():
    def asleep():
        """Wait for the other worker to take the next call; sent by value, so nothing is imported."""
        time.sleep(0.05)
        return os.getpid()

    with pool(2, None) as who:
        assert who.elsewhere
        assert who.alive()
        assert who.width == 6
        pids = {f.result() for f in [who.executor.submit(asleep) for _ in range(8)]}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert not who.alive()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_scheduler_is_asked_where_there_is_one(cluster_address):
    with pool(1, cluster_address) as who:
        assert who.elsewhere
        assert who.executor.submit(os.getpid).result() != os.getpid()


def test_a_scheduler_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_TIMEOUT", "0.2")
    with (
        pytest.raises(NoPoolError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 "),
        pool(2, "tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.parametrize("scheduler", [None, "tcp://127.0.0.1:9"])
def test_without_dask_it_is_said_what_to_install(monkeypatch, scheduler):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(NoPoolError, match=r"^several workers need Dask; install it by pip"),
        pool(2, scheduler),
    ):
        pass
