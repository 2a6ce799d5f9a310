"""What is measured: cases, exact states, end points, steps, distances. Functions of plain values."""

import torch

from analysis.study.values import plain


@plain.register(torch.Tensor)
def _(tensor: torch.Tensor) -> object:
    """Return what a tensor says, for keys; whatever module of this room is imported, they know it."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return "tensor", str(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy()


@plain.register(torch._ops.OpOverload)
@plain.register(torch._ops.OpOverloadPacket)
def _(operator: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> object:
    """Return the name of an operator of torch; what it remembers of its calls determines no result."""
    return "operator", str(operator)
