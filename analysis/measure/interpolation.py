"""Strips of images: pairs sent to their latents, mixed along a path between them, and sent back."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.measure.case import Case
from analysis.measure.features import Features
from analysis.methods import Method


@lru_cache(maxsize=2)
def pairs(case: Case) -> Tensor:
    """Return pairs of images at the end of the schedule: the first of all pairs, then the second.

    Returns
    -------
    Tensor of shape (2 * samples, *event), float64.
    """
    source = torch.Generator().manual_seed(case.seed)
    return case.draw(2 * case.samples, case.problem.schedule.stop, source)


def places(points: int) -> list[float]:
    """Return the places b in [0, 1] of the images of a strip."""
    return [i / (points - 1) for i in range(points)]


def mixed(latents: Tensor, points: int) -> Tensor:
    """Return the latents z_b = √(1-b) z₀ + √b z₁ along the paths between pairs (Eq. 82).

    Parameters
    ----------
    latents
        The latents z₀ of all pairs and then z₁, shape (2n, *event).
    points
        Number of places b.

    Returns
    -------
    Tensor of shape (points, n, *event). The squares of the two weights add up to one, so latents that are
    independent and normal have mixtures that are normal with the same variance.
    """
    first, second = latents.chunk(2)
    return torch.stack([(1.0 - b) ** 0.5 * first + b**0.5 * second for b in places(points)])


def exact_strips(case: Case, points: int) -> dict[str, Any]:
    """Return what the exact flow makes of pairs of images, there and back.

    Parameters
    ----------
    case
        The pairs; see ``pairs``.
    points
        Number of images in a strip.

    Returns
    -------
    Arrays by name: the denoised strips (points, samples, *event), whose ends are those of the denoised pairs;
    the error of the reference, which is the larger of two: the one that it states for the way back, and the
    distance (L2, the largest) by which it missed the pairs.
    """
    schedule, images = case.problem.schedule, pairs(case)
    latents = case.solved(images, schedule.start, begin=schedule.stop).x[-1]
    between = mixed(latents, points)
    decoded = case.solved(between.flatten(0, 1))
    found = case.denoise(decoded.x[-1]).reshape(between.shape)
    ends = torch.stack(case.denoise(images).chunk(2))
    missed = float((found[[0, -1]] - ends).flatten(2).norm(dim=2).max())
    found[[0, -1]] = ends
    return {"strips": found.numpy(), "error": max(decoded.error, missed)}


def strip_errors(
    case: Case,
    method: Method,
    encode_steps: int,
    steps: int,
    target: NDArray[Any],
    features: Features | None,
) -> dict[str, Any]:
    """Measure how far the images of a method's strips are from those of the exact ones.

    Parameters
    ----------
    case
        The pairs; see ``pairs``.
    method
        How they are encoded and decoded, with denoising at the end.
    encode_steps, steps
        Steps of the way there, and of the way back.
    target
        The exact strips, (points, samples, *event).
    features
        Features of images, in which errors are measured too.

    Returns
    -------
    Arrays by name: the L2 errors (points, samples), those in features, the strip of the first pair, the NFE
    of the way there, the bill of the way back.
    """
    latents, there = case.encode(method, encode_steps, pairs(case))
    # Mixed in the precision in which they were found.
    between = mixed(case.cast(latents), len(target))
    ends, back = case.sample(method, steps, between.flatten(0, 1))
    exact = torch.from_numpy(target)
    found = ends.reshape(exact.shape)
    arrays: dict[str, Any] = {
        "error": (found - exact).flatten(2).norm(dim=2).numpy(),
        "strip": found[:, 0].numpy(),
        "encode_nfe": there.nfe,
        **asdict(back),
    }
    if features is not None:
        apart = features.of(found.flatten(0, 1)) - features.of(exact.flatten(0, 1))
        arrays["feature_error"] = apart.norm(dim=1).reshape(exact.shape[:2]).numpy()
    return arrays
