"""The one interface: a solver asks an equation for the derivatives of its solution at a point, a jet.

Everything else (coordinates, network, how derivatives are got, guidance, the bill) is behind that question,
so this module, and with it every solver, knows nothing of diffusion models beyond a noise schedule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

Scalar = float | Tensor
"""A real number, or a tensor of them (one per trajectory) that broadcasts against the states."""


class Schedule(Protocol):
    """What grids, clocks and methods that add noise need to know of a noise schedule."""

    @property
    def start(self) -> float:
        """The time at which sampling starts, beyond which the model is not known."""

    def alpha(self, t: Any) -> Any:
        """Return the signal coefficient α at time t."""

    def gamma(self, t: Any) -> Any:
        """Return the noise-to-signal ratio σ/α at time t."""

    def time(self, gamma: Any) -> Any:
        """Return the time at which the noise-to-signal ratio is ``gamma``."""


class Equation(Protocol):
    """A differential equation dy/ds = f(y, s), plus noise if it is a stochastic one."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule behind the equation."""

    @property
    def spent(self) -> Any:
        """The bill so far; has a field ``nfe``."""

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (f, df/ds, …), ``order`` entries: the derivatives of the solution through (y, s)."""

    def eps(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the noise ε that the model sees in the state."""

    def spread(self, s: Scalar) -> Scalar:
        """Return g(s), with which a Brownian path in s enters y; zero for an ODE."""

    def kick(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the noise g(s0) √|s1 - s0| z that the equation adds to y over [s0, s1]; zero for an ODE."""

    def normal(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return standard normal numbers of the interval [s0, s1], increments of a Brownian path."""

    def fresh(self, y: Tensor, s: Scalar, stream: int = 1) -> Tensor:
        """Return standard normal numbers of a place, independent of the path and of other streams."""

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the equation of some states of a batch of ``of``, billed in proportion."""

    def s(self, t: Any) -> Any:
        """Return the independent variable at time t."""

    def t(self, s: Any) -> Any:
        """Return the time at which the independent variable is s."""

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return the equation's coordinates y of the state x at time t."""

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return the state x whose coordinates at time t are y."""


class Node(NamedTuple):
    """One evaluation of the equation, remembered.

    Attributes
    ----------
    s
        Where.
    jet
        The derivatives of the solution there.
    y
        The state from which the step went on, the one that was evaluated or its correction; for methods
        that correct it in turn.
    """

    s: Scalar
    jet: tuple[Tensor, ...]
    y: Tensor | None = None


Past = tuple[Node, ...]
"""The nodes before the present one, newest first."""


def along(y: Tensor, h: Scalar, slope: Tensor) -> Tensor:
    """Return y + h slope, in one operation."""
    if isinstance(h, Tensor):
        return torch.addcmul(y, h.to(y), slope)
    return torch.add(y, slope, alpha=h)


class Solver(ABC):
    """A numerical method: how is one step taken?

    A solver keeps no state. What a multistep method remembers is handed in and out by value, so its local
    error can be measured with an exact past.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of global convergence in the step size, on smooth problems and smooth families of grids.

        Of random methods it is that of the law at the end, from the exact law at the begin.
        """

    @property
    def local_order(self) -> int:
        """Order of the error of a step from exact states: one more, unless the start holds a method back."""
        return self.order + 1

    @property
    def starting_order(self) -> int:
        """Order of the error of the least accurate step while the past is too short."""
        return self.local_order

    @property
    def rough_order(self) -> int:
        """Order of global convergence where neighbouring steps stay unequal, however many there are."""
        return self.order

    @property
    def p(self) -> int:
        """How many derivatives the method asks for at the begin of a step."""
        return 1

    @property
    def reach(self) -> int:
        """How many past nodes the method looks back on."""
        return 0

    @property
    def random(self) -> bool:
        """Whether the method adds noise of its own."""
        return False

    @abstractmethod
    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take one step.

        Parameters
        ----------
        eq
            The equation.
        y
            The solution at ``s0``, any batch of states.
        s0, s1
            Begin and end of the step, in either direction.
        past
            Up to ``reach`` nodes before ``s0``, newest first; fewer at the start of a march.

        Returns
        -------
        The solution at ``s1``, and the node at ``s0`` to be remembered.
        """


class LinearRule(Solver):
    """A solver whose step is a fixed linear combination of derivatives at the present node and past ones.

    Its local error has a known leading term: see ``analysis.lte``.
    """

    @abstractmethod
    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the weights of a step, given a full past.

        Parameters
        ----------
        eq
            The equation, which knows how to read clocks.
        s1
            End of the step.
        nodes
            s0 and the places before it, newest first.

        Returns
        -------
        One row per node with the weights of y', y'', … there.
        """
