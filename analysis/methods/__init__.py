"""What can be run: the tables of methods, forms and grids, and what a method costs.

A method is a solver, on a form of the flow, over a grid, with or without the analytical first step and the
final denoising. A new solver is one class in ``solvers/`` and one line in ``table``; from that line it gets a
local error curve, an order certificate, a row in every table, a benchmark and a bill.
"""

from analysis.methods.forms import FLOWS, FORMS, Coordinates
from analysis.methods.grids import GRIDS, QUADRATIC, WHOLE, Grid, grid_of, striding
from analysis.methods.method import Method, crossed
from analysis.methods.plugins import extensible
from analysis.methods.table import ALIASES, FAMILIES, METHODS, chosen, chosen_forms, chosen_grids

extensible("methods", METHODS, Method, ALIASES.keys)
extensible("forms", FORMS, Coordinates)
extensible("grids", GRIDS, Grid)

__all__ = [
    "ALIASES",
    "FAMILIES",
    "FLOWS",
    "FORMS",
    "GRIDS",
    "METHODS",
    "QUADRATIC",
    "WHOLE",
    "Coordinates",
    "Grid",
    "Method",
    "chosen",
    "chosen_forms",
    "chosen_grids",
    "crossed",
    "grid_of",
    "striding",
]
