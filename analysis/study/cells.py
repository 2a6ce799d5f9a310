"""Cells: what is measured is a function and its plain arguments, measured once and kept under its key."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.study.keys import Keys
from analysis.study.pools import HERE, Pool
from analysis.study.progress import Progress
from analysis.study.store import Arrays, Store
from analysis.study.values import NoFingerprintError

PATIENCE = 2.0
"""Seconds between two looks at whether the pool is alive."""


class Cell(NamedTuple):
    """One thing to measure.

    Attributes
    ----------
    config
        What it is called in tables: JSON values.
    measure
        A function of a module; measures it, and returns arrays by name.
    arguments
        Its arguments, by name. They and the code determine the key; see ``keys``.
    work
        How much work that is, in proportion to other cells; for the progress bar.
    """

    config: dict[str, Any]
    measure: Callable[..., Mapping[str, Any]]
    arguments: dict[str, Any]
    work: float = 1.0


class Result(NamedTuple):
    """A measured cell.

    Attributes
    ----------
    config
        What it is called in tables.
    arrays
        What was measured; empty where that failed.
    failure
        Why it failed, in words; empty where it did not.
    """

    config: dict[str, Any]
    arrays: Arrays
    failure: str = ""


class ForeignCodeError(RuntimeError):
    """A worker has other code, or other versions, than the process that asked it."""


@dataclass(frozen=True)
class Study:
    """Where results are kept, and who measures what is missing.

    Attributes
    ----------
    store
        Keeps results; None keeps nothing.
    pool
        Who measures.
    fresh
        Whether all is measured anew, whatever the store holds.
    quiet
        Whether no progress is shown on a terminal either.
    failures
        What could not be measured so far, each with its reason.
    """

    store: Store | None = None
    pool: Pool = HERE
    fresh: bool = False
    quiet: bool = False
    failures: list[Result] = field(default_factory=list, compare=False)

    @property
    def alone(self) -> Study:
        """The same study in this process, for what is timed."""
        return replace(self, pool=HERE)

    def run(self, experiment: str, cells: Iterable[Cell]) -> list[Result]:
        """Measure the cells that are not in the store yet, and return all of them, in order.

        Parameters
        ----------
        experiment
            What the store and the progress bar call it.
        cells
            What to measure. One that fails has a result without arrays, and is added to ``failures``.

        Raises
        ------
        OSError
            If a result could not be written, or the pool is gone; what was measured before is kept.
        """
        plan, known = self._plan(experiment, list(cells))
        absent = {key: cell for key, cell in plan if key not in known}
        failed: dict[str, str] = {}
        queue, waiting = iter(absent), dict[Future[Any], str]()
        work = sum(cell.work for cell in absent.values())
        with Progress(experiment, len(absent), work, self.quiet) as progress:
            while True:
                for key in islice(queue, self.pool.width - len(waiting)):
                    progress.at(str(absent[key].config.get("solver", "")))
                    waiting[self._submit(key, absent[key])] = key
                if not waiting:
                    break
                done = wait(waiting, timeout=PATIENCE, return_when=FIRST_COMPLETED).done
                if not done and not self.pool.alive():
                    raise _gone()
                for future in done:
                    key = waiting.pop(future)
                    error = _error(future)
                    if error is None:
                        known[key] = self._keep(experiment, key, absent[key], future.result())
                    else:
                        failed[key] = (str(error) or type(error).__name__).splitlines()[0]
                    progress.done(absent[key].work)
        results = [Result(cell.config, known.get(key, {}), failed.get(key, "")) for key, cell in plan]
        self.failures.extend(result for result in results if result.failure)
        return results

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that ``run`` would measure."""
        plan, known = self._plan("missing", list(cells))
        return [cell for key, cell in plan if key not in known]

    def _plan(
        self, experiment: str, cells: Sequence[Cell]
    ) -> tuple[list[tuple[str, Cell]], dict[str, Arrays]]:
        """Return the cells with their keys, and what is known of them."""
        keys, plan = Keys(), []
        known: dict[str, Arrays] = {}
        nameless: set[str] = set()
        store = None if self.fresh else self.store
        with Progress(f"{experiment}: what is known", len(cells), len(cells), self.quiet) as progress:
            for number, cell in enumerate(cells):
                try:
                    key = keys.key(cell.measure, cell.arguments)
                except NoFingerprintError as reason:
                    key = f"{NAMELESS}{number}"
                    nameless.add(str(reason))
                arrays = None if store is None or key.startswith(NAMELESS) else store.read(key)
                if arrays is not None:
                    known[key] = arrays
                plan.append((key, cell))
                progress.done(1)
        for why in sorted(nameless):
            print(f"not kept in the store, as {why}", file=sys.stderr)
        return plan, known

    def _submit(self, key: str, cell: Cell) -> Future[Any]:
        if not self.pool.elsewhere:
            return self.pool.executor.submit(cell.measure, **cell.arguments)
        import cloudpickle  # comes with Dask

        # Dask itself would send what lies deep inside by name, and a worker that cannot read that dies.
        return self.pool.executor.submit(sent, cloudpickle.dumps((key, cell.measure, cell.arguments)))

    def _keep(self, experiment: str, key: str, cell: Cell, found: Mapping[str, Any]) -> Arrays:
        arrays = {name: np.asarray(array, dtype=np.float64) for name, array in found.items()}
        if self.store is not None and not key.startswith(NAMELESS):
            self.store.write(key, experiment, json.dumps(cell.config, sort_keys=True, default=str), arrays)
        return arrays


NAMELESS = "nameless "
"""Begins the key of a cell that cannot be kept."""


def sent(cell: bytes) -> Mapping[str, Any]:
    """Measure a cell that was sent to this worker: its key, its function and its arguments, pickled.

    Raises
    ------
    ForeignCodeError
        If the code, or a file that the arguments name, is not here, or the code is not that under whose key
        the result will be kept.
    """
    try:
        key, measure, arguments = pickle.loads(cell)
    except Exception as error:
        raise ForeignCodeError(
            f"a worker cannot read what it was sent ({error}); install the same packages and put the same "
            "files there, and start the worker again"
        ) from error
    return measure(**arguments) if key.startswith(NAMELESS) else proven(key, measure, arguments)


def proven(
    key: str, measure: Callable[..., Mapping[str, Any]], arguments: dict[str, Any]
) -> Mapping[str, Any]:
    """Measure a cell, if the code and the versions here are those under whose key it will be kept.

    Raises
    ------
    ForeignCodeError
        If they are not.
    """
    if Keys().key(measure, arguments) != key:
        raise ForeignCodeError(
            "a worker has other code or other versions of Python or libraries than this process; install the "
            "same revision there and start the worker again"
        )
    return measure(**arguments)


def _error(future: Future[Any]) -> Exception | None:
    """Return the error of one cell; one of the pool, or an interruption, is raised."""
    try:
        error = future.exception()
    except CancelledError:
        raise _gone() from None
    if isinstance(error, ForeignCodeError):
        raise OSError(str(error)) from error
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


def _gone() -> OSError:
    return OSError("the Dask scheduler is gone; what was measured is kept, so run the same command again")


def frame(results: list[Result], **columns: Iterable[Any]) -> pd.DataFrame:
    """Return a tidy table: one row per result, its configuration first, then the given columns."""
    return pd.DataFrame([r.config for r in results]).assign(**{k: list(v) for k, v in columns.items()})


def measured(results: list[Result]) -> list[Result]:
    """Return the results that did not fail.

    Raises
    ------
    ArithmeticError
        If all of them did.
    """
    found = [result for result in results if not result.failure]
    if results and not found:
        raise ArithmeticError(f"nothing could be measured: {results[0].failure}")
    return found
