"""Train a score network by the mean squared error of ε over all times; an interrupted run resumes."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from problems.console import Parser, UsageError, attempt, device, positive, seed, stem
from problems.images import checkpoints
from problems.images.score import load
from problems.images.sketches import require_trainable
from problems.images.sources import Samples, samples
from problems.images.training import (
    BY_TIME,
    DECAYS,
    LEVELS,
    PRECISIONS,
    Fitted,
    Levels,
    Recipe,
    diffused,
    fit,
)
from problems.images.unet import EMBEDDINGS, MODULATIONS, PREDICTIONS, Config, ScoreNetwork
from problems.schedule import VP, Schedule


def train(
    config: Config,
    schedule: Schedule,
    source: Samples,
    recipe: Recipe,
    state: Path,
    *,
    place: torch.device | None = None,
    forget: float = 0.1,
    levels: Levels = BY_TIME,
    start: Mapping[str, Tensor] | None = None,
    quiet: bool = False,
    kept: Callable[[Fitted], None] | None = None,
) -> tuple[ScoreNetwork, Fitted]:
    """Train a score network.

    Parameters
    ----------
    config
        The architecture.
    schedule
        The noise schedule.
    source
        The training data.
    recipe
        The training recipe.
    state
        The file from which an interrupted training resumes.
    place
        The device.
    forget
        Share of the labels that are hidden, so that a conditional network learns the unconditional score too.
    levels
        The noise levels and their weights.
    start
        Initial weights; random ones if there are none.
    quiet
        Whether to hide the progress bar.
    kept
        See ``training.fit``.

    Returns
    -------
    The network with averaged weights, on the CPU, and the record of its training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = ScoreNetwork(config, schedule)
    if start is not None:
        network.load_state_dict(start)
    network = network.to(place or torch.device("cpu"))

    def loss(random: torch.Generator) -> Tensor:
        batch = diffused(source, schedule, recipe.batch, config.classes, forget, random, levels)
        labels = None if batch.labels is None else batch.labels.to(place)
        gamma = batch.gamma.to(place)
        said: Tensor = network(batch.xbar.to(place), gamma, labels)
        weight = levels.weight(gamma, config.data_std)
        return (weight * (said - batch.noise.to(place)).square()).mean()

    identity: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "schedule": repr(schedule),
        "data": source.card,
        "levels": levels.name,
    }
    if start is not None:
        identity["start"] = checkpoints.digest(start)
    fitted = fit(network, loss, recipe, state, identity, quiet=quiet, kept=kept)
    network.load_state_dict(fitted.tensors)
    return network.cpu().eval(), fitted


def card(kind: str, recipe: Recipe, fitted: Fitted, command: str) -> dict[str, Any]:
    """Return the entries common to all cards: kind, recipe, losses, steps, duration, command, versions."""
    return {
        "kind": kind,
        "recipe": dataclasses.asdict(recipe),
        "losses": fitted.losses,
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "command": command,
        "versions": {"torch": version("torch"), "python": platform.python_version()},
    }


def add_recipe(p: Parser, default: Recipe) -> None:
    """Add the arguments of a ``Recipe``, ``--device`` and ``--fresh``."""
    group = p.add_argument_group("training")
    group.add_argument("--steps", type=positive, default=default.steps, help="steps of AdamW")
    group.add_argument("--batch", type=positive, default=default.batch, help="samples per step")
    group.add_argument("--lr", type=float, default=default.lr, help="learning rate")
    group.add_argument("--warmup", type=int, default=default.warmup, help="steps of warm-up")
    group.add_argument("--decay", choices=DECAYS, default=default.decay, help="how the learning rate falls")
    group.add_argument(
        "--ema", type=float, default=default.ema, help="moving average of the weights, per step"
    )
    group.add_argument("--clip", type=float, default=default.clip, help="norm of clipped gradients")
    group.add_argument("--seed", type=seed, default=default.seed, help="seed of weights and data")
    group.add_argument(
        "--beta2",
        type=float,
        default=default.beta2,
        help="average of squared gradients, per step",
    )
    group.add_argument("--weight-decay", type=float, default=default.weight_decay, help="of AdamW")
    group.add_argument(
        "--precision", choices=PRECISIONS, default=default.precision, help="auto: bfloat16 on CUDA only"
    )
    group.add_argument("--device", default="cpu", help="torch device")
    group.add_argument("--halves", action="store_true", help="write weights in float16, in half the space")
    group.add_argument("--fresh", action="store_true", help="forget a run that was cut off, train anew")


def recipe(args: Any) -> Recipe:
    """Return the recipe given by the arguments of ``add_recipe``."""
    return Recipe(
        args.steps,
        args.batch,
        args.lr,
        args.warmup,
        args.decay,
        args.ema,
        args.clip,
        args.seed,
        args.beta2,
        args.weight_decay,
        args.precision,
    )


def written(tensors: Mapping[str, Tensor], halves: bool) -> dict[str, Tensor]:
    """Return weights as they are written: in float16 if ``halves``."""
    return {name: t.half() if halves else t for name, t in tensors.items()}


def typed(p: Parser, argv: Sequence[str] | None) -> str:
    """Return the command line that was typed."""
    return f"{p.prog} {shlex.join(sys.argv[1:] if argv is None else argv)}".rstrip()


def arguments() -> Parser:
    """Return the parser of this command."""
    p = Parser(
        "problems.images.train",
        "Train a score network. Cut off, the same command goes on and ends with the same weights.",
        "  python -m problems.images.train --data digits --out runs/digits\n"
        "  python -m problems.images.train --data digits --conditional --out runs/digits-classes\n"
        "  python -m problems.images.train --data cifar10-train.zip --channels 64 --multipliers 1 2 2 "
        "--device cuda --out runs/cifar10",
    )
    p.add_argument(
        "--data",
        default="digits",
        help="digits (embedded), digits-gaussians (one Gaussian per class, endless), or a path: a zip with "
        "dataset.json, a folder of images, cifar-10-python.tar.gz",
    )
    p.add_argument(
        "--noise", type=float, default=0.05, help="standard deviation of the noise that widens every image"
    )
    p.add_argument("--flip", action="store_true", help="mirror half of the images")
    p.add_argument("--resolution", type=positive, help="average the images to this side in pixels")
    p.add_argument("--levels", choices=LEVELS, default="time", help="noise levels, and their weights")
    p.add_argument(
        "--resume",
        type=Path,
        metavar="WEIGHTS",
        help="start from a network, whose architecture is kept; with or without suffix",
    )
    p.add_argument("--out", type=stem, default=Path("runs/digits"), help="where to write, without suffix")
    network = p.add_argument_group("network")
    network.add_argument("--channels", type=positive, default=16, help="channels at full resolution")
    network.add_argument(
        "--multipliers", nargs="+", type=positive, default=[1, 2], help="channels at each half of it"
    )
    network.add_argument("--blocks", type=positive, default=2, help="residual blocks per resolution")
    network.add_argument("--patch", type=positive, default=1, help="side of squares of pixels taken as one")
    network.add_argument("--attention", action="store_true", help="self-attention at the lowest resolution")
    network.add_argument(
        "--modulation", choices=MODULATIONS, default="shift", help="what the embedding does in a block"
    )
    network.add_argument("--conditional", action="store_true", help="train with class labels")
    network.add_argument("--embedding", choices=EMBEDDINGS, default="log-snr", help="embedding of the time")
    network.add_argument("--prediction", choices=PREDICTIONS, default="skip", help="what the U-Net predicts")
    add_recipe(p, Recipe(steps=3000, batch=128, lr=3e-3))
    return p


def _continued(given: Config, asked: Config) -> Config:
    """Return the architecture of given weights, if it fits the data that are asked for."""
    if (given.size, given.colours, given.classes) != (asked.size, asked.colours, asked.classes):
        raise UsageError(
            f"--resume: a network of {given.classes} classes and {given.colours} x {given.size} pixels "
            f"does not fit data of {asked.classes} classes and {asked.colours} x {asked.size}"
        )
    return given


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    args = p.parse_args(argv)

    def action() -> None:
        place = device(args.device)
        source = samples(args.data, args.noise, flip=args.flip, resolution=args.resolution)
        if source.shape[-1] != source.shape[-2]:
            raise UsageError(f"images must be square, those of {args.data} are {tuple(source.shape)}")
        if args.conditional and not source.classes:
            raise UsageError(f"{args.data} has no class labels; leave --conditional out")
        start, before = None, None
        try:
            config = Config(
                size=source.shape[-1],
                colours=source.shape[0],
                channels=args.channels,
                multipliers=tuple(args.multipliers),
                blocks=args.blocks,
                patch=args.patch,
                attention=args.attention,
                modulation=args.modulation,
                classes=source.classes if args.conditional else 0,
                embedding=args.embedding,
                prediction=args.prediction,
                data_std=source.std,
            )
            if args.resume is not None:
                named = args.resume.with_name(f"{args.resume.name}.safetensors")
                model, before = load(named if named.is_file() else args.resume)
                config, start = _continued(model.network.config, config), model.network.state_dict()
        except ValueError as error:
            raise UsageError(str(error)) from error
        require_trainable(lambda: ScoreNetwork(config, VP()), args.batch * args.channels * config.size**2)
        path = args.out.with_name(args.out.name + ".safetensors")
        state = args.out.with_name(args.out.name + ".state")
        if args.fresh:
            state.unlink(missing_ok=True)
        schedule = VP()

        def keep(fitted: Fitted) -> None:
            about = card("score network", recipe(args), fitted, typed(p, argv))
            about |= {"levels": args.levels, "images_seen": fitted.steps * args.batch}
            about["config"], about["data"] = dataclasses.asdict(config), source.card
            about["schedule"] = {"name": type(schedule).__name__, **dataclasses.asdict(schedule)}
            if before is not None:
                about["resumed"] = before
                about["images_seen"] += before.get("images_seen", 0)
            checkpoints.save(path, written(fitted.tensors, args.halves), about)

        _, fitted = train(
            config,
            schedule,
            source,
            recipe(args),
            state,
            place=place,
            levels=LEVELS[args.levels],
            start=start,
            kept=keep,
        )
        keep(fitted)
        state.unlink(missing_ok=True)
        seconds = round(fitted.seconds, 1)
        print(f"loss {fitted.losses[-1]:.4f} after {args.steps} steps, {seconds} s; written: {path}")
        print(f"look at samples: python -m analysis.samples --problem {path}")

    return attempt(p, action, "the same command goes on where it was")


if __name__ == "__main__":
    raise SystemExit(command())
