"""Numerical methods for ODEs and SDEs: the interface ``Solver``, the loop ``march``, and the methods."""

from solvers.adams import Adams
from solvers.adaptive import RK45
from solvers.adaptive_sde import AdaptiveSDE
from solvers.as_published import DPMSolver3M, VariableIPNDM
from solvers.clock import Clock, Exact, Index, LogSNR, Own, Time
from solvers.exponential import ExponentialTaylor
from solvers.interface import Equation, LinearRule, Node, Noisy, Past, Solver
from solvers.march import State, final, march
from solvers.ode import ODE, ode
from solvers.per_trajectory import DormandPrince, TaylorSteps
from solvers.predictor_corrector import Corrected, Pairs, PlainLogSNR
from solvers.runge_kutta import RK3, RK4, Heun, Heun3, Midpoint, Ralston, RungeKutta
from solvers.single_step import SingleStep
from solvers.splitting import SSCS, Split, Strang
from solvers.stochastic import (
    Ancestral,
    Churn,
    EulerMaruyama,
    LangevinCorrector,
    Maruyama,
    ReverseDiffusion,
)
from solvers.taylor import Taylor

__all__ = [
    "ODE",
    "RK3",
    "RK4",
    "RK45",
    "SSCS",
    "Adams",
    "AdaptiveSDE",
    "Ancestral",
    "Churn",
    "Clock",
    "Corrected",
    "DPMSolver3M",
    "DormandPrince",
    "Equation",
    "EulerMaruyama",
    "Exact",
    "ExponentialTaylor",
    "Heun",
    "Heun3",
    "Index",
    "LangevinCorrector",
    "LinearRule",
    "LogSNR",
    "Maruyama",
    "Midpoint",
    "Node",
    "Noisy",
    "Own",
    "Pairs",
    "Past",
    "PlainLogSNR",
    "Ralston",
    "ReverseDiffusion",
    "RungeKutta",
    "SingleStep",
    "Solver",
    "Split",
    "State",
    "Strang",
    "Taylor",
    "TaylorSteps",
    "Time",
    "VariableIPNDM",
    "final",
    "march",
    "ode",
]
