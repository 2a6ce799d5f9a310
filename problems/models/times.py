"""What networks are told of the time, as functions of the time of their schedule."""

from __future__ import annotations

from dataclasses import dataclass

from problems.schedule import Schedule
from problems.series import T, log


@dataclass(frozen=True)
class Affine:
    """The time offset + slope t.

    Attributes
    ----------
    slope, offset
        The two numbers.
    """

    slope: float
    offset: float = 0.0

    def __call__(self, t: T) -> T:
        """Return it for a float, tensor or series t."""
        return self.slope * t + self.offset


@dataclass(frozen=True)
class LogNoise:
    """A multiple of the logarithm of the noise-to-signal ratio.

    Attributes
    ----------
    schedule
        Gives γ at a time.
    factor, unit
        The network is told ``factor`` · log(γ / ``unit``).
    """

    schedule: Schedule
    factor: float = 1.0
    unit: float = 1.0

    def __call__(self, t: T) -> T:
        """Return the logarithm at a time, a float, tensor or series."""
        return self.factor * log(self.schedule.gamma(t) / self.unit)
