"""Who measures: this process, worker processes beside it, or a Dask cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**30, "MALLOC_MMAP_THRESHOLD_": 2**30}
"""Environment of workers: without it Dask has them give back memory that networks would ask for again."""


TIMEOUT = "DASK_SCHEDULER_TIMEOUT"
"""Environment variable: seconds in which a scheduler has to answer, 10 by default."""


class NoPoolError(ValueError):
    """There are no workers to be had; the message says why and what to do."""


class Here(Executor):
    """Runs everything where it is asked to, before it answers."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Return the future of a call that has been made."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _always() -> bool:
    return True


class Pool(NamedTuple):
    """Who measures.

    Attributes
    ----------
    executor
        Runs what it is given.
    width
        How many cells it is given at a time.
    elsewhere
        Whether that is in other processes, which have to prove that their code is this one's.
    alive
        Returns whether it can still answer.
    """

    executor: Executor = Here()
    width: int = 1
    elsewhere: bool = False
    alive: Callable[[], bool] = _always


HERE = Pool()
"""This process."""


@contextmanager
def pool(workers: int, scheduler: str | None) -> Iterator[Pool]:
    """Provide who measures, and dismiss them afterwards.

    What a worker was measuring when it died is measured again by another.

    Parameters
    ----------
    workers
        Number of processes on this machine; 1 is this one.
    scheduler
        Address of a Dask scheduler, which is asked instead if there is one. It has to answer within
        10 seconds, or as many as the environment variable ``DASK_SCHEDULER_TIMEOUT`` says.

    Raises
    ------
    NoPoolError
        If Dask is not installed, or the scheduler does not answer.
    """
    if workers == 1 and not scheduler:
        yield HERE
        return
    distributed = _distributed()
    if not scheduler:
        with local_cluster(workers) as cluster, distributed.Client(cluster) as client:
            yield _of(client)
        return
    try:
        client = distributed.Client(scheduler, timeout=float(os.environ.get(TIMEOUT, "10")))
    except (OSError, ValueError) as error:
        raise NoPoolError(f"no Dask scheduler answers at {scheduler} ({error})") from error
    with client:
        yield _of(client)


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """Provide a Dask cluster of so many processes on this machine, one thread each, and stop it afterwards.

    Raises
    ------
    NoPoolError
        If Dask is not installed, or workers cannot be started.
    """
    distributed = _distributed()
    from dask import config

    # There is an HTTP server even without a dashboard; port 0 lets several clusters share a machine.
    # Dask warns of workers that take long to end, which is no concern of a run that went well.
    quiet = {
        "dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": False},
        "silence_logs": logging.ERROR,
    }
    environment = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in MEMORY.items()}
    with config.set(environment):
        try:
            made = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **quiet)
        except RuntimeError as error:
            raise NoPoolError(
                'workers could not be started; a script asks for them below if __name__ == "__main__":'
            ) from error
        with made as cluster:
            yield cluster


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise NoPoolError(
            "several workers need Dask; install it by pip install 'genie-bench[cluster]'"
        ) from None
    return distributed


def _of(client: Any) -> Pool:
    # Three cells a thread keep all workers busy while results travel.
    width = 3 * max(1, int(sum(client.nthreads().values())))
    return Pool(client.get_executor(pure=False), width, True, lambda: client.status == "running")
