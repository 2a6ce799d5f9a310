"""The table of grids: one line for each name that ``--grids`` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from problems.schedule import Schedule
from problems.tables import Table
from solvers.grids import (
    alternating,
    cosine,
    edm,
    leading,
    linspace,
    listed,
    log_snr,
    power,
    shifted,
    sigmoid,
    trailing,
    visiting,
)


@dataclass(frozen=True)
class Grid:
    """A named family of grids: the times of a schedule in a given number of steps.

    Attributes
    ----------
    name
        The name.
    times
        Makes the times.
    variable
        The variable in which the steps are equal, where a form has it.
    smooth
        Whether the sizes of neighbouring steps become equal as their number grows.
    geometric
        Whether γ is divided by the same number in every step.
    steps
        The one number of steps that there is, if it is a list of times.
    """

    name: str
    times: Callable[[int, Schedule], Tensor] = field(repr=False, compare=False)
    variable: str | None = None
    smooth: bool = True
    geometric: bool = False
    steps: int | None = None


def in_power(rho: float, steps: int, schedule: Schedule) -> Tensor:
    """Return the power striding over a whole schedule; see ``solvers.grids.power``."""
    return power(steps, rho, schedule.start, schedule.stop)


def as_listed(times: tuple[float, ...], steps: int, schedule: Schedule) -> Tensor:
    """Return given times as a grid of a whole schedule; see ``solvers.grids.listed``."""
    return listed(times, steps, schedule.start, schedule.stop)


def in_shift(shift: float, steps: int, schedule: Schedule) -> Tensor:
    """Return the shifted striding over a whole schedule; see ``solvers.grids.shifted``.

    Raises
    ------
    ValueError
        If the times of the schedule do not lie in [0, 1], for which it is made.
    """
    if schedule.start > 1.0:
        raise ValueError(
            f"the grid shift{shift:g} needs times between 0 and 1, and those of {type(schedule).__name__} go "
            f"up to {schedule.start:g}: use log-snr, or on a table leading, trailing or linspace"
        )
    return shifted(steps, shift, schedule.start, schedule.stop)


def at_nodes(spacing: Callable[[int, int], Tensor], steps: int, schedule: Schedule) -> Tensor:
    """Return the nodes of a table that a spacing visits; see ``solvers.grids.visiting``.

    Raises
    ------
    ValueError
        If the schedule has no nodes.
    """
    if not isinstance(schedule, Table):
        raise ValueError(
            f"the grids leading, trailing and linspace need a table of beta, which {type(schedule).__name__} "
            "is not: use linear, or a problem on a Table"
        )
    return visiting(lambda n: spacing(n, schedule.nodes), steps, schedule.start, schedule.stop)


def striding(rho: float) -> Grid:
    """Return the grid t_n = (start^(1/ρ) + n/N (stop^(1/ρ) - start^(1/ρ)))^ρ of any ρ."""
    return Grid(f"rho{rho:g}", partial(in_power, rho))


def shift(s: float) -> Grid:
    """Return the grid t = s u/(1 + (s - 1) u) of equal steps of u, of any s."""
    return Grid(f"shift{s:g}", partial(in_shift, s))


def leading_from(offset: int) -> Grid:
    """Return the grid of nodes of spacing "leading" with any ``steps_offset``."""
    name = f"leading{offset}" if offset else "leading"
    return Grid(name, partial(at_nodes, partial(leading, offset=offset)), smooth=False)


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("linear", partial(in_power, 1.0), variable="t"),
        striding(1.5),
        Grid("quadratic", partial(in_power, 2.0)),
        striding(2.5),
        Grid(
            "log-snr",
            lambda n, schedule: log_snr(n, schedule, schedule.start, schedule.stop),
            geometric=True,
        ),
        Grid("edm", lambda n, schedule: edm(n, schedule, 7.0, schedule.start, schedule.stop)),
        Grid(
            "gamma",
            lambda n, schedule: edm(n, schedule, 1.0, schedule.start, schedule.stop),
            variable="gamma",
        ),
        Grid("cosine", lambda n, schedule: cosine(n, schedule, schedule.start, schedule.stop)),
        Grid("sigmoid", lambda n, schedule: sigmoid(n, schedule, 3.0, schedule.start, schedule.stop)),
        shift(3.0),
        # What samplers visit of a table of beta; the second with the steps_offset of Stable Diffusion.
        leading_from(0),
        leading_from(1),
        Grid("trailing", partial(at_nodes, trailing), smooth=False),
        Grid("linspace", partial(at_nodes, linspace), smooth=False),
        Grid("rough", lambda n, schedule: alternating(n, 2.0, schedule.start, schedule.stop), smooth=False),
    )
}
"""The grids by name; the steps of the last alternate in size, which no sampler wants: it is there for the
certificates."""


QUADRATIC = GRIDS["quadratic"]
"""The paper's striding."""

WHOLE = Grid("own", lambda _, schedule: torch.tensor([schedule.start, schedule.stop], dtype=torch.float64))
"""The grid of a method that chooses its own steps."""


def grid_of(times: str) -> Grid:
    """Return the grid that is a list of times, typed with commas between them: ``1,0.4,0.1,0.001``.

    Raises
    ------
    ValueError
        If they are no falling numbers. Asked for another number of steps, or on a schedule with other ends,
        the grid itself raises one.
    """
    try:
        values = tuple(float(word) for word in times.split(","))
    except ValueError:
        raise ValueError(f"{times!r} is no list of times; type numbers with commas between them") from None
    if len(values) < 2 or any(a <= b for a, b in pairwise(values)):
        raise ValueError(f"the times {times} do not fall; type at least two, from the noise to the data")
    return Grid(times, partial(as_listed, values), smooth=False, steps=len(values) - 1)
