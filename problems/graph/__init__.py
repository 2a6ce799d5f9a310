"""Taylor series through the graph of any torch module; ``Traced`` is where to begin."""

from problems.graph.calls import NoGraphError, NoRuleError
from problems.graph.trace import Expansion, Traced

__all__ = ["Expansion", "NoGraphError", "NoRuleError", "Traced"]
