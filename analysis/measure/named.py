"""Code that a user names: functions of features and decoders, and TorchScript files. Naming it runs it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from problems.console import UsageError
from problems.images import arrays
from problems.models.naming import function_of
from problems.scripts import told

BATCH = 64
"""States that user's code is given at once."""


def portable(name: str) -> str:
    """Return the name of a function by which another process finds it."""
    where, _, function = name.rpartition(":")
    return f"{Path(where).resolve()}:{function}" if where.endswith(".py") else name


class Named:
    """A function or module of a user. It travels by its name, and stands in keys by code and weights.

    It is given float32 states, (n, *event), on the device of the run.

    Parameters
    ----------
    name
        ``package.module:function`` or ``file.py:function``; the function may be a ``torch.nn.Module``.

    Raises
    ------
    UsageError
        If there is no such function.
    """

    def __init__(self, name: str) -> None:
        self.name = portable(name)
        self.function: Callable[[Tensor], Tensor] = function_of(name)
        if isinstance(self.function, nn.Module):
            self.function.eval().requires_grad_(False)

    def __key__(self) -> object:
        """Return the function, for ``study.keys``."""
        return self.function

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by name."""
        return Named, (self.name,)

    def to(self, device: torch.device) -> None:
        """Move a module to a device; a function goes where its states are."""
        if isinstance(self.function, nn.Module):
            self.function.to(device)

    def features(self, x: Tensor) -> Tensor:
        """Return what the function returns, as vectors (n, d)."""
        return self.function(x).flatten(1)


class Scripted:
    """A TorchScript file of a user, which stands in keys by its content.

    It is given float32 images in [-1, 1]; one whose ``forward`` takes ``return_features``, as those of
    NVIDIA's repositories do, is given levels from 0 to 255 instead, uint8, and asked for features.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()
        try:
            with warnings.catch_warnings():  # torch advises other formats to those who write them
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module: Any = torch.jit.load(str(path), "cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise UsageError(f"{path} cannot be used as TorchScript: {told(error)}") from error
        asked = [argument.name for argument in self._module.forward.schema.arguments]
        self._levels = "return_features" in asked

    def __key__(self) -> object:
        """Return the digest of the file and how it is called, for ``study.keys``."""
        return self._digest, Scripted.features

    def to(self, device: torch.device) -> None:
        """Move the module to a device."""
        self._module.to(device)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images, (n, d)."""
        if self._levels:
            levels = (127.5 * (x + 1.0)).round().clamp(0.0, 255.0).to(torch.uint8)
            found: Tensor = self._module(levels, return_features=True)
        else:
            found = self._module(x)
        return found.flatten(1)


def is_script(path: Path) -> bool:
    """Return whether a file is TorchScript, by its content."""
    return any("/code/" in name for name in arrays.members(path))


class Decoder:
    """A latent decoder of a user: from states to images in [-1, 1].

    Parameters
    ----------
    name
        ``package.module:function`` or ``file.py:function``. The function takes float32 states (n, *event) and
        returns images (n, C, H, W).
    event
        Shape of a state.

    Attributes
    ----------
    shape
        Shape of an image.

    Raises
    ------
    UsageError
        If there is no such function, or it returns something else.
    """

    def __init__(self, name: str, event: Sequence[int]) -> None:
        self._event, self._code = tuple(event), Named(name)
        found = tried(self._code.function, self._event, f"--decode {name}")
        if found.ndim != 4 or found.shape[1] not in (1, 3):
            raise UsageError(
                f"--decode {name} returns {tuple(found.shape)} for 2 states; images are (2, C, H, W), with "
                "C of 1 or 3"
            )
        self.shape = found.shape[1:]

    def __key__(self) -> object:
        """Return the function, for ``study.keys``."""
        return self._code

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by name."""
        return Decoder, (self._code.name, self._event)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images of states, (n, C, H, W), float64, on the device of the states."""
        self._code.to(x.device)
        with torch.inference_mode():
            parts = [self._code.function(part.float()).double() for part in torch.split(x, BATCH)]
        return torch.cat(parts)  # outside, so that it is a tensor like any other


def tried(function: Callable[[Tensor], Tensor], event: Sequence[int], typed: str) -> Tensor:
    """Return what a user's function makes of two states of zeros.

    Raises
    ------
    UsageError
        If it fails, or does not return one result for each.
    """
    try:
        with torch.inference_mode():
            found = function(torch.zeros(2, *event))
    except Exception as error:
        raise UsageError(f"{typed} fails on states of shape {tuple(event)}: {told(error)}") from error
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != 2:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UsageError(f"{typed} returns {kind} for 2 states; return a tensor with a row for each")
    return found


@lru_cache(maxsize=4)
def script(path: Path, changed: int) -> Scripted:
    """Return a TorchScript file, read again when it has changed."""
    return Scripted(path)
