"""Steps that are equal in the cube root of γ: a grid."""

from torch import Tensor

from analysis.api import Grid
from problems.schedule import Schedule
from solvers.grids import edm


def cube_roots(steps: int, schedule: Schedule) -> Tensor:
    """Return the times of so many steps, (steps + 1,), from the start of the schedule to its end."""
    return edm(steps, schedule, 3.0, schedule.start, schedule.stop)


EDM3 = Grid("edm3", cube_roots)
