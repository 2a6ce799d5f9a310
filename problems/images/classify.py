"""Train the classifier in whose features images are compared, with a share of each class held out."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from problems.console import Parser, UsageError, attempt, device, finite, positive, seed, stem
from problems.images import checkpoints, data
from problems.images.classifier import Classifier, ClassifierConfig
from problems.images.sketches import require_trainable
from problems.images.sources import MIXTURES, Samples, traits
from problems.images.train import add_recipe, card, recipe, typed, written
from problems.images.training import Fitted, Recipe, fit


@dataclasses.dataclass(frozen=True)
class Split:
    """A random split of a data set into training images and held-out images.

    Attributes
    ----------
    share
        Share of every class that is held out, rounded to whole images.
    seed
        Seed of the split.
    """

    share: float = 0.2
    seed: int = 0

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of the training images and of the held-out images, each ascending.

        Parameters
        ----------
        labels
            Classes of all images, (N,).
        """
        random = torch.Generator().manual_seed(self.seed)
        held = torch.zeros(len(labels), dtype=torch.bool)
        for k in sorted(set(labels.tolist())):
            members = (labels == k).nonzero()[:, 0]
            order = torch.randperm(len(members), generator=random)
            held[members[order[: round(self.share * len(members))]]] = True
        return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


@dataclasses.dataclass(frozen=True)
class Variation:
    """Data augmentation: random changes of an image each time it is drawn.

    Attributes
    ----------
    noise
        Standard deviation of added noise.
    shift
        Largest shift along each axis, in pixels; the edge of the image fills the gap.
    flip
        Whether half of the images are mirrored.
    """

    noise: float = 0.05
    shift: int = 1
    flip: bool = False

    def __call__(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Return changed copies of images, (N, C, H, W)."""
        if self.shift:
            n, _, *sides = x.shape
            wide = functional.pad(x, (self.shift,) * 4, mode="replicate")
            places = wide.unfold(2, sides[0], 1).unfold(3, sides[1], 1)
            down, right = torch.randint(2 * self.shift + 1, (2, n), generator=random)
            x = places[torch.arange(n), :, down, right]
        if self.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, generator=random) < 0.5, x.flip(-1), x)
        return x + self.noise * torch.randn(x.shape, generator=random)


class Task(NamedTuple):
    """Training data and test data of a classifier.

    Attributes
    ----------
    source
        Training images with their labels.
    images, labels
        Held-out images, (N, C, H, W) in [-1, 1], float32, without augmentation, and their labels, (N,).
    """

    source: Samples
    images: Tensor
    labels: Tensor


def task(
    name: str, split: Split, variation: Variation, *, resolution: int | None = None, test: str | None = None
) -> Task:
    """Return labelled images as training data and test data.

    Parameters
    ----------
    name
        ``digits``, or a path (see ``data.load``).
    split
        The split.
    variation
        The augmentation of the training images.
    resolution
        Side of the images, which are averaged to it (see ``data.load``); None keeps the size.
    test
        The path of the test data. Nothing is held out then.

    Raises
    ------
    UsageError
        If the data cannot be read, have no labels, or are too few to split.
    """
    if name in MIXTURES:
        raise UsageError(f"{name} has no class labels, without which nothing can be classified")
    everything, labels = _labelled(name, resolution)
    tests, answers = (everything, labels) if test is None else _labelled(test, resolution)
    if tests.shape != everything.shape or tests.classes > everything.classes:
        raise UsageError(f"{test} has other images or more classes than {name}; type --test PATH of the like")
    if test is None:
        kept, held = split.of(labels)
    else:
        kept, held = torch.arange(len(labels)), torch.arange(len(answers))
    if not len(kept) or not len(held):
        raise UsageError(
            f"holding out {split.share:g} of the {len(labels)} images of {name} leaves none to "
            f"{'test' if len(kept) else 'train'} on; give another --held-out"
        )

    def draw(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        index = kept[torch.randint(len(kept), (n,), generator=random)]
        return variation(everything.batch(index), random), labels[index]

    about: dict[str, Any] = {
        "name": everything.name,
        "sha256": everything.digest,
        "images": len(everything),
        "variation": dataclasses.asdict(variation),
    }
    if test is None:
        about["split"] = dataclasses.asdict(split)
    else:
        about["test"] = {"name": tests.name, "sha256": tests.digest}
    about |= traits(everything, resolution)
    spread = float(everything.batch(kept[:10_000]).double().var(0, unbiased=False).mean()) ** 0.5
    source = Samples(draw, everything.shape, spread, everything.classes, about)
    return Task(source, tests.batch(held), answers[held])


def _labelled(name: str, resolution: int | None) -> tuple[data.Images, Tensor]:
    try:
        found = data.load(name, resolution)
    except data.DataError as error:
        raise UsageError(str(error)) from error
    if found.labels is None:
        raise UsageError(f"{name} has no class labels, without which nothing can be classified")
    return found, found.labels


def train(
    config: ClassifierConfig,
    source: Samples,
    recipe: Recipe,
    state: Path,
    *,
    place: torch.device | None = None,
    quiet: bool = False,
) -> tuple[Classifier, Fitted]:
    """Train a classifier by the cross entropy.

    Parameters
    ----------
    config
        The architecture.
    source
        Labelled images.
    recipe
        The training recipe.
    state
        The file from which an interrupted training resumes.
    place
        The device.
    quiet
        Whether to hide the progress bar.

    Returns
    -------
    The classifier with averaged weights, on the CPU, and the record of its training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = Classifier(config).to(place or torch.device("cpu"))

    def loss(random: torch.Generator) -> Tensor:
        x, labels = source.draw(recipe.batch, random)
        assert labels is not None
        return functional.cross_entropy(classifier(x.to(place)), labels.to(place))

    identity = {"kind": "classifier", "config": dataclasses.asdict(config), "data": source.card}
    fitted = fit(classifier, loss, recipe, state, identity, quiet=quiet)
    classifier.load_state_dict(fitted.tensors)
    return classifier.cpu().eval(), fitted


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the number of images, the accuracy and its 95% Wilson interval, as stored in the card.

    Parameters
    ----------
    classifier
        The classifier, on the CPU.
    images, labels
        (N, C, H, W) and (N,).
    """
    said = torch.cat([classifier(x).argmax(1) for x in torch.split(images, 1000)])
    correct = int((said == labels).sum())
    interval = stats.binomtest(correct, len(labels)).proportion_ci(0.95, method="wilson")
    return {
        "images": len(labels),
        "accuracy": correct / len(labels),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def arguments() -> Parser:
    """Return the parser of this command."""
    p = Parser(
        "problems.images.classify",
        "Train the classifier whose features images are compared in. Cut off, the same command goes on.",
        "  python -m problems.images.classify --data digits --out runs/digits-classifier\n"
        "  python -m problems.images.classify --data cifar10-train.zip --channels 32 --halvings 3 "
        "--shift 3 --flip --device cuda --out runs/cifar10-classifier",
    )
    split, variation, shape = Split(), Variation(), ClassifierConfig()
    p.add_argument(
        "--data",
        default="digits",
        help="digits (embedded), or a path: a zip with dataset.json, a folder of labelled images, "
        "cifar-10-python.tar.gz",
    )
    p.add_argument("--resolution", type=positive, help="average the images to this side in pixels")
    p.add_argument("--test", metavar="PATH", help="images to test on (default: a share of the data)")
    p.add_argument("--held-out", type=fraction, default=split.share, help="share of every class to test on")
    p.add_argument("--split-seed", type=seed, default=split.seed, help="seed of their choice")
    p.add_argument("--noise", type=finite, default=variation.noise, help="standard deviation of added noise")
    p.add_argument("--shift", type=whole, default=variation.shift, help="most pixels of random shifts")
    p.add_argument("--flip", action="store_true", help="mirror half of the images")
    p.add_argument(
        "--out", type=stem, default=Path("runs/digits-classifier"), help="where to write, without suffix"
    )
    network = p.add_argument_group("network")
    network.add_argument(
        "--channels", type=positive, default=shape.channels, help="channels at full resolution"
    )
    network.add_argument(
        "--halvings", type=positive, default=shape.halvings, help="how often the images are halved"
    )
    network.add_argument(
        "--features", type=positive, default=shape.features, help="dimension of the features"
    )
    add_recipe(p, Recipe(steps=2000, batch=128, lr=3e-3, ema=0.99))
    return p


def fraction(text: str) -> float:
    """Convert an argument to a number strictly between 0 and 1."""
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def whole(text: str) -> int:
    """Convert an argument to a non-negative integer."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    args = p.parse_args(argv)

    def action() -> None:
        place = device(args.device)
        source, images, labels = task(
            args.data,
            Split(args.held_out, args.split_seed),
            Variation(args.noise, args.shift, args.flip),
            resolution=args.resolution,
            test=args.test,
        )
        if source.shape[-1] != source.shape[-2]:
            raise UsageError(f"images must be square, those of {args.data} are {tuple(source.shape)}")
        try:
            config = ClassifierConfig(
                size=source.shape[-1],
                colours=source.shape[0],
                channels=args.channels,
                halvings=args.halvings,
                features=args.features,
                classes=source.classes,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        if args.shift >= config.size:
            raise UsageError(f"images of {config.size} pixels cannot be shifted by {args.shift}; type less")
        require_trainable(lambda: Classifier(config), args.batch * args.channels * config.size**2)
        path = args.out.with_name(args.out.name + ".safetensors")
        state = args.out.with_name(args.out.name + ".state")
        if args.fresh:
            state.unlink(missing_ok=True)
        classifier, fitted = train(config, source, recipe(args), state, place=place)
        classifier.load_state_dict(written(classifier.state_dict(), args.halves))
        about = card("classifier", recipe(args), fitted, typed(p, argv))
        about |= {
            "config": dataclasses.asdict(config),
            "data": source.card,
            "test": accuracy(classifier, images, labels),
        }
        checkpoints.save(path, written(classifier.state_dict(), args.halves), about)
        state.unlink(missing_ok=True)
        told = about["test"]
        print(
            f"right on {told['accuracy']:.2%} of {told['images']} held-out images "
            f"({told['low']:.2%} to {told['high']:.2%}) after {args.steps} steps, {about['seconds']} s; "
            f"written: {path}"
        )

    return attempt(p, action, "the same command goes on where it was")


if __name__ == "__main__":
    raise SystemExit(command())
