"""Statistics of data in features, in files: means and covariances, as EDM and pytorch-fid keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.measure.metrics import Moments
from problems.console import UsageError
from problems.files import atomically
from problems.images import arrays

ENDLESS = 10**9
"""Number of data where a file does not say it."""


def written(path: Path, moments: Moments, features: str) -> Path:
    """Write statistics to an npz file: ``mu`` (d,), ``sigma`` (d, d), ``n`` and the name of the features.

    EDM and pytorch-fid read the first two, float64, the covariance unbiased.

    Parameters
    ----------
    path
        The file, which ends in .npz.
    moments
        Of the data.
    features
        What they are features of.
    """
    known = {"mu": moments.mean, "sigma": moments.covariance, "n": moments.n, "features": features}
    return atomically(path, lambda file: np.savez(file, **known))  # type: ignore[arg-type]


def read(path: Path, features: str, d: int) -> Moments:
    """Return the statistics in an npz file with ``mu`` and ``sigma``; nothing in it is executed.

    Parameters
    ----------
    path
        The file.
    features, d
        Name and dimension of the features that they have to be of.

    Raises
    ------
    UsageError
        If there are none, or they are of other features.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of statistics")
    try:
        found = arrays.read(path)
        mu, sigma = (np.asarray(found[name], dtype=np.float64) for name in ("mu", "sigma"))
        n, said = int(found.get("n", ENDLESS)), str(found.get("features", features))
    except Exception as error:
        raise UsageError(f"{path} holds no statistics; an npz file with mu and sigma is wanted") from error
    if said != features:
        raise UsageError(f"{path} holds statistics of {said}, not of {features}; name other --features")
    if mu.shape != (d,) or sigma.shape != (d, d):
        raise UsageError(
            f"{path} holds mu {mu.shape} and sigma {sigma.shape}, and {features} have {d} dimensions"
        )
    if n < 2 or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UsageError(f"{path} holds no finite statistics of at least two data")
    if not np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-8 * np.abs(sigma).max(initial=0.0)):
        raise UsageError(f"{path} holds a sigma that is not symmetric")
    return Moments(n, mu, (n - 1) * 0.5 * (sigma + sigma.T))


def is_statistics(path: str | Path) -> bool:
    """Return whether a file holds mu and sigma, by its content."""
    return arrays.is_archive(Path(path)) and {"mu", "sigma"} <= arrays.read(Path(path)).keys()
