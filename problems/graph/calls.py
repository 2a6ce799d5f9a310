"""A call of an operator in a graph, some arguments of which have Taylor coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

Push = Callable[..., Any]
"""Takes the next coefficient of every moving argument, returns that of the result."""


class NoGraphError(ValueError):
    """A network of which no exact derivatives can be had; the message is one sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; methods that need no derivatives still run")


class NoRuleError(NoGraphError):
    """An operator in a network has no rule for power series; the message is one sentence."""

    def __init__(self, target: object, why: str = "") -> None:
        reason = f" {why}" if why else ""
        super().__init__(
            f"the network calls {name_of(target)}{reason}, for which there is no rule of exact derivatives"
        )


class Call:
    """A call of an operator, in which some arguments move.

    Parameters
    ----------
    node
        The call in the graph.
    known
        The values of all arguments that do not move.
    dtype
        The precision of the path. Casts to a lower one are left out: they only round.

    Attributes
    ----------
    moving
        The arguments that move, in their order, without repetition.
    args
        The arguments, with the values of those that are known.
    """

    def __init__(self, node: Node, known: Mapping[Node, Any], dtype: torch.dtype) -> None:
        self.target: Any = node.target
        self.dtype = dtype
        self.moving = [parent for parent in node.all_input_nodes if parent not in known]

        self.args: tuple[Any, ...] = tuple(_filled(part, known) for part in node.args)
        self.kwargs: dict[str, Any] = {name: _filled(part, known) for name, part in node.kwargs.items()}
        self._first = self.moving == [*self.args[:1]] and not any(
            _moves(part) for part in (*self.args[1:], *self.kwargs.values())
        )

    def value(self, *coefficients: Any) -> Any:
        """Return the result for these values of the moving arguments."""
        if not coefficients:
            return self.target(*self.args, **self.kwargs)
        if self._first:
            return self.target(*coefficients, *self.args[1:], **self.kwargs)
        values = dict(zip(self.moving, coefficients, strict=True))
        args = [_filled(part, values) for part in self.args]
        kwargs = {name: _filled(part, values) for name, part in self.kwargs.items()}
        return self.target(*args, **kwargs)

    def moves(self, index: int) -> bool:
        """Return whether an argument moves."""
        return index < len(self.args) and isinstance(self.args[index], Node)


def _filled(part: Any, values: Mapping[Node, Any]) -> Any:
    """Return an argument with the values of nodes that have one; plain lists are read fastest."""
    if isinstance(part, Node):
        return values.get(part, part)
    return [_filled(inner, values) for inner in part] if isinstance(part, list | tuple) else part


def _moves(part: Any) -> bool:
    """Return whether there is a node in an argument."""
    return any(map(_moves, part)) if isinstance(part, list | tuple) else isinstance(part, Node)


def name_of(target: object) -> str:
    """Return the name of an operator as torch writes it."""
    return str(target)


Rule = Callable[[Call], Push]
"""Begins the expansion of a call: returns the push of its result."""
