"""The files of guided-diffusion (Dhariwal & Nichol 2021): ADM networks on a discrete schedule.

A file is the plain dictionary of weights. What cannot be told from it are the flags of the maker's scripts.
The network predicts ε, or the data, at the nodes t = 0, …, N - 1 of the schedule. A predicted variance is
dropped, because no flow needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from problems.images.checkpoints import CheckpointError
from problems.labelled import Labels
from problems.models.adm_network import Options, UNet
from problems.models.options import among, flag, numbers, whole
from problems.models.times import Affine
from problems.models.weights import fitted, refusing
from problems.network import Network
from problems.tables import Table

V = TypeVar("V")

_DEFAULTS: dict[str, Any] = {
    "num_channels": None,
    "num_res_blocks": 2,
    "num_heads": None,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "class_cond": None,
    "learn_sigma": None,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "conv_resample": True,
    "use_new_attention_order": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
}
_REQUIRED = ("image_size", "noise_schedule", "diffusion_steps")
_WITHOUT_EFFECT = (
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
)
_MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def recognises(content: object) -> bool:
    """Return whether the content of a file is the weights of a network of guided-diffusion."""
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.2.weight")
    found = [content.get(name) for name in names] if isinstance(content, dict) else [None]
    return all(isinstance(tensor, Tensor) and tensor.ndim > 1 for tensor in found)


def read(
    path: Path,
    content: Mapping[str, Tensor],
    *,
    labels: Labels = None,
    head: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Network:
    """Return the network of a file of guided-diffusion.

    Parameters
    ----------
    path
        The file, for messages.
    content
        Its weights by name.
    labels
        Classes, one for all samples or one for each. None is all of them in turn, because no class means "no
        class".
    head
        Must be None.
    config
        The flags of the maker's scripts by name, also in sections. ``image_size``, ``noise_schedule``,
        ``diffusion_steps`` and one of ``num_heads`` and ``num_head_channels`` are needed; the others have the
        defaults of the scripts. ``conv_resample``, which the scripts do not have, is one more.

    Raises
    ------
    CheckpointError
        If flags are missing, unknown or contradict the file, if the file is that of an upsampler or a
        classifier, or if its tensors do not fit.
    """
    if head is not None:
        raise CheckpointError(f"{path} is a network of guided-diffusion, which has no head; leave it out")
    flags = Flags(path, config or {})
    options = _options(path, content, flags)
    steps, size = flags.get("diffusion_steps", whole), flags.get("image_size", whole)
    with refusing(f"{path} has flags of which no network can be made"):
        make = functools.partial(UNet, options)
        network = fitted(make, content, path, "check the flags in its configuration")
        schedule = flags.get("noise_schedule", among(_SCHEDULES))(steps)
    return Network(
        network,
        schedule,
        (options.inputs, size, size),
        predicts="x0" if flags.get("predict_xstart", flag) else "eps",
        time=Affine(1000.0 / steps) if flags.get("rescale_timesteps", flag) else None,
        classes=options.classes,
        labels=labels,
    )


def linear(steps: int) -> Table:
    """Return the table of β from 0.1/N to 20/N, N = ``steps`` (Ho et al. 2020)."""
    return Table.linear(0.1 / steps, 20.0 / steps, steps)


_SCHEDULES: dict[str, Callable[[int], Table]] = {"linear": linear, "cosine": Table.cosine}


def typed(value: Any) -> tuple[float, ...]:
    """Return positive numbers, from a list or, as in the scripts, from words with commas between them."""
    if isinstance(value, str):
        try:
            value = [float(word) for word in value.split(",")]
        except ValueError:
            value = None
    return numbers(value)


class Flags:
    """Flags of the maker's scripts, checked where they are asked for.

    Parameters
    ----------
    path
        The file that they describe, for messages.
    config
        Values by name, also in sections.

    Raises
    ------
    CheckpointError
        If one is unknown or missing; in the methods, if its value is none that it can have.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        given: dict[str, Any] = {}
        for name, value in config.items():
            given |= value if isinstance(value, dict) else {name: value}
        unknown = sorted(given.keys() - {*_REQUIRED, *_DEFAULTS, *_WITHOUT_EFFECT})
        if unknown:
            known = ", ".join((*_REQUIRED, *_DEFAULTS))
            raise CheckpointError(
                f"{path} has the unknown flag {unknown[0]} in its configuration; {known} are read"
            )
        missing = [name for name in _REQUIRED if name not in given]
        if "num_heads" not in given and given.get("num_head_channels", -1) == -1:
            missing.append("num_heads or num_head_channels")
        if missing:
            raise CheckpointError(
                f"{path} does not say its {', '.join(missing)}; give the flags of guided-diffusion's "
                f"scripts as config, or beside the file as {path.stem}.config.json"
            )
        self._path = path
        self._values = {**_DEFAULTS, **given}

    def __contains__(self, name: str) -> bool:
        """Return whether a flag has a value, and not the one for "not set"."""
        return self._values[name] not in (None, "", -1)

    def _wrong(self, name: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self._path} has the {name} {self._values[name]!r}; it must be {wanted}")

    def get(self, name: str, kind: Callable[[Any], V]) -> V:
        """Return a flag, checked and converted by ``kind``; see ``options``."""
        try:
            return kind(self._values[name])
        except ValueError as error:
            raise self._wrong(name, str(error)) from None

    def agree(self, name: str, found: int) -> None:
        """Check a flag, if it is set, against what the file says."""
        if name in self and self._values[name] != found:
            raise self._wrong(name, f"{found}, as in the file, or left out")


def _options(path: Path, content: Mapping[str, Tensor], flags: Flags) -> Options:
    """Return the architecture from the flags, and from the shapes what they can tell."""
    odd = [name for name, tensor in content.items() if not isinstance(tensor, Tensor) or tensor.ndim == 0]
    if odd:
        raise CheckpointError(f"{path} has no tensor of weights as {odd[0]}; fetch or write it again")
    if "out.2.weight" not in content:
        raise CheckpointError(f"{path} has no output; a classifier of guided-diffusion is no diffusion model")
    channels = content["time_embed.0.weight"].shape[-1]
    inputs, outputs = content["input_blocks.0.0.weight"].shape[1], content["out.2.weight"].shape[0]
    classes = content["label_emb.weight"].shape[0] if "label_emb.weight" in content else 0
    if inputs != 3 or outputs not in (3, 6):
        raise CheckpointError(
            f"{path} maps {inputs} channels to {outputs}; networks from 3 to 3 or 6 are read, no upsamplers"
        )
    flags.agree("num_channels", channels)
    flags.agree("class_cond", classes > 0)
    flags.agree("learn_sigma", outputs == 6)
    size = flags.get("image_size", whole)
    if "channel_mult" not in flags and size not in _MULTIPLIERS:
        raise CheckpointError(f"{path} does not say its channel_mult, which only some sizes of images imply")
    heads = flags.get("num_heads", whole) if "num_heads" in flags else 1
    return Options(
        channels=channels,
        multipliers=flags.get("channel_mult", typed) if "channel_mult" in flags else _MULTIPLIERS[size],
        blocks=flags.get("num_res_blocks", whole),
        attention=tuple(int(size // n) for n in flags.get("attention_resolutions", typed)),
        heads=heads,
        up_heads=flags.get("num_heads_upsample", whole) if "num_heads_upsample" in flags else heads,
        head_channels=flags.get("num_head_channels", whole) if "num_head_channels" in flags else None,
        inputs=inputs,
        outputs=outputs,
        classes=classes,
        scale_shift=flags.get("use_scale_shift_norm", flag),
        block_resampling=flags.get("resblock_updown", flag),
        conv_resampling=flags.get("conv_resample", flag),
        interleaved=not flags.get("use_new_attention_order", flag),
    )
