"""Architectures of ``problems.models.ncsnpp`` by the options of score_sde, which GENIE has too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from problems.models.ncsnpp import Config, Ladder, NCSNpp, Pyramid
from problems.models.options import Options, among, exactly, flag, numbers, whole, wholes
from problems.models.training_state import impossible

C = TypeVar("C")

SHARED = ("name", "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "resamp_with_conv", "conditional")
"""Options of every U-Net."""

OPTIONS = (
    *SHARED,
    "fir",
    "fir_kernel",
    "skip_rescale",
    "resblock_type",
    "progressive",
    "progressive_input",
    "progressive_combine",
    "embedding_type",
    "normalization",
    "nonlinearity",
    "attention_type",
    "conv_size",
    "scale_by_sigma",
)
"""Options of DDPM++ and NCSN++."""

TRAINING = ("dropout", "ema_rate", "init_scale", "fourier_scale")
"""Options in the same section that matter in training only."""

_INPUT = {"none": Pyramid.NONE, "input_skip": Pyramid.SKIP, "residual": Pyramid.RESIDUAL}
_OUTPUT = {"none": Pyramid.NONE, "output_skip": Pyramid.SKIP, "residual": Pyramid.RESIDUAL}


@dataclass(frozen=True)
class Images:
    """What a configuration says outside the section of the network.

    Attributes
    ----------
    size, channels, centred, divide, ladder
        See ``problems.models.ncsnpp.Config``.
    fourier
        Whether the time may be embedded by random features of its logarithm.
    """

    size: int
    channels: int
    centred: bool = True
    divide: bool = False
    ladder: Ladder | None = None
    fourier: bool = False


def ncsnpp(options: Options, section: str, images: Images) -> Callable[[], NCSNpp]:
    """Return how a DDPM++ or NCSN++ is made.

    Parameters
    ----------
    options, section
        Configuration, and its section that describes the network.
    images
        What it says elsewhere.

    Raises
    ------
    CheckpointError
        If options are missing or not read, or if there is no such network.
    """

    def option(name: str, kind: Callable[[Any], C], *default: C) -> C:
        return options.get(f"{section}.{name}", kind, *default)

    for name, only in {"normalization": "GroupNorm", "attention_type": "ddpm"}.items():
        option(name, among({only: only}), only)
    option("conv_size", exactly(3), 3)
    embeddings = {"positional": False, "fourier": True} if images.fourier else {"positional": False}
    made = partial(
        Config,
        images.size,
        images.channels,
        option("nf", whole),
        option("ch_mult", wholes),
        option("num_res_blocks", whole),
        option("attn_resolutions", wholes),
        conditional=option("conditional", flag),
        fourier=option("embedding_type", among(embeddings)),
        taps=option("fir_kernel", numbers) if option("fir", flag) else None,
        rescale=option("skip_rescale", flag),
        resampling_blocks=option("resblock_type", among({"biggan": True, "ddpm": False})),
        convolve=option("resamp_with_conv", flag),
        input_pyramid=option("progressive_input", among(_INPUT)),
        output_pyramid=option("progressive", among(_OUTPUT)),
        concatenate=option("progressive_combine", among({"sum": False, "cat": True})),
    )
    return _network(options, made, images)


def ddpm(options: Options, section: str, images: Images) -> Callable[[], NCSNpp]:
    """Return how score_sde's version of the U-Net of Ho et al. (2020) is made; see ``ncsnpp``."""

    def option(name: str, kind: Callable[[Any], C], *default: C) -> C:
        return options.get(f"{section}.{name}", kind, *default)

    option("normalization", among({"GroupNorm": None}), None)
    option("conditional", exactly(True))
    made = partial(
        Config,
        images.size,
        images.channels,
        option("nf", whole),
        option("ch_mult", wholes),
        option("num_res_blocks", whole),
        option("attn_resolutions", wholes),
        rescale=False,
        resampling_blocks=False,
        convolve=option("resamp_with_conv", flag),
        group=1,
    )
    return _network(options, made, images)


def _network(options: Options, made: Callable[..., Config], images: Images) -> Callable[[], NCSNpp]:
    try:
        config = made(centred=images.centred, divide=images.divide, ladder=images.ladder)
    except ValueError as error:
        raise impossible(options.path, error) from None
    return partial(NCSNpp, config)
