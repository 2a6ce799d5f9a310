"""The files of GENIE (Dockhorn et al. 2022): its networks and the heads that were distilled from them.

The file of a network is the state of its training program; see ``problems.models.training_state``. That of a
head has no average. Both are described by the sections diffusion_model, genie_model and sde of the maker's
configuration, by which they are told from the files of score_sde: GENIE's network of CIFAR-10 is one of
score_sde's files, which have noise levels ``sigmas`` among the weights; the others have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from problems.images.checkpoints import CheckpointError
from problems.labelled import Labels
from problems.models import adm_network, ddpm_unet
from problems.models.genie_head import Config as HeadConfig
from problems.models.genie_head import Head
from problems.models.layers import Fourier
from problems.models.ncsnpp_options import OPTIONS, TRAINING, Images, ncsnpp
from problems.models.opening import opened
from problems.models.options import Options, among, exactly, flag, number, optional, whole, wholes
from problems.models.times import Affine
from problems.models.training_state import averaged, impossible, plain, weights
from problems.network import Network
from problems.schedule import VP

_HEAD = "all_modules.0.all_modules."
_NETWORKS = ("all_modules.", "temb.", "input_blocks.", "time_embed.")
_KNOWN = (
    *OPTIONS,
    *TRAINING,
    "act_name",
    "image_size",
    "num_in_channels",
    "num_out_channels",
    "pred",
    "M",
    "ckpt_path",
    "num_classes",
    "num_heads",
    "num_head_channels",
    "num_head_upsample",
    "use_scale_shift_norm",
    "resblock_updown",
    "use_new_attention_order",
)


class LogFourier(nn.Sequential):
    """An embedding of the time: random features of its logarithm, and two linear layers."""

    def __init__(self, width: int) -> None:
        linear = nn.Linear(2 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        super().__init__(Fourier(width), *linear)

    def forward(self, time: Tensor) -> Tensor:
        """Map times (N,) to (N, 4 width)."""
        h = time.log()
        for layer in self:
            h = layer(h)
        return h


def recognises(content: object) -> bool:
    """Return whether the content of a file is a network or a head of GENIE."""
    found = weights(content)
    return found is not None and "sigmas" not in found and any(name.startswith(_NETWORKS) for name in found)


def describes(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is one of GENIE, or its section diffusion_model alone."""
    return "diffusion_model" in config or "pred" in config


def read(
    path: Path,
    content: Mapping[str, Any],
    *,
    labels: Labels = None,
    head: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network of GENIE, with the average of its weights, and with its head if there is one.

    Parameters
    ----------
    path
        The file of the network.
    content
        Its content.
    labels
        Classes, one for all samples or one for each. None is all of them in turn, because no class means "no
        class".
    head
        The file of the head; by default ``NAME_head.pth`` beside the network ``NAME.pth``, if it exists.
    config
        The maker's configuration: the sections diffusion_model, sde and for a head genie_model. Without a
        head the options of diffusion_model and sde may be given without sections.

    Raises
    ------
    CheckpointError
        If options are missing or not read, if the weights do not fit, or if the file is a head.
    """
    if any(name.startswith(_HEAD) for name in weights(content) or {}):
        raise CheckpointError(f"{path} is a head of GENIE; load its network, and give this file as head=")
    options = Options.of(path, config)
    options.only("diffusion_model", _KNOWN, ("beta_min", "beta_d"))
    size = options.get("diffusion_model.image_size", whole)
    channels = options.get("diffusion_model.num_in_channels", whole)
    options.get("diffusion_model.num_out_channels", exactly(channels))
    build = options.get("diffusion_model.name", among({"ncsnpp": _ncsnpp, "ddpm": _ddpm, "openai": _adm}))
    classes = options.get("diffusion_model.num_classes", optional(whole), None) or 0
    if labels is not None and not classes:
        raise CheckpointError(f"{path} has no classes; give no labels")
    predicts = options.get("diffusion_model.pred", among({"eps": "eps", "v": "v"}))
    first, slope = options.get("sde.beta_min", number), options.get("sde.beta_d", number)
    module = averaged(build(options, size, channels), content, path, unused=("sigmas",))
    beside = path.with_name(f"{path.stem}_head.pth")
    found = beside if head is None and beside.is_file() else head
    return Network(
        module,
        VP(first, first + slope),
        (channels, size, size),
        predicts=predicts,
        time=Affine(options.get("diffusion_model.M", number)),
        classes=classes,
        labels=labels,
        head=None if found is None else _head(options, module, found, channels),
    )


def _ncsnpp(options: Options, size: int, channels: int) -> Callable[[], nn.Module]:
    options.get("diffusion_model.act_name", among({"swish": None}))
    return ncsnpp(options, "diffusion_model", Images(size, channels))


def _ddpm(options: Options, size: int, channels: int) -> Callable[[], nn.Module]:
    sizes, convolve = _sizes(options), options.get("diffusion_model.resamp_with_conv", flag)
    try:
        config = ddpm_unet.Config(size, channels, *sizes, convolve=convolve)
    except ValueError as error:
        raise impossible(options.path, error) from None
    return partial(ddpm_unet.UNet, config)


def _sizes(options: Options) -> tuple[int, tuple[int, ...], int, tuple[int, ...]]:
    return (
        options.get("diffusion_model.nf", whole),
        options.get("diffusion_model.ch_mult", wholes),
        options.get("diffusion_model.num_res_blocks", whole),
        options.get("diffusion_model.attn_resolutions", wholes),
    )


def _adm(options: Options, size: int, channels: int) -> Callable[[], nn.Module]:
    """Return how an ADM is made; its ``attn_resolutions`` are factors of downsampling."""

    def option(name: str, kind: Callable[[Any], Any], *default: Any) -> Any:
        return options.get(f"diffusion_model.{name}", kind, *default)

    width, multipliers, blocks, attention = _sizes(options)
    config = adm_network.Options(
        width,
        multipliers,
        blocks,
        attention,
        head_channels=option("num_head_channels", whole),
        inputs=channels,
        outputs=channels,
        classes=option("num_classes", optional(whole), None) or 0,
        scale_shift=option("use_scale_shift_norm", flag),
        block_resampling=option("resblock_updown", flag),
        conv_resampling=option("resamp_with_conv", flag),
        interleaved=not option("use_new_attention_order", flag),
    )
    if option("fourier_scale", optional(number)) is None:
        return partial(adm_network.UNet, config)
    return lambda: adm_network.UNet(config, LogFourier(width))


def _head(options: Options, module: nn.Module, path: Path, channels: int) -> Head:
    """Return the head in a file."""
    if not options.has("genie_model"):
        raise CheckpointError(
            f"the configuration of {options.path} does not describe the head {path.name}; add genie_model"
        )
    options.get("genie_model.is_upsampler", exactly(False), False)
    options.get("genie_model.num_out_channels", exactly(3 * channels), 3 * channels)
    features = options.get("diffusion_model.nf", whole)
    options.get("genie_model.num_in_channels", exactly(features + 2 * channels))
    config = HeadConfig(
        features,
        options.get("genie_model.nf", whole),
        options.get("genie_model.num_res_blocks", whole),
        channels,
        normalise=options.get("genie_model.normalize_xemb", flag),
        activate=options.get("genie_model.apply_act_before_res", flag),
        rescale=options.get("genie_model.skip_rescale", flag),
    )
    content = opened(path)
    found = weights(content) or {}
    if not any(name.startswith(_HEAD) for name in found):
        raise CheckpointError(f"{path} is no head of GENIE; give the file that train_genie wrote")
    inner = {
        "model": {name.removeprefix("all_modules.0."): tensor for name, tensor in found.items()},
        "step": 0,
    }
    return plain(partial(Head, config, _listens(module, options.path)), inner, path)


def _listens(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Return the names of the layers of a network to which its head listens; see ``Head``."""
    if isinstance(module, adm_network.UNet):
        last = f"output_blocks.{len(module.output_blocks) - 1}"
        return (last, "time_embed", *(["label_emb"] if hasattr(module, "label_emb") else []))
    names = str(module.features), str(module.embedding)
    if not all(names):
        raise CheckpointError(f"{path} is a network to which no head of GENIE can listen; leave out the head")
    return names
