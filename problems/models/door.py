"""One door for models of every make: ``load`` recognises what a path is by its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from problems.images import any_head, score
from problems.images.checkpoints import CheckpointError
from problems.labelled import Labels
from problems.models import adm, diffusers_folder, edm, genie, score_sde
from problems.models.opening import json_object, opened
from problems.network import Network
from problems.score import Problem


class Reader(Protocol):
    """A module that reads the files of one maker."""

    def recognises(self, content: Any) -> bool:
        """Return whether the content of a file is that of this maker."""

    def read(
        self,
        path: Path,
        content: Any,
        *,
        labels: Labels,
        head: Path | None,
        config: Mapping[str, Any] | None,
    ) -> Network:
        """Return the network."""


READERS: tuple[Reader, ...] = (edm, genie, score_sde, adm)
"""In the order in which they are asked."""

READ = (
    "the suite's own .safetensors with its .json card, folders of diffusers, .pth of score_sde and of GENIE, "
    ".pkl of EDM and .pt of guided-diffusion"
)


def load(
    path: Path | str,
    *,
    labels: Labels = None,
    head: Path | str | None = None,
    config: Mapping[str, Any] | Path | str | None = None,
) -> Problem:
    """Return the network in a file or folder of any maker that is known, as a problem.

    What a path is, is told by its content; nothing in it is executed. Weights are averaged ones where a file
    has them, in float32.

    Parameters
    ----------
    path
        A checkpoint of this suite, a folder of diffusers, or a file of score_sde, GENIE, EDM or
        guided-diffusion.
    labels
        The classes: an integer for all samples, one integer for each, or ``InTurn``. None is the model's own
        "no class", or all classes in turn if it has none.
    head
        The file of a head; by default what ``problems.images.distill`` wrote, ``NAME-head.safetensors``
        beside ``NAME.pth`` or the folder ``NAME``, or else GENIE's own ``NAME_head.pth``, if there is one.
    config
        What the file does not say: the maker's own configuration, as a mapping or a JSON file; by default
        ``NAME.config.json`` beside it, if there is one.

    Returns
    -------
    The problem; ``problem.distilled`` is the same with its head.

    Raises
    ------
    problems.images.checkpoints.CheckpointError
        If it cannot be used, in one sentence that says why.
    """
    path = Path(path)
    given = None if head is None else Path(head)
    if given is not None and not given.is_file():
        raise CheckpointError(f"there is no file {given}")
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}")
    if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        return _own(path, labels, given)
    ours = given or any_head.beside(path)
    if ours.suffix == ".safetensors" and ours.is_file():
        return any_head.attached(bare(path, labels=labels, config=config), ours)
    return bare(path, labels=labels, head=given, config=config)


def _own(path: Path, labels: Labels, head: Path | None) -> Problem:
    beside = any_head.beside(path)
    network, _ = score.load(path, head or (beside if beside.exists() else None))
    return network if labels is None else network.labelled(labels)


def bare(
    path: Path,
    *,
    labels: Labels = None,
    head: Path | None = None,
    config: Mapping[str, Any] | Path | str | None = None,
) -> Network:
    """Return a network of another maker without the head that this suite has distilled from it.

    The parameters and errors are those of ``load``; ``head`` is a file of the maker's own.
    """
    if diffusers_folder.recognises(path):
        return diffusers_folder.read(path, labels=labels, head=head, config=_configuration(path, config))
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without model_index.json or config.json; read are {READ}")
    found, content = _configuration(path, config), opened(path)
    for reader in READERS:
        if reader.recognises(content):
            beside = path.with_name(f"{path.stem}_head.pth")
            head_file = head or (beside if beside.is_file() else None)
            return reader.read(path, content, labels=labels, head=head_file, config=found)
    raise CheckpointError(f"{path} is a file of no maker that is known; read are {READ}")


def _configuration(path: Path, config: Mapping[str, Any] | Path | str | None) -> Mapping[str, Any] | None:
    if isinstance(config, Mapping):
        return config
    beside = path.with_name(f"{path.stem}.config.json")
    file = Path(config) if config is not None else beside
    if not file.is_file():
        if config is not None:
            raise CheckpointError(f"there is no file {file}")
        return None
    return json_object(file)
