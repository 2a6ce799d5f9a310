"""Who measures: this process, worker processes beside it, or a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from analysis.study import HERE, Pool
from problems.console import Parser, UsageError, positive

MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**30, "MALLOC_MMAP_THRESHOLD_": 2**30}
"""Environment of workers: Dask has them give back memory that networks would ask for again."""


def add_pool(p: Parser) -> None:
    """Add ``--workers`` and ``--scheduler``."""
    group = p.add_mutually_exclusive_group()
    group.add_argument(
        "--workers", type=positive, default=1, help="processes on this machine (extra: cluster)"
    )
    group.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        default=os.environ.get("DASK_SCHEDULER_ADDRESS"),
        help="a Dask scheduler to ask, such as tcp://host:8786 (default: $DASK_SCHEDULER_ADDRESS, if set)",
    )


@contextmanager
def pool(workers: int, scheduler: str | None) -> Iterator[Pool]:
    """Provide who measures, and dismiss them afterwards.

    A worker that dies costs what it was measuring, which is measured again by another.

    Parameters
    ----------
    workers
        Number of processes on this machine; 1 is this one.
    scheduler
        Address of a Dask scheduler, which is asked instead if there is one.

    Raises
    ------
    UsageError
        If Dask is not installed, or the scheduler does not answer.
    """
    if workers == 1 and not scheduler:
        yield HERE
        return
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ImportError:
        raise UsageError(
            "several workers need Dask; install it by pip install 'genie-bench[cluster]'"
        ) from None
    if scheduler:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {scheduler} ({error})") from error
        with client:
            yield Pool(client.get_executor(pure=False), _width(client))
        return
    with (
        config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in MEMORY.items()}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield Pool(client.get_executor(pure=False), _width(client))


def _width(client: Any) -> int:
    """Return how many cells keep all workers busy while results travel."""
    threads = sum(client.nthreads().values())
    return 3 * max(1, int(threads))
