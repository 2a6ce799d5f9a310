"""Distil the derivative of a score network into a head (Sec. 3.1, Alg. 1), with resumable training.

The target is dε/dγ of the network along its own flow, one exact Jacobian-vector product per sample. The
ablations of Table 2 and the derivative-free objective of App. D are options.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from problems.console import Parser, UsageError, attempt, device, positive, stem
from problems.images import any_distill, any_head, checkpoints
from problems.images.head import PARAMETERISATIONS, Head, HeadConfig
from problems.images.overhead import tariff
from problems.images.score import Learned, load, weights
from problems.images.sources import MIXTURES, Samples, samples
from problems.images.train import add_recipe, card, recipe, typed, written
from problems.images.training import Fitted, Recipe, diffused, fit
from problems.images.unet import Expansion, ScoreNetwork
from problems.models import naming
from problems.score import follow
from problems.series import Series, sqrt

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gamma2": torch.square,
    "one": torch.ones_like,
    # A step of size h, roughly proportional to γ, adds h²/2 times the error of dε/dγ to x̄. The flow reduces
    # this error by about (1 + γ²)^(-1/2) at its end.
    "end-point": lambda gamma: gamma**4 / (1.0 + gamma**2),
}
"""Weights of the loss as functions of γ: Eq. 15, "no weighting" of Table 2, and the effect on end points."""


@dataclass(frozen=True)
class Objective:
    """The training objective of a head.

    Attributes
    ----------
    weight
        Weight of the squared error: a name in ``WEIGHTS``.
    noise_input
        Whether the input of the head is the noise in the sample, as in the authors' code, instead of the
        network's ε, which is the input when sampling (Eq. 14).
    derivative_free
        Whether the spatial part of the target is the estimate of App. D (Eq. 72, its last term divided by σ²)
        instead of the exact derivative. The estimate is unbiased for an exact score only. The derivative in
        time at fixed x is exact in both.
    """

    weight: str = "gamma2"
    noise_input: bool = False
    derivative_free: bool = False


def targets(
    network: ScoreNetwork, xbar: Tensor, gamma: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Expansion]:
    """Return ε, dε/dγ along the flow, and the expansion, which contains features and embedding.

    Parameters
    ----------
    network
        The score network.
    xbar, gamma
        States x/α, (N, C, H, W), and their noise-to-signal ratios, (N, 1, 1, 1).
    labels
        Classes (N,), or None.
    """
    path = Series.variable(gamma, 2)
    expansion = Expansion(network, path, labels)
    eps, slope = follow(expansion.push, xbar, path)
    return eps, slope, expansion


def derivative_free_targets(
    network: ScoreNetwork, xbar: Tensor, gamma: Tensor, labels: Tensor | None, noise: Tensor
) -> tuple[Tensor, Tensor, Expansion]:
    """Return ε, an estimate of dε/dγ that is unbiased for an exact score, and the expansion.

    With v = -σ dx/dγ and the score s = -ε/σ, the mean of (1/σ²)(noise noiseᵀ - 1) v - s sᵀ v given x_t is the
    derivative of ε in the direction dx/dγ (App. D). The derivative in γ at fixed x is added to it.

    Parameters
    ----------
    network, xbar, gamma, labels
        As in ``targets``.
    noise
        The noise in the sample: x̄ = x₀ + γ noise.
    """
    path = Series.variable(gamma, 2)
    one = sqrt(1.0 + path * path)
    expansion = Expansion(network, path, labels)
    x = xbar / one[0]
    eps, at_fixed_x = expansion.push(xbar), expansion.push(x * one[1])
    sigma = gamma / one[0]
    v = -sigma * (eps / one[0] - gamma * x / (1.0 + gamma * gamma))
    along = (noise * v).sum((1, 2, 3), keepdim=True) * noise - (eps * v).sum((1, 2, 3), keepdim=True) * eps
    return eps, (along - v) / sigma.square() + at_fixed_x, expansion


def distil(
    network: ScoreNetwork,
    config: HeadConfig,
    source: Samples,
    recipe: Recipe,
    state: Path,
    objective: Objective | None = None,
    *,
    place: torch.device | None = None,
    forget: float = 0.1,
    quiet: bool = False,
) -> tuple[Head, Fitted]:
    """Train a head on a score network, which is not changed.

    Parameters
    ----------
    network
        The score network.
    config
        Architecture of the head.
    source
        The training data of the network.
    recipe
        The training recipe.
    state
        The file from which an interrupted training resumes.
    objective
        The objective; the paper's by default.
    place
        The device.
    forget
        Share of the labels that are hidden.
    quiet
        Whether to hide the progress bar.

    Returns
    -------
    The head with averaged weights, on the CPU, and the record of its training.
    """
    aim = objective or Objective()
    schedule, shape = network.schedule, network.config
    teacher = copy.deepcopy(network).to(place or torch.device("cpu")).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = Head(config, shape.colours, shape.channels, shape.patch).to(place or torch.device("cpu"))

    def loss(random: torch.Generator) -> Tensor:
        batch = diffused(source, schedule, recipe.batch, shape.classes, forget, random)
        xbar, gamma, noise = (part.to(place) for part in batch[:3])
        known = None if batch.labels is None else batch.labels.to(place)
        with torch.no_grad(), torch.autocast(xbar.device.type, enabled=False):
            if aim.derivative_free:
                eps, target, expansion = derivative_free_targets(teacher, xbar, gamma, known, noise)
            else:
                eps, target, expansion = targets(teacher, xbar, gamma, known)
        fed = noise if aim.noise_input else eps
        said: Tensor = head(teacher, xbar, gamma, fed, expansion.features[0], expansion.embeddings[0])
        return (WEIGHTS[aim.weight](gamma) * (said - target).square()).mean()

    identity = {
        "config": dataclasses.asdict(config),
        "objective": dataclasses.asdict(aim),
        "network": [dataclasses.asdict(shape), repr(schedule), checkpoints.digest(network.state_dict())],
        "data": source.card,
    }
    fitted = fit(head, loss, recipe, state, identity, quiet=quiet)
    head.load_state_dict(fitted.tensors)
    return head.cpu().eval(), fitted


RECIPE = Recipe(steps=2000, batch=128, lr=2e-3, ema=0.99)
"""The default for the digits; takes a minute and a half on one CPU core."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = Parser(
        "problems.images.distill",
        "Distil the derivative of a network into a head. Cut off, the same command goes on.\n\n"
        "Of networks of other makes, states are --data, or the data that the network itself has and that no\n"
        "classes divide. Without these they are states on the network's own trajectories: latents that are\n"
        f"marched by {any_distill.STEPS} steps of Heun's method.",
        "  python -m problems.images.distill --network runs/digits.safetensors --out runs/digits-head\n"
        "  python -m problems.images.distill --network runs/digits.safetensors --parameterisation plain "
        "--out runs/plain\n"
        "  python -m problems.images.distill --network ddpm-cifar10-32 --features-at up_blocks.3\n"
        "  python -m problems.images.distill --network model.py:make",
    )
    p.add_argument(
        "--network",
        default="runs/digits.safetensors",
        metavar="WHAT",
        help="a network of the suite, the path of a model of any make, package.module:function or "
        "file.py:function",
    )
    p.add_argument("--data", help="the network's data: a name or a path (default: what its card names)")
    p.add_argument(
        "--out", type=stem, help="what to write, no suffix (default: beside the network, where it is found)"
    )
    head = p.add_argument_group("head")
    head.add_argument("--channels", type=positive, help="channels inside (default: of the network, or 32)")
    head.add_argument("--blocks", type=positive, default=1, help="residual blocks")
    head.add_argument(
        "--parameterisation", choices=PARAMETERISATIONS, default="mixed", help="what its outputs are"
    )
    head.add_argument(
        "--features-at",
        metavar="LAYER",
        help="layer of a network of another make whose output the head is given, such as up_blocks.3 "
        "(default: x and ε alone)",
    )
    aim = p.add_argument_group("objective")
    aim.add_argument("--weight", choices=WEIGHTS, default="gamma2", help="weight of the loss")
    aim.add_argument("--noise-input", action="store_true", help="feed the true noise instead of the own ε")
    aim.add_argument("--derivative-free", action="store_true", help="the objective of App. D")
    add_recipe(p, RECIPE)
    return p


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    args = p.parse_args(argv)

    def action() -> None:
        place, own = device(args.device), _own(args.network)
        try:
            out = args.out or _beside(args.network)
            state = out.with_name(out.name + ".state")
            if args.fresh:
                state.unlink(missing_ok=True)
            taught = (
                _of_another_make(args, place, state)
                if own is None
                else _of_this_suite(args, own, place, state)
            )
        except checkpoints.CheckpointError as error:
            raise UsageError(str(error)) from error
        about = {**card("head", recipe(args), taught.fitted, typed(p, argv)), **taught.card}
        path = out.with_name(out.name + ".safetensors")
        checkpoints.save(path, written(taught.head.state_dict(), args.halves), about)
        state.unlink(missing_ok=True)
        loss = taught.fitted.losses[-1]
        print(f"loss {loss:.5f} after {args.steps} steps, {about['seconds']} s; written: {path}")

    return attempt(p, action, "the same command goes on where it was")


class Taught(NamedTuple):
    """A head, the record of its training, and what its card says besides that."""

    head: nn.Module
    fitted: Fitted
    card: dict[str, Any]


def _own(name: str) -> Path | None:
    """Return the checkpoint of a network of this suite; None for what is typed of other makes."""
    path = Path(name)
    if not path.exists() and weights(name).is_file():
        return weights(name)
    own = path.suffix == ".safetensors" and (path.with_suffix(".json").is_file() or not path.exists())
    return path if own else None


def _beside(name: str) -> Path:
    """Return where the head of a network is looked for, without its suffix."""
    if not Path(name).exists() and weights(name).is_file():
        return Path("runs") / f"{name}-head"
    place = naming.head_of(name)
    if place is None:
        raise UsageError(f"{name} is in no file beside which a head can lie; type --out")
    return place.with_suffix("")


def _of_this_suite(args: Any, network: Path, place: torch.device, state: Path) -> Taught:
    if args.features_at:
        raise UsageError(f"a head of {network} takes the last features; leave --features-at out")
    try:
        model, about_network = load(network)
        config = HeadConfig(
            args.channels or model.network.config.channels, args.blocks, args.parameterisation
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    described = about_network.get("data", {})
    name = args.data or described.get("name", "data that its card does not name")
    if args.data is None and name != "digits" and name not in MIXTURES:
        raise UsageError(f"{network} was trained on {name}; type --data and the path to it")
    source = samples(
        name,
        described.get("noise", 0.0),
        flip=described.get("flip", False),
        resolution=described.get("resolution"),
    )
    if source.card.get("sha256") != described.get("sha256"):
        raise UsageError(f"{network} was trained on other data than {name}; type --data PATH")
    aim = Objective(args.weight, args.noise_input, args.derivative_free)
    head, fitted = distil(model.network, config, source, recipe(args), state, aim, place=place)
    about = {
        "config": dataclasses.asdict(config),
        "objective": dataclasses.asdict(aim),
        "network": about_network["sha256"],
        "data": source.card,
        "tariff": dataclasses.asdict(tariff(Learned(model.network, head=head))),
    }
    return Taught(head, fitted, about)


def _of_another_make(args: Any, place: torch.device, state: Path) -> Taught:
    if args.noise_input or args.derivative_free:
        raise UsageError("--noise-input and --derivative-free are for networks of this suite; leave them out")
    network = any_distill.teacher(args.network)
    network = network.to(torch.empty(0, dtype=network.dtype, device=place))
    try:
        listens = (any_head.layer_of(network.module, args.features_at),) if args.features_at else ()
        config = any_head.AnyHeadConfig(
            network.event_shape[0],
            args.channels or 32,
            args.blocks,
            args.parameterisation,
            listens,
            any_head.channels_of(network, listens[0]) if listens else 0,
            network.data_std,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    draw, data = any_distill.states(network, args.data, recipe(args))
    weight = WEIGHTS[args.weight]
    identity = {"data": data, "weight": args.weight}
    head, fitted = any_distill.distil(network, config, draw, recipe(args), state, identity, weight)
    costs = tariff(network.with_head(head.to(place)), recipe(args).batch)
    about = {"objective": {"weight": args.weight}, "data": data, **any_head.card(network, head, costs)}
    return Taught(head.cpu(), fitted, about)


if __name__ == "__main__":
    raise SystemExit(command())
