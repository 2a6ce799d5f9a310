"""A network of one's own as a problem, with exact derivatives from its graph."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from problems.autodiff import Autodiff
from problems.bill import Bill, Tariff
from problems.graph import Traced
from problems.labelled import Draw, Labelled, Labels, frozen
from problems.prediction import PREDICTIONS, Outer, Prediction
from problems.schedule import Schedule
from problems.score import Push, like
from problems.series import Scalar, Series
from problems.wrappers import Wrapper

REMEMBERED = 2**21
"""Most numbers in the largest tensor of a block of states on a CPU, when derivatives are asked for.

All that nonlinear layers are given is remembered, so larger blocks exceed caches and memory.
"""

GRAPHS = 8
"""Graphs that a network keeps, for other shapes of its input."""


class Head(Protocol):
    """A module that predicts dε/dγ along the flow.

    Attributes
    ----------
    listens
        Names of layers of the network whose outputs it is given, as ``get_submodule`` takes them.
    """

    listens: tuple[str, ...]

    def __call__(self, xbar: Tensor, gamma: Scalar, eps: Tensor, *heard: Tensor) -> Tensor:
        """Return dε/dγ along the flow at states x̄, in the dtype of the network."""


@dataclass(frozen=True)
class Images:
    """Data that are given as one tensor.

    Attributes
    ----------
    x
        The data, (n, *event).
    """

    x: Tensor

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` of them with replacement."""
        return self.x[torch.randint(len(self.x), (n,), generator=generator)]


class Network(Labelled):
    """A network of any make as a problem: ε and its exact derivatives along any path.

    Derivatives are Taylor coefficients pushed through the graph of the network (``problems.graph``), which is
    recorded at the first jet and kept for each shape of the input.

    Parameters
    ----------
    module
        Called as ``module(x, time)``, or ``module(x, time, labels)`` where there are classes: x is
        (N, *shape), time is (N,), labels are (N,), int64. It is copied; the copy is frozen, in evaluation
        mode. A function is taken, too; ``to`` does not move what it holds.
    schedule
        The noise schedule.
    shape
        Shape of a state, such as (3, 32, 32).
    predicts
        What the network predicts: a name in ``PREDICTIONS`` or a ``Prediction``.
    time
        Maps the time t of the schedule to what the network is told, written with functions of
        ``problems.series``; t itself by default.
    classes, no_class, labels
        See ``Labelled``.
    data
        The training data, for ``sample``: a tensor (n, *shape), or a function of n and a generator.
    data_std
        Standard deviation of the data, per dimension.
    head
        A head that was distilled from the network, if any; see ``distilled``.
    tariff
        Prices of derivatives in evaluations of the network.

    Raises
    ------
    ValueError
        If nothing of the name is predicted, a label is not a class, or weights are in half precision.
    """

    def __init__(
        self,
        module: nn.Module | Callable[..., Tensor],
        schedule: Schedule,
        shape: Sequence[int],
        *,
        predicts: str | Prediction = "eps",
        time: Callable[[Any], Any] | None = None,
        classes: int = 0,
        no_class: int | None = None,
        labels: Labels = None,
        data: Tensor | Draw | None = None,
        data_std: float = 0.5,
        head: nn.Module | None = None,
        tariff: Tariff = Tariff(),
    ) -> None:
        draw = Images(data) if isinstance(data, Tensor) else data
        super().__init__(schedule, data_std, tuple(shape), classes, no_class, labels, draw, tariff)
        if isinstance(predicts, str):
            if predicts not in PREDICTIONS:
                raise ValueError(
                    f"a network predicts one of {', '.join(PREDICTIONS)}, or a Prediction, not {predicts!r}"
                )
            predicts = PREDICTIONS[predicts]
        wrapped = module if isinstance(module, nn.Module) else Function(module)
        precision = _about(wrapped).dtype
        if precision not in (torch.float32, torch.float64):
            raise ValueError(
                f"the weights are {precision}, with which derivatives mean little; give module.float()"
            )
        self.module: nn.Module = frozen(copy.deepcopy(wrapped))
        self.head: nn.Module | None = None if head is None else frozen(copy.deepcopy(head))
        self.prediction = predicts
        self._time: Callable[[Series], Series] | None = time

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network, in which states of any precision are evaluated."""
        return _about(self.module).dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return _about(self.module).device

    @property
    def distilled(self) -> DistilledNetwork | None:
        """The same ε with its first derivative by the head; None without a head."""
        return None if self.head is None else DistilledNetwork(self, self.head)

    def with_head(self, head: nn.Module | None, tariff: Tariff = Tariff()) -> Network:
        """Return the same network with a head that was distilled from it, or with none."""
        other = self._copied()
        other.head = None if head is None else frozen(copy.deepcopy(head))
        other._tariff = tariff
        return other

    def to(self, like: Tensor) -> Network:
        """Return the model in the dtype and on the device of a tensor.

        The network itself is shared where it is there already.
        """
        other = copy.copy(self)
        if (self.dtype, self.device) != (like.dtype, like.device):
            other.module = copy.deepcopy(self.module).to(like)
            other.head = None if self.head is None else copy.deepcopy(self.head).to(like)
        if isinstance(self.labels, Tensor):
            other.labels = self.labels.to(like.device)
        return other

    def nested(self) -> Autodiff:
        """Return the same score with derivatives by nested forward-mode automatic differentiation."""

        def eps(x: Tensor, t: Scalar) -> Tensor:
            alpha, gamma = like(self.schedule.alpha(t), x), like(self.schedule.gamma(t), x)
            return self._begin(Series([gamma]), self.labels_of(len(x)))(x / alpha)

        return Autodiff(eps, self.schedule, self.data_std)

    def _copied(self) -> Self:
        other = copy.copy(self)
        vars(other).update(_graphs=self._graphs)
        return other

    @functools.cached_property
    def _graphs(self) -> OrderedDict[object, Traced]:
        return OrderedDict()

    def told(self, gamma: Series, x: Tensor) -> list[Tensor]:
        """Return the coefficients of the time that the network is told along a path, each (N,)."""
        t = self.schedule.time(gamma)
        tau = t if self._time is None else self._time(t)
        columns = (
            torch.as_tensor(c, dtype=torch.float64, device=x.device).reshape(-1) for c in tau.coefficients
        )
        return [column.to(x.dtype).expand(len(x)) for column in columns]

    def _follow(self, xbar: Tensor, gamma: Series) -> Iterator[Tensor]:
        for coefficient in super()._follow(xbar.double(), gamma):
            yield coefficient.to(xbar.dtype)

    def _begin(self, path: Series, labels: Tensor | None) -> Push:
        # In float64, the states too: skip x̄ and gain F cancel where the noise is large.
        path = _series_like(path, torch.float64)
        outer = Outer(self.prediction.factors(self.schedule, path))
        pushes: list[Callable[..., Tensor]] = []
        times: list[Tensor] = []
        index = itertools.count()

        def push(coefficient: Tensor) -> Tensor:
            x = outer.inwards(coefficient.double()).to(self.dtype)
            if not pushes:
                times.extend(self.told(path, x))
                still = () if labels is None else (labels.expand(len(x)),)
                if len(path) == 1:
                    pushes.append(lambda x, time: self.module(x, time, *still))
                else:
                    pushes.append(self._graph(x, times[0], still).expand(*still).push)
            return outer.outwards(pushes[0](x, times[next(index)]).double()).to(coefficient.dtype)

        return push

    def _graph(self, x: Tensor, time: Tensor, still: tuple[Tensor, ...]) -> Traced:
        """Return the graph for inputs of these shapes, recorded if it is not known."""
        key = (x.shape, x.dtype, x.device, len(still))
        if key not in self._graphs:
            self._graphs[key] = Traced(self.module, [x, time.contiguous()], still)
            if len(self._graphs) > GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _block(self, x: Tensor, order: int) -> int:
        """Return the number of states per pass: all, unless coefficients are remembered on a CPU."""
        if order == 1 or x.device.type != "cpu":
            return max(1, len(x))
        return max(1, REMEMBERED // self._largest)

    @functools.cached_property
    def _largest(self) -> int:
        """The most numbers that one state takes in a tensor of the graph."""
        x = torch.zeros(1, *self.event_shape, dtype=self.dtype, device=self.device)
        labels = self.labels_of(1)
        return self._graph(x, x.new_ones(1), () if labels is None else (labels[:1],)).largest


class DistilledNetwork(Wrapper):
    """A network with its first derivative along the flow by a distilled head (Eq. 14).

    Parameters
    ----------
    score
        The network, which keeps the bill.
    head
        The head; see ``Head``.
    """

    def __init__(self, score: Network, head: nn.Module) -> None:
        super().__init__(score)
        self._network, self._head = score, head

    def part(self, rows: Tensor, of: int) -> Self:
        """Return the model of some states of a batch."""
        other = super().part(rows, of)
        other._network = cast(Network, other.score)
        return other

    def price(self, j: int) -> Bill:
        """Return the price of coefficient j: one evaluation for ε, one call of the head for dε/dγ."""
        return (Bill(nfe=1), Bill(head=1))[j] if j < 2 else Bill()

    def expand(self, gamma: Series) -> Push:
        """Begin an expansion: ε by the network, its first derivative by the head.

        The derivative is the one along the network's own flow, whatever the path, because the head was
        distilled along that flow. The third push raises a ``ValueError``.
        """
        network = self._network
        known: list[Tensor] = []
        index = itertools.count()
        listens = cast(Head, self._head).listens

        def push(coefficient: Tensor) -> Tensor:
            j = next(index)
            if j > 1:
                raise ValueError(
                    "a distilled head gives the first derivative of ε only; take jets of the network"
                )
            network.charge(self.price(j))
            if j == 0:
                xbar = coefficient.to(network.dtype)
                start = Series([like(gamma[0], xbar)])
                with heard(network.module, listens) as outputs:
                    eps = network._begin(start, network.labels_of(len(xbar)))(xbar)
                known.extend((xbar, eps, *(outputs[name] for name in listens)))
                return eps.to(coefficient.dtype)
            xbar, eps, *features = known
            slope: Tensor = self._head(xbar, like(gamma[0], xbar), eps, *features)
            return slope.to(coefficient.dtype) * gamma[1]

        return push


@contextmanager
def heard(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of layers, by their names, while the module is called.

    Raises
    ------
    ValueError
        If the module has no layer of a name.
    """
    outputs: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = []
    try:
        for name in names:
            try:
                layer = module.get_submodule(name)
            except AttributeError:
                raise ValueError(f"the network has no layer {name!r}") from None
            handles.append(layer.register_forward_hook(listen(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class Function(nn.Module):
    """A function as a module.

    Parameters
    ----------
    function
        Takes what ``Network`` gives a module.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("about", torch.zeros(()))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the function returns."""
        return self.function(*inputs)


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of the weights of a module."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _about(module: nn.Module) -> Tensor:
    """Return a tensor of the dtype and on the device of a module; float32 on the CPU if it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.zeros(()))


def _series_like(series: Series, dtype: torch.dtype) -> Series:
    """Give the tensors of a series a precision, so that they do not promote states."""
    return Series([c.to(dtype) if isinstance(c, Tensor) else c for c in series.coefficients])
