"""How it is solved: one abstract interface, one loop, and the methods, each a small stateless value."""

from solvers.adams import Adams
from solvers.adaptive import RK45
from solvers.clock import Clock, Exact, Index, LogSNR, Own, Time
from solvers.interface import Equation, LinearRule, Node, Past, Solver
from solvers.march import State, final, march
from solvers.runge_kutta import RK4, Heun, Midpoint, RungeKutta
from solvers.stochastic import EulerMaruyama
from solvers.taylor import Taylor

__all__ = [
    "RK4",
    "RK45",
    "Adams",
    "Clock",
    "Equation",
    "EulerMaruyama",
    "Exact",
    "Heun",
    "Index",
    "LinearRule",
    "LogSNR",
    "Midpoint",
    "Node",
    "Own",
    "Past",
    "RungeKutta",
    "Solver",
    "State",
    "Taylor",
    "Time",
    "final",
    "march",
]
