"""What is solved: noise schedules, score models with exact derivatives, and the forms of their flow."""

from problems.autodiff import Autodiff
from problems.bill import Bill, Tariff
from problems.covariance import UncertainDDIM, UncertainLocalization
from problems.forms import DDIM, Flow, Form, Localization, Preconditioned, ProbabilityFlow, ReverseSDE
from problems.langevin import CriticallyDamped
from problems.makers import digits, digits_gaussians, digits_mixture, smooth_mixture, toy_mixture
from problems.mixture import Mixture
from problems.noise import Brownian, Drawn, Noise
from problems.schedule import EDM, VE, VP, CosineVP, Schedule
from problems.score import Model, Problem, Source, denoise
from problems.series import Series
from problems.textbook import Gaussian
from problems.wrappers import AnalyticFirst, Guided, GuidedHeads, Ideal

__all__ = [
    "DDIM",
    "EDM",
    "VE",
    "VP",
    "AnalyticFirst",
    "Autodiff",
    "Bill",
    "Brownian",
    "CosineVP",
    "CriticallyDamped",
    "Drawn",
    "Flow",
    "Form",
    "Gaussian",
    "Guided",
    "GuidedHeads",
    "Ideal",
    "Localization",
    "Mixture",
    "Model",
    "Noise",
    "Preconditioned",
    "ProbabilityFlow",
    "Problem",
    "ReverseSDE",
    "Schedule",
    "Series",
    "Source",
    "Tariff",
    "UncertainDDIM",
    "UncertainLocalization",
    "denoise",
    "digits",
    "digits_gaussians",
    "digits_mixture",
    "smooth_mixture",
    "toy_mixture",
]
