"""Weights put into a network of their architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from problems.images.checkpoints import CheckpointError, require_sound
from problems.images.sketches import TooManyError, sketched

M = TypeVar("M", bound=nn.Module)


def fitted(make: Callable[[], M], tensors: Mapping[str, Any], path: Path, advice: str) -> M:
    """Return a network with the weights of a file, in float32 and in eval mode, without gradients.

    Parameters
    ----------
    make
        Makes the network. Its initial weights take no memory and no time.
    tensors
        The weights by name. The network takes them as they are, without a copy if they are in float32.
    path
        The file, for messages.
    advice
        What to check if the weights do not fit, the end of a sentence.

    Raises
    ------
    CheckpointError
        If tensors are missing or left over, or have other shapes, or are no finite floating-point numbers.
    """
    try:
        with sketched():
            module = make()
    except TooManyError as error:
        raise CheckpointError(f"the network that {path} describes is none ({error}); {advice}") from None
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    surplus = [name for name in tensors if name not in wanted]
    if missing:
        raise CheckpointError(f"{path} lacks {_listed(missing)}; {advice}")
    if surplus:
        raise CheckpointError(f"{path} has no use for {_listed(surplus)}; {advice}")
    for name, tensor in wanted.items():
        found = tensors[name]
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise CheckpointError(f"{path} has no floating-point numbers as {name}; fetch or write it again")
        if found.shape != tensor.shape:
            shapes = f"{tuple(found.shape)} where {tuple(tensor.shape)} is needed"
            raise CheckpointError(f"{path} has a {name} of shape {shapes}; {advice}")
    require_sound({name: tensors[name] for name in wanted}, path)
    module.load_state_dict(tensors, assign=True)
    return module.float().eval().requires_grad_(False)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn errors of impossible values into a ``CheckpointError``, ``what`` with the reason.

    Parameters
    ----------
    what
        The begin of a sentence.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{what} ({reason})") from None


def _listed(names: list[str]) -> str:
    return f"the tensor {names[0]}" if len(names) == 1 else f"{len(names)} tensors such as {names[0]}"
