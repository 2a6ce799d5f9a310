"""The results store: one SQLite file in write-ahead mode, the arrays of every measurement under its key.

A cell is written in one transaction. So a run that is interrupted or killed loses at most the cell that it
was measuring, and several runs may share the file.
"""

from __future__ import annotations

import hashlib
import io
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.float64]]

PROMPT, PATIENT = 4.0, 60.0
"""Seconds after which a store that is locked is told of, and for how many more a result is not given up."""

COLUMNS = ("key", "experiment", "config", "arrays", "measured")


class Store:
    """The file of results.

    Parameters
    ----------
    path
        The SQLite file; made, with its folder, if missing.

    Raises
    ------
    OSError
        If the file cannot be opened, is locked by another program, or is not a results store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=PROMPT)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._db:
                self._make()
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise OSError(
                    f"{path} is locked by another program; wait for it or end it, or give another --out"
                ) from error
            raise OSError(
                f"{path} cannot be used as a results store ({error}); give another --out"
            ) from error

    def _make(self) -> None:
        columns = tuple(row[1] for row in self._db.execute("PRAGMA table_info(results)"))
        if columns and columns != COLUMNS:
            self._warn("its table has other columns than this version's")
            tables = self._db.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
            self._db.execute(f"ALTER TABLE results RENAME TO results_before_{tables}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, experiment TEXT, config TEXT, "
            "arrays BLOB, measured TEXT DEFAULT CURRENT_TIMESTAMP)"
        )

    def read(self, key: str) -> Arrays | None:
        """Return the arrays under a key; None if there are none, or none that can be read."""
        try:
            row = self._db.execute("SELECT arrays FROM results WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            with np.load(io.BytesIO(_checked(row[0])), allow_pickle=False) as file:
                return {name: np.asarray(file[name], dtype=np.float64) for name in file.files}
        except Exception as error:  # whatever is wrong with it, it can be measured again
            self._warn(str(error) or type(error).__name__)
            return None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            print(f"{self.path}: what cannot be read ({reason}) is measured again", file=sys.stderr)
        self._warned = True

    def write(self, key: str, experiment: str, config: str, arrays: Arrays) -> None:
        """Keep a measured cell, in one transaction.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        blob = io.BytesIO()
        np.savez(blob, allow_pickle=False, **arrays)
        line = "INSERT OR REPLACE INTO results (key, experiment, config, arrays) VALUES (?, ?, ?, ?)"
        values = (key, experiment, config, _digest(blob.getvalue()) + blob.getvalue())
        try:
            try:
                with self._db:
                    self._db.execute(line, values)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                print(f"{self.path} is locked by another program; waiting for it", file=sys.stderr)
                self._db.execute(f"PRAGMA busy_timeout = {PATIENT * 1000:.0f}")
                with self._db:
                    self._db.execute(line, values)
        except sqlite3.Error as error:
            raise OSError(
                f"{self.path} could not be written ({error}); what was measured before is kept, "
                "so run the same command again when there is room"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _digest(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


def _checked(blob: bytes) -> bytes:
    """Return the archive in a stored cell, if it is as it was written.

    An archive of numpy has a checksum of every array, but loses an array without a word if the list of its
    arrays is damaged. Cells of earlier versions are the archive alone, which begins with "PK".
    """
    if blob[:4] == b"PK\x03\x04":
        return blob
    digest, archive = blob[:32], blob[32:]
    if _digest(archive) != digest:
        raise ValueError("a cell is damaged")
    return archive
