"""Folders of diffusers: a U-Net or a transformer with its scheduler, whose noise schedule it was trained on.

The networks are those of the library diffusers (extra: models). Their weights are read from safetensors, or
from a ``.bin`` without executing anything in it. Code in a folder is never run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from problems.console import require_memory
from problems.images.checkpoints import CheckpointError, require_sound
from problems.images.checkpoints import read as read_safetensors
from problems.images.sketches import sketch
from problems.labelled import Labels
from problems.models.opening import json_object, opened
from problems.models.times import Affine, LogNoise
from problems.network import Network
from problems.prediction import Denoiser, Prediction
from problems.schedule import EDM, FlowMatching, Schedule
from problems.tables import Table, rescale_betas_zero_snr

PARTS = ("unet", "transformer")
"""Folders in which a pipeline keeps its network."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

CONDITIONING = "conditioning.safetensors"
"""What a U-Net with cross-attention is conditioned on: ``encoder_hidden_states``, (classes, length, width),
and ``unconditional``, (length, width), if there is a score without a class."""

PREDICTED = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Trained:
    """What a scheduler says of the training of its network.

    Attributes
    ----------
    schedule
        The noise schedule.
    predicts
        What the network predicts.
    told
        Maps the time of the schedule to what the network is told; None is the time itself.
    data_std
        Standard deviation of the data.
    """

    schedule: Schedule
    predicts: str | Prediction
    told: Any = None
    data_std: float = 0.5


class UNet(nn.Module):
    """A ``UNet2DModel`` as a network of this suite.

    Parameters
    ----------
    network
        The network of diffusers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction, of the shape of ``x``."""
        given = {} if labels is None else {"class_labels": labels}
        value: Tensor = self.network(x, time, return_dict=False, **given)[0]
        return value[:, : x.shape[1]]


class Transformer(UNet):
    """A ``DiTTransformer2DModel``; a learned variance is left out."""

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction, of the shape of ``x``."""
        value: Tensor = self.network(x, timestep=time, class_labels=labels, return_dict=False)[0]
        return value[:, : x.shape[1]]


class Conditioned(UNet):
    """A ``UNet2DConditionModel`` whose labels choose rows of a given conditioning.

    Parameters
    ----------
    network
        The network of diffusers.
    rows
        What it is conditioned on, (classes, length, width).
    """

    rows: Tensor

    def __init__(self, network: nn.Module, rows: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("rows", rows)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction, of the shape of ``x``."""
        rows = self.rows.expand(len(x), -1, -1) if labels is None else self.rows[labels]
        value: Tensor = self.network(x, time, encoder_hidden_states=rows, return_dict=False)[0]
        return value[:, : x.shape[1]]


def recognises(path: Path) -> bool:
    """Return whether a path is a folder of diffusers."""
    return path.is_dir() and any((path / name).is_file() for name in ("model_index.json", "config.json"))


def read(
    path: Path, *, labels: Labels = None, head: Path | None = None, config: Mapping[str, Any] | None = None
) -> Network:
    """Return the network in a folder, float32.

    Parameters
    ----------
    path
        The folder of a pipeline (``model_index.json``), or of a network alone (``config.json``).
    labels
        See ``Network``; for a network with cross-attention the rows of its conditioning.
    head
        Must be None.
    config
        The configuration of the scheduler, where the folder has none.

    Raises
    ------
    CheckpointError
        If the folder cannot be used; the message says what is read.
    """
    if head is not None:
        raise CheckpointError(f"{path} is a folder of diffusers, for which no head of GENIE is read")
    where = _network_folder(path)
    about = json_object(where / "config.json")
    trained = _trained(path, where, about, config)
    module, classes, no_class = _module(path, where, about)
    size, channels = about.get("sample_size"), about.get("in_channels")
    if not isinstance(channels, int) or not isinstance(size, int | list):
        raise CheckpointError(f"{where / 'config.json'} must give sample_size and in_channels")
    height, width = (size, size) if isinstance(size, int) else size
    return Network(
        module,
        trained.schedule,
        (channels, height, width),
        predicts=trained.predicts,
        time=trained.told,
        classes=classes,
        no_class=no_class,
        labels=labels,
        data_std=trained.data_std,
    )


def _network_folder(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    for part in PARTS:
        if (path / part / "config.json").is_file():
            return path / part
    raise CheckpointError(f"{path} has no network in the folders {' or '.join(PARTS)}")


# --- the network


def _module(path: Path, where: Path, about: Mapping[str, Any]) -> tuple[nn.Module, int, int | None]:
    """Return the network, its number of classes and its label for no class."""
    try:
        import diffusers
    except ImportError:
        raise CheckpointError(
            f"{path} needs the library diffusers: pip install 'genie-bench[models]'"
        ) from None
    kinds = {
        kind.__name__: kind
        for kind in (
            diffusers.UNet2DModel,
            diffusers.UNet2DConditionModel,
            diffusers.DiTTransformer2DModel,
        )
    }
    name = about.get("_class_name")
    if name not in kinds:
        raise CheckpointError(f"{where} is a {name}; read are {', '.join(kinds)}")
    if about.get("class_embed_type") is not None:
        raise CheckpointError(f"{where} embeds classes by {about['class_embed_type']}; read is a table only")
    network = _built(kinds[name], where, about)
    _filled(network, where)
    if name == "DiTTransformer2DModel":
        known = about.get("num_embeds_ada_norm")
        classes = known if isinstance(known, int) else 0
        return Transformer(network), classes, classes
    if name == "UNet2DConditionModel":
        rows, no_class = _conditioning(path)
        return Conditioned(network, rows), len(rows), no_class
    classes = about.get("num_class_embeds") or 0
    return UNet(network), classes, None


def _built(kind: Any, where: Path, about: Mapping[str, Any]) -> Any:
    options = {name: value for name, value in about.items() if not name.startswith("_")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _require_sketch(kind, options)
            return kind(**options)
    except Exception as error:  # a library's answer to any nonsense in a configuration
        words = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{where / 'config.json'} describes no network ({words[0]})") from error


def _require_sketch(kind: Any, options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a network of impossible size would be made; it is tried without memory."""
    try:
        shapes = sketch(lambda: kind(**options))
    except NotImplementedError:  # it needs numbers while it is made
        return
    needed = sum(4.0 * shape.numel() for shape in shapes.values())
    require_memory(needed, "it", "check its sizes")


def _filled(network: nn.Module, where: Path) -> None:
    file = next((where / name for name in WEIGHTS if (where / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{where} has no weights; read are {' and '.join(WEIGHTS)}")
    tensors = read_safetensors(file)[0] if file.suffix == ".safetensors" else _pickled(file)
    wanted = {name: t.shape for name, t in network.state_dict().items()}
    found = {name: t.shape for name, t in tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise CheckpointError(
            f"{file} does not fit {where / 'config.json'} ({len(odd)} tensors, {odd[0]} among them)"
        )
    require_sound(tensors, file)
    network.load_state_dict({name: t.float() for name, t in tensors.items()})


def _pickled(file: Path) -> dict[str, Tensor]:
    content = opened(file)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{file} is no dictionary of tensors")
    return content


def _conditioning(path: Path) -> tuple[Tensor, int | None]:
    file = path / CONDITIONING
    if not file.is_file():
        raise CheckpointError(
            f"{path} is conditioned on more than classes; put {CONDITIONING} into it, with "
            "encoder_hidden_states (classes, length, width)"
        )
    tensors, _ = read_safetensors(file)
    rows = tensors.get("encoder_hidden_states")
    if rows is None or rows.ndim != 3:
        raise CheckpointError(f"{file} must have encoder_hidden_states of three axes")
    without = tensors.get("unconditional")
    if without is None:
        return rows.float(), None
    return torch.cat([rows, without.reshape(1, *rows.shape[1:])]).float(), len(rows)


# --- the scheduler


def _trained(path: Path, where: Path, about: Mapping[str, Any], config: Mapping[str, Any] | None) -> Trained:
    files = (path / "scheduler" / "scheduler_config.json", where / "scheduler_config.json")
    file = next((file for file in files if file.is_file()), None)
    if config is not None:
        return _scheduled(config, "the configuration of the scheduler")
    if file is not None:
        return _scheduled(json_object(file), str(file))
    warnings.warn(
        f"{path} has no scheduler; taken is the table of Ho et al. (2020), 1000 nodes with linear beta from "
        "0.0001 to 0.02, and a network that predicts eps; put scheduler_config.json into it for another",
        stacklevel=2,
    )
    return Trained(Table.linear(), "eps")


def _scheduled(values: Mapping[str, Any], source: str) -> Trained:
    name = str(values.get("_class_name", ""))
    try:
        if "FlowMatch" in name:
            nodes = float(values.get("num_train_timesteps", 1000))
            return Trained(FlowMatching(), "velocity", Affine(nodes))
        if name.startswith("EDM"):
            return _edm(values)
        if "beta_schedule" in values or "trained_betas" in values:
            return Trained(_table(values), _predicted(values))
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source} describes no noise schedule ({error})") from error
    raise CheckpointError(
        f"{source} is that of {name or 'no scheduler'}; read are those with beta_schedule, EDM's and flow "
        "matching"
    )


def _predicted(values: Mapping[str, Any]) -> str:
    given = values.get("prediction_type", "epsilon")
    if given not in PREDICTED:
        raise CheckpointError(f"a network predicts {given}; read are {', '.join(PREDICTED)}")
    return PREDICTED[given]


def _table(values: Mapping[str, Any]) -> Table:
    first, last = float(values.get("beta_start", 1e-4)), float(values.get("beta_end", 0.02))
    nodes = int(values.get("num_train_timesteps", 1000))
    makers = {
        "linear": lambda: Table.linear(first, last, nodes),
        "scaled_linear": lambda: Table.scaled_linear(first, last, nodes),
        "squaredcos_cap_v2": lambda: Table.cosine(nodes),
    }
    given, kind = values.get("trained_betas"), values.get("beta_schedule", "linear")
    if given is None and kind not in makers:
        raise CheckpointError(f"the beta_schedule is {kind}; read are {', '.join(makers)} and trained_betas")
    table = makers[kind]() if given is None else Table(given)
    return Table(rescale_betas_zero_snr(table.betas)) if values.get("rescale_betas_zero_snr") else table


def _edm(values: Mapping[str, Any]) -> Trained:
    std = float(values.get("sigma_data", 0.5))
    schedule = EDM(start=float(values.get("sigma_max", 80.0)), stop=float(values.get("sigma_min", 0.002)))
    kind = _predicted(values)
    if kind == "x0":
        raise CheckpointError("an EDM scheduler predicts epsilon or v_prediction, which is what is read")
    return Trained(schedule, Denoiser(std, -1.0 if kind == "eps" else 1.0), LogNoise(schedule, 0.25), std)
