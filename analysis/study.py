"""The results store: every measurement is kept once, under everything that determines it.

One SQLite file in write-ahead mode holds all experiments. A cell is a configuration (a JSON object) and the
arrays measured under it; its key is the hash of the configuration, of the package's version and of the
sources of the classes involved. A cell is written in one transaction, so an interrupted or killed run
loses at most the cell it was measuring, several runs may share the file, and what is there is not measured
again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

Arrays = Mapping[str, NDArray[np.float64]]
PACKAGES = ("solvers", "problems", "analysis")
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}"
T = TypeVar("T")


class Cell(NamedTuple):
    """One thing to measure.

    Attributes
    ----------
    config
        What determines the result: JSON values only.
    parts
        The objects that produce it; strings, and the sources of classes and functions, are part of the key.
    measure
        Measures it.
    work
        How much work that is, in proportion to other cells; for the progress bar.
    """

    config: dict[str, Any]
    parts: tuple[object, ...]
    measure: Callable[[], Arrays]
    work: float = 1.0


class Result(NamedTuple):
    """A measured cell."""

    config: dict[str, Any]
    arrays: Arrays


class Store:
    """The file of results.

    Parameters
    ----------
    path
        The SQLite file; made, with its folder, if missing.

    Raises
    ------
    OSError
        If the file cannot be opened or is not a results store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._db:
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS results ("
                    "key TEXT PRIMARY KEY, experiment TEXT, config TEXT, arrays BLOB, "
                    "measured TEXT DEFAULT CURRENT_TIMESTAMP)"
                )
        except (sqlite3.Error, OSError) as error:
            raise OSError(
                f"{path} cannot be used as a results store ({error}); give another --out"
            ) from error

    def read(self, key: str) -> Arrays | None:
        """Return the arrays under a key, or None."""
        row = self._db.execute("SELECT arrays FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        with np.load(io.BytesIO(row[0]), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def write(self, key: str, experiment: str, config: str, arrays: Arrays) -> None:
        """Keep a measured cell, in one transaction."""
        blob = io.BytesIO()
        np.savez(blob, allow_pickle=False, **arrays)
        try:
            with self._db:
                self._db.execute(
                    "INSERT OR REPLACE INTO results (key, experiment, config, arrays) VALUES (?, ?, ?, ?)",
                    (key, experiment, config, blob.getvalue()),
                )
        except sqlite3.Error as error:
            raise OSError(
                f"{self.path} could not be written ({error}); what was measured before is kept, "
                "so run the same command again when there is room"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


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


class Pool(NamedTuple):
    """Who measures.

    Attributes
    ----------
    executor
        Runs what it is given. If that is elsewhere, cells' ``measure`` must be fit to be sent there.
    width
        How many cells it is given at a time.
    """

    executor: Executor = Here()
    width: int = 1


HERE = Pool()
"""This process."""


def run(
    experiment: str,
    cells: Iterable[Cell],
    store: Store,
    *,
    fresh: bool = False,
    pool: Pool = HERE,
    failed: Callable[[Cell, Exception], None] | None = None,
) -> list[Result]:
    """Measure the cells that are not in the store yet, and return all of them, in order.

    Parameters
    ----------
    experiment
        Name of the experiment, part of every key.
    cells
        What to measure.
    store
        Where results are kept, each as soon as it is there.
    fresh
        Measure all of them anew.
    pool
        Who measures; this process, one after the other, by default.
    failed
        Told of cells that cannot be measured, which then have no arrays; by default their error is raised.
    """
    plan = [(_key_of(experiment, cell), cell) for cell in cells]
    known = {} if fresh else {key: store.read(key) for key, _ in plan}
    found: dict[str, Arrays] = {key: arrays for key, arrays in known.items() if arrays is not None}
    absent = {key: cell for key, cell in plan if key not in found}
    queue, waiting = iter(absent), dict[Future[Arrays], str]()
    work = sum(cell.work for cell in absent.values())
    with tqdm(total=work, desc=experiment, disable=None, leave=False, bar_format=BAR) as bar:
        while True:
            for key in islice(queue, pool.width - len(waiting)):
                waiting[pool.executor.submit(absent[key].measure)] = key
            if not waiting:
                break
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                key = waiting.pop(future)
                cell = absent[key]
                error = future.exception()
                if error is None:
                    arrays = future.result().items()
                    found[key] = {name: np.asarray(a, dtype=np.float64) for name, a in arrays}
                    store.write(key, experiment, _text(cell), found[key])
                elif failed is not None and isinstance(error, Exception):
                    failed(cell, error)
                else:
                    raise error
                bar.update(cell.work)
    return [Result(cell.config, found.get(key, {})) for key, cell in plan]


def missing(experiment: str, cells: Iterable[Cell], store: Store) -> list[Cell]:
    """Return the cells that are not in the store yet."""
    return [cell for cell in cells if store.read(_key_of(experiment, cell)) is None]


def frame(results: list[Result], **columns: Iterable[Any]) -> pd.DataFrame:
    """Return a tidy table: one row per result, its configuration first, then the given columns."""
    return pd.DataFrame([r.config for r in results]).assign(**{k: list(v) for k, v in columns.items()})


def package_version() -> str:
    """Return the version of this package."""
    try:
        return version("genie-bench")
    except PackageNotFoundError:
        return "uninstalled"


def _text(cell: Cell) -> str:
    return json.dumps(cell.config, sort_keys=True)


def _key_of(experiment: str, cell: Cell) -> str:
    return _key(experiment, _text(cell), cell.parts)


def _key(experiment: str, config: str, parts: tuple[object, ...]) -> str:
    text = "\n".join([package_version(), experiment, config, *_sources(parts)])
    return hashlib.sha256(text.encode()).hexdigest()


_DIGESTS: dict[str, str] = {}


def _sources(parts: Iterable[object]) -> list[str]:
    """Return the strings among ``parts``, the values of frozen ones, and digests of all classes' files.

    Whoever edits a solver and runs again gets that solver measured again, and no other.
    """
    parts = list(parts)
    files: set[str] = set()
    pending, seen = [part for part in parts if not isinstance(part, str)], set[int]()
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        owner = part if inspect.isclass(part) or inspect.isfunction(part) else type(part)
        for cls in getattr(owner, "__mro__", (owner,)):
            if cls.__module__.split(".")[0] in (*PACKAGES, "__main__"):
                files.add(inspect.getsourcefile(sys.modules[cls.__module__]) or cls.__module__)
        if dataclasses.is_dataclass(part) and not inspect.isclass(part):
            pending.extend(getattr(part, f.name) for f in dataclasses.fields(part))
    texts = [part for part in parts if isinstance(part, str)]
    texts += [repr(part) for part in parts if dataclasses.is_dataclass(part)]
    return texts + sorted(_digest(file) for file in files)


def _digest(file: str) -> str:
    if file not in _DIGESTS:
        _DIGESTS[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return _DIGESTS[file]
