"""A small, smooth classifier of images; image errors and Fréchet distances are measured in its features."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from problems.images import checkpoints
from problems.images.checkpoints import CheckpointError
from problems.images.layers import Conv, Dense, SiLU

SHIPPED = Path(__file__).with_name("weights") / "digits-classifier.safetensors"
"""The shipped classifier of the digits; its card is beside it."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The architecture of a classifier, as stored in the card of a checkpoint.

    Attributes
    ----------
    size, colours
        Height and width of the images; their channels.
    channels
        Channels at full resolution; each halving doubles them.
    halvings
        Number of times that height and width are halved.
    features
        Dimension d of the features.
    classes
        Number of classes.
    """

    size: int = 8
    colours: int = 1
    channels: int = 16
    halvings: int = 2
    features: int = 64
    classes: int = 10

    def __post_init__(self) -> None:
        if min(self.size, self.colours, self.channels, self.halvings, self.features, self.classes) < 1:
            raise ValueError("every size of a classifier is at least 1")
        if self.size % 2**self.halvings:
            raise ValueError(
                f"images of size {self.size} cannot be halved {self.halvings} times; use fewer halvings"
            )


class Classifier(nn.Module):
    """A smooth convolutional classifier: at each resolution two convolutions, SiLU, and 2 x 2 averages.

    The features are the last hidden layer, in which the classes are linearly separated. They depend on
    positions in the image, and they are infinitely differentiable functions of it: there is no max pooling
    and no normalisation by the contrast.

    Parameters
    ----------
    config
        The architecture.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * 2**k for k in range(config.halvings)]
        stages = [
            nn.Sequential(Conv(inputs, outputs), SiLU(), Conv(outputs, outputs), SiLU(), nn.AvgPool2d(2))
            for inputs, outputs in pairwise([config.colours, *widths])
        ]
        self.body = nn.Sequential(*stages)
        self.hidden = Dense(widths[-1] * (config.size // 2**config.halvings) ** 2, config.features)
        self.last = Dense(config.features, config.classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images.

        Parameters
        ----------
        x
            Images in [-1, 1], (N, C, H, W), in the dtype and on the device of the weights.

        Returns
        -------
        (N, d).
        """
        return functional.silu(self.hidden(self.body(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, classes), of images in [-1, 1], (N, C, H, W)."""
        logits: Tensor = self.last(self.features(x))
        return logits


def load(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """Read a classifier from a checkpoint.

    Parameters
    ----------
    path
        The safetensors file, with its card beside it.

    Returns
    -------
    The classifier, frozen, float32 on the CPU, and its card.

    Raises
    ------
    CheckpointError
        If a file cannot be used. No code in a file is executed in any case.
    """
    stored = checkpoints.load(path, "classifier")
    try:
        config = checkpoints.described(ClassifierConfig, stored.card["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the card of {path} describes no classifier of this suite ({error})") from None
    classifier = checkpoints.built(lambda: Classifier(config), stored, path)
    return classifier.eval().requires_grad_(False), stored.card


def shipped(name: str = "digits") -> Classifier:
    """Return a shipped classifier, with 64 features, frozen, float32 on the CPU.

    ``python -m problems.images.classify`` trains them.

    Parameters
    ----------
    name
        ``digits`` or ``cifar10-16``.
    """
    return load(SHIPPED.with_name(f"{name}-classifier.safetensors"))[0]
