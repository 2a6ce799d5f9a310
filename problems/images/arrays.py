"""Arrays in files of numpy, read without executing anything."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive of arrays (.npz), by its content."""
    names = members(path)
    return bool(names) and all(name.endswith(".npy") for name in names)


def members(path: Path) -> list[str]:
    """Return the names of the files in a zip file; none where it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def read(path: Path) -> Arrays:
    """Return the arrays of an archive by name.

    Raises
    ------
    ValueError
        If it is damaged, or holds objects, which would have to be executed.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def stack_of(arrays: Arrays) -> str:
    """Return the name of the array that holds samples: the only one of two axes or more.

    Raises
    ------
    ValueError
        If there are none, or several.
    """
    names = [name for name, array in arrays.items() if array.ndim > 1]
    if len(names) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"one array of samples is wanted, and it holds {held}")
    return names[0]


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """Return images (N, C, H, W), from (N, H, W), (N, H, W, C) or themselves; C is 1 or 3.

    Raises
    ------
    ValueError
        If they have another shape.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise ValueError(
        f"images are (N, H, W, C), (N, C, H, W) or (N, H, W), with C of 1 or 3, not {images.shape}"
    )
