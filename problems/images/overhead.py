"""The cost of derivatives of a network in evaluations of the network, timed as in App. C.2.5."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from problems.bill import Tariff
from problems.labelled import Labelled
from problems.score import Model

WARM_UPS, PASSES = 5, 50


@dataclass(frozen=True)
class Timing:
    """The duration of each pass.

    Attributes
    ----------
    seconds
        One entry per pass.
    """

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median duration, in seconds."""
        return statistics.median(self.seconds)


def timings(actions: dict[str, Callable[[], object]], device: torch.device) -> dict[str, Timing]:
    """Time several actions in turn, so that other load on the machine affects all of them alike.

    Parameters
    ----------
    actions
        The actions by name. There are 5 warm-up passes and 50 timed ones, with all actions in every pass.
    device
        The device of the actions; a GPU is synchronised before and after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for n in range(WARM_UPS + PASSES):
        for name, action in actions.items():
            _wait(device)
            began = time.perf_counter()
            action()
            _wait(device)
            if n >= WARM_UPS:
                seconds[name].append(time.perf_counter() - began)
    return {name: Timing(values) for name, values in seconds.items()}


LEAST = 1e-3
"""The least price, for times on a busy machine may be below that of ε alone; a price of 0 means unknown."""


def passes(model: Labelled, batch: int, place: float = 0.3) -> dict[str, Callable[[], object]]:
    """Return the evaluations to time: ε, ε with the head, ε with one, two and three exact derivatives.

    Parameters
    ----------
    model
        The network, with its head if it has one.
    batch
        Samples per pass.
    place
        The time, as a share of the way from the end of the schedule to its start.
    """
    x = torch.randn((batch, *model.event_shape), dtype=model.dtype, device=model.device)
    t = model.schedule.stop + place * (model.schedule.start - model.schedule.stop)

    def take(score: Model, order: int) -> Callable[[], tuple[Tensor, ...]]:
        def action() -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return score.jet(x, t, order)

        return action

    actions: dict[str, Callable[[], object]] = {"eps": take(model, 1)}
    distilled = model.distilled
    if distilled is not None:
        actions["head"] = take(distilled, 2)
    return actions | {f"jet{p}": take(model, p + 1) for p in (1, 2, 3)}


def tariff(model: Labelled, batch: int = 128) -> Tariff:
    """Return the measured prices of a Jacobian-vector product and of a call of the head.

    Parameters
    ----------
    model
        The network, with its head if it has one.
    batch
        Samples per pass.
    """
    actions = {k: f for k, f in passes(model, batch).items() if k in ("eps", "head", "jet1")}
    found = timings(actions, model.device)
    extra = {name: max(LEAST, found[name].median / found["eps"].median - 1.0) for name in actions}
    return Tariff(jvp=extra["jet1"], head=extra.get("head", 0.0))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
