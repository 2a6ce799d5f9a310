"""Distil the derivative of a network of any make into a head, on its data or on its own trajectories.

The targets are exact derivatives from the graph of the network. A user's network mostly comes without data;
then the states are those that its own flow visits: latents that are marched by Heun's method. A sampler sees
no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from problems.console import UsageError
from problems.graph import NoRuleError
from problems.images.any_head import AnyHead, AnyHeadConfig
from problems.images.sources import Samples, samples
from problems.images.training import Fitted, Recipe, fit, stratified
from problems.models import naming
from problems.network import Function, Network, digest, heard
from problems.schedule import Schedule

STEPS = 32
"""Steps of Heun's method from a latent to the end of the schedule."""

TRAJECTORIES, REMEMBERED = 512, 2**26
"""Most trajectories, and most numbers in all their states."""

FORGOTTEN = 0.5
"""Share of states without a class. Guidance asks for as many of them, and commands for nothing else."""

EXPONENT = 7.0
"""Times are uniform in γ^(1/7), as the steps of Karras et al. (2022), whatever the clock of the schedule."""


class States(NamedTuple):
    """States on which a head is taught.

    Attributes
    ----------
    xbar
        States x/α, (n, C, H, W).
    gamma
        Their noise-to-signal ratios, (n, 1, 1, 1).
    labels
        Their classes (n,); None if the network takes none.
    """

    xbar: Tensor
    gamma: Tensor
    labels: Tensor | None


Draw = Callable[[int, torch.Generator], States]


def teacher(name: str) -> Network:
    """Return the network of a name, which can teach a head; see ``naming.found`` for names.

    Raises
    ------
    UsageError
        If there is none, its states are no images, its weights cannot be known again, or an operator in it
        has no rule of exact derivatives.
    """
    try:
        problem = naming.headless(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if problem is None:
        raise UsageError(f"there is no network {name!r}; type the path of a model, or file.py:function")
    if not isinstance(problem, Network):
        kind = type(problem).__name__
        raise UsageError(f"{name} is a {kind}; heads are distilled from a problems.Network or a checkpoint")
    if len(problem.event_shape) != 3:
        shape = tuple(problem.event_shape)
        raise UsageError(f"the states of {name} are {shape}; heads are for images (channels, height, width)")
    if isinstance(problem.module, Function):
        raise UsageError(
            f"the network of {name} is a function, whose weights are not known; make it a torch.nn.Module"
        )
    x = torch.zeros(1, *problem.event_shape, dtype=problem.dtype, device=problem.device)
    gamma = float(problem.schedule.gamma((problem.schedule.start + problem.schedule.stop) / 2))
    try:  # before anything else is computed
        told(problem, None if problem.classes == 0 else torch.tensor([0])).flow_jet(x, gamma, 2)
    except NoRuleError as error:
        raise UsageError(str(error)) from error
    return problem


def states(network: Network, data: str | None, recipe: Recipe) -> tuple[Draw, dict[str, Any]]:
    """Return a draw of states for a network, and what they are, as JSON values.

    Parameters
    ----------
    network
        The network.
    data
        The name or path of data, if they are given; see ``sources.samples``.
    recipe
        Gives the seed, and how many states are evaluated at once.

    Raises
    ------
    UsageError
        If the data cannot be read, or are of another shape than the states.
    """
    if data is not None:
        source = samples(data)
        if source.shape != network.event_shape:
            raise UsageError(
                f"{data} has images {tuple(source.shape)}, the network takes {tuple(network.event_shape)}"
            )
        return on_data(network, source), source.card
    if network.classes == 0 and network.has_data:
        own = Samples(
            lambda n, random: (network.sample(n, None, random), None),
            network.event_shape,
            network.data_std,
            0,
            {"name": "the network's own"},
        )
        return on_data(network, own), own.card
    about = {"name": "the network's own trajectories", "solver": "Heun", "steps": STEPS, "seed": recipe.seed}
    return on_trajectories(network, recipe.seed, recipe.batch), about


def levels(u: Tensor, schedule: Schedule) -> Tensor:
    """Return γ at fractions u of the way from the end of a schedule (0) to its start (1), in γ^(1/7)."""
    low, high = (float(schedule.gamma(t)) ** (1.0 / EXPONENT) for t in (schedule.stop, schedule.start))
    return torch.as_tensor((low + u * (high - low)) ** EXPONENT)


def classes_of(network: Network, n: int, forget: float, random: torch.Generator) -> Tensor | None:
    """Draw n labels of a network, a share of them "no class" if it has one; None if it takes no labels."""
    if not network.classes:
        return None
    return _hidden(network, torch.randint(network.classes, (n,), generator=random), forget, random)


def _hidden(network: Network, labels: Tensor, forget: float, random: torch.Generator) -> Tensor:
    if network.no_class is None:
        return labels
    hide = torch.rand(len(labels), generator=random) < forget
    return labels.masked_fill(hide, network.no_class)


def told(network: Network, labels: Tensor | None) -> Network:
    """Return the network with one label for each state, "no class" among them."""
    if labels is None:
        return network
    other = network.labelled(None)
    other.labels = labels.to(network.device)
    return other


def on_data(network: Network, source: Samples, forget: float = FORGOTTEN) -> Draw:
    """Return a draw of data that are diffused to times uniform in γ^(1/7)."""

    def draw(n: int, random: torch.Generator) -> States:
        x0, labels = source.draw(n, random)
        if labels is None or not network.classes:
            known = classes_of(network, n, forget, random)
        else:
            known = _hidden(network, labels, forget, random)
        gamma = levels(stratified(n, 0.0, 1.0, random), network.schedule).reshape(-1, *[1] * (x0.ndim - 1))
        noise = torch.randn(x0.shape, generator=random)
        return States((x0 + gamma * noise).to(network.dtype), gamma.to(network.dtype), known)

    return draw


def on_trajectories(network: Network, seed: int, batch: int, forget: float = FORGOTTEN) -> Draw:
    """Return a draw of states on trajectories of the network, which are marched at once.

    Parameters
    ----------
    network
        The network.
    seed
        Seed of the latents, their labels and their times.
    batch
        Trajectories that are marched together.
    forget
        Share of the labels that are "no class".
    """
    numbers = STEPS * network.event_shape.numel()
    n = max(batch, min(TRAJECTORIES, REMEMBERED // numbers))
    random = torch.Generator().manual_seed(seed)
    labels = classes_of(network, n, forget, random)
    latents = torch.randn(n, *network.event_shape, generator=random)
    shifts = torch.rand(n, generator=random, dtype=torch.float64)
    parts = []
    for rows in torch.split(torch.arange(n), batch):
        one = told(network, None if labels is None else labels[rows])
        parts.append(march(one, latents[rows], shifts[rows]))
    xbar, gamma = (torch.cat(part, 1) for part in zip(*parts, strict=True))

    def draw(n: int, random: torch.Generator) -> States:
        row = torch.randint(xbar.shape[1], (n,), generator=random)
        node = torch.randint(xbar.shape[0], (n,), generator=random)
        return States(xbar[node, row], gamma[node, row], None if labels is None else labels[row])

    return draw


@torch.no_grad()
def march(network: Network, latents: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Return states and noise levels on trajectories by Heun's method, (STEPS, n, …), on the CPU.

    Parameters
    ----------
    network
        The network.
    latents
        Standard normal numbers, (n, *event).
    shifts
        The first step of each trajectory in units of the others, (n,), in [0, 1], so that all of them
        together are at all times.
    """
    schedule = network.schedule
    ones = [1] * (latents.ndim - 1)
    nodes = (torch.arange(STEPS) + shifts[:, None]) / STEPS
    levelled = levels(1.0 - torch.cat([torch.zeros(len(shifts), 1), nodes], 1), schedule)
    gammas = levelled.to(network.device, network.dtype).reshape(len(shifts), STEPS + 1, *ones)
    xbar = (latents * schedule.prior_std / schedule.alpha(schedule.start)).to(network.device, network.dtype)
    states = []
    for k in range(STEPS):
        before, after = gammas[:, k], gammas[:, k + 1]
        (eps,) = network.flow_jet(xbar, before)
        (ahead,) = network.flow_jet(xbar + (after - before) * eps, after)
        xbar = xbar + (after - before) * (eps + ahead) / 2
        states.append(xbar.cpu())
    return torch.stack(states), gammas[:, 1:].transpose(0, 1).cpu()


@torch.no_grad()
def targets(
    network: Network, states: States, listens: tuple[str, ...]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return ε, dε/dγ along the flow, and what layers of the network return at these states."""
    one = told(network, states.labels)
    eps, slope = one.flow_jet(states.xbar, states.gamma, 2)
    if not listens:
        return eps, slope, []
    with heard(one.module, listens) as outputs:
        one.flow_jet(states.xbar, states.gamma, 1)
    return eps, slope, [outputs[name] for name in listens]


def distil(
    network: Network,
    config: AnyHeadConfig,
    draw: Draw,
    recipe: Recipe,
    state: Path,
    about: dict[str, Any],
    weight: Callable[[Tensor], Tensor] = torch.square,
    *,
    quiet: bool = False,
) -> tuple[AnyHead, Fitted]:
    """Train a head on a network, which is not changed, on the device of the network.

    Parameters
    ----------
    network
        The network.
    config
        Architecture of the head.
    draw
        Draws states.
    recipe
        The training recipe.
    state
        The file from which an interrupted training resumes.
    about
        What the states and the weight are, as JSON values; a run with others is not resumed.
    weight
        Weight of the squared error as a function of γ; γ² is that of Eq. 15.
    quiet
        Whether to hide the progress bar.

    Returns
    -------
    The head with averaged weights, on the CPU, and the record of its training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = AnyHead(config).to(network.device, network.dtype)

    def loss(random: torch.Generator) -> Tensor:
        drawn = draw(recipe.batch, random)
        states = States(drawn.xbar.to(network.device), drawn.gamma.to(network.device), drawn.labels)
        eps, slope, outputs = targets(network, states, config.listens)
        said: Tensor = head(states.xbar, states.gamma, eps, *outputs)
        return (weight(states.gamma) * (said - slope).square()).mean()

    identity = {
        "config": dataclasses.asdict(config),
        "network": [digest(network.module), repr(network.schedule), list(network.event_shape)],
        "about": about,
    }
    fitted = fit(head, loss, recipe, state, identity, quiet=quiet)
    head.load_state_dict(fitted.tensors)
    return head.cpu().eval(), fitted
