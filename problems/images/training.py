"""The training loop of all networks; a killed run resumes with the same result to the last bit.

All random numbers of a step come from a generator seeded by the seed and the step, so a resumed run draws the
same numbers as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from problems.console import UsageError
from problems.files import atomically
from problems.images import checkpoints
from problems.images.sources import Samples
from problems.schedule import Schedule

RECORD = 50
"""Number of steps averaged in one recorded loss."""

LARGEST = 3e38
"""Learning rates are numbers in float32."""

DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "constant": lambda progress: 1.0,
}
"""Factors of the learning rate as functions of progress, from the end of the warm-up (0) to the end (1)."""


@dataclass(frozen=True)
class Recipe:
    """A training recipe: AdamW with warm-up, clipped gradients and an exponential moving average of weights.

    Attributes
    ----------
    steps
        Number of steps.
    batch
        Samples per step.
    lr
        Learning rate after the warm-up.
    warmup
        Steps in which the learning rate rises from zero.
    decay
        Decrease of the learning rate after the warm-up: a name in ``DECAYS``.
    ema
        Decay of the moving average per step; 0 keeps the last weights.
    clip
        Norm to which gradients are clipped.
    seed
        Seed of the initial weights and of all random draws.
    beta2
        Decay per step of AdamW's average of squared gradients.
    weight_decay
        Weight decay of AdamW; with 0 it is Adam.
    precision
        A name in ``PRECISIONS``.

    Raises
    ------
    UsageError
        If a value is out of range.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: str = "cosine"
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    beta2: float = 0.999
    weight_decay: float = 0.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not (0.0 < self.beta2 < 1.0 and self.weight_decay >= 0.0):
            raise UsageError("beta2 is between 0 and 1, and weight decay is at least 0")
        if not (0.0 < self.lr < LARGEST and self.clip > 0.0 and 0.0 <= self.ema < 1.0 and self.warmup >= 0):
            raise UsageError(
                "lr and clip must be positive, lr below 3e38, ema from 0 to below 1, warmup at least 0"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * DECAYS[self.decay]((step - self.warmup) / max(1, self.steps - self.warmup))


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes
    ----------
    tensors
        The averaged weights.
    losses
        Mean loss of every ``RECORD`` steps.
    steps
        Number of steps done.
    seconds
        Duration of the training; of interrupted runs, up to their last state.
    """

    tensors: dict[str, Tensor]
    losses: list[float]
    steps: int
    seconds: float


def generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of all random numbers of a step."""
    # torch uses the low 32 bits of a seed only; multiples of 2³²/φ separate the steps of different seeds.
    return torch.Generator().manual_seed((0x9E3779B9 * seed + step) % 2**32)


def stratified(n: int, low: float, high: float, source: torch.Generator) -> Tensor:
    """Return n numbers, one uniform in each nth part of [low, high], in random order, float64."""
    places = torch.randperm(n, generator=source) + torch.rand(n, generator=source, dtype=torch.float64)
    return low + (high - low) * places / n


@dataclass(frozen=True)
class Levels:
    """How much noise is added to training data, and how its errors are weighted.

    Attributes
    ----------
    name
        What they are called.
    gamma
        Returns n noise-to-signal ratios for a schedule, (n,), float64, drawn with a generator.
    weight
        Returns the weight of the squared error of ε, given γ and the standard deviation of the data.
    """

    name: str
    gamma: Callable[[Schedule, int, torch.Generator], Tensor]
    weight: Callable[[Tensor, float], Tensor]


def _uniform_times(schedule: Schedule, n: int, random: torch.Generator) -> Tensor:
    return schedule.gamma(stratified(n, schedule.stop, schedule.start, random))


def _log_normal(schedule: Schedule, n: int, random: torch.Generator) -> Tensor:
    low, high = (math.log(schedule.gamma(t)) for t in (schedule.stop, schedule.start))
    u = stratified(n, 0.0, 1.0, random)
    most = -1.0 + 1.3 * torch.special.ndtri(((u - 0.1) / 0.9).clamp(1e-6, 1.0))
    return torch.where(u < 0.1, low + (high - low) * u / 0.1, most.clamp(low, high)).exp()


BY_TIME = Levels("time", _uniform_times, lambda gamma, _: torch.ones_like(gamma))
"""Times are uniform in the schedule, and the errors of ε have equal weights (Ho et al. 2020)."""

LOG_NORMAL = Levels("log-normal", _log_normal, lambda gamma, std: 1.0 + (gamma / std) ** 2)
"""log γ is normal, N(-1, 1.3²), and errors of the output F of the preconditioned network have equal weights
(Karras et al. 2022). One level in ten is uniform in log γ over the schedule, whose ends have few others.
"""

LEVELS = {levels.name: levels for levels in (BY_TIME, LOG_NORMAL)}
"""Noise levels by name, stratified in every batch."""

PRECISIONS: dict[str, Callable[[str], bool]] = {
    "auto": lambda device: device == "cuda",
    "float32": lambda _: False,
    "bfloat16": lambda _: True,
}
"""Whether products are computed in bfloat16 on a kind of device, by name of the precision."""


class Diffused(NamedTuple):
    """A batch of diffused data.

    Attributes
    ----------
    xbar
        States x/α, (n, C, H, W), float32.
    gamma
        Their noise-to-signal ratios, (n, 1, 1, 1), float32.
    noise
        The noise in the states: x̄ = x₀ + γ noise.
    labels
        Their classes (n,), some of them hidden; None if the network takes no labels.
    """

    xbar: Tensor
    gamma: Tensor
    noise: Tensor
    labels: Tensor | None


def diffused(
    source: Samples,
    schedule: Schedule,
    n: int,
    classes: int,
    forget: float,
    random: torch.Generator,
    levels: Levels = BY_TIME,
) -> Diffused:
    """Return diffused data, on the CPU.

    Parameters
    ----------
    source
        The training data.
    schedule
        The noise schedule.
    n
        Number of states.
    classes
        Number of classes of the network; 0 if it takes no labels.
    forget
        Share of the labels that are hidden: they are replaced by ``classes``.
    random
        Generator of all random numbers.
    levels
        How much noise they are given.
    """
    x0, labels = source.draw(n, random)
    gamma = levels.gamma(schedule, n, random)[:, None, None, None]
    noise = torch.randn(x0.shape, generator=random)
    if labels is not None and classes:
        labels = labels.masked_fill(torch.rand(n, generator=random) < forget, classes)
    return Diffused((x0 + gamma * noise).float(), gamma.float(), noise, labels if classes else None)


def fit(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    state: Path,
    identity: Mapping[str, Any],
    *,
    every: int = 200,
    quiet: bool = False,
    kept: Callable[[Fitted], None] | None = None,
) -> Fitted:
    """Train a module from its present weights, or from the file ``state`` if it exists.

    Parameters
    ----------
    module
        The module; it is trained in place.
    loss
        Returns the loss of a batch drawn with the given generator.
    recipe
        The training recipe.
    state
        The file from which an interrupted training resumes, written every ``every`` steps.
    identity
        JSON values that identify the run, besides the recipe. A state of another run is refused.
    every
        Steps between two states, a multiple of ``RECORD``.
    quiet
        Whether to hide the progress bar.
    kept
        Called with what was reached so far, each time after the state is written.

    Raises
    ------
    UsageError
        If ``state`` belongs to another run or is damaged.
    FloatingPointError
        If the loss is not finite.
    """
    mine = json.dumps({**identity, "recipe": asdict(recipe)}, sort_keys=True)
    optimiser = torch.optim.AdamW(
        module.parameters(), recipe.lr, (0.9, recipe.beta2), weight_decay=recipe.weight_decay
    )
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))  # type: ignore[no-untyped-call]
    losses: list[float] = []
    begin, before = _resume(state, mine, module, averaged, optimiser, losses) if state.exists() else (0, 0.0)
    began = time.perf_counter() - before
    recent: list[Tensor] = []
    device = next(module.parameters()).device.type
    halves = PRECISIONS[recipe.precision](device)

    def reached(step: int) -> Fitted:
        tensors = {k: v.detach().clone() for k, v in averaged.module.state_dict().items()}
        return Fitted(tensors, list(losses), step, time.perf_counter() - began)

    for step in tqdm(range(begin, recipe.steps), initial=begin, total=recipe.steps, disable=quiet or None):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=halves):
            value = loss(generator(recipe.seed, step))
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimiser.step()
        averaged.update_parameters(module)
        recent.append(value.detach())
        if (step + 1) % RECORD == 0 or step + 1 == recipe.steps:
            losses.append(float(torch.stack(recent).mean()))
            recent.clear()
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} near step {step + 1}; lower the learning rate"
                )
            if (step + 1) % every == 0 and step + 1 < recipe.steps:
                seconds = time.perf_counter() - began
                _keep(state, mine, step + 1, seconds, module, averaged, optimiser, losses)
                if kept is not None:
                    kept(reached(step + 1))
    return reached(recipe.steps)


def _keep(
    path: Path,
    identity: str,
    step: int,
    seconds: float,
    module: nn.Module,
    averaged: AveragedModel,
    optimiser: torch.optim.AdamW,
    losses: list[float],
) -> None:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in averaged.state_dict().items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    about = {"identity": identity, "step": str(step), "losses": json.dumps(losses), "seconds": str(seconds)}
    about["seal"] = checkpoints.seal(plain, about)
    atomically(path, lambda file: save_file(plain, file, about))


def _resume(
    path: Path,
    identity: str,
    module: nn.Module,
    averaged: AveragedModel,
    optimiser: torch.optim.AdamW,
    losses: list[float],
) -> tuple[int, float]:
    try:
        tensors, about = checkpoints.read(path)
    except checkpoints.CheckpointError as error:
        raise UsageError(f"{error}; remove it and train anew") from error
    if about.pop("seal", "") != checkpoints.seal(tensors, about):
        raise UsageError(f"{path} was changed after it was written; remove it and train anew")
    if about.get("identity") != identity:
        raise UsageError(f"{path} belongs to a run with other settings; remove it or give another --out")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    module.load_state_dict(part("module."))
    averaged.load_state_dict(part("averaged."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("adam.").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    losses.extend(json.loads(about["losses"]))
    return int(about["step"]), float(about.get("seconds", 0.0))
