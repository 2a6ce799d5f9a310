"""The table of problems: one line for each name that ``--problem`` takes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from analysis.methods.plugins import extensible, installed, of_package
from problems import (
    VE,
    FlowMatching,
    Gaussian,
    Problem,
    SubVP,
    Table,
    digits_gaussians,
    digits_mixture,
    smooth_mixture,
    toy_mixture,
)
from problems.images.guided import GuidedImages
from problems.images.score import shipped
from problems.labelled import InTurn
from problems.models.naming import found, made

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "toy": toy_mixture,
    "toy-ve": lambda: toy_mixture(VE()),
    "toy-subvp": lambda: toy_mixture(SubVP()),
    "toy-flow": lambda: toy_mixture(FlowMatching()),
    "toy-table": lambda: toy_mixture(Table.linear()),
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
    # A network of CIFAR-10 averaged to 16 x 16, for all classes in turn, and the same with guidance.
    "cifar10-16": lambda: shipped("cifar10-16").labelled(InTurn(10)),
    "cifar10-16-guided": lambda: GuidedImages(shipped("cifar10-16"), 1.0),
}
"""Every problem of the suite by the name it is called by."""

_OWN = dict(PROBLEMS)

extensible("problems", PROBLEMS)

P = TypeVar("P", bound=Problem)
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def opened(name: str) -> Problem:
    """Return the problem that ``--problem`` names.

    Parameters
    ----------
    name
        A name in ``PROBLEMS``; the path of a file or folder that ``problems.load`` reads; or a function that
        returns a problem, as ``package.module:function`` or ``file.py:function``.

    Raises
    ------
    ValueError
        If there is no such problem, with a sentence for the user.
    """
    if name not in PROBLEMS:
        problem = found(name)
        if problem is not None:
            return problem
        installed()
    if name in PROBLEMS:
        return made(PROBLEMS[name])
    near = get_close_matches(name, PROBLEMS, n=3)
    guess = f"did you mean {' or '.join(near)}? Or " if near else ""
    raise ValueError(
        f"unknown problem {name!r}; {guess}type a name that --help lists, the path of a model, or "
        "file.py:function"
    )


def portable(name: str) -> str:
    """Return by what name another process can open a problem; empty if it cannot."""
    made = PROBLEMS.get(name)
    if made is not None:
        return name if made is _OWN.get(name) or of_package("problems", name) else ""
    where, colon, factory = name.rpartition(":")
    if Path(name).exists():
        return str(Path(name).resolve())
    return f"{Path(where).resolve()}:{factory}" if colon and where.endswith(".py") else name


def latents(problem: Problem, samples: int, seed: int) -> Tensor:
    """Return ``samples`` states at the start of a problem's schedule, shape (samples, *event), float64."""
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
