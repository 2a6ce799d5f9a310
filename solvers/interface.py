"""The interface between solvers and equations: a solver asks an equation for a jet.

A jet is the tuple of derivatives of the solution at a point. Coordinates, network, computation of the
derivatives, guidance and bill are behind that question, so no solver knows more of a diffusion model than its
noise schedule. A stochastic solver also asks for random numbers; see ``Noisy``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor

Scalar = float | Tensor
"""A real number, or a tensor with one number for each trajectory that broadcasts against the states."""


class Schedule(Protocol):
    """The part of a noise schedule that grids, clocks and stochastic methods use."""

    @property
    def start(self) -> float:
        """The time at which sampling starts; the model is not evaluated beyond it."""

    def alpha(self, t: Any) -> Any:
        """Return the signal coefficient α at time t."""

    def gamma(self, t: Any) -> Any:
        """Return the noise-to-signal ratio σ/α at time t."""

    def time(self, gamma: Any) -> Any:
        """Return the time at which the noise-to-signal ratio is ``gamma``."""


class Equation(Protocol):
    """A differential equation dy/ds = f(y, s), the drift of a stochastic one included."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the model."""

    @property
    def spent(self) -> Any:
        """The bill so far; its field ``nfe`` is the number of score evaluations per sample."""

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return (f, df/ds, …), the first ``order`` derivatives of the solution through (y, s)."""

    def eps(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the noise ε that the model predicts for the state y."""

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the equation of the states ``rows`` of a batch of ``of``, billed in proportion."""

    def s(self, t: Any) -> Any:
        """Return the independent variable at time t."""

    def t(self, s: Any) -> Any:
        """Return the time at which the independent variable is s."""

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return the equation's coordinates y of the state x at time t."""

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return the state x whose coordinates at time t are y."""


class Noisy(Equation, Protocol):
    """An equation with a source of noise, as a stochastic method needs it; see ``noisy``."""

    def spread(self, s: Scalar) -> Scalar:
        """Return g(s) of dy = f ds + g dW; zero if the equation itself has no noise."""

    def kick(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return the noise g(s0) √|s1 - s0| z that the equation adds to y over [s0, s1]."""

    def normal(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return z, of the shape of y: the normalised increment of a Brownian path over [s0, s1]."""

    def fresh(self, y: Tensor, s: Scalar, stream: int = 1) -> Tensor:
        """Return standard normal numbers of the place s, independent of the path and of other streams."""


def noisy(eq: Equation) -> Noisy:
    """Return ``eq`` as an equation with a source of noise.

    Raises
    ------
    ValueError
        If it has none.
    """
    if not hasattr(eq, "normal"):
        raise ValueError(f"{type(eq).__name__} has no source of noise, which a stochastic method needs")
    return cast(Noisy, eq)


class Node(NamedTuple):
    """One evaluation of the equation, kept for later steps.

    Attributes
    ----------
    s
        Place of the evaluation.
    jet
        Derivatives of the solution at s.
    y
        State at s from which the next step started: the one evaluated, or its correction. Correctors read it.
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

    A solver keeps no state. A multistep method takes its past as an argument of ``step`` and returns the new
    node, so its local error can be measured with an exact past.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of global convergence in the step size, on smooth problems and smooth families of grids.

        The order of a random method is its weak order, from the exact law at the starting time.
        """

    @property
    def local_order(self) -> int:
        """Order of the error of one step from exact states, with a full past."""
        return self.order + 1

    @property
    def starting_order(self) -> int:
        """Order of the error of the least accurate step while the past is too short."""
        return self.local_order

    def well_started(self) -> Solver:
        """Return the same method with first steps of no lower order than the rest; itself by default.

        Its ``order`` is the one that shows where the first steps of a method are not felt, as from the prior.
        """
        return self

    @property
    def rough_order(self) -> int:
        """Order of global convergence on grids whose neighbouring steps stay unequal under refinement."""
        return self.order

    def on_own_clock(self) -> Solver:
        """Return the same method with its stages placed in the equation's own variable; itself by default."""
        return self

    @property
    def even_order(self) -> int:
        """Order of global convergence on grids with equal steps in the equation's own variable."""
        return self.order

    @property
    def geometric_order(self) -> int:
        """Order of global convergence on grids whose steps in the equation's own variable have one ratio."""
        return self.order

    @property
    def p(self) -> int:
        """Number of derivatives that the method evaluates at the beginning of a step."""
        return 1

    @property
    def reach(self) -> int:
        """Number of past nodes that the method uses."""
        return 0

    @property
    def random(self) -> bool:
        """Whether the method adds noise of its own, beyond that of the equation."""
        return False

    @property
    def follows_sde(self) -> bool:
        """Whether the method converges to the reverse SDE, along the Brownian path of each sample.

        False of a method without noise of its own, which converges to the solution of its equation.
        """
        return False

    @property
    def coupled(self) -> bool:
        """Whether the steps of one state depend on the other states of its batch.

        The batch of a coupled method cannot be split without a change of the results.
        """
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
            Beginning and end of the step, in either direction.
        past
            Up to ``reach`` nodes before ``s0``, newest first; fewer in the first steps of a march.

        Returns
        -------
        The solution at ``s1``, and the node at ``s0``, which ``march`` adds to the past.
        """


class LinearRule(Solver):
    """A solver whose step adds a linear combination of derivatives at the present node and past ones.

    The leading term of its local error is known; see ``analysis.lte``.
    """

    @abstractmethod
    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the weights of a step.

        Parameters
        ----------
        eq
            The equation, on which clocks are read.
        s1
            End of the step.
        nodes
            s0 and the places before it, newest first.

        Returns
        -------
        One row per node: the weights of y', y'', … at the node.
        """
