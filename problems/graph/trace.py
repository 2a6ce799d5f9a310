"""The graph of a torch function, and the Taylor coefficients of its output along a path of its input.

A function is run once and the operators of torch that it calls are recorded. An operator falls into one of
four kinds, by what its arguments are:

- constant: weights and what follows from them; computed once, when the function is traced;
- still: what follows from inputs that stay as they are along a path, such as labels; once for each path;
- settled: comparisons of what moves, such as the mask of an activation; once for each path, because they are
  constant almost everywhere;
- moving: everything else. Its coefficients are computed in one pass through the graph for each order.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from problems.graph import decompositions
from problems.graph.calls import Call, NoGraphError, NoRuleError, Push
from problems.graph.rules import RULES, SETTLED


class Traced:
    """The graph of a function of tensors, for inputs of one shape, dtype and device.

    Parameters
    ----------
    function
        Takes moving and then still tensors, and returns a tensor. Its control flow must not depend on values
        of tensors. It is run once.
    moving
        Inputs that have Taylor coefficients along a path.
    still
        Inputs that are the same along the whole path.

    Attributes
    ----------
    largest
        Most numbers in a moving tensor of the graph.

    Raises
    ------
    NoRuleError
        If an operator on moving tensors has no rule for power series.
    NoGraphError
        If there is no graph, as where control flow depends on values of tensors.
    """

    def __init__(
        self, function: Callable[..., Tensor], moving: Sequence[Tensor], still: Sequence[Tensor] = ()
    ) -> None:
        graph = _recorded(function, [*moving, *still])
        self._nodes: list[Node] = []
        self._still: list[Node] = []
        self.constants: dict[Node, Any] = {}
        self.settled: set[Node] = set()
        self.moving: set[Node] = set()
        self.dtype = moving[0].dtype
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.inputs, self.fixed = inputs[: len(moving)], inputs[len(moving) :]
        self.output: Node = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        self._classify(graph)
        self._release: dict[Node, list[Node]] = _last_uses(self._nodes, self.moving, self.output)
        self.largest = max((_numel(node) for node in self.moving), default=0)

    def _classify(self, graph: GraphModule) -> None:
        still = set(self.fixed)
        self.moving.update(self.inputs)
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                self.constants[node] = operator.attrgetter(node.target)(graph)
            if node.op != "call_function":
                continue
            parents = node.all_input_nodes
            if any(parent in self.moving for parent in parents):
                if node.target not in RULES and node.target not in SETTLED:
                    raise NoRuleError(node.target)
                (self.settled if node.target in SETTLED else self.moving).add(node)
                self._nodes.append(node)
            elif any(parent in self.settled for parent in parents):
                self.settled.add(node)
                self._nodes.append(node)
            elif any(parent in still for parent in parents):
                still.add(node)
                self._still.append(node)
            else:
                self.constants[node] = Call(node, self.constants, self.dtype).value()

    def expand(self, *still: Tensor) -> Expansion:
        """Begin the expansion along a path, given the inputs that stay as they are."""
        known = dict(self.constants)
        known.update(zip(self.fixed, still, strict=True))
        for node in self._still:
            known[node] = Call(node, known, self.dtype).value()
        return Expansion(self, known)

    @functools.cached_property
    def steps(self) -> list[tuple[Node, list[Node], list[Node]]]:
        """The nodes of one pass in order, each with its moving arguments and those not needed after it."""
        return [
            (node, [p for p in node.all_input_nodes if p in self.moving], self._release.get(node, []))
            for node in self._nodes
        ]


class Expansion:
    """The Taylor coefficients of the output of a traced function along a path, one after the other.

    Parameters
    ----------
    graph
        The graph.
    known
        The values of its constant and still nodes.
    """

    def __init__(self, graph: Traced, known: dict[Node, Any]) -> None:
        self._graph, self._known = graph, known
        self._pushes: dict[Node, Push] = {}

    def push(self, *coefficients: Tensor) -> Tensor:
        """Take the next coefficient of every moving input; return that of the output."""
        graph, known, first = self._graph, self._known, not self._pushes
        values: dict[Node, Any] = dict(zip(graph.inputs, coefficients, strict=True))
        for node, parents, done in graph.steps:
            if node in graph.settled:
                if first:
                    known[node] = Call(node, {**known, **values}, graph.dtype).value()
            else:
                if first:
                    self._pushes[node] = RULES[node.target](Call(node, known, graph.dtype))
                values[node] = self._pushes[node](*[values[parent] for parent in parents])
            for parent in done:
                del values[parent]
        output: Tensor = values[graph.output]
        return output


@contextmanager
def traceable() -> Iterator[None]:
    """Make torch call operators that have rules: attention by its formula, no fused transformer layers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        # Inference mode has other operators, made of gathers.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _recorded(function: Callable[..., Tensor], inputs: list[Tensor]) -> GraphModule:
    table = {**get_decompositions(decompositions.STANDARD), **decompositions.OWN}
    with traceable():
        inputs = [x.clone() for x in inputs]
        try:
            recorded = _pure(function, table, inputs)
        except RuntimeError as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise NoGraphError(f"the graph of the network cannot be recorded ({words})") from error
        if any(_in_place(node) for node in recorded.graph.nodes):
            # Some operators of torch are made of ones that write into their arguments.
            recorded = _pure(recorded, table, inputs)
    recorded.graph.eliminate_dead_code()
    return recorded


def _pure(function: Callable[..., Tensor], table: dict[Any, Any], inputs: list[Tensor]) -> GraphModule:
    pure = functionalize(function, remove="mutations")
    # Shapes are noted in tensors of this mode. Without it torch makes a mode for each, in half of the time.
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with tracing(context):
        recorded: GraphModule = make_fx(pure, decomposition_table=table)(*inputs)
    return recorded


def _in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _last_uses(nodes: list[Node], moving: set[Node], output: Node) -> dict[Node, list[Node]]:
    """Return, for each node, the moving ones that are needed for the last time there."""
    last: dict[Node, Node] = {}
    for node in nodes:
        for parent in (*node.all_input_nodes, node):
            if parent in moving and parent is not output:
                last[parent] = node
    release: dict[Node, list[Node]] = {}
    for parent, node in last.items():
        release.setdefault(node, []).append(parent)
    return release


def _numel(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
