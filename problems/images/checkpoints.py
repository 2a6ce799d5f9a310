"""Checkpoints: weights in a safetensors file, with a card beside it that describes them in JSON.

Reading either file executes no code. The card contains the hash of the weights, so a mismatch of the two
files is detected.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_bytes
from torch import Tensor

from problems.console import MOST
from problems.files import atomically
from problems.images.sketches import sketch

C = TypeVar("C")
M = TypeVar("M", bound=torch.nn.Module)


class CheckpointError(ValueError):
    """A file cannot be used as a checkpoint; the message is one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights and their card.

    Attributes
    ----------
    tensors
        The weights by name.
    card
        JSON values: kind, architecture, schedule, data with their hash, seed, versions, command, losses.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]


def save(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write the weights and then the card, each file atomically.

    Parameters
    ----------
    path
        File of the weights, with the suffix ``.safetensors``; the card has the suffix ``.json``.
    tensors
        The weights.
    card
        JSON values.
    """
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # As bytes, because files written by safetensors are readable by their owner only.
    atomically(path, lambda file: file.write_bytes(save_bytes(plain)))
    text = json.dumps({**card, "sha256": _digest(path)}, indent=2) + "\n"
    atomically(path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))


def load(path: Path, kind: str) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path
        The safetensors file, with its card beside it as ``.json``.
    kind
        The expected ``kind`` on the card.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, if the files do not match, or if they are of another kind.
    """
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing; a checkpoint is a .safetensors file and its .json card"
            )
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
        found = card["kind"], card["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{beside} is not the card of a checkpoint") from None
    if found[0] != kind:
        raise CheckpointError(f"{path} is a {found[0]}, where a {kind} is needed")
    if found[1] != _digest(path):
        raise CheckpointError(
            f"{path} and its card {beside.name} do not belong together; restore or retrain them"
        )
    return Checkpoint(read(path)[0], card)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; see ``load`` for errors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error})") from error


def built(make: Callable[[], M], checkpoint: Checkpoint, path: Path) -> M:
    """Return a module with the weights of a checkpoint.

    Parameters
    ----------
    make
        Makes the module of its architecture. Before it does, the shapes of its tensors are compared.
    checkpoint, path
        The checkpoint and its file.

    Raises
    ------
    CheckpointError
        If tensors are missing, left over or of other shapes, or hold other than finite real numbers.
    """
    try:
        wanted = sketch(make, len(checkpoint.tensors))
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit the architecture on its card ({error})") from None
    found = {name: t.shape for name, t in checkpoint.tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise CheckpointError(
            f"{path} does not fit the architecture on its card ({len(odd)} tensors, {odd[0]} among them)"
        )
    require_sound(checkpoint.tensors, path)
    module = make()
    module.load_state_dict(checkpoint.tensors)
    return module


def require_sound(tensors: Mapping[str, Any], path: Path) -> None:
    """Refuse weights that are complex, NaN or infinite.

    Raises
    ------
    CheckpointError
        If there are such.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise CheckpointError(f"{path} has complex numbers as {name}, where a network has real ones")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path} has NaN or infinite numbers as {name}; restore or retrain it")


def described(kind: Callable[..., C], values: Mapping[str, Any]) -> C:
    """Return a dataclass of plain values that a card describes, with their types and sizes checked.

    Parameters
    ----------
    kind
        The dataclass; its fields are numbers, texts, truth values and tuples of these.
    values
        JSON values by the names of the fields; tuples are lists.

    Raises
    ------
    TypeError, ValueError
        If a value is not of its type, a number is not finite or above a million, or the dataclass refuses it.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _plain(name, hints.get(name, object), value) for name, value in values.items()})


def _plain(name: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_plain(name, get_args(kind)[0], one) for one in value)
    if kind not in (bool, int, float, str):
        if kind is object:
            raise TypeError(f"there is no {name}")
        raise TypeError(f"{name} is {value!r}")
    if not (type(value) is kind or (kind is float and type(value) is int)):
        raise TypeError(f"{name} is {value!r}, not of the type {kind.__name__}")
    if kind in (int, float) and not (math.isfinite(value) and abs(value) <= MOST):
        raise ValueError(f"{name} is {value!r}, no number of a size that occurs")
    return value


def seal(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Return a digest of tensors and texts, which changes when any of them does."""
    found = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names and bytes of weights."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return hashlib.sha256(save_bytes(plain)).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
