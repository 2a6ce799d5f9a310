"""The Inception-v3 network of the Fréchet inception distance (FID).

Szegedy et al. (2016) describe the network, Heusel et al. (2017) the distance. The weights of 2015 are for a
variant: average pooling excludes the padding, the last block has max pooling instead, ε is 1e-3 in the
normalisation, and there are 1,008 classes. All parameters are named as in the public file of these weights
for PyTorch, ``pt_inception-2015-12-05-6726825d.pth``.

Images are resized as in PyTorch and pytorch-fid. torch-fidelity resizes as in TensorFlow 1, which confused
corners and centres of pixels, so its features of small images differ slightly.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from problems.images import checkpoints
from problems.images.checkpoints import CheckpointError

SIZE = 299
"""Height and width of the images at the input of the network."""

CLASSES = 1008
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""Name of the public file of weights."""

# The blocks are those of the paper's figures 5, 6 and 7, with two blocks between them that halve height and
# width. A step 64@1x7 is a convolution of height 1 and width 7 to 64 channels that keeps height and width; a
# step that ends in /s has stride s and no padding. Both sides of a + have the same input.
STEM = {
    "Conv2d_1a_3x3": "32@3x3/2",
    "Conv2d_2a_3x3": "32@3x3/1",
    "Conv2d_2b_3x3": "64@3x3 max/2",
    "Conv2d_3b_1x1": "80@1x1",
    "Conv2d_4a_3x3": "192@3x3/1 max/2",
}


def _figure_5(pooled: int) -> dict[str, str]:
    return {
        "branch1x1": "64@1x1",
        "branch5x5": "48@1x1 64@5x5",
        "branch3x3dbl": "64@1x1 96@3x3 96@3x3",
        "branch_pool": f"mean {pooled}@1x1",
    }


def _figure_6(c: int) -> dict[str, str]:
    return {
        "branch1x1": "192@1x1",
        "branch7x7": f"{c}@1x1 {c}@1x7 192@7x1",
        "branch7x7dbl": f"{c}@1x1 {c}@7x1 {c}@1x7 {c}@7x1 192@1x7",
        "branch_pool": "mean 192@1x1",
    }


def _figure_7(pool: str) -> dict[str, str]:
    return {
        "branch1x1": "320@1x1",
        "branch3x3": "384@1x1 384@1x3+384@3x1",
        "branch3x3dbl": "448@1x1 384@3x3 384@1x3+384@3x1",
        "branch_pool": f"{pool} 192@1x1",
    }


BLOCKS = {
    "Mixed_5b": _figure_5(32),
    "Mixed_5c": _figure_5(64),
    "Mixed_5d": _figure_5(64),
    "Mixed_6a": {
        "branch3x3": "384@3x3/2",
        "branch3x3dbl": "64@1x1 96@3x3 96@3x3/2",
        "branch_pool": "max/2",
    },
    "Mixed_6b": _figure_6(128),
    "Mixed_6c": _figure_6(160),
    "Mixed_6d": _figure_6(160),
    "Mixed_6e": _figure_6(192),
    "Mixed_7a": {
        "branch3x3": "192@1x1 320@3x3/2",
        "branch7x7x3": "192@1x1 192@1x7 192@7x1 192@3x3/2",
        "branch_pool": "max/2",
    },
    "Mixed_7b": _figure_7("mean"),
    "Mixed_7c": _figure_7("max"),
}

POOLS: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "max": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "max/2": lambda: nn.MaxPool2d(3, stride=2),
}


class Convolution(nn.Sequential):
    """A convolution without bias, batch normalisation and ReLU.

    Parameters
    ----------
    inputs
        Channels of the input.
    text
        The step, such as ``64@1x7`` or ``32@3x3/2``.

    Attributes
    ----------
    outputs
        Channels of the output.
    """

    def __init__(self, inputs: int, text: str) -> None:
        channels, _, shape = text.partition("@")
        shape, _, stride = shape.partition("/")
        height, width = map(int, shape.split("x"))
        padding = (0, 0) if stride else (height // 2, width // 2)
        outputs, step = int(channels), int(stride or 1)
        convolution = nn.Conv2d(inputs, outputs, (height, width), step, padding, bias=False)
        super().__init__(
            OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs, eps=1e-3), relu=nn.ReLU(inplace=True))
        )
        self.outputs = outputs


class Chain:
    """Steps one after the other.

    Parameters
    ----------
    owner
        The module in which the convolutions are registered.
    name
        Prefix of their names; consecutive convolutions are numbered, parallel ones lettered.
    text
        The steps, separated by spaces.
    inputs
        Channels of the input.

    Attributes
    ----------
    outputs
        Channels of the output.
    """

    def __init__(self, owner: nn.Module, name: str, text: str, inputs: int) -> None:
        self.outputs = inputs
        self._steps: list[list[nn.Module]] = []
        numbers = count(1)
        for step in text.split():
            if step in POOLS:
                self._steps.append([POOLS[step]()])
                continue
            label = f"{name}_{next(numbers)}" if text.count("@") > 1 else name
            sides = [Convolution(self.outputs, side) for side in step.split("+")]
            for letter, side in zip("ab" if len(sides) > 1 else [""], sides, strict=True):
                owner.add_module(label + letter, side)
            self.outputs = sum(side.outputs for side in sides)
            self._steps.append([*sides])

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H', W') for x of shape (N, inputs, H, W)."""
        for sides in self._steps:
            x = torch.cat([side(x) for side in sides], 1)
        return x


class Block(nn.Module):
    """Parallel chains with the same input; their outputs are concatenated.

    Parameters
    ----------
    inputs
        Channels of the input.
    chains
        The steps of each chain by its name.

    Attributes
    ----------
    outputs
        Channels of the output.
    """

    def __init__(self, inputs: int, chains: Mapping[str, str]) -> None:
        super().__init__()
        self._chains = [Chain(self, name, text, inputs) for name, text in chains.items()]
        self.outputs = sum(chain.outputs for chain in self._chains)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H', W') for x of shape (N, inputs, H, W)."""
        return torch.cat([chain(x) for chain in self._chains], 1)


class Inception(nn.Module):
    """The network of the Fréchet inception distance; its features have 2,048 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Chain | Block] = []
        width = 3
        for name, text in STEM.items():
            self._steps.append(Chain(self, name, text, width))
            width = self._steps[-1].outputs
        for name, chains in BLOCKS.items():
            block = Block(width, chains)
            self.add_module(name, block)
            self._steps.append(block)
            width = block.outputs
        self.fc = nn.Linear(width, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images.

        Parameters
        ----------
        x
            Images in [-1, 1] of any size, (N, 3, H, W) or grey (N, 1, H, W), in the dtype and on the device
            of the weights. They are resized to 299 x 299 by linear interpolation between the centres of
            pixels, without a low-pass filter for larger images.

        Returns
        -------
        (N, 2048).
        """
        x = functional.interpolate(x.expand(-1, 3, -1, -1), (SIZE, SIZE), mode="bilinear")
        for step in self._steps:
            x = step(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, 1008), of images in [-1, 1], (N, 3 or 1, H, W)."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def load(path: Path) -> Inception:
    """Read the network from a file of its weights.

    Parameters
    ----------
    path
        The public file, ``.pth``, or a ``.safetensors`` file of the same tensors.

    Returns
    -------
    The network, frozen, float32 on the CPU.

    Raises
    ------
    CheckpointError
        If the file cannot be used. No code in a file is executed in any case.
    """
    advice = f"use {WEIGHTS}, the weights that pytorch-fid takes, or a .safetensors file of the same tensors"
    if path.suffix not in READERS:
        raise CheckpointError(f"{path} is not a file of weights alone; {advice}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {advice}")
    try:
        found = dict(READERS[path.suffix](path))
    except Exception:  # readers of archives and pickles raise exceptions of all kinds on other files
        raise CheckpointError(f"{path} is damaged, or holds more than weights; {advice}") from None
    with torch.device("meta"):
        network = Inception()
    wanted = network.state_dict()
    # These are used in training only, and not in every file.
    counters = {name: torch.zeros(()) for name in wanted if name.endswith(".num_batches_tracked")}
    found |= counters
    odd = [n for n in wanted.keys() | found.keys() if not _alike(found.get(n), wanted.get(n))]
    if odd:
        raise CheckpointError(
            f"{path} does not fit the Inception-v3 network of the FID "
            f"({len(odd)} tensors, {min(odd, key=str)} among them); {advice}"
        )
    network.load_state_dict({name: t.float() for name, t in found.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _unpickled(path: Path) -> Mapping[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found


READERS: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {
    ".pth": _unpickled,
    ".safetensors": lambda path: checkpoints.read(path)[0],
}
"""Readers of files by suffix."""


def _alike(found: object, wanted: Tensor | None) -> bool:
    if wanted is None or not isinstance(found, Tensor):
        return False
    return found.is_floating_point() and found.shape == wanted.shape
