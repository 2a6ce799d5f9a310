"""Which scheduler of diffusers is a method of the suite, found in a table and checked by running both.

A scheduler is given the noise levels that the method visits, σ = γ in the convention of EDM and k-diffusion,
and what the network is told there. ``DDIMScheduler`` and ``PNDMScheduler`` know integer timesteps alone; on
the grids of nodes they choose these themselves. The table says what is tried. What is true is measured, by
``apart``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analysis.measure.case import Case
from analysis.methods import Method
from analysis.study.cells import Cell, Study
from problems import PREDICTIONS, Bill, Model, Network, Problem, Series, Source, Table
from problems.models.opening import json_object
from problems.score import Push
from solvers import (
    RK4,
    Adams,
    Corrected,
    DPMSolver3M,
    Exact,
    Heun,
    Index,
    LogSNR,
    Midpoint,
    Pairs,
    PlainLogSNR,
    SingleStep,
    Solver,
    Taylor,
    Time,
)

EQUAL = 1e-5
"""Relative distance of end points up to which a scheduler is a method: float32 and ten steps leave less."""

COMPARED = 8
"""Trajectories on which they are compared."""

Value = str | int | bool | float
Options = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers.

    Attributes
    ----------
    name
        Its class.
    options
        Its configuration, but for ``prediction_type``.
    raised
        Whether its states are x̄ = x/α, as those of k-diffusion, and not x.
    nodes
        How many inference steps it takes beyond those of the grid, where it visits nodes of its own; None
        where it is given noise levels.
    """

    name: str
    options: Options = ()
    raised: bool = False
    nodes: int | None = None


@dataclass(frozen=True)
class Levels:
    """The noise levels that a method visits.

    Attributes
    ----------
    sigmas
        γ = σ/α at every evaluation of the network, then at the end; σ of EDM and k-diffusion.
    times
        The times t of the schedule at the evaluations.
    told
        What the network is told at the evaluations; the times, where it is not known.
    """

    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    told: tuple[float, ...]


class _Listener(Source):
    """A model that is zero and remembers the noise levels at which it was evaluated."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.schedule, model.data_std)
        self.levels: list[float] = []

    @property
    def distilled(self) -> _Listener:
        return self

    def price(self, j: int) -> Bill:
        return Bill()

    def _expand(self, gamma: Series) -> Push:
        self.levels.append(float(gamma[0]))
        return torch.zeros_like


def levels_of(problem: Problem, method: Method, steps: int) -> Levels:
    """Return the noise levels that a method visits on the schedule of a problem in so many steps."""
    schedule, listener = problem.schedule, _Listener(problem)
    method.sample(listener, steps, torch.zeros(1, 1, dtype=torch.float64))
    visited = listener.levels
    times = [float(schedule.time(gamma)) for gamma in visited]
    told = times
    if isinstance(problem, Network):
        state = torch.zeros(1, dtype=torch.float64)
        told = [float(problem.told(Series([gamma]), state)[0]) for gamma in visited]
    last = float(method.grid.times(steps, schedule)[-1])
    return Levels((*visited, float(schedule.gamma(last))), tuple(times), tuple(told))


# --- What is tried


def _options(**values: Value) -> Options:
    return tuple(values.items())


_LEADING = _options(timestep_spacing="leading")  # then init_noise_sigma is the standard deviation of x/α

NODES: dict[str, tuple[Options, int]] = {
    "leading": (_options(timestep_spacing="leading"), 1),
    "leading1": (_options(timestep_spacing="leading", steps_offset=1), 0),
    "trailing": (_options(timestep_spacing="trailing"), 0),
    "linspace": (_options(timestep_spacing="linspace"), 1),
}
"""Grids of nodes, as schedulers call them, and how many more inference steps than steps they have."""


def _dpm(order: int, algorithm: str, kind: str = "midpoint", **more: Value) -> Scheduler:
    about: dict[str, Value] = {"solver_order": order, "algorithm_type": algorithm, "solver_type": kind}
    final: dict[str, Value] = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    return Scheduler("DPMSolverMultistepScheduler", _options(**about, **final, **more))


def _unipc(order: int, kind: str, lower: bool, data: bool) -> Scheduler:
    about: dict[str, Value] = {"solver_order": order, "solver_type": kind, "predict_x0": data}
    final: dict[str, Value] = {"lower_order_final": lower, "final_sigmas_type": "sigma_min"}
    return Scheduler("UniPCMultistepScheduler", _options(**about, **final))


Line = tuple[tuple[Solver, str, tuple[Solver, ...]], Scheduler]


def _lines() -> Iterator[Line]:
    """Yield solver, form and last steps of a method, and a scheduler that is thought to be it."""
    ddim, euler = Taylor(1), Scheduler("EulerDiscreteScheduler", _LEADING, raised=True)
    for form in ("ddim", "data"):
        yield (ddim, form, ()), euler
        yield (ddim, form, ()), _dpm(1, "dpmsolver++")
    yield (Heun(), "ddim", ()), Scheduler("HeunDiscreteScheduler", _LEADING, raised=True)
    yield (Adams(4), "ddim", ()), Scheduler("LMSDiscreteScheduler", _LEADING, raised=True)
    for order in (2, 3):
        log_rho = _options(solver_order=order, lower_order_final=False)
        yield (
            (Adams(order, clock=Exact(LogSNR())), "ddim", ()),
            Scheduler("DEISMultistepScheduler", log_rho),
        )
    for form, algorithm in (("ddim", "dpmsolver"), ("data", "dpmsolver++")):
        two: dict[str, Solver] = {
            "midpoint": Adams(2, clock=LogSNR()),
            "heun": Adams(2, clock=Exact(LogSNR())),
        }
        for kind, solver in two.items():
            yield (solver, form, ()), _dpm(2, algorithm, kind)
            yield (solver, form, (ddim,)), _dpm(2, algorithm, kind, euler_at_final=True)
            yield (DPMSolver3M(start=solver), form, ()), _dpm(3, algorithm, kind)
        about: dict[str, Value] = {"solver_order": 2, "algorithm_type": algorithm, "lower_order_final": False}
        single = Scheduler("DPMSolverSinglestepScheduler", _options(**about, final_sigmas_type="sigma_min"))
        yield (SingleStep(), form, ()), single
        yield (Midpoint(LogSNR()), form, ()), single
    for kind, clock in (("bh2", Pairs()), ("bh1", Pairs(PlainLogSNR()))):
        for form in ("data", "ddim"):
            data = form == "data"
            rules: list[Solver] = [Taylor(1), Adams(2, clock=clock), Adams(3, clock=clock)]
            for order, rule in enumerate(rules, start=1):
                yield (Corrected(rule, order, clock), form, ()), _unipc(order, kind, False, data)
            falling = (Corrected(rules[1], 3, clock), Corrected(Adams(1, clock=clock), 2, clock))
            yield (Corrected(rules[2], 3, clock), form, falling), _unipc(3, kind, True, data)


TABLE = list(_lines())
"""What is tried, in this order; every line is checked before it is believed."""

FULL_PNDM = Adams(4, clock=Index(), start=RK4(Time()))


def candidates(problem: Problem, method: Method) -> list[Scheduler]:
    """Return the schedulers that may be a method on the schedule of a problem, the simplest first.

    There are none where α² + σ² is not 1, on which the states of these schedulers are built, and none with an
    analytical first step, a final denoising or noise.
    """
    schedule = problem.schedule
    preserving = all(
        abs(schedule.alpha(t) ** 2 * (1.0 + schedule.gamma(t) ** 2) - 1.0) < 1e-9
        for t in (schedule.start, schedule.stop)
    )
    if not preserving or method.afs or method.denoise:
        return []
    found = []
    betas = table_options(schedule) if isinstance(schedule, Table) else None
    if betas is not None and method.grid.name in NODES and not method.last:
        spacing, more = NODES[method.grid.name]
        fixed = (*betas, *spacing, ("set_alpha_to_one", False))
        if method.solver == Taylor(1) and method.form.name in ("ddim", "data"):
            found.append(Scheduler("DDIMScheduler", (*fixed, ("clip_sample", False)), nodes=more))
        if method.solver == FULL_PNDM and method.form.name == "ddim":
            found.append(Scheduler("PNDMScheduler", fixed, nodes=more))
    key = (method.solver, method.form.name, method.last)
    return found + [scheduler for of, scheduler in TABLE if of == key]


def table_options(table: Table) -> Options | None:
    """Return what diffusers calls a table of β; None if it has no name for it, but a list of numbers."""
    first, last = (float(f"{beta:.12g}") for beta in (table.betas[0], table.betas[-1]))
    ends = {"beta_start": first, "beta_end": last}
    makers: dict[str, tuple[Callable[[], Table], dict[str, float]]] = {
        "linear": (lambda: Table.linear(first, last, table.nodes), ends),
        "scaled_linear": (lambda: Table.scaled_linear(first, last, table.nodes), ends),
        "squaredcos_cap_v2": (lambda: Table.cosine(table.nodes), {}),
    }
    for name, (make, numbers) in makers.items():
        try:
            same = torch.allclose(torch.tensor(make().betas), torch.tensor(table.betas), rtol=1e-9, atol=0.0)
        except ValueError:  # ends that make no such table
            continue
        if same:
            return _options(num_train_timesteps=table.nodes, beta_schedule=name, **numbers)
    return None


# --- What is true


def installed() -> bool:
    """Return whether diffusers, an optional extra, is there to be run."""
    return find_spec("diffusers") is not None


def prediction_type(problem: Problem) -> str:
    """Return what diffusers calls the prediction of a network; that of other problems is ε."""
    kinds = {"v": "v_prediction", "x0": "sample"}
    if isinstance(problem, Network):
        return next(
            (kind for name, kind in kinds.items() if problem.prediction == PREDICTIONS[name]), "epsilon"
        )
    return "epsilon"


def apart(case: Case, method: Method, steps: int, scheduler: Scheduler) -> dict[str, Any]:
    """Measure how far a scheduler ends from where a method ends, both asking the same problem.

    Parameters
    ----------
    case
        What is solved, and on which trajectories.
    method, steps
        The method.
    scheduler
        The scheduler, which is given what the network predicts, in its own parametrisation.

    Returns
    -------
    ``apart``, the norm of the difference of all end points over the norm of these, and ``nfe``, how many
    evaluations the scheduler asks for.

    Raises
    ------
    Exception
        Whatever a scheduler raises that cannot take these steps.
    """
    ends, _ = case.sample(method, steps)
    kind = prediction_type(case.problem)
    made, times = ready(scheduler, levels_of(case.problem, method, steps), steps, kind)
    x = case.cast(case.latents) * float(made.init_noise_sigma)
    with torch.no_grad():
        for t, time in zip(made.timesteps, times, strict=True):
            output = predicted(case.working, made.scale_model_input(x, t), time, kind)
            x = made.step(output, t, x).prev_sample
    if scheduler.raised:
        x = x * case.problem.schedule.alpha(case.problem.schedule.stop)
    difference = x.double().cpu() - ends
    return {"apart": float(difference.norm() / ends.norm()), "nfe": len(times)}


class Equal(NamedTuple):
    """A scheduler that is a method.

    Attributes
    ----------
    scheduler
        The scheduler.
    apart
        How far its end points were from those of the method, relative.
    """

    scheduler: Scheduler
    apart: float


def equal_to(case: Case, method: Method, steps: int, study: Study) -> Equal | None:
    """Return the first candidate that ends where a method ends, to ``EQUAL``; None without diffusers."""
    few, quiet = case.but(samples=COMPARED), replace(study, failures=[])
    for scheduler in candidates(case.problem, method) if installed() else ():
        arguments = {"case": few, "method": method, "steps": steps, "scheduler": scheduler}
        about = {"form": method.form.name, "scheduler": scheduler.name, "steps": steps}
        result = quiet.run("schedulers", [Cell({**few.config, **about}, apart, arguments)])[0]
        if not result.failure and float(result.arrays["apart"]) <= EQUAL:
            return Equal(scheduler, float(result.arrays["apart"]))
    return None


def ready(scheduler: Scheduler, levels: Levels, steps: int, kind: str) -> tuple[Any, list[float]]:
    """Return a scheduler of diffusers that is ready to run, and the times t of its evaluations."""
    import diffusers

    about = {**dict(scheduler.options), "prediction_type": kind}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(diffusers, scheduler.name)(**about)
        if scheduler.nodes is not None:
            made.set_timesteps(steps + scheduler.nodes)
            return made, [float(t) for t in made.timesteps]
        made.set_timesteps(len(levels.times))
    made.sigmas = torch.tensor(levels.sigmas, dtype=torch.float64)
    made.timesteps = torch.tensor(levels.told, dtype=torch.float32)
    return made, list(levels.times)


def predicted(problem: Problem, x: Tensor, t: float, kind: str) -> Tensor:
    """Return ε(x, t) as v = α ε - σ x₀ or as x₀, where a network predicts these, in the dtype of ``x``."""
    eps, alpha = problem(x, t), problem.schedule.alpha(t)
    sigma = alpha * problem.schedule.gamma(t)
    if kind == "epsilon":
        return eps
    data = (x - sigma * eps) / alpha
    return data if kind == "sample" else alpha * eps - sigma * data


def plain_unet(problem: str) -> str | None:
    """Return where in a folder of diffusers a ``UNet2DModel`` lies that takes a state and a time alone.

    That is "unet", or "" for the folder itself; None if the problem is no such folder.
    """
    for part in ("", "unet"):
        file = Path(problem) / part / "config.json"
        if file.is_file():
            about = json_object(file)
            plain = about.get("_class_name") == "UNet2DModel" and not about.get("num_class_embeds")
            return part if plain and about.get("in_channels") == about.get("out_channels") else None
    return None
