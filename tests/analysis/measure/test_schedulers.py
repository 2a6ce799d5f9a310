"""Schedulers of diffusers are run beside the methods that they are said to be, and their code as printed."""

import warnings
from dataclasses import replace

import pytest
import torch

from analysis.command import answer
from analysis.command.answer import answered, to_type
from analysis.command.arguments import parser
from analysis.command.session import Session
from analysis.measure import schedulers
from analysis.measure.case import Case
from analysis.measure.schedulers import EQUAL, TABLE, apart, candidates, equal_to, levels_of
from analysis.methods import FORMS, GRIDS, METHODS, Method
from analysis.recommend import EXPERIMENT
from analysis.show import tables
from analysis.study.cells import Study
from problems import Table
from problems.tables import rescale_betas_zero_snr

diffusers = pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.fixture(scope="module")
def toy():
    return Case("toy-table", samples=8)


def test_every_line_of_the_table_is_true(toy):
    wrong = {}
    for (solver, form, last), scheduler in TABLE:
        method = Method(solver, FORMS[form], GRIDS["edm"], last=last)
        found = apart(toy, method, 8, scheduler)["apart"]
        if not found <= EQUAL:
            wrong[scheduler] = found
    assert wrong == {}


def test_what_is_another_method_is_not_equal(toy):
    """UniPC is not DPM-Solver++; S-PNDM is nothing of diffusers, nor is UniPC in (x, t)."""
    two = dict(TABLE[::-1])[METHODS["unipc2"].solver, "data", ()]
    assert apart(toy, replace(METHODS["dpm-solver++2m"], grid=GRIDS["edm"]), 8, two)["apart"] > 100 * EQUAL
    assert equal_to(toy, METHODS["s-pndm"], 8, Study()) is None
    assert equal_to(toy, replace(METHODS["unipc2"], form=FORMS["pf"]), 8, Study()) is None


def test_schedulers_with_nodes_of_their_own_are_equal_where_the_nodes_are(toy):
    """DDIM's inference steps fall by ⌊N/n⌋ nodes, which is the grid "leading" and not "linspace"."""
    names = {}
    for solver, grid in (("ddim", "leading"), ("ddim", "linspace"), ("ddim", "edm"), ("f-pndm", "leading")):
        equal = equal_to(toy, replace(METHODS[solver], grid=GRIDS[grid]), 9, Study())
        names[solver, grid] = equal and equal.scheduler.name
    assert names["ddim", "leading"] == "DDIMScheduler"
    assert names["f-pndm", "leading"] == "PNDMScheduler"
    assert names["ddim", "linspace"] == names["ddim", "edm"] == "EulerDiscreteScheduler"


def test_levels_are_those_of_the_evaluations(toy):
    """Heun's method is evaluated twice where a step ends and the next begins, Karras' σ is γ."""
    levels = levels_of(toy.problem, replace(METHODS["heun"], grid=GRIDS["edm"]), 3)
    stops = torch.tensor([levels.sigmas[0], levels.sigmas[1], levels.sigmas[3], levels.sigmas[5]]) ** (1 / 7)
    assert levels.sigmas[1::2] == levels.sigmas[2::2]
    assert torch.allclose(stops.diff(), stops.diff().mean().expand(3), rtol=1e-4)
    assert levels.told == levels.times
    assert [toy.problem.schedule.gamma(t) for t in levels.times] == pytest.approx(list(levels.sigmas[:-1]))


def test_tables_of_beta_have_their_names():
    known = schedulers.table_options
    assert dict(known(Table.linear()))["beta_schedule"] == "linear"
    assert dict(known(Table.scaled_linear(nodes=100)))["beta_end"] == 0.012
    assert dict(known(Table.cosine()))["beta_schedule"] == "squaredcos_cap_v2"
    assert known(Table(rescale_betas_zero_snr(Table.linear().betas))) is None


def test_nothing_is_tried_on_other_schedules():
    assert candidates(Case("toy-flow").problem, METHODS["ddim"]) == []
    assert candidates(Case("toy").problem, replace(METHODS["ddim"], afs=True)) == []


# --- What is printed


def folder(path, **options):
    """Write a small U-Net of random weights with its scheduler."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = diffusers.UNet2DModel(
        8, 1, 1, norm_num_groups=4, layers_per_block=1, block_out_channels=(8,), add_attention=False, **blocks
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(**options)).save_pretrained(path)
    return str(path)


def printed(problem, solver, form, grid):
    """Return what is printed for a method that has won, and the method with its steps."""
    words = ["--problem", problem, "--nfe", "8", "--solvers", solver, "--forms", form, "--grids", grid]
    session = Session.of(EXPERIMENT, parser(EXPERIMENT).parse_args(words), Study())
    rows = session.rows([8])
    with tables.collected() as kept:
        to_type(session, answered(session.case, 8, rows, session.study), None, "8 NFE")
    return kept, rows[0]


@pytest.mark.parametrize(
    ("options", "solver", "form", "grid", "name"),
    [
        ({}, "ddim", "ddim", "leading", "DDIMScheduler"),
        ({"prediction_type": "v_prediction"}, "dpm-solver++2m", "data", "edm", "DPMSolverMultistepScheduler"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "heun", "ddim", "log-snr", "HeunDiscreteScheduler"),
    ],
)
def test_the_code_runs_as_printed_and_ends_in_the_same_place(options, solver, form, grid, name, tmp_path):
    problem = folder(tmp_path / "mine", **options)
    kept, row = printed(problem, solver, form, grid)
    line, library, code = (table.code for table in kept)
    assert line.startswith(f"python -m analysis.samples --problem {problem} --solvers {solver}")
    assert name in code
    theirs, ours = {}, {}
    exec(code, theirs)
    exec(library, ours)
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ends, _ = Case(problem, samples=16).sample(row.method, row.steps, x)
    assert (theirs["x"] - ends).norm() <= EQUAL * ends.norm()
    assert ours["x"].shape == x.shape
    assert len(ours["sigmas"]) == len(ours["timesteps"]) + 1


def test_what_diffusers_has_not_is_said(monkeypatch):
    kept, _ = printed("toy-table", "ttm2", "ddim", "edm")
    assert "no scheduler of diffusers is known to end where ttm2, ddim, edm ends" in kept[-1].title
    monkeypatch.setattr(schedulers, "installed", lambda: False)
    monkeypatch.setattr(answer, "installed", lambda: False)
    kept, _ = printed("toy-table", "ddim", "ddim", "edm")
    assert "pip install 'genie-bench[models]'" in kept[-1].title
