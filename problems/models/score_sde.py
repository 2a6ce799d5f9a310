"""The files of score_sde (Song et al. 2021): DDPM++, NCSN++ and DDPM on its three processes.

A file is the state of its training program; see ``problems.models.training_state``. It has the noise levels
as ``sigmas`` among its weights, also for processes that do not use them, by which it is recognised. The rest
is in the maker's configuration, of which the sections model, data and training are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from problems.images.checkpoints import CheckpointError
from problems.labelled import Labels
from problems.models import genie
from problems.models.ncsnpp import Ladder
from problems.models.ncsnpp_options import OPTIONS, TRAINING, Images, ddpm, ncsnpp
from problems.models.options import Options, among, flag, number, whole
from problems.models.times import Affine
from problems.models.training_state import averaged, weights
from problems.network import Network
from problems.schedule import VE, VP, Schedule, SubVP
from problems.series import T
from problems.tables import Table

_PROCESS = ("beta_min", "beta_max", "sigma_min", "sigma_max", "sigma_begin", "num_scales")
_ELSEWHERE = ("sde", "continuous", "image_size", "num_channels", "centered")


@dataclass(frozen=True)
class NoiseRatio:
    """The noise-to-signal ratio γ(t) of a schedule, which is σ where α is 1."""

    schedule: Schedule

    def __call__(self, t: T) -> T:
        """Return it for a float, tensor or series t."""
        return self.schedule.gamma(t)


@dataclass(frozen=True)
class Process:
    """A process of the maker, and how its networks see it.

    Attributes
    ----------
    schedule
        α and γ as functions of the time.
    predicts
        What the output of the network is.
    time
        What the network is told.
    ladder
        The noise levels of a network that is told their index.
    """

    schedule: Schedule
    predicts: str
    time: Callable[[Any], Any]
    ladder: Ladder | None = None


def recognises(content: object) -> bool:
    """Return whether the content of a file is a state of score_sde's training."""
    found = weights(content)
    return found is not None and "sigmas" in found


def read(
    path: Path,
    content: Mapping[str, Any],
    *,
    labels: Labels = None,
    head: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Network:
    """Return the network of a file of score_sde, with the average of its weights.

    The network of CIFAR-10 in GENIE is one of these files. With a configuration of GENIE it is read as such,
    and can have a head.

    Parameters
    ----------
    path
        The file, for messages.
    content
        Its content.
    labels
        Must be None, for these networks have no classes.
    head
        Must be None, unless the configuration is one of GENIE.
    config
        The maker's configuration: sections model, data and training, or their options without sections.

    Raises
    ------
    CheckpointError
        If options are missing or not read, or if the weights do not fit.
    """
    if config is not None and genie.describes(config):
        return genie.read(path, content, labels=labels, head=head, config=config)
    if head is not None:
        raise CheckpointError(
            f"{path} needs a configuration of GENIE (sections diffusion_model, genie_model and sde) to have "
            f"the head {head.name}"
        )
    if labels is not None:
        raise CheckpointError(f"{path} has no classes; give no labels")
    options = Options.of(path, config)
    options.only("model", (*OPTIONS, *TRAINING, *_PROCESS), _ELSEWHERE)
    make = options.get("model.name", among({"ncsnpp": ncsnpp, "ddpm": ddpm}))
    options.get("model.nonlinearity", among({"swish": None}))
    process = options.get("training.sde", among(_PROCESSES))(options)
    _check_levels(options, process, content)
    size, channels = options.get("data.image_size", whole), options.get("data.num_channels", whole)
    centred = options.get("data.centered", flag)
    images = Images(
        size,
        channels,
        centred,
        divide=options.get("model.scale_by_sigma", flag),
        ladder=process.ladder,
        fourier=options.get("training.continuous", flag),
    )
    return Network(
        averaged(make(options, "model", images), content, path, unused=("sigmas",)),
        process.schedule,
        (channels, size, size),
        predicts=process.predicts,
        time=process.time,
        data_std=0.5 if centred else 0.25,
    )


def _vp(options: Options) -> Process:
    """Return the variance-preserving process; a network that is not continuous sees nodes of a table."""
    beta_min, beta_max = options.get("model.beta_min", number), options.get("model.beta_max", number)
    if options.get("training.continuous", flag):
        return Process(VP(beta_min, beta_max), "eps", Affine(999.0))
    nodes = options.get("model.num_scales", whole)
    return Process(Table.linear(beta_min / nodes, beta_max / nodes, nodes), "eps", Affine(1.0))


def _subvp(options: Options) -> Process:
    """Return the process whose variance is smaller between its ends; its networks are continuous."""
    beta_min, beta_max = options.get("model.beta_min", number), options.get("model.beta_max", number)
    return Process(SubVP(beta_min, beta_max), "eps", Affine(999.0))


def _ve(options: Options) -> Process:
    """Return the variance-exploding process.

    Its networks predict the score. They are told σ, or if they are not continuous the index of σ among the
    levels, which falls from N - 1 to 0 as the time rises.
    """
    low, high = options.get("model.sigma_min", number), options.get("model.sigma_max", number)
    schedule = VE(low, high)
    if options.get("training.continuous", flag):
        return Process(schedule, "score", NoiseRatio(schedule))
    levels = options.get("model.num_scales", whole)
    last = levels - 1.0
    return Process(schedule, "score", Affine(-last, last), Ladder(low, high, levels))


_PROCESSES = {"vpsde": _vp, "subvpsde": _subvp, "vesde": _ve}


def _check_levels(options: Options, process: Process, content: Mapping[str, Any]) -> None:
    """Compare the noise levels of a file with those of its configuration, where they matter."""
    if not isinstance(process.schedule, VE):
        return
    levels = (weights(content) or {})["sigmas"].double().flatten()
    wanted = {"sigma_max": (levels[0], process.schedule.sigma_max)} if len(levels) else {}
    wanted["sigma_min"] = (levels[-1], process.schedule.sigma_min)
    for name, (found, said) in wanted.items():
        if not math.isclose(float(found), said, rel_tol=1e-5):
            raise CheckpointError(
                f"the configuration of {options.path} says model.{name} = {said:g} where the file has "
                f"{float(found):g}; take the configuration with which it was trained"
            )
