"""What is solved: noise schedules, score models with exact derivatives, and the forms of their flow."""

# ruff: noqa: E402
from problems.terminal import begin

begin()  # before torch, whose import takes seconds

from problems.autodiff import Autodiff
from problems.bill import Bill, Tariff
from problems.covariance import UncertainDDIM, UncertainLocalization
from problems.forms import DDIM, Flow, Form, Localization, Preconditioned, ProbabilityFlow, ReverseSDE
from problems.labelled import InTurn
from problems.langevin import CriticallyDamped
from problems.makers import digits, digits_gaussians, digits_mixture, smooth_mixture, toy_mixture
from problems.mixture import Mixture
from problems.models.door import load
from problems.network import Network
from problems.noise import Brownian, Drawn, Noise
from problems.prediction import PREDICTIONS, Prediction
from problems.schedule import EDM, VE, VP, CosineVP, FlowMatching, Schedule, SubVP
from problems.score import Model, Problem, Source, denoise
from problems.series import Series
from problems.tables import Table, rescale_betas_zero_snr
from problems.textbook import Gaussian
from problems.thresholding import Clipped, DynamicallyThresholded
from problems.wrappers import AnalyticFirst, Guided, GuidedHeads, Ideal

__all__ = [
    "DDIM",
    "EDM",
    "PREDICTIONS",
    "VE",
    "VP",
    "AnalyticFirst",
    "Autodiff",
    "Bill",
    "Brownian",
    "Clipped",
    "CosineVP",
    "CriticallyDamped",
    "Drawn",
    "DynamicallyThresholded",
    "Flow",
    "FlowMatching",
    "Form",
    "Gaussian",
    "Guided",
    "GuidedHeads",
    "Ideal",
    "InTurn",
    "Localization",
    "Mixture",
    "Model",
    "Network",
    "Noise",
    "Preconditioned",
    "Prediction",
    "ProbabilityFlow",
    "Problem",
    "ReverseSDE",
    "Schedule",
    "Series",
    "Source",
    "SubVP",
    "Table",
    "Tariff",
    "UncertainDDIM",
    "UncertainLocalization",
    "denoise",
    "digits",
    "digits_gaussians",
    "digits_mixture",
    "load",
    "rescale_betas_zero_snr",
    "smooth_mixture",
    "toy_mixture",
]
