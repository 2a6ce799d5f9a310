"""The table of problems: one line for each name that ``--problem`` takes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from problems import (
    VE,
    Gaussian,
    Model,
    Problem,
    digits_gaussians,
    digits_mixture,
    smooth_mixture,
    toy_mixture,
)
from problems.images.guided import GuidedImages
from problems.images.score import load, shipped

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "toy": toy_mixture,
    "toy-ve": lambda: toy_mixture(VE()),
    "smooth": smooth_mixture,
    "gaussian": lambda: Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5),
    "digits-mixture": digits_mixture,
    "digits-gaussians": digits_gaussians,
    # Networks, with their heads: trained on digits-mixture, on the same with labels (the latter also guided,
    # at scale 1, to all classes in turn), on digits-gaussians.
    "digits": lambda: shipped("digits"),
    "digits-classes": lambda: shipped("digits-classes"),
    "digits-guided": lambda: GuidedImages(shipped("digits-classes"), 1.0),
    "digits-gaussians-network": lambda: shipped("digits-gaussians"),
    # Networks that are told the time by fast waves.
    "digits-positional": lambda: shipped("digits-positional"),
    "digits-fourier": lambda: shipped("digits-fourier"),
}
"""Every problem of the suite by the name it is called by."""

P = TypeVar("P", bound=Problem)
DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Prepared(NamedTuple):
    """A problem, ready to be solved.

    Attributes
    ----------
    problem
        On the CPU, in float64 if it is exact: for references and initial states.
    working
        In the dtype and on the device in which methods run.
    dtype
        That dtype.
    """

    problem: Problem
    working: Problem
    dtype: torch.dtype


def prepared(name: str, dtype: str | None, device: torch.device) -> Prepared:
    """Return the problem of a name in ``PROBLEMS``, or that of a checkpoint.

    Parameters
    ----------
    name
        The name, or the path of the checkpoint, which ends in ``.safetensors``.
    dtype
        A name in ``DTYPES``; None is what suits the problem: float64, and float32 for networks.
    device
        Where methods will run.

    Raises
    ------
    ValueError
        If there is no such problem, with a sentence for the user.
    """
    if name in PROBLEMS:
        problem = PROBLEMS[name]()
    elif name.endswith(".safetensors"):
        problem = checkpoint(Path(name))
    else:
        known = ", ".join(PROBLEMS)
        raise ValueError(f"unknown problem {name!r}; choose from {known}, or type the path of a checkpoint")
    chosen = DTYPES[dtype] if dtype else problem.dtype
    exact = torch.promote_types(problem.dtype, chosen)
    return Prepared(
        problem.to(torch.empty(0, dtype=exact)),
        problem.to(torch.empty(0, dtype=chosen, device=device)),
        chosen,
    )


def checkpoint(path: Path) -> Problem:
    """Return the network of a checkpoint, with the head that lies beside it as ``NAME-head.safetensors``.

    Raises
    ------
    problems.images.checkpoints.CheckpointError
        If a file cannot be used.
    """
    head = path.with_name(f"{path.stem}-head.safetensors")
    return load(path, head if head.exists() else None)[0]


def has_head(model: Model) -> bool:
    """Return whether a model has a distilled head."""
    try:
        return model.distilled is not None
    except ValueError:
        return False


def latents(problem: Problem, samples: int, seed: int) -> Tensor:
    """Return ``samples`` states at the start of the schedule, shape (samples, *event), float64.

    Drawn from the prior N(0, s²I) on the CPU, so that they are the same on every device and in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, *problem.event_shape)
    return problem.schedule.prior_std * torch.randn(shape, generator=generator, dtype=torch.float64)


def between(problem: P, start: float, stop: float) -> P:
    """Return the same problem with its schedule cut to [stop, start], the times that all grids cover.

    Raises
    ------
    ValueError
        If that is not an interval inside the schedule's own.
    """
    schedule = problem.schedule
    if not schedule.stop <= stop < start <= schedule.start:
        raise ValueError(
            f"{schedule.stop:g} <= stop < start <= {schedule.start:g} must hold, "
            f"which stop = {stop:g}, start = {start:g} do not"
        )
    part = copy.copy(problem)
    part.schedule = dataclasses.replace(schedule, start=start, stop=stop)  # type: ignore[type-var]
    return part
