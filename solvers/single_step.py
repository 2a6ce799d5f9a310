"""Single-step exponential methods: DPM-Solver-2 and -3, DPM-Solver++ 2S and 3S."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.clock import LogSNR, Variable, as_float, hermite_weights
from solvers.interface import Equation, Node, Past, Scalar, Solver, along


@dataclass(frozen=True)
class SingleStep(Solver):
    """A one-step method that integrates the line through the first slope and the newest one.

    Its stages are placed at fractions of the step on a clock. Every stage, and the end of the step, is
    reached by integrating the line, on the clock, through the slope at s0 and that of the stage before. For
    the first stage the slope is constant. The methods are those of DPM-Solver (Lu et al. 2022a) and
    DPM-Solver++ (2022b):

    - one fraction r₁ and ``LogSNR()``: DPM-Solver-2 (Algorithm 4), by default with r₁ = ½; on the data form
      DPM-Solver++(2S). With ``Exact(LogSNR())`` it is the variant "taylor" of the authors' code.
    - two fractions r₁, r₂ and ``Exact(LogSNR())``: DPM-Solver-3 (Algorithm 5) with ⅓, ⅔; on the data form
      DPM-Solver++(3S).
    - ``Own()``: the midpoint rule (½), Ralston's (⅔) and Heun's (1) methods, Heun's third-order one (⅓, ⅔).

    Parameters
    ----------
    fractions
        Positions of the stages, as fractions of the step on the clock.
    clock
        The variable of the fractions and of the line.
    """

    fractions: tuple[float, ...] = (0.5,)
    clock: Variable = LogSNR()

    @property
    def order(self) -> int:
        """2, or 3 if the last of two or more stages is at ⅔; at most the limit of the clock.

        The mean over the step of the line through the slopes at 0 and ⅔ is exact for parabolas.
        """
        third = len(self.fractions) > 1 and abs(self.fractions[-1] - 2 / 3) < 1e-12
        return int(min(3 if third else 2, self.clock.limit))

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Evaluate the stages one after the other; the node returned has the first slope."""
        begin, end = as_float(s0), as_float(s1)
        first = Node(s0, eq.jet(y, s0), y)
        nodes = [first]
        for fraction in self.fractions:
            s = end if fraction == 1.0 else as_float(self.clock.between(eq, begin, end, fraction))
            nodes = [first, Node(s, eq.jet(self._line(eq, y, nodes, s), s))]
        return self._line(eq, y, nodes, end), first

    def _line(self, eq: Equation, y: Tensor, nodes: list[Node], s1: float) -> Tensor:
        """Return y plus the integral of the line through the nodes, from the first of them to s1."""
        places = [as_float(node.s) for node in nodes]
        weights = hermite_weights(self.clock.measure(eq, s1, places, len(nodes)), 1)
        for node, (weight,) in zip(nodes, weights, strict=True):
            y = along(y, (s1 - places[0]) * weight, node.jet[0])
        return y
