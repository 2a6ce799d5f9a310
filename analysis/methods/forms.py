"""The table of forms: one line for each name that ``--forms`` takes, and for those with tricks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import torch

from problems import (
    DDIM,
    Form,
    Ideal,
    Localization,
    Model,
    Noise,
    Preconditioned,
    ProbabilityFlow,
    ReverseSDE,
)
from problems.covariance import UncertainDDIM, UncertainLocalization
from problems.langevin import CriticallyDamped
from problems.posterior import Variance

Source = Noise | torch.Generator | None
"""Where noise comes from; a generator is one that is drawn from."""


@dataclass(frozen=True)
class Coordinates:
    """A named form of the flow: a function of the model and the source of noise.

    Attributes
    ----------
    name
        The name.
    make
        Makes the form.
    variable
        The independent variable of the form, where a grid can have equal steps in it.
    exact
        Whether the derivatives in its jets are those of the solution.
    straight
        Whether Euler's step from the prior errs by α² only, as DDIM's does. In dx/dt it errs by α.
    random
        Whether it is a stochastic equation.
    limit
        What solutions tend to with the steps: the flow, the reverse SDE on the sample's path, or what only
        this form has. The noise of a random form whose limit is the flow vanishes.
    """

    name: str
    make: Callable[[Model, Source], Form] = field(repr=False, compare=False)
    variable: str = ""
    exact: bool = True
    straight: bool = True
    random: bool = False
    limit: Literal["flow", "reverse SDE", "its own"] = "flow"


def distilled(score: Model, noise: Source) -> DDIM:
    """Return the DDIM ODE of a model with a distilled head.

    Raises
    ------
    ValueError
        If the model has none.
    """
    if score.distilled is None:
        raise ValueError(
            f"{type(score).__name__} has no distilled head; distil one by python -m problems.images.distill"
        )
    return DDIM(score.distilled, noise)


def known(variance: Variance | None, of: str) -> Variance:
    """Return a covariance of the data given a state.

    Raises
    ------
    ValueError
        If the model does not know it.
    """
    if variance is None:
        raise ValueError(f"the model does not know the {of} covariance of the data given a state")
    return variance


FORMS = {
    form.name: form
    for form in (
        Coordinates("ddim", DDIM, variable="gamma"),
        Coordinates("pf", ProbabilityFlow, variable="t", straight=False),
        Coordinates("data", lambda score, noise: Preconditioned(score, 0.0, noise), variable="1/gamma"),
        Coordinates("preconditioned", lambda score, noise: Preconditioned(score, score.data_std, noise)),
        Coordinates("distilled", distilled, exact=False),
        Coordinates("ideal-ddim", lambda score, noise: DDIM(Ideal(score), noise), exact=False),
        Coordinates(
            "ideal-pf",
            lambda score, noise: ProbabilityFlow(Ideal(score), noise),
            variable="t",
            exact=False,
            straight=False,
        ),
        Coordinates("sde", ReverseSDE, random=True, limit="reverse SDE"),
        Coordinates(
            "analytic-ddim",
            lambda score, noise: UncertainDDIM(score, known(score.average_variance, "average"), noise),
            random=True,
        ),
        Coordinates(
            "optimal-ddim",
            lambda score, noise: UncertainDDIM(score, known(score.posterior_variance, "exact"), noise),
            random=True,
        ),
        Coordinates(
            "analytic-ddpm",
            lambda score, noise: UncertainLocalization(
                score, known(score.average_variance, "average"), noise
            ),
            random=True,
            limit="reverse SDE",
        ),
        Coordinates(
            "optimal-ddpm",
            lambda score, noise: UncertainLocalization(
                score, known(score.posterior_variance, "exact"), noise
            ),
            random=True,
            limit="reverse SDE",
        ),
        Coordinates("cld", CriticallyDamped, random=True, limit="its own"),
        Coordinates("localization", Localization, random=True, limit="reverse SDE"),
    )
}
"""The forms by name; the deterministic ones without tricks are crossed with every solver."""


class Flows(Sequence[str]):
    """The names of the forms of the flow that are crossed with every solver: exact and not random."""

    def _names(self) -> list[str]:
        return [form.name for form in FORMS.values() if form.exact and not form.random]

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._names()[index]


FLOWS = Flows()
"""A view of ``FORMS``: a form that is added there is in here too."""
