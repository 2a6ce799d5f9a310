"""Files of other makers, opened without executing what is in them.

What a file is, is told by its first bytes and never by its name: archives of ``torch.save`` and its older
format, safetensors, and the pickles of EDM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from problems.images import checkpoints
from problems.images.checkpoints import CheckpointError
from problems.models import pickles
from problems.models.pickles import Record, RefusedError

_ARCHIVE = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_DEPTH = 100


def opened(path: Path) -> Any:
    """Return what is in a file of weights, with all tensors on the CPU.

    Parameters
    ----------
    path
        A file written by ``torch.save`` (tensors and plain containers), a safetensors file, or a pickle of
        EDM.

    Returns
    -------
    Usually a dictionary of tensors by name, or of such dictionaries. Of an EDM pickle the dictionary
    ``ema``, ``loss_fn``, … whose objects are ``problems.models.pickles.Record``.

    Raises
    ------
    CheckpointError
        If it cannot be read, is empty, a folder, of none of these formats, cut off or damaged, nested without
        end, or if it names anything that would have to be executed. Nothing is executed before that either.
    """
    head = _head(path)
    try:
        content = _content(path, head)
    except CheckpointError:
        raise
    except RefusedError as error:
        raise CheckpointError(
            f"{path} wants {error}, which no file of weights needs; nothing in it was executed"
        ) from None
    except Exception as error:  # a damaged file may fail anywhere and in any way
        raise CheckpointError(
            f"{path} is cut off or damaged ({type(error).__name__} while reading); fetch or write it again"
        ) from error
    if _deep(content):
        raise CheckpointError(f"{path} is nested more than {_DEPTH} levels deep, which no file of weights is")
    return content


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder where a file of weights is needed")
    if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
        raise CheckpointError(f"{path} is no regular file; a file of weights is needed")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if not head:
        raise CheckpointError(f"{path} is empty; fetch or write it again")
    return head


def _content(path: Path, head: bytes) -> Any:
    if head.startswith((_ARCHIVE, _LEGACY)):
        return pickles.load_torch(str(path))
    if head[4:9] == b"\0\0\0\0{":  # the length of a header of less than 4 GB, and its begin
        return checkpoints.read(path)[0]
    if head.startswith(_PICKLE):
        with path.open("rb") as file:
            return pickles.load(file)
    raise CheckpointError(
        f"{path} is no file of weights: those of torch.save, safetensors and the pickles of EDM are read"
    )


def _deep(content: Any) -> bool:
    """Return whether containers are nested too deeply, without recursion; each is visited once."""
    level, seen = [content], {id(content)}
    for _ in range(_DEPTH):
        inner = {id(child): child for value in level for child in _children(value)}
        level = [child for key, child in inner.items() if key not in seen]
        seen |= inner.keys()
    return bool(level)


def _children(value: Any) -> list[Any]:
    if isinstance(value, Record):
        return [value.state]
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set) else []


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    CheckpointError
        If it cannot be read, is damaged, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path} is no whole JSON file; fetch or write it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return values
