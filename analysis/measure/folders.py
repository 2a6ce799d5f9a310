"""Images compared with others, or put into statistics, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.measure import moments
from analysis.measure.comparison import Array, gathered, looks
from analysis.measure.features import Features, shaped
from analysis.measure.given import given
from analysis.measure.metrics import Moments
from analysis.measure.quality import Judge
from analysis.measure.shards import View, given_shards
from analysis.measure.statistics import Bootstrap
from analysis.study.cells import Cell, Result, Study
from problems.console import UsageError

WEIGHTS = 2 * 10**7
"""Weights of a bootstrap, at most, over all its resamples."""


def folder_quality(
    images: str | Path,
    data: str | Path,
    features: Sequence[str | Features] | None = None,
    *,
    device: str = "cpu",
    seed: int = 0,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return how far images are from data, both in folders or files, without any model.

    Parameters
    ----------
    images, data
        What ``given.given`` takes; the second also a file of statistics, which then is of the first of the
        features.
    features
        Names, see ``features.features``, or values; by default the shipped classifier of such images,
        if there is one, and pixels.
    device
        Where features are computed.
    seed
        Seed of the order in which images are taken: of many, 2,000 are looked at for precision, recall and
        the kernel distance.
    study
        Where features are kept; nowhere by default.

    Returns
    -------
    A row for each feature: ``images`` and ``data``, how many there are, and the columns of
    ``analysis.measure.quality.quality_of``.

    Raises
    ------
    UsageError
        If something cannot be read, or sizes differ.
    ArithmeticError
        If features cannot be computed.
    """
    one = given(images)
    statistics = moments.is_statistics(data)
    two = None if statistics else given(data)
    for these, path in ((one, images), (two, data)):
        if these is not None and len(these) < 4:
            raise UsageError(f"{path} holds {len(these)} images, which have no neighbours; give 4 or more")
    if two is not None and one.shape != two.shape:
        shapes = f"{tuple(one.shape)} and {tuple(two.shape)}"
        raise UsageError(f"images of {images} and {data} differ in shape, {shapes}; resize one of them")
    seen, _ = looks(shaped(one.shape), features, pixels=False)
    if statistics and len(seen) > 1:
        raise UsageError(f"{data} holds statistics of one kind of features; name one after --features")
    sides = [(one, images), *([] if two is None else [(two, data)])]
    groups = [
        given_shards(these, View(seen), len(these), seed, device, {"what": str(path)})
        for these, path in sides
    ]
    results = iter(_computed(study or Study(), [cell for group in groups for cell in group]))
    parts = [[next(results) for _ in group] for group in groups]
    bootstrap = Bootstrap(len(one), max(200, min(2000, WEIGHTS // len(one))))
    lines = []
    for look in seen:
        x = gathered(parts[0], look.name)
        known: Array | Moments
        if two is None:
            known = moments.read(Path(data), look.name, x.shape[1])
        else:
            known = gathered(parts[1], look.name)
        size = known.n if isinstance(known, Moments) else len(known)
        about = {"feature": look.name, "images": len(x), "data": size if size < moments.ENDLESS else None}
        lines.append({**about, **Judge(known, bootstrap)(x)})
    return pd.DataFrame(lines)


def folder_statistics(
    data: str | Path,
    features: Sequence[str | Features] | None = None,
    *,
    device: str = "cpu",
    study: Study | None = None,
) -> tuple[Moments, Features]:
    """Return the statistics of data in a folder or file, and the features, the first of those named.

    Parameters
    ----------
    data, features, device, study
        As in ``folder_quality``.
    """
    these = given(data)
    seen = looks(shaped(these.shape), features, pixels=False)[0][:1]
    cells = given_shards(these, View(seen), len(these), 0, device, {"what": str(data)})
    return Moments.of(gathered(_computed(study or Study(), cells), seen[0].name)), seen[0]


def _computed(study: Study, cells: Sequence[Cell]) -> list[Result]:
    """Return the results of cells of which none may fail."""
    results = study.run("fid", cells)
    for result in results:
        if result.failure:
            raise ArithmeticError(f"features of {result.config['what']} cannot be computed: {result.failure}")
    return results


def notes_of(*paths: str | Path) -> list[str]:
    """Return what has to be said of data wherever a distance to them is printed."""
    data = [given(path) for path in paths if not moments.is_statistics(path)]
    return list(dict.fromkeys(these.note for these in data if these.note))
