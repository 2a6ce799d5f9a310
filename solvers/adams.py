"""Linear multistep methods: Adams–Bashforth, with derivatives, on any grid and any clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from solvers.clock import Clock, Index, Own, as_float, hermite_weights
from solvers.interface import Equation, LinearRule, Node, Past, Scalar, Solver, along


@dataclass(frozen=True)
class Adams(LinearRule):
    """The k-step explicit Adams method with p derivatives at each node, y ← y + Σⱼᵢ cⱼᵢ y⁽ⁱ⁺¹⁾(s_{n-j}).

    The weights are those of the integrated Hermite interpolant through the last k nodes, computed for the
    grid at hand. Adams(1, p) is Taylor(p); Adams(k) is Adams–Bashforth on a variable grid; Adams(2, 2) costs
    per step what TTM-2 costs and has order 4. Other clocks give S-PNDM and F-PNDM (``Index``, started by
    Heun or RK4), DPM-Solver++(2M) (``LogSNR`` on the data form) and DEIS (``Exact(Time())``).

    Parameters
    ----------
    k
        Number of nodes, the present one included.
    p
        Derivatives used at each node.
    clock
        The variable in which the nodes are laid.
    start
        The method for the first k - 1 steps; without one, the method with as many nodes as there are.

    Raises
    ------
    ValueError
        If k or p is not positive, or derivatives are to be used on a foreign clock.
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
        """k p where the clock allows it and the starting steps are accurate enough."""
        return min(self.local_order - 1, self.starting_order)

    @property
    def local_order(self) -> int:
        """One more than k p where the clock allows it."""
        return int(min(self.k * self.p, self.clock.limit)) + 1

    @property
    def starting_order(self) -> int:
        """That of the starting method, or of the first step with a single node."""
        if self.k == 1:
            return self.local_order
        return min(self.start.local_order, self.start.starting_order) if self.start else self.p + 1

    @property
    def rough_order(self) -> int:
        """1 on the bare step index, where weights for equal steps are wrong by a constant factor."""
        return 1 if isinstance(self.clock, Index) and self.k > 1 else self.order

    @property
    def reach(self) -> int:
        """k - 1."""
        return self.k - 1

    def weights(self, eq: Equation, s1: float, nodes: Sequence[float]) -> list[list[float]]:
        """Return the weights of the Hermite rule through the nodes, as they lie on the clock."""
        c = hermite_weights(self.clock.measure(eq, s1, nodes, self.p * len(nodes)), self.p)
        h = s1 - nodes[0]
        return [[h ** (i + 1) * w for i, w in enumerate(row)] for row in c]

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Take one step; while the past is too short, with the starting method."""
        if len(past) < self.reach and self.start is not None:
            return self.start.step(eq, y, s0, s1, past)
        node = Node(s0, eq.jet(y, s0, self.p), y)
        nodes = (node, *past[: self.reach])
        weights = self.weights(eq, as_float(s1), [as_float(n.s) for n in nodes])
        for n, row in zip(nodes, weights, strict=True):
            # A start may remember more derivatives than are used here, but not fewer.
            for derivative, weight in zip(n.jet[: self.p], row, strict=True):
                y = along(y, weight, derivative)
        return y, node
