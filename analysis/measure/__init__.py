"""What is measured: cases, exact states, end points, steps, distances. Functions of plain values."""

import torch

from analysis.study.values import plain


@plain.register(torch.Tensor)
def _(tensor: torch.Tensor) -> object:
    """Return what a tensor says, for keys; whatever module of this room is imported, they know it."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return "tensor", str(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy()
