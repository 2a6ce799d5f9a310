"""A method: a solver, on a form of the flow, over a grid, with or without first-step and last-step tricks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from analysis.methods.bills import affordable, rehearsed
from analysis.methods.forms import FLOWS, FORMS, Coordinates
from analysis.methods.grids import QUADRATIC, Grid
from problems import AnalyticFirst, Bill, Model, Noise, Tariff
from problems import denoise as denoise_step
from solvers import Solver, final, march
from solvers.adaptive import Adaptive


@dataclass(frozen=True)
class Method:
    """A sampler, complete.

    Attributes
    ----------
    solver
        How one step is taken.
    form
        In which coordinates.
    grid
        Where the steps lie; the paper's quadratic striding by default.
    afs
        Whether the first evaluation is the analytical one (Sec. 3.2); saves one evaluation.
    denoise
        Whether the last state is denoised (a DDIM step to γ = 0); costs one evaluation.
    last
        How the last steps are taken, if not like the others: ``lower_order_final`` of other libraries.
    """

    solver: Solver
    form: Coordinates = FORMS["ddim"]
    grid: Grid = QUADRATIC
    afs: bool = False
    denoise: bool = False
    last: tuple[Solver, ...] = ()

    def __post_init__(self) -> None:
        if type(self.solver).__hash__ is None:
            name = type(self.solver).__name__
            raise TypeError(f"a solver is a value; write @dataclass(frozen=True) above the class {name}")

    @property
    def random(self) -> bool:
        """Whether what comes out depends on noise, so that errors of end points mean nothing."""
        return self.form.random or self.solver.random

    @property
    def coupled(self) -> bool:
        """Whether the steps of a sample depend on the others of its batch, which is then taken whole."""
        return any(solver.coupled for solver in (self.solver, *self.last))

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps, so that a grid is only a list of times to come by."""
        return isinstance(self.solver, Adaptive)

    @property
    def order(self) -> int:
        """The order of convergence on this form and grid, which ``analysis.orders`` certifies.

        That of the solver, but for four things that forms, grids and last steps do. Derivatives that are not
        exact leave order 1. Weights for equal steps are wrong where neighbouring steps stay unequal, and
        right where they are equal in the variable of the form, so that there nothing limits the order. One
        last step of a lower local order is felt.
        """
        solver = self.solver
        if not self.form.exact and solver.p > 1:
            order = 1
        elif not self.grid.smooth:
            order = solver.rough_order
        elif self.grid.variable is not None and self.grid.variable == self.form.variable:
            order = solver.even_order
        elif self.grid.geometric and self.form.variable in ("gamma", "1/gamma"):
            order = solver.geometric_order
        else:
            order = solver.order
        return min(order, *(last.local_order for last in self.last)) if self.last else order

    @property
    def prior_order(self) -> int:
        """The order of convergence from the start of the schedule, on numbers of steps that anyone takes.

        There ε(x, t) is x up to α², 4e-6 for ``VP``. So first steps are all but exact if the form is
        straight, and limit the order in thousands of steps only. In dx/dt some hundred steps show them.
        """
        return self.well_started().order if self.form.straight else self.order

    def well_started(self) -> Method:
        """Return the method with first steps of no lower order than the rest, so that they limit no order."""
        return replace(self, solver=self.solver.well_started())

    @property
    def limit(self) -> str:
        """What the end tends to with the steps; a stochastic method's along the path of the sample."""
        if self.form.random or not self.random:
            return self.form.limit
        return "reverse SDE" if self.solver.follows_sde else "its own"

    @property
    def strong_order(self) -> float:
        """The order of convergence of a random method along paths, which ``analysis.orders`` certifies too.

        No more than 1, for a step sees no more of the path than its increment. It has noise that does not
        depend on the state right. Noise of size h in every step, whose limit is the flow, adds up to √h.
        """
        return 0.5 if self.limit == "flow" else min(1.0, self.order)

    def solvers(self, steps: int) -> list[Solver]:
        """Return how each of so many steps is taken."""
        last = self.last[-steps:] if steps < len(self.last) else self.last
        return [self.solver] * (steps - len(last)) + list(last)

    def sample(
        self, score: Model, steps: int, x: Tensor, generator: Noise | torch.Generator | None = None
    ) -> Tensor:
        """Return the states to which the method brings ``x``.

        Parameters
        ----------
        score
            The model; its bill grows by what is spent.
        steps
            Number of steps of the grid.
        x
            States at the start of the schedule, shape (n, *event).
        generator
            Source of noise for stochastic methods; ``Brownian`` gives each sample a path of its own.
        """
        times = self.grid.times(steps, score.schedule)
        start, stop = float(times[0]), float(times[-1])
        if self.afs:
            score = AnalyticFirst(score, start)
        with torch.no_grad():
            state = final(march(self.form.make(score, generator), self.solvers(len(times) - 1), times, x))
            return denoise_step(score, state.x, stop) if self.denoise else state.x

    def encode(self, score: Model, steps: int, x: Tensor) -> Tensor:
        """Return the latents of ``x``: the same march from the end of the schedule to its start.

        Neither the analytical first step nor the denoising has a place in it.

        Parameters
        ----------
        score, steps
            As in ``sample``.
        x
            States at the end of the schedule (t_cut), shape (n, *event).

        Raises
        ------
        ValueError
            If the method is random: its way back is not the way that it came.
        """
        if self.random:
            raise ValueError("a random method cannot encode")
        times = self.grid.times(steps, score.schedule).flip(0)
        with torch.no_grad():
            return final(march(self.form.make(score, None), self.solvers(len(times) - 1), times, x)).x

    def bill(self, model: Model, steps: int) -> Bill:
        """Return what ``steps`` steps would cost on the model, found by doing them on a free copy of it.

        Raises
        ------
        ValueError
            If the method cannot solve the model's equation.
        """
        return rehearsed(replace(self, grid=QUADRATIC), model, steps)

    def steps(self, model: Model, nfe: int, tariff: Tariff = Tariff()) -> int:
        """Return the most steps that a budget pays for.

        Score evaluations never exceed the budget. What derivatives cost besides is billed to the nearest
        step, as the paper does (Sec. 5: N = round(NFE/(1 + overhead))); half a step is not begun. A
        multistep method must at least get through its starting steps. A method that chooses its own steps
        gets the whole interval as one.

        Parameters
        ----------
        model
            The model, for its prices (guidance doubles them).
        nfe
            The budget, in score evaluations per sample.
        tariff
            What derivatives cost; nothing by default.

        Raises
        ------
        ValueError
            If the budget is too small; the message says what the method needs.
        """
        if self.adaptive:
            return 1
        if self.grid.steps is not None:
            paid = replace(self, grid=QUADRATIC).steps(model, nfe, tariff)
            if paid != self.grid.steps:
                raise ValueError(f"has a grid of {self.grid.steps} steps, and {nfe} NFE pay for {paid}")
            return paid
        return affordable(partial(self.bill, model), max(1, self.solver.reach), nfe, tariff)


def crossed(
    methods: Mapping[str, Method], forms: Iterable[Coordinates] | None, grids: Iterable[Grid]
) -> list[tuple[str, Method]]:
    """Cross methods with forms and grids.

    Parameters
    ----------
    methods
        Methods by name.
    forms
        Deterministic forms; None is each method's own. A method of an ideal or a stochastic form keeps it.
    grids
        Grids.

    Returns
    -------
    Names and methods, every combination once (two names of one solver differ by their form only).
    """
    forms, grids = None if forms is None else list(forms), list(grids)
    names: dict[Method, str] = {}
    for name, method in methods.items():
        for form in forms if forms is not None and method.form.name in FLOWS else [method.form]:
            for grid in grids:
                names.setdefault(replace(method, form=form, grid=grid), name)
    return [(name, method) for method, name in names.items()]
