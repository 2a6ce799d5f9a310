"""Architectures of the U-Nets of Karras et al. (2022), by the names of their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The architecture of a ``DhariwalUNet``, by the names of its maker.

    Attributes
    ----------
    img_resolution
        Height and width of the images in pixels.
    in_channels, out_channels
        Channels of the images and of the last convolution; what is above ``in_channels`` is dropped.
    label_dim
        Number of classes, 0 for none.
    augment_dim
        Number of labels of augmentations, which are zero here.
    model_channels, channel_mult
        Channels, and their factors at each resolution, from fine to coarse.
    channel_mult_emb
        Factor of the length of the features of the time.
    num_blocks
        Residual blocks at each resolution.
    attn_resolutions
        Heights at which there is attention.
    dropout, label_dropout
        Probabilities in training, without effect here.

    Raises
    ------
    ValueError
        If a value is none that it can have.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)
    dropout: float = 0.1
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("label_dim", "augment_dim"):
            _natural(name, getattr(self, name), least=0)
        for name in ("img_resolution", "in_channels", "out_channels", "model_channels", "num_blocks"):
            _natural(name, getattr(self, name))
        _natural("channel_mult_emb", self.channel_mult_emb)
        if self.model_channels % 2:
            raise ValueError(f"model_channels {self.model_channels} is odd")
        for name in ("channel_mult", "attn_resolutions"):
            for value in _listed(name, getattr(self, name)):
                _natural(name, value)
        if not self.channel_mult or self.img_resolution % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be halved {len(self.channel_mult) - 1} times"
            )

    @property
    def sizes(self) -> list[int]:
        """Height of the images at each resolution, from fine to coarse."""
        return [self.img_resolution >> level for level in range(len(self.channel_mult))]

    @property
    def features(self) -> int:
        """Length of the features of the time."""
        return self.model_channels * self.channel_mult_emb


@dataclass(frozen=True)
class SongOptions(Options):
    """The architecture of a ``SongUNet``, by the names of its maker: that of ``Options``, and more.

    Attributes
    ----------
    embedding_type
        "positional" for waves of the time, "fourier" for random frequencies.
    channel_mult_noise
        Factor of the length of the embedding.
    encoder_type
        How the image enters at lower resolutions: "standard" not at all, "skip" directly, "residual" through
        convolutions one after the other.
    decoder_type
        "standard" for an output at full resolution, "skip" for a sum of outputs at each.
    resample_filter
        Weights of the filter for changes of the resolution, an even number.
    """

    model_channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: Sequence[float] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _natural("channel_mult_noise", self.channel_mult_noise)
        for name, choices in (
            ("embedding_type", ("positional", "fourier")),
            ("encoder_type", ("standard", "skip", "residual")),
            ("decoder_type", ("standard", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        taps = _listed("resample_filter", self.resample_filter)
        if len(taps) % 2 or not all(isinstance(tap, int | float) for tap in taps) or not sum(taps):
            raise ValueError(f"resample_filter {taps!r} is no even number of weights")


def _natural(name: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} {value!r} is no integer from {least} on")


def _listed(name: str, value: Sequence[float]) -> Sequence[float]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} {value!r} is no list")
    return value
