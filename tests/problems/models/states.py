"""Files in the layout of the training programs of score_sde and GENIE, with weights from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from problems.models.opening import opened

M = TypeVar("M", bound=nn.Module)


def randomised(module: M, seed: int) -> M:
    """Return the module with weights from a seed, none of them at the value of an initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def state(
    module: nn.Module, average: nn.Module | None = None, extra: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Return the state of training a module, whose weighted average is another module; None for none."""
    model = {f"module.{name}": tensor for name, tensor in {**module.state_dict(), **(extra or {})}.items()}
    # After a warm-up the learning rate is a number of numpy.
    content: dict[str, Any] = {"model": model, "step": 7, "optimizer": {"lr": np.float64(2e-4)}}
    if average is not None:
        trained = [p.detach() for p in average.parameters() if p.requires_grad]
        content["ema"] = {"decay": 0.9999, "num_updates": 7, "shadow_params": trained}
    return content


def read_back(path: Path, content: Mapping[str, Any]) -> Any:
    """Write a file and return what is read from it."""
    torch.save(dict(content), path)
    return opened(path)


def images(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
