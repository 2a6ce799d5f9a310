"""The flow in the angle φ = arctan γ: a form."""

from analysis.api import Coordinates
from problems.forms import Flow
from problems.series import T, atan, cos, sin


class Angle(Flow):
    """y = x̄ cos φ, s = φ; where α² + σ² = 1, y is x and dy/dφ is the velocity v (Salimans & Ho 2022)."""

    def s(self, t: T) -> T:
        """Return arctan γ(t)."""
        return atan(self.schedule.gamma(t))

    def gamma(self, s: T) -> T:
        """Return tan s."""
        return sin(s) / cos(s)

    def scale(self, s: T) -> T:
        """Return cos s."""
        return cos(s)


ANGLE = Coordinates("angle", Angle, variable="angle")
