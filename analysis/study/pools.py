"""Who measures: this process, worker processes beside it, or a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**30, "MALLOC_MMAP_THRESHOLD_": 2**30}
"""Environment of workers: without it Dask has them give back memory that networks would ask for again."""


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
        Address of a Dask scheduler, which is asked instead if there is one.

    Raises
    ------
    NoPoolError
        If Dask is not installed, or the scheduler does not answer.
    """
    if workers == 1 and not scheduler:
        yield HERE
        return
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ImportError:
        raise NoPoolError(
            "several workers need Dask; install it by pip install 'genie-bench[cluster]'"
        ) from None
    if scheduler:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise NoPoolError(f"no Dask scheduler answers at {scheduler} ({error})") from error
        with client:
            yield _of(client)
        return
    with (
        config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in MEMORY.items()}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield _of(client)


def _of(client: Any) -> Pool:
    # Three cells a thread keep all workers busy while results travel.
    width = 3 * max(1, int(sum(client.nthreads().values())))
    return Pool(client.get_executor(pure=False), width, True, lambda: client.status == "running")
