"""Options of a maker's own configuration, each read by its name and refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from problems.images.checkpoints import CheckpointError

C = TypeVar("C")


@dataclass(frozen=True)
class Options:
    """A configuration in sections, of a network whose file does not describe it.

    A section that is missing is read from the top level, so a section may be given alone.

    Attributes
    ----------
    path
        The file of the network, for messages.
    config
        Values or sections by name.
    """

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, config: Mapping[str, Any] | None) -> Options:
        """Return the options of a file, or raise ``CheckpointError`` if there is no configuration."""
        if config is None:
            raise CheckpointError(
                f"{path} does not say what its network looks like; put its maker's configuration into "
                f"{path.stem}.config.json beside it, or give it as config="
            )
        return cls(path, config)

    def has(self, section: str) -> bool:
        """Return whether there is such a section."""
        return isinstance(self.config.get(section), Mapping)

    def get(self, name: str, kind: Callable[[Any], C], *default: C) -> C:
        """Return an option.

        Parameters
        ----------
        name
            Section and name, as in ``model.nf``.
        kind
            Checks and converts a value; raises a ``ValueError`` that says what is read.
        default
            What an option is that is missing; without it, it must be given.

        Raises
        ------
        CheckpointError
            If the option is missing or has a value that is not read.
        """
        section, _, key = name.partition(".")
        values = self.config[section] if self.has(section) else self.config
        if key not in values:
            if default:
                return default[0]
            raise CheckpointError(f"the configuration of {self.path} does not say {name}; add it")
        try:
            return kind(values[key])
        except ValueError as error:
            raise CheckpointError(
                f"the configuration of {self.path} says {name} = {values[key]!r}; {error} is read"
            ) from None

    def only(self, section: str, known: Collection[str], elsewhere: Collection[str] = ()) -> None:
        """Refuse options of a section that are unknown, because they could change the network.

        Parameters
        ----------
        section
            The section; the whole configuration if it is missing.
        known
            Names in the section.
        elsewhere
            Names of other sections, which are allowed beside them at the top level.
        """
        if self.has(section):
            found = set(self.config[section])
        else:
            found = {name for name, value in self.config.items() if not isinstance(value, Mapping)}
            found -= set(elsewhere)
        unknown = sorted(found - set(known))
        if unknown:
            raise CheckpointError(
                f"the configuration of {self.path} has the unknown option {section}.{unknown[0]}; "
                f"remove it if it does not change the network (read are {', '.join(sorted(known))})"
            )


def flag(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(value: Any) -> int:
    """Return a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a positive whole number")
    return value


def number(value: Any) -> float:
    """Return a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < float("inf"):
        raise ValueError("a positive number")
    return float(value)


def wholes(value: Any) -> tuple[int, ...]:
    """Return positive whole numbers."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of positive whole numbers")
    return tuple(whole(one) for one in value)


def numbers(value: Any) -> tuple[float, ...]:
    """Return positive numbers."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of positive numbers")
    return tuple(number(one) for one in value)


def among(known: Mapping[str, C]) -> Callable[[Any], C]:
    """Return the check that a value is one of some names, in small or capital letters."""

    def kind(value: Any) -> C:
        for name, meaning in known.items():
            if isinstance(value, str) and value.lower() == name.lower():
                return meaning
        raise ValueError(" or ".join(known))

    return kind


def optional(kind: Callable[[Any], C]) -> Callable[[Any], C | None]:
    """Return the check that a value is none, or of a kind."""
    return lambda value: None if value is None else kind(value)


def exactly(wanted: C) -> Callable[[Any], C]:
    """Return the check that a value is the only one that is read."""

    def kind(value: Any) -> C:
        if value != wanted:
            raise ValueError(f"{wanted!r} alone")
        return wanted

    return kind
