"""The table of methods: one line for each name in the literature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from analysis.methods.forms import FORMS, Coordinates
from analysis.methods.grids import GRIDS, Grid
from analysis.methods.method import Method
from analysis.methods.plugins import installed
from solvers import (
    RK3,
    RK4,
    RK45,
    SSCS,
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
    Pairs,
    PlainLogSNR,
    Ralston,
    ReverseDiffusion,
    SingleStep,
    Solver,
    Strang,
    Taylor,
    TaylorSteps,
    Time,
    VariableIPNDM,
)

V = TypeVar("V")

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
        "dpm-solver++3m-lower": Method(
            DPMSolver3M(), FORMS["data"], last=(Adams(2, clock=LogSNR()), Taylor(1))
        ),
        # What DPM-Solver++(3M) was meant to be, with a start that does not hold it back.
        "dpm-solver++3m-exact": Method(Adams(3, clock=Exact(LogSNR()), start=SingleStep()), FORMS["data"]),
        "log-deis1": Method(Adams(2, clock=Exact(LogSNR()))),
        "log-deis1-lower": Method(Adams(2, clock=Exact(LogSNR())), last=(Taylor(1),)),
        "log-deis2": Method(Adams(3, clock=Exact(LogSNR()))),
        "log-deis2-lower": Method(
            Adams(3, clock=Exact(LogSNR())), last=(Adams(2, clock=Exact(LogSNR())), Taylor(1))
        ),
        "log-deis3": Method(Adams(4, clock=Exact(LogSNR()))),
        "exp-ttm2": Method(ExponentialTaylor(2)),
        "exp-ttm3": Method(ExponentialTaylor(3)),
    },
    # UniPC with B₂(h) = e^h - 1, the usual one, and with B₁(h) = h.
    "predictor-corrector": {
        "unipc1": Method(Corrected(Taylor(1)), FORMS["data"]),
        "unipc2": Method(_unipc(2), FORMS["data"]),
        "unipc2-lower": Method(_unipc(2), FORMS["data"], last=(_unipc(1, q=2),)),
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


Asked = str | Method | Solver
"""How a method may be asked for: its name, itself, or a solver, on the form and grid that are usual."""


def chosen(methods: Asked | Sequence[Asked] | Mapping[str, Method]) -> dict[str, Method]:
    """Return methods by name.

    Parameters
    ----------
    methods
        Names in ``METHODS`` or ``ALIASES``, methods, solvers, one or several; or methods by name.

    Raises
    ------
    ValueError
        If there is no method of a name.
    """
    installed()
    if isinstance(methods, Mapping):
        return dict(methods)
    several = [methods] if isinstance(methods, str | Method | Solver) else methods
    return dict(_named(method) for method in several)


def chosen_forms(forms: Iterable[str | Coordinates]) -> list[Coordinates]:
    """Return forms, given by their names in ``FORMS`` or themselves.

    Raises
    ------
    ValueError
        If there is no form of a name.
    """
    installed()
    return [_found("form", FORMS, form) if isinstance(form, str) else form for form in forms]


def chosen_grids(grids: Iterable[str | Grid]) -> list[Grid]:
    """Return grids, given by their names in ``GRIDS`` or themselves.

    Raises
    ------
    ValueError
        If there is no grid of a name.
    """
    installed()
    return [_found("grid", GRIDS, grid) if isinstance(grid, str) else grid for grid in grids]


def _found(kind: str, table: Mapping[str, V], name: str) -> V:
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(table)}")
    return table[name]


def _named(asked: Asked) -> tuple[str, Method]:
    if isinstance(asked, str):
        name = ALIASES.get(asked, asked)
        if name not in METHODS:
            near = get_close_matches(name, METHODS, n=5)
            raise ValueError(f"unknown solver {asked!r}; did you mean {', '.join(near) or 'another one'}?")
        return name, METHODS[name]
    method = Method(asked) if isinstance(asked, Solver) else asked
    known = next((name for name, other in METHODS.items() if other == method), None)
    return known or type(method.solver).__name__.lower(), method
