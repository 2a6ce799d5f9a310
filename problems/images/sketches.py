"""Modules without memory: the shapes of their tensors are known before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from problems.console import UsageError, require_memory

M = TypeVar("M", bound=nn.Module)

TENSORS = 4_000
"""More tensors than this has no network."""

COPIES = 5
"""Copies of the weights in training: themselves, their average, their gradients and two moments of Adam."""


class _Unfilled(TorchFunctionMode):
    """Leaves initial values out: normal numbers on the meta device cost the import of half of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


class TooManyError(ValueError):
    """A module has more tensors than are allowed."""


@contextmanager
def sketched(most: int = TENSORS) -> Iterator[None]:
    """Have modules made in the block without memory, on the meta device, of at most ``most`` tensors.

    Parameters
    ----------
    most
        After so many parameters the making is stopped by a ``TooManyError``.
    """
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None
        if made > most:
            raise TooManyError(f"it has more than {most:,} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _Unfilled():
            yield
    finally:
        hook.remove()


def sketch(make: Callable[[], M], most: int = TENSORS) -> dict[str, torch.Size]:
    """Return the shapes of the tensors of a module by their names, without their memory.

    Parameters
    ----------
    make
        Makes the module.
    most
        See ``sketched``.

    Raises
    ------
    ValueError
        If it has too many tensors, or tensors of impossible sizes.
    """
    try:
        with sketched(most):
            return {name: tensor.shape for name, tensor in make().state_dict().items()}
    except RuntimeError as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def require_trainable(make: Callable[[], nn.Module], activations: float) -> None:
    """Refuse to train what does not fit into the memory of this machine.

    Parameters
    ----------
    make
        Makes the network.
    activations
        How many numbers a batch has where it has most, or an estimate from below.

    Raises
    ------
    UsageError
        If the network cannot be made, or its training needs more memory than there is.
    """
    try:
        shapes = sketch(make, TENSORS)
    except ValueError as error:
        raise UsageError(f"there is no such network ({error}); type smaller sizes") from error
    weights = sum(shape.numel() for shape in shapes.values())
    require_memory(
        4.0 * (COPIES * weights + 2.0 * activations), "this training", "type a smaller network or --batch"
    )
