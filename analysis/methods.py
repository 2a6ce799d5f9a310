"""The table of methods: one line for each name in the literature.

A method is a solver, on a form of the flow, over a grid, with or without the analytical first step and the
final denoising. A new solver is one class in ``solvers/`` and one line here; from that line it gets a local
error curve, an order certificate, a row in every table, a benchmark and a bill.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from problems import (
    DDIM,
    AnalyticFirst,
    Form,
    Ideal,
    Localization,
    Model,
    Preconditioned,
    ProbabilityFlow,
    ReverseSDE,
    Source,
)
from problems import denoise as denoise_step
from problems.covariance import UncertainDDIM, UncertainLocalization
from problems.langevin import CriticallyDamped
from problems.noise import Brownian, Noise
from problems.posterior import Average, Variance
from problems.schedule import Schedule
from problems.score import Bill, Push, Tariff
from problems.series import Series
from solvers import (
    RK3,
    RK4,
    RK45,
    Adams,
    AdaptiveSDE,
    Ancestral,
    Churn,
    Corrected,
    DormandPrince,
    DPMSolver3M,
    EulerMaruyama,
    Exact,
    ExponentialTaylor,
    Heun,
    Heun3,
    Index,
    LangevinCorrector,
    LogSNR,
    Maruyama,
    Midpoint,
    Own,
    Pairs,
    PlainLogSNR,
    Ralston,
    ReverseDiffusion,
    RungeKutta,
    SingleStep,
    Solver,
    Taylor,
    TaylorSteps,
    Time,
    VariableIPNDM,
    final,
    march,
)
from solvers.adaptive import Adaptive
from solvers.grids import alternating, cosine, edm, listed, log_snr, power, sigmoid
from solvers.splitting import SSCS, Strang


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
    random
        Whether it is a stochastic equation.
    limit
        What solutions tend to with the steps: the flow, the reverse SDE on the sample's path, or what only
        this form has. The noise of a random form whose limit is the flow vanishes.
    """

    name: str
    make: Callable[[Model, Noise | torch.Generator | None], Form] = field(repr=False, compare=False)
    variable: str = ""
    exact: bool = True
    random: bool = False
    limit: Literal["flow", "reverse SDE", "its own"] = "flow"


@dataclass(frozen=True)
class Grid:
    """A named family of grids: the times of a schedule in a given number of steps.

    Attributes
    ----------
    name
        The name.
    times
        Makes the times.
    variable
        The variable in which the steps are equal, where a form has it.
    smooth
        Whether the sizes of neighbouring steps become equal as their number grows.
    steps
        The one number of steps that there is, if it is a list of times.
    """

    name: str
    times: Callable[[int, Schedule], Tensor] = field(repr=False, compare=False)
    variable: str | None = None
    smooth: bool = True
    steps: int | None = None


FORMS = {
    form.name: form
    for form in (
        Coordinates("ddim", DDIM, variable="gamma"),
        Coordinates("pf", ProbabilityFlow, variable="t"),
        Coordinates("data", lambda score, noise: Preconditioned(score, 0.0, noise)),
        Coordinates("preconditioned", lambda score, noise: Preconditioned(score, score.data_std, noise)),
        Coordinates("distilled", lambda score, noise: DDIM(score.distilled, noise), exact=False),
        Coordinates("ideal-ddim", lambda score, noise: DDIM(Ideal(score), noise), exact=False),
        Coordinates(
            "ideal-pf", lambda score, noise: ProbabilityFlow(Ideal(score), noise), variable="t", exact=False
        ),
        Coordinates("sde", ReverseSDE, random=True, limit="reverse SDE"),
        Coordinates(
            "analytic-ddim",
            lambda score, noise: UncertainDDIM(score, score.average_variance, noise),
            random=True,
        ),
        Coordinates(
            "optimal-ddim",
            lambda score, noise: UncertainDDIM(score, score.posterior_variance, noise),
            random=True,
        ),
        Coordinates(
            "analytic-ddpm",
            lambda score, noise: UncertainLocalization(score, score.average_variance, noise),
            random=True,
            limit="reverse SDE",
        ),
        Coordinates(
            "optimal-ddpm",
            lambda score, noise: UncertainLocalization(score, score.posterior_variance, noise),
            random=True,
            limit="reverse SDE",
        ),
        Coordinates("cld", CriticallyDamped, random=True, limit="its own"),
        Coordinates("localization", Localization, random=True, limit="reverse SDE"),
    )
}
"""The forms by name; the deterministic ones without tricks are crossed with every solver."""

FLOWS = ("ddim", "pf", "data", "preconditioned")

GRIDS = {
    grid.name: grid
    for grid in (
        Grid("linear", lambda n, schedule: power(n, 1.0, schedule.start, schedule.stop), variable="t"),
        Grid("rho1.5", lambda n, schedule: power(n, 1.5, schedule.start, schedule.stop)),
        Grid("quadratic", lambda n, schedule: power(n, 2.0, schedule.start, schedule.stop)),
        Grid("rho2.5", lambda n, schedule: power(n, 2.5, schedule.start, schedule.stop)),
        Grid("log-snr", lambda n, schedule: log_snr(n, schedule, schedule.start, schedule.stop)),
        Grid("edm", lambda n, schedule: edm(n, schedule, 7.0, schedule.start, schedule.stop)),
        Grid(
            "gamma",
            lambda n, schedule: edm(n, schedule, 1.0, schedule.start, schedule.stop),
            variable="gamma",
        ),
        Grid("cosine", lambda n, schedule: cosine(n, schedule, schedule.start, schedule.stop)),
        Grid("sigmoid", lambda n, schedule: sigmoid(n, schedule, 3.0, schedule.start, schedule.stop)),
        Grid("rough", lambda n, schedule: alternating(n, 2.0, schedule.start, schedule.stop), smooth=False),
    )
}
"""The grids by name; the steps of the last alternate in size, which no sampler wants: it is there for the
certificates."""


def grid_of(times: str) -> Grid:
    """Return the grid that is a list of times, typed with commas between them: ``1,0.4,0.1,0.001``.

    Raises
    ------
    ValueError
        If they are no falling numbers. Asked for another number of steps, or on a schedule with other ends,
        the grid itself raises one.
    """
    try:
        values = tuple(float(word) for word in times.split(","))
    except ValueError:
        raise ValueError(f"{times!r} is no list of times; type numbers with commas between them") from None
    if len(values) < 2 or any(a <= b for a, b in pairwise(values)):
        raise ValueError(f"the times {times} do not fall; type at least two, from the noise to the data")
    return Grid(
        times,
        lambda n, schedule: listed(values, n, schedule.start, schedule.stop),
        smooth=False,
        steps=len(values) - 1,
    )


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
    grid: Grid = GRIDS["quadratic"]
    afs: bool = False
    denoise: bool = False
    last: tuple[Solver, ...] = ()

    @property
    def parts(self) -> tuple[object, ...]:
        """What determines the method's results; see ``study.Cell``."""
        makers = (inspect.getsource(f) for f in (self.form.make, self.grid.times))
        forms = Form, UncertainDDIM, CriticallyDamped
        sources = (*forms, Brownian, Average) if self.random else forms
        return (repr(self), *makers, self.solver, *self.last, *sources, AnalyticFirst, Series, march, power)

    @property
    def random(self) -> bool:
        """Whether what comes out depends on noise, so that errors of end points mean nothing."""
        return self.form.random or self.solver.random

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
            order = _on_equal_steps(solver).order
        else:
            order = solver.order
        return min(order, *(last.local_order for last in self.last)) if self.last else order

    @property
    def limit(self) -> str:
        """What the end tends to with the steps; a stochastic method's along the path of the sample."""
        if self.form.random or not self.random:
            return self.form.limit
        full = isinstance(self.solver, Ancestral) and self.solver.eta == 1.0
        return "reverse SDE" if full else "its own"

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
        return final(march(self.form.make(score, None), self.solvers(len(times) - 1), times, x)).x

    def bill(self, model: Model, steps: int) -> Bill:
        """Return what ``steps`` steps would cost on the model, found by doing them on a free copy of it."""
        return _rehearsed(replace(self, grid=GRIDS["quadratic"]), model, steps)

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
            paid = replace(self, grid=GRIDS["quadratic"]).steps(model, nfe, tariff)
            if paid != self.grid.steps:
                raise ValueError(f"has a grid of {self.grid.steps} steps, and {nfe} NFE pay for {paid}")
            return paid

        bill = partial(self.bill, model)

        def affordable(steps: int) -> bool:
            cost = bill(steps).cost(tariff)
            half = 0.5 * (bill(steps + 1).cost(tariff) - cost)
            return bill(steps).nfe <= nfe and (cost <= nfe or cost - nfe < half - 1e-9)

        least = max(1, self.solver.reach)
        if not affordable(least):
            needed = bill(least).cost(tariff)
            raise ValueError(f"needs at least {needed:g} NFE ({least} steps), so {nfe} are too few")
        low, high = least, 2 * least
        while affordable(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if affordable(middle) else (low, middle)
        return low


class _Rehearsal(Source):
    """A model that costs what another one costs, and is zero."""

    def __init__(self, model: Model, payer: Source | None = None) -> None:
        super().__init__(model.schedule, model.data_std)
        self.model, self._payer = model, payer

    def price(self, j: int) -> Bill:
        return self.model.price(j)

    @property
    def distilled(self) -> _Rehearsal:
        return _Rehearsal(self.model.distilled, self)

    @property
    def posterior_variance(self) -> Variance:
        return _free(self.model.posterior_variance)

    @property
    def average_variance(self) -> Variance:
        return _free(self.model.average_variance)

    def _expand(self, gamma: Series) -> Push:
        return torch.zeros_like


def _free(variance: Variance) -> Variance:
    """Return zeros in the place of the variances that a model has."""
    return lambda xbar, gamma: torch.zeros_like(xbar)


@lru_cache(maxsize=4096)
def _rehearsed(method: Method, model: Model, steps: int) -> Bill:
    """Return the bill of a method, which is the same on every grid; races ask for it thousands of times."""
    rehearsal = _Rehearsal(model)
    method.sample(rehearsal, steps, torch.zeros(1, 1, dtype=torch.float64))
    return rehearsal.spent


def _on_equal_steps(solver: Solver) -> Solver:
    """Return what a method on the bare step index is where steps are equal in the variable of the form."""
    if isinstance(solver, Adams) and isinstance(solver.clock, Index):
        start = solver.start
        if isinstance(start, RungeKutta):
            start = replace(start, clock=Own())
        return replace(solver, clock=Own(), start=start)
    return solver


_B1, _B2 = Pairs(PlainLogSNR()), Pairs()


def _unipc(order: int, clock: Pairs = _B2, q: int = 0) -> Corrected:
    """Return UniPC: predictor and corrector of one order, unless the corrector is to have another."""
    return Corrected(Adams(order, clock=clock), q or order, clock)


FAMILIES = {
    "taylor": {
        "ddim": Method(Taylor(1)),
        "ttm2": Method(Taylor(2)),
        "ttm3": Method(Taylor(3)),
        "ttm4": Method(Taylor(4)),
        "genie": Method(Taylor(2), FORMS["distilled"]),
        "ttm2-pf": Method(Taylor(2), FORMS["pf"]),
        "ttm2-ideal-ddim": Method(Taylor(2), FORMS["ideal-ddim"]),
        "ttm2-ideal-pf": Method(Taylor(2), FORMS["ideal-pf"]),
    },
    "runge-kutta": {
        "heun": Method(Heun()),
        "midpoint": Method(Midpoint()),
        "ralston": Method(Ralston()),
        "rk3": Method(RK3()),
        "heun3": Method(Heun3()),
        "rk4": Method(RK4()),
    },
    # Linear multistep methods. DEIS counts the degree of its polynomial, and starts with the lower degrees.
    "multistep": {
        "s-pndm": Method(Adams(2, clock=Index(), start=Heun())),
        "f-pndm": Method(Adams(4, clock=Index(), start=RK4(Time()))),
        "ipndm": Method(Adams(4, clock=Index())),
        "ipndm-v": Method(VariableIPNDM()),
        "ab2": Method(Adams(2)),
        "ab3": Method(Adams(3, start=Heun())),
        "ab4": Method(Adams(4, start=RK4())),
        # The paper's. Its authors' code takes differences over one index of the training schedule for slopes,
        # and later stages' noise at the first stage's state and time: no method of fourth order.
        "fon": Method(Adams(4, start=RK4()), FORMS["pf"], GRIDS["linear"]),
        "lms": Method(Adams(4)),
        "rho-deis2": Method(Adams(3)),
        # With derivatives: "adams22" costs per step what TTM-2 costs, at twice its order.
        "adams22": Method(Adams(2, 2, start=Taylor(3))),
        "adams32": Method(Adams(3, 2, start=Taylor(5))),
        "tab-deis1": Method(Adams(2, clock=Exact(Time()))),
        "tab-deis2": Method(Adams(3, clock=Exact(Time()))),
        "tab-deis3": Method(Adams(4, clock=Exact(Time()))),
    },
    # Exponential integrators: polynomials in the log-SNR.
    "exponential": {
        "dpm-solver-2": Method(Midpoint(LogSNR())),
        "dpm-solver-3": Method(SingleStep((1 / 3, 2 / 3), Exact(LogSNR()))),
        "dpm-solver-2m": Method(Adams(2, clock=LogSNR())),
        "dpm-solver-3m": Method(DPMSolver3M()),
        "dpm-solver++2s": Method(SingleStep(), FORMS["data"]),
        "dpm-solver++3s": Method(SingleStep((1 / 3, 2 / 3), Exact(LogSNR())), FORMS["data"]),
        "dpm-solver++2m": Method(Adams(2, clock=LogSNR()), FORMS["data"]),
        "dpm-solver++2m-lower": Method(Adams(2, clock=LogSNR()), FORMS["data"], last=(Taylor(1),)),
        "dpm-solver++3m": Method(DPMSolver3M(), FORMS["data"]),
        # What DPM-Solver++(3M) was meant to be, with a start that does not hold it back.
        "dpm-solver++3m-exact": Method(Adams(3, clock=Exact(LogSNR()), start=SingleStep()), FORMS["data"]),
        "log-deis1": Method(Adams(2, clock=Exact(LogSNR()))),
        "log-deis2": Method(Adams(3, clock=Exact(LogSNR()))),
        "log-deis3": Method(Adams(4, clock=Exact(LogSNR()))),
        "exp-ttm2": Method(ExponentialTaylor(2)),
        "exp-ttm3": Method(ExponentialTaylor(3)),
    },
    # UniPC with B₂(h) = e^h - 1, the usual one, and with B₁(h) = h.
    "predictor-corrector": {
        "unipc1": Method(Corrected(Taylor(1)), FORMS["data"]),
        "unipc2": Method(_unipc(2), FORMS["data"]),
        "unipc3": Method(_unipc(3), FORMS["data"]),
        "unipc2-b1": Method(_unipc(2, _B1), FORMS["data"]),
        "unipc3-b1": Method(_unipc(3, _B1), FORMS["data"]),
        "unipc3-lower": Method(_unipc(3), FORMS["data"], last=(_unipc(2, q=3), _unipc(1, q=2))),
    },
    "adaptive": {
        "rk45": Method(RK45(), FORMS["pf"]),
        "rk45-each": Method(DormandPrince(), FORMS["data"]),
        "taylor-each": Method(TaylorSteps(), FORMS["data"]),
    },
    "stochastic": {
        "euler-maruyama": Method(EulerMaruyama(), FORMS["sde"]),
        "analytic-ddim": Method(EulerMaruyama(), FORMS["analytic-ddim"]),
        "optimal-ddim": Method(EulerMaruyama(), FORMS["optimal-ddim"]),
        "analytic-ddpm": Method(EulerMaruyama(), FORMS["analytic-ddpm"]),
        "optimal-ddpm": Method(EulerMaruyama(), FORMS["optimal-ddpm"]),
        "sde-sscs": Method(SSCS(), FORMS["sde"]),
        "sde-strang": Method(Strang(), FORMS["sde"]),
        "cld-em": Method(EulerMaruyama(), FORMS["cld"]),
        "cld-sscs": Method(SSCS(), FORMS["cld"]),
        "cld-strang": Method(Strang(), FORMS["cld"]),
        "adaptive-sde": Method(AdaptiveSDE(), FORMS["sde"]),
        "ddpm": Method(EulerMaruyama(), FORMS["localization"]),
        "sde-dpm-solver++2m": Method(Maruyama(Adams(2, clock=LogSNR())), FORMS["localization"]),
        "sde-dpm-solver++3m": Method(Maruyama(DPMSolver3M()), FORMS["localization"]),
        # With the quadratic term that was meant.
        "sde-dpm-solver++3m-exact": Method(Maruyama(Adams(3, clock=Exact(LogSNR()))), FORMS["localization"]),
        "ddim-eta0.5": Method(Ancestral(eta=0.5)),
        "ddpm-beta": Method(ReverseDiffusion()),
        "dpm2-ancestral": Method(Ancestral(Midpoint(LogSNR()))),
        "edm-churn": Method(Churn(Heun())),
        "vesde-pc": Method(LangevinCorrector()),
    },
}
"""The methods by family, as the pages of ``docs/methods`` present them."""

METHODS = {name: method for family in FAMILIES.values() for name, method in family.items()}
"""Every method of the suite by the name it is called by."""

ALIASES = {
    "dpm-solver-1": "ddim",
    "dpm-solver++1": "ddim",
    "gddim": "ddim",
    "tab-deis0": "ddim",
    "rho-deis0": "ddim",
    "log-deis0": "ddim",
    "euler": "ddim",
    "ttm1": "ddim",
    "edm": "heun",
    "dpm2": "dpm-solver-2",
    "rho-deis1": "ab2",
    "rho-deis3": "lms",
    "rho-ab1": "ab2",
    "rho-ab2": "rho-deis2",
    "rho-ab3": "lms",
    "unip2": "dpm-solver++2m",
    "ddim-eta0": "ddim",
    "ddim-eta1": "ddpm",
    "ancestral": "ddpm",
    "euler-a": "ddpm",
}
"""Other names of the same methods; of DPM-Solver++1, on the data form, to rounding."""


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
