"""Files in which the training programs of score_sde and GENIE keep their state: weights and their average.

Such a file is a dictionary: ``model`` has the weights by name, all with the prefix of the wrapper that
distributes a network over devices; ``ema`` has the list of their weighted averages, in the order of the
parameters that are trained; ``optimizer`` and ``step`` are not needed here. Makers sample with the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from problems.images.checkpoints import CheckpointError
from problems.images.sketches import sketched
from problems.models.weights import fitted

M = TypeVar("M", bound=nn.Module)

PREFIX = "module."


def weights(content: object) -> dict[str, Tensor] | None:
    """Return the weights in the content of a file, by name and without prefix; None if it is no such file."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, Mapping) or not isinstance(content, dict) or "step" not in content:
        return None
    if not model or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in model.items()):
        return None
    return {name.removeprefix(PREFIX): tensor for name, tensor in model.items()}


def plain(make: Callable[[], M], content: object, path: Path, unused: Iterable[str] = ()) -> M:
    """Return a network with the weights of a file as they are; see ``averaged``."""
    found = {name: tensor for name, tensor in (weights(content) or {}).items() if name not in unused}
    _trained(make, path)
    return fitted(make, found, path, "check its configuration")


def _trained(make: Callable[[], M], path: Path) -> list[str]:
    """Return the names of the parameters that are trained, in their order."""
    try:
        with sketched():
            return [name for name, p in make().named_parameters() if p.requires_grad]
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise impossible(path, error) from None


def impossible(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a configuration of which no network can be made."""
    return CheckpointError(f"the configuration of {path} describes no network ({error})")


def averaged(make: Callable[[], M], content: Mapping[str, Any], path: Path, unused: Iterable[str] = ()) -> M:
    """Return a network with the weighted average of its weights, in float32 and eval mode.

    Parameters
    ----------
    make
        Makes the network.
    content
        The content of the file.
    path
        The file, for messages.
    unused
        Names of tensors that the network does without.

    Raises
    ------
    CheckpointError
        If there is no average, or another number of tensors in it than the network has; if tensors are
        missing, left over, or of another shape.
    """
    module, trained = plain(make, content, path, unused), _trained(make, path)
    ema = content.get("ema")
    average = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(average, list | tuple):
        raise CheckpointError(
            f"{path} has no average of its weights (ema.shadow_params), with which its maker samples; "
            "use a file written by its maker's training"
        )
    if len(average) != len(trained):
        raise CheckpointError(
            f"{path} has an average of {len(average)} tensors where its network has {len(trained)}; "
            "check its configuration"
        )
    return fitted(
        make, {**module.state_dict(), **dict(zip(trained, average, strict=True))}, path, "check its average"
    )
