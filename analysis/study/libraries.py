"""Which code is a library's, to be named by its version, and which is somebody's own, to be read."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from importlib import metadata

OWN = "genie-bench"
"""The distribution of this suite."""

SCRIPTS = ("", "__main__", "__mp_main__")


def package_version() -> str:
    """Return the version of this package."""
    try:
        return metadata.version(OWN)
    except metadata.PackageNotFoundError:
        return "uninstalled"


def library(module: str) -> str | None:
    """Return the name and version of the library that a module belongs to; None if it is somebody's own code.

    Libraries are the standard library, and distributions that were installed from an index (they have no
    ``direct_url.json``, see PEP 610) and do not require this suite.
    """
    return _library(module.split(".")[0])


@functools.cache
def _library(top: str) -> str | None:
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return "Python"
    if top == "pybind11_builtins":  # what pybind11 adds to the classes of a library, which is noted with them
        return top
    if top in SCRIPTS:
        return None
    found = _distribution(top)
    if found is None or found.read_text("direct_url.json") is not None or _named(found.name) == OWN:
        return None
    if any(_named(re.split(r"[\s;<>=!~\[(]", line)[0]) == OWN for line in found.requires or ()):
        return None
    return f"{found.name} {found.version}"


def _distribution(top: str) -> metadata.Distribution | None:
    """Return the distribution that a package came with; most have its name."""
    try:
        return metadata.distribution(top)
    except (metadata.PackageNotFoundError, ValueError):
        names: Iterable[str] = _tops().get(top, ())
        return next((metadata.distribution(name) for name in names), None)


@functools.lru_cache(maxsize=1)
def _tops() -> dict[str, list[str]]:
    return {top: list(names) for top, names in metadata.packages_distributions().items()}


def _named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
