"""Single numbers of numpy in files of ``torch.save``, read without numpy."""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from typing import Any

import torch

_FORMATS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}


class Kind:
    """What stands for a type of numpy's numbers in a file; it knows their format and does nothing."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in _FORMATS:
            raise ValueError(f"numbers of the numpy type {str(code)[:20]!r}")
        self.format = _FORMATS[code]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise ValueError(f"numbers in the byte order {state[1]!r}")


def _value(kind: Kind, data: bytes) -> float:
    return float(struct.unpack(kind.format, data)[0])


def numpy_numbers() -> AbstractContextManager[None]:
    """Return a context in which ``torch.load(weights_only=True)`` reads single numbers of numpy.

    Training with a warm-up leaves the learning rate as one, in the state of the optimiser. The names are
    given to functions of this module, which return a float, so numpy is not called.
    """
    return torch.serialization.safe_globals(
        [
            Kind,
            (Kind, "numpy.dtype"),
            (_value, "numpy.core.multiarray.scalar"),
            (_value, "numpy._core.multiarray.scalar"),
        ]
    )
