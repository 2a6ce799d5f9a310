"""Linear multistep methods: Adams–Bashforth with any number of derivatives, on any grid and any clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from solvers.clock import Clock, Index, Own, as_float, hermite_weights
from solvers.interface import Equation, LinearRule, Node, Past, Scalar, Solver, along
from solvers.taylor import Taylor


@dataclass(frozen=True)
class Adams(LinearRule):
    """The k-step explicit Adams method with p derivatives at each node, y ← y + Σⱼᵢ cⱼᵢ y⁽ⁱ⁺¹⁾(s_{n-j}).

    The weights integrate the Hermite interpolant through the last k nodes, on the grid at hand. Adams(1, p)
    is Taylor(p). Adams(k) is Adams–Bashforth on a variable grid. Adams(2, 2) has order 4 at the cost per
    step of TTM-2. Other clocks give S-PNDM and F-PNDM (``Index``, started by Heun or RK4), DPM-Solver++(2M)
    (``LogSNR`` on the data form) and DEIS (``Exact(Time())``).

    Parameters
    ----------
    k
        Number of nodes, the present one included.
    p
        Number of derivatives used at each node.
    clock
        The variable in which the positions of the nodes are measured.
    start
        The method for the first k - 1 steps. Without one, they are taken with the nodes that there are.

    Raises
    ------
    ValueError
        If k or p is not positive, or if p > 1 on a clock other than ``Own()``.
    """

    k: int
    p: int = 1
    clock: Clock = Own()
    start: Solver | None = None

    def __post_init__(self) -> None:
        if self.k < 1 or self.p < 1:
            raise ValueError(f"an Adams method needs k >= 1 and p >= 1, not k = {self.k}, p = {self.p}")
        if self.p > 1 and not isinstance(self.clock, Own):
            raise ValueError("derivatives are taken in s, so with p > 1 the clock must be Own()")

    @property
    def order(self) -> int:
        """The least of k p, the limit of the clock, and the order of the error of the starting steps."""
        return min(self.local_order - 1, self.starting_order)

    @property
    def local_order(self) -> int:
        """One more than k p, or one more than the limit of the clock where that is less."""
        return int(min(self.k * self.p, self.clock.limit)) + 1

    @property
    def starting_order(self) -> int:
        """Order of the error of the worst step of the starting method; without one, of the first step."""
        if self.k == 1:
            return self.local_order
        return min(self.start.local_order, self.start.starting_order) if self.start else self.p + 1

    def well_started(self) -> Adams:
        """Return the same method started by Taylor(k p), whose steps are of the order of the rule."""
        return (
            self if self.starting_order >= self.local_order else replace(self, start=Taylor(self.k * self.p))
        )

    @property
    def rough_order(self) -> int:
        """1 on the bare step index with k > 1, whose weights do not fit unequal steps."""
        return 1 if isinstance(self.clock, Index) and self.k > 1 else self.order

    @property
    def even_order(self) -> int:
        """On the bare step index the order on ``Own()``, as the weights for equal steps are then exact.

        The stages of a Runge–Kutta start count as placed in the equation's own variable too.
        """
        if not isinstance(self.clock, Index):
            return self.order
        start = None if self.start is None else self.start.on_own_clock()
        return replace(self, clock=Own(), start=start).order

    @property
    def reach(self) -> int:
        """The k - 1 nodes before the present one."""
        return self.k - 1

    @property
    def coupled(self) -> bool:
        """Whether the starting method couples the states of a batch."""
        return self.start is not None and self.start.coupled

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the weights of the Hermite rule whose nodes are measured on the clock."""
        c = hermite_weights(self.clock.measure(eq, s1, nodes, self.p * len(nodes)), self.p)
        h = s1 - nodes[0]
        return [[h ** (i + 1) * w for i, w in enumerate(row)] for row in c]

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take one step, with the starting method while the past is too short."""
        if len(past) < self.reach and self.start is not None:
            return self.start.step(eq, y, s0, s1, past)
        node = Node(s0, eq.jet(y, s0, self.p), y)
        nodes = (node, *past[: self.reach])
        weights = self.weights(eq, as_float(s1), [as_float(n.s) for n in nodes])
        for n, row in zip(nodes, weights, strict=True):
            # The nodes of the starting method may hold more derivatives than p, but not fewer.
            for derivative, weight in zip(n.jet[: self.p], row, strict=True):
                y = along(y, weight, derivative)
        return y, node
