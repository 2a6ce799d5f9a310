"""Data that a user has: images of a folder or file, or states in an array, to compare samples with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from problems.console import UsageError
from problems.images import arrays
from problems.images.data import DataError, Images, load

if TYPE_CHECKING:
    from analysis.measure.case import Case

BUILT_IN = ("digits",)
"""Data sets by name, without a file."""


class States:
    """States in memory, such as points in the plane or latents.

    Parameters
    ----------
    x
        The states, (n, *event), of a float dtype.
    """

    note = ""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self.shape = x.shape[1:]

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, index: Tensor) -> Tensor:
        """Return the states at ``index``."""
        return self._x[index]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the states."""
        head = f"{self._x.dtype} {tuple(self._x.shape)}".encode()
        return hashlib.sha256(head + self._x.contiguous().numpy().tobytes()).hexdigest()


class Given:
    """Data at a path. They travel by it, and stand in keys by their content.

    Parameters
    ----------
    path
        Where they are.
    store
        What was read there.
    side
        The side in pixels to which images were averaged; None leaves them as they are.
    """

    def __init__(self, path: str, store: Images | States, side: int | None = None) -> None:
        self.path, self._store, self._side = path, store, side

    def __key__(self) -> object:
        """Return the digest of the data, for ``study.keys``."""
        return self._store.digest

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what to read."""
        return given, (self.path, self._side)

    def __len__(self) -> int:
        return len(self._store)

    @property
    def digest(self) -> str:
        """SHA-256 of the data, in hex."""
        return self._store.digest

    @property
    def shape(self) -> torch.Size:
        """Shape of one of them."""
        return self._store.shape

    @property
    def note(self) -> str:
        """What has to be said wherever a distance to them is printed; empty if nothing."""
        averaged = "" if self._side is None else f"the data were averaged to {self._side} x {self._side}"
        return "; ".join(said for said in (self._store.note, averaged) if said)

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` of them with replacement, (n, *shape), float64; images are in [-1, 1]."""
        return self._store.batch(torch.randint(len(self), (n,), generator=generator)).double()

    def in_turn(self, first: int, n: int, seed: int) -> Tensor:
        """Return ``n`` of them, from ``first`` on in a random order in which each occurs once; float64."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed % 2**63))
        return self._store.batch(order[first : first + n]).double()


def fitting(path: str | Path, shape: Sequence[int]) -> Given:
    """Read data, and average images whose side is a multiple of that of states (channels, height, width)."""
    found = given(path)
    (*_, side), wanted = found.shape or (0,), shape[-1] if len(shape) == 3 else 0
    alike = len(found.shape) == 3 and found.shape[0] == shape[0] and found.shape[1] == side
    return given(path, wanted) if alike and side > wanted > 0 and side % wanted == 0 else found


def given(path: str | Path, side: int | None = None) -> Given:
    """Read data.

    Parameters
    ----------
    path
        What ``problems.images.data.load`` takes: a folder, zip or npz file of images, CIFAR-10's tarball; or
        an npz file with one array of numbers, states as they are.
    side
        Average images to this side in pixels.

    Raises
    ------
    UsageError
        If they cannot be read.
    """
    name = str(path)
    if name in BUILT_IN:
        return _read(name, 0, side)
    file = Path(path).resolve()
    return _read(str(file), file.stat().st_mtime_ns if file.exists() else 0, side)


@lru_cache(maxsize=3)
def _read(path: str, changed: int, side: int | None) -> Given:
    try:
        return Given(path, _states(Path(path)) or load(path, side), side)
    except DataError as error:
        raise UsageError(str(error)) from error


def _states(path: Path) -> States | None:
    """Return the states in an archive of arrays; None where there are images or no such archive."""
    if not arrays.is_archive(path):
        return None
    try:
        found = arrays.read(path)
        if {"mu", "sigma"} <= found.keys():
            raise UsageError(f"{path} holds statistics, mu and sigma, not data; type --reference {path}")
        x = found[arrays.stack_of(found)]
    except UsageError:
        raise
    except Exception as error:  # damaged archives raise exceptions of all kinds
        raise UsageError(f"{path} cannot be used as data: {error}") from error
    if x.dtype == np.uint8:
        return None
    if x.dtype not in (np.float32, np.float64) or not len(x) or not np.isfinite(x).all():
        raise UsageError(f"{path} holds no finite float32 or float64 states, nor images of uint8")
    return States(torch.from_numpy(x))


def need_data(case: Case, shape: torch.Size | None = None) -> None:
    """Check that a case has data to compare with.

    Parameters
    ----------
    case
        The case.
    shape
        Shape that data of a user have to have; by default that of the states.

    Raises
    ------
    UsageError
        If there are none.
    """
    wanted, what = (case.problem.event_shape, "states") if shape is None else (shape, "decoded samples")
    if case.given is not None:
        if case.given.shape != wanted:
            found = tuple(case.given.shape)
            raise UsageError(f"the data are of shape {found}, and {what} of {case.name} of {tuple(wanted)}")
        if len(case.given) < 4:
            raise UsageError(f"{len(case.given)} data have no neighbours; give 4 or more")
        return
    try:
        case.problem.sample(1, None, torch.Generator())
    except ValueError as error:
        raise UsageError(
            f"{case.name} has no data to compare with ({error}); type --data with a folder, zip or npz file"
        ) from error
