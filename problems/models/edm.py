"""The pickles of EDM (Karras et al. 2022): their U-Nets in four preconditionings.

The file holds the averaged weights, the architecture, and the constants of the preconditioning. The networks
are told a noise level σ, and see x̄ = x/α, which is x itself where α = 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from problems.images.checkpoints import CheckpointError
from problems.labelled import Labels
from problems.models.edm_networks import DhariwalUNet, SongUNet
from problems.models.edm_options import Options, SongOptions
from problems.models.pickles import Record
from problems.models.times import Affine, LogNoise
from problems.models.weights import fitted, refusing
from problems.network import Network
from problems.prediction import Denoiser
from problems.schedule import EDM, VE, VP, Schedule
from problems.series import Series, T
from problems.tables import Table

_ADVICE = "the file is damaged, or of a version that is not read"


@dataclass(frozen=True)
class Denoising:
    """The denoiser D = x + σ F(x), so that ε = -F."""

    def factors(self, schedule: Schedule, gamma: Series) -> tuple[Series, Series, Series]:
        """Return the factors of x̄ and F in ε, and that of x̄ in the input of the network."""
        nothing = 0.0 * gamma
        return nothing, nothing - 1.0, nothing + 1.0


def recognises(content: object) -> bool:
    """Return whether the content of a file is a pickle of EDM."""
    return isinstance(content, dict) and isinstance(content.get("ema"), Record)


def read(
    path: Path,
    content: Mapping[str, Any],
    *,
    labels: Labels = None,
    head: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Network:
    """Return the network of a pickle of EDM.

    Sampling runs over the noise levels of the makers' samplers: with EDM's preconditioning from σ = 80 to
    0.002, with that of VP from t = 1 to 0.001, with that of VE, on the geometric schedule, from σ = 100 to
    0.02, and with that of iDDPM over the table of its noise levels. A smaller range in the file prevails for
    EDM and VE. Between the noise levels of iDDPM, to which the makers round, the table is interpolated.

    Parameters
    ----------
    path
        The file, for messages.
    content
        What the pickle holds.
    labels
        Classes, one for all samples or one for each; None for no class, which every network knows.
    head, config
        Must be None: there are no heads, and the file says its own architecture.

    Raises
    ------
    CheckpointError
        If the preconditioning, the network or an option of it is unknown, or if the tensors do not fit.
    """
    if head is not None or config is not None:
        raise CheckpointError(f"{path} is a pickle of EDM, which needs no head and no config; leave them out")
    outer = content["ema"]
    if outer.class_name not in _PRECONDITIONINGS:
        known = ", ".join(_PRECONDITIONINGS)
        raise CheckpointError(f"{path} has the preconditioning {outer.class_name[:100]}; {known} are read")
    inner = _entry(path, outer, "_modules", dict).get("model")
    if not isinstance(inner, Record):
        raise CheckpointError(f"{path} has no network in its {outer.class_name}; {_ADVICE}")
    if inner.class_name not in _NETWORKS:
        known = ", ".join(_NETWORKS)
        raise CheckpointError(f"{path} has the network {inner.class_name[:100]}; {known} are read")
    tensors = _tensors(path, inner)
    kind, build = _NETWORKS[inner.class_name]
    options = _options(path, kind, inner, most=len(tensors))
    with refusing(f"{path} has options of which no network can be made"):
        network = fitted(functools.partial(build, options), tensors, path, _ADVICE)
    with refusing(f"{path} has no schedule in its {outer.class_name}"):
        part = _PRECONDITIONINGS[outer.class_name](functools.partial(_number, path, outer))
    return Network(
        network,
        part.schedule,
        (options.in_channels, options.img_resolution, options.img_resolution),
        predicts=part.predicts,
        time=part.time,
        classes=options.label_dim,
        no_class=options.label_dim or None,
        labels=labels,
        data_std=part.data_std,
    )


@dataclass(frozen=True)
class _Conditions:
    """What a preconditioning says about the network inside it."""

    schedule: Schedule
    predicts: Any
    time: Callable[[T], T] | None
    data_std: float = 0.5


_Number = Callable[[str], float]


def _edm(number: _Number) -> _Conditions:
    schedule = EDM(start=min(80.0, number("sigma_max")), stop=max(0.002, number("sigma_min")))
    std = number("sigma_data")
    return _Conditions(schedule, Denoiser(std), LogNoise(schedule, 0.25), std)


def _vp(number: _Number) -> _Conditions:
    least = number("beta_min")
    schedule = VP(beta_min=least, beta_max=least + number("beta_d"))
    return _Conditions(schedule, "eps", Affine(number("M") - 1.0))


def _ve(number: _Number) -> _Conditions:
    sigma_min, sigma_max = max(0.02, number("sigma_min")), min(100.0, number("sigma_max"))
    schedule = VE(sigma_min=sigma_min, sigma_max=sigma_max, stop=0.0)
    return _Conditions(schedule, Denoising(), LogNoise(schedule, unit=2.0))


def _iddpm(number: _Number) -> _Conditions:
    table = Table.cosine(int(number("M")), most=1.0 - number("C_1"), offset=number("C_2"))
    return _Conditions(table, "eps", None)


_PRECONDITIONINGS = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm}
_NETWORKS: dict[str, tuple[type[Options], Callable[[Any], SongUNet | DhariwalUNet]]] = {
    "SongUNet": (SongOptions, SongUNet),
    "DhariwalUNet": (Options, DhariwalUNet),
}


def _entry(path: Path, record: Record, name: str, kind: type) -> Any:
    value = record.state.get(name)
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} has no {name} in its {record.class_name}; {_ADVICE}")
    return value


def _number(path: Path, record: Record, name: str) -> float:
    """Return a constant of a preconditioning, all of which lie between 0 and a million, or are infinite."""
    value = record.state.get(name)
    if not isinstance(value, int | float) or not (0.0 <= value <= 1e6 or value == float("inf")):
        raise CheckpointError(f"{path} has the {name} {value!r} in its {record.class_name}; {_ADVICE}")
    return float(value)


def _options(path: Path, kind: type[Options], record: Record, most: int) -> Options:
    """Return the architecture; with more blocks than there are tensors it could not be that of the file."""
    given = _entry(path, record, "_init_kwargs", dict)
    fields = dataclasses.fields(kind)
    unknown = [name for name in given if name not in {field.name for field in fields}]
    if unknown:
        known = ", ".join(field.name for field in fields)
        raise CheckpointError(
            f"{path} has the unknown option {unknown[0]!r} of {record.class_name}; {known} are read"
        )
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in given]
    if missing or record.state.get("_init_args"):
        raise CheckpointError(f"{path} does not name its {', '.join(missing) or 'options'}; {_ADVICE}")
    with refusing(f"{path} has an option that is not read"):
        options = kind(**given)
    if options.num_blocks > most:
        raise CheckpointError(f"{path} lacks tensors for num_blocks {options.num_blocks}; {_ADVICE}")
    return options


def _tensors(path: Path, network: Record) -> dict[str, Any]:
    """Return the parameters and buffers by name; each module is visited once."""
    found: dict[str, Any] = {}
    todo, seen = [("", network)], set()
    while todo:
        prefix, record = todo.pop()
        if not isinstance(record, Record) or id(record) in seen:
            raise CheckpointError(f"{path} has no module of its own as {prefix.rstrip('.')}; {_ADVICE}")
        seen.add(id(record))
        for group in ("_parameters", "_buffers"):
            for name, tensor in _entry(path, record, group, dict).items():
                if tensor is not None:
                    found[f"{prefix}{name}"] = tensor
        children = _entry(path, record, "_modules", dict)
        todo += [(f"{prefix}{name}.", child) for name, child in children.items() if child is not None]
    return found
