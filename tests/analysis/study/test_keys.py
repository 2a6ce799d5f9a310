"""Keys never lie: whatever a measurement executes moves its key when it is edited, and nothing else does."""

import ast
import copy
import cProfile
import functools
import importlib
import inspect
import pkgutil
import sys
import types
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

import problems
import solvers
from analysis.api import Case, Study, end_points, local_errors
from analysis.measure import reference
from analysis.measure.ends import end_point
from analysis.measure.steps import single_step
from analysis.methods import FAMILIES, FORMS, METHODS, Method
from analysis.show import plots
from analysis.study.code import scanned
from analysis.study.keys import Keys
from analysis.study.pools import Here, Pool
from analysis.study.store import Store
from analysis.study.values import Aside, NoFingerprintError
from problems import Gaussian
from solvers import Node, Taylor, runge_kutta

ROOT = Path(__file__).parents[3]
OWN = tuple(str(ROOT / package) for package in ("solvers", "problems", "analysis"))


def end_of(name, problem="toy", samples=4, **changes):
    """The arguments of the measurement of one end point."""
    method = METHODS[name]
    arguments = {
        "case": Case(problem, samples),
        "method": method,
        "steps": 4,
        "encode_steps": 0,
        "features": None,
    }
    return {**arguments, **changes}


def key_of(measure, arguments):
    return Keys().key(measure, arguments)


# What was stale on the tree before, each measured twice with a break in between.

BREAKS = {
    "rk45-each": (runge_kutta, "advance"),
    "exp-ttm2": (solvers.exponential, "_moments"),
    "exp-ttm3": (solvers.exponential, "_stirling"),
    "taylor-each": (solvers.adaptive_taylor, "_taylor"),
    "sde-dpm-solver++2m": (solvers.clock, "hermite_weights"),
    "ddim-eta0.5": (solvers.stochastic, "moved"),
    "vesde-pc": (solvers.stochastic, "moved"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_helper_in_another_file_is_measured_anew(name, tmp_path, monkeypatch):
    store = Store(tmp_path / "store.sqlite")
    arguments = {"nfe": [10], "grids": ["quadratic"], "study": Study(store)}
    case = Case("smooth", samples=20)
    before = end_points(case, name, **arguments)["error"][0]
    assert end_points(case, name, **arguments)["error"][0] == before
    module, helper = BREAKS[name]
    right = getattr(module, helper)
    everywhere(monkeypatch, module, helper, lambda *a, **k: _scaled(right(*a, **k)))
    assert end_points(case, name, **arguments)["error"][0] != before
    monkeypatch.undo()
    assert end_points(case, name, **arguments)["error"][0] == before
    store.close()


def everywhere(monkeypatch, owner, name, value):
    """Put a value in the place of another, in every module of the suite that imported that."""
    old = getattr(owner, name)
    monkeypatch.setattr(owner, name, value)
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").startswith(OWN) and vars(module).get(name) is old:
            monkeypatch.setattr(module, name, value)


def _scaled(value):
    return type(value)(map(_scaled, value)) if isinstance(value, list | tuple) else 0.9 * value


def test_a_problem_of_ones_own_whose_weights_change_is_measured_anew(tmp_path):
    store = Store(tmp_path / "store.sqlite")
    mine = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5)
    arguments = {"methods": "ddim", "nfe": [5], "grids": ["linear"], "study": Study(store)}
    before = end_points(Case(mine, samples=20), **arguments)["error"][0]
    case = Case(mine, samples=20)
    mine.mean = mine.mean + 1.0
    assert end_points(case, **arguments)["error"][0] == before  # the case is of the problem as it was
    assert end_points(Case(mine, samples=20), **arguments)["error"][0] != before
    mine.mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    assert len({Case(mine, samples=20), case}) == 1
    store.close()


NOTEBOOK = """
from dataclasses import dataclass
from solvers import Node, Solver

def along(y, h, f):
    return y + {factor} * h * f

@dataclass(frozen=True)
class Mine(Solver):
    order = 1

    def step(self, eq, y, s0, s1, past):
        f = eq.jet(y, s0)[0]
        return along(y, s1 - s0, f), Node(s0, (f,))
"""


def test_a_class_without_a_source_file_is_measured_and_kept_by_its_code(tmp_path):
    """As in a cell of a notebook; a helper that is defined again is another one."""
    store, scope = Store(tmp_path / "store.sqlite"), {"__name__": "__main__"}
    errors = []
    for factor in ("1.0", "1.0", "0.9"):
        exec(NOTEBOOK.format(factor=factor), scope)
        table = end_points("gaussian", Method(scope["Mine"]()), [5], grids=["linear"], study=Study(store))
        errors.append(table["error"][0])
    ddim = end_points("gaussian", "ddim", [5], grids=["linear"])["error"][0]
    assert errors[0] == errors[1] == pytest.approx(ddim, rel=1e-9)
    assert errors[2] > 1.5 * ddim
    kept = store._db.execute("SELECT count(*) FROM results").fetchone()[0]
    assert kept == 2
    store.close()


def test_what_was_measured_under_other_versions_is_not_served(monkeypatch):
    arguments = end_of("ddim")
    before = key_of(end_point, arguments)
    assert key_of(end_point, end_of("ddim")) == before
    torch_now = dict(Keys().reached(end_point, arguments).entries)["library torch"]
    assert torch.__version__.split("+")[0] in torch_now
    other = "analysis.study.keys.library"
    real = importlib.import_module("analysis.study.libraries").library
    monkeypatch.setattr(other, lambda module: "torch 0" if module.split(".")[0] == "torch" else real(module))
    assert key_of(end_point, arguments) != before
    monkeypatch.undo()
    monkeypatch.setattr("platform.python_version", lambda: "2.7")
    assert key_of(end_point, arguments) != before
    monkeypatch.undo()
    monkeypatch.setattr("analysis.study.keys.package_version", lambda: "0.0")
    assert key_of(end_point, arguments) != before


def test_the_device_the_dtype_and_for_networks_the_batch_are_in_the_key():
    toy, network = Case("toy", 4), Case("digits", 4)
    keys = [key_of(end_point, end_of("ddim", case=case)) for case in (toy, toy.but(dtype="float32"), network)]
    assert len(set(keys)) == 3
    assert key_of(end_point, end_of("ddim", case=network.but(batch=2))) != keys[2]
    assert key_of(end_point, end_of("ddim", case=toy.but(batch=2))) == keys[0]


def test_times_at_which_a_reference_is_wanted_too_are_not_in_the_key():
    arguments = {"case": Case("toy", 4), "method": METHODS["ddim"], "t": 0.2, "dt": 0.1}
    few, many = ({**arguments, "times": Aside(times)} for times in ((0.2, 0.1), (0.3, 0.2, 0.1)))
    assert key_of(single_step, few) == key_of(single_step, many)


# Values.


@dataclass(frozen=True)
class Plain:
    number: float
    names: tuple[str, ...] = ()


def _counted(n):
    return Plain(float(n), ("a",))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0.0, -0.0),
        ((1, 2), [1, 2]),
        ("1", 1),
        (True, 1),
        ({"a": 1}, {"a": 2}),
        (Plain(1.0), Plain(2.0)),
        (Plain(1.0, ("a",)), Plain(1.0, ("b",))),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        (functools.partial(_counted, 1), functools.partial(_counted, 2)),
        (METHODS["ab2"], METHODS["ab3"]),
    ],
)
def test_values_that_differ_have_other_digests_and_copies_the_same(one, other):
    digests = [Keys().value(value)[0] for value in (one, other, copy.deepcopy(one))]
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_a_set_is_written_whatever_its_order_and_a_loop_ends():
    assert Keys().value({"b", "a", 3})[0] == Keys().value({3, "a", "b"})[0]
    loop = [1]
    loop.append(loop)
    assert Keys().value(loop)[0] == Keys().value(copy.deepcopy(loop))[0]


def test_a_function_of_no_known_library_has_no_fingerprint(monkeypatch):
    foreign = types.ModuleType("nobodys")
    call = len
    monkeypatch.setattr("analysis.study.keys._module_of", lambda function, owner: "nobodys")
    with pytest.raises(NoFingerprintError, match="no code that can be read"):
        Keys().key(call, {})
    assert foreign.__name__ == "nobodys"


# A comment, a docstring, a line: no code object that counts has them.


def _changed(tree):
    """Return a module's syntax tree with other docstrings, on other lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0].value.value = "Another docstring, of another length."
    return ast.increment_lineno(tree, 17)


def _digests(code):
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    functions = [c for c in inner if c.co_flags & inspect.CO_NEWLOCALS]
    found = {c.co_qualname: scanned(c).digest for c in functions}
    for c in inner:
        found |= _digests(c)
    return found


def _modules(*packages):
    for package in packages:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.util.find_spec(module.name).origin


def test_comments_docstrings_and_lines_move_no_digest():
    count = 0
    for path in _modules(solvers, problems):
        text = Path(path).read_text(encoding="utf-8")
        before = _digests(compile(text, path, "exec", dont_inherit=True))
        after = _digests(compile(_changed(ast.parse(text)), path, "exec", dont_inherit=True))
        assert before == after, path
        count += len(before)
    assert count > 900


# What is executed is in the fingerprint: every function of the suite that a cell calls, in every experiment
# and family of methods.


class Tracing(Here):
    """Measures here, and notes the functions of the suite that were called and are not in the fingerprint."""

    def __init__(self):
        self.missed, self.executed, self.cells, self.keys = {}, set(), 0, Keys()

    def submit(self, fn, /, *args, **kwargs):
        reached = self.keys.reached(fn, kwargs).codes
        future = Future()
        with traced() as called:
            future.set_result(fn(*args, **kwargs))
        self.cells += 1
        self.executed |= called
        for code in called - reached:
            self.missed[f"{code.co_filename}:{code.co_qualname}"] = getattr(fn, "__qualname__", fn)
        return future


@contextmanager
def traced():
    """Collect the code objects of the suite's functions that are called inside the block."""
    called, profile = set(), cProfile.Profile(subcalls=False, builtins=False)
    profile.enable()
    try:
        yield called
    finally:
        profile.disable()
        codes = (entry.code for entry in profile.getstats() if isinstance(entry.code, types.CodeType))
        called.update(c for c in codes if c.co_filename.startswith(OWN) and c.co_flags & inspect.CO_NEWLOCALS)


LINES = {
    "lte": "--problem smooth --samples 4 --points 2 --t 0.3",
    "derivatives": "--problem smooth --samples 4 --points 2 --t 0.3",
    "gte": "--problem digits-gaussians --samples 4 --nfe 3 --solvers ttm2 --denoise on --afs on",
    "gte --encode": "--problem gaussian --samples 4 --nfe 3 --solvers ddim --grids linear",
    "orders": "--samples 2 --solvers ddim ddpm ddim-eta0.5 --forms ddim --grids quadratic --finest 16 "
    "--start 0.3 --stop 0.25",
    "samples": "--samples 20 --steps 3 --solvers ddim",
    "heads": "--problem digits --samples 4 --nfe 2",
    "budget": "--samples 4 --nfe 2 --t 0.1",
    "smoothness": "--networks digits --samples 2 --nfe 2 --show 2 --t 0.5 --solvers ttm2",
    "guidance": "--samples 10 --scales 1 --steps 2 4",
    "interpolate": "--samples 2 --points 3 --nfe 3 --solvers ddim genie",
    "fid": "--problem smooth --samples 8 --nfe 3 --solvers ddim ddpm --grids linear",
    "weak": "--problem toy --samples 8 --nfe 3 --solvers ddim ddpm --grids quadratic",
    "work_precision": "--problem toy --samples 4 --nfe 3 --solvers ddim --grids quadratic",
    "recommend": "--problem toy --samples 64 --nfe 5 --solvers ddim ab2 --forms ddim --grids quadratic",
    "schedule": "--problem smooth --samples 4 --fitted 4 --candidates 6 --nfe 3 --solvers ddim ab2",
}


def roughly(monkeypatch):
    """Make references of networks rough: they execute what good ones do."""
    monkeypatch.setattr(reference, "SETTLED", 1e3)
    monkeypatch.setattr(reference, "STEPS", (8, 16))


def trace_of(line, out, monkeypatch):
    """Run a command with all cells traced; nothing is drawn."""
    tracing = Tracing()

    @contextmanager
    def pool(workers, scheduler):
        yield Pool(tracing)

    monkeypatch.setattr("analysis.command.run.pool", pool)
    monkeypatch.setattr(plots, "save", lambda figure, path: plt.close(figure) or [])
    roughly(monkeypatch)
    name, *rest = line.split()
    command = importlib.import_module(f"analysis.{name}").command
    assert command([*rest, *LINES.get(line, "").split(), "--out", str(out)]) in (0, 3)
    return tracing


@pytest.mark.parametrize("line", LINES)
def test_every_function_that_an_experiment_executes_is_in_the_fingerprint(line, tmp_path, monkeypatch):
    tracing = trace_of(line, tmp_path, monkeypatch)
    assert tracing.cells > 0
    assert len(tracing.executed) > 10
    assert tracing.missed == {}


MINE = """
import torch
from torch import nn

from problems import Network, Table


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(3), nn.Linear(3, 2)
        self.layer.weight.data = torch.arange(6.0).view(2, 3) / 6.0

    def forward(self, x, time):
        return nn.functional.gelu(self.layer(self.norm(torch.cat([x, time[:, None] / 1000.0], 1)))).softmax(1)


def make():
    return Network(Net(), Table(Table.linear().betas, 600.0, 400.0), (2,), predicts="v")
"""


def test_every_function_that_a_network_of_ones_own_executes_is_in_the_fingerprint(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    line = f"gte --problem {tmp_path}/mine.py:make --samples 2 --nfe 4 --solvers ddim ttm2 ttm3"
    tracing = trace_of(line, tmp_path, monkeypatch)
    executed = " ".join(code.co_qualname for code in tracing.executed)
    assert "softmax" in executed
    assert "gelu.<locals>.term" in executed
    assert tracing.missed == {}


def test_every_function_that_a_method_executes_is_in_the_fingerprint(monkeypatch):
    """Every method of every family, each at its own form, on problems that it can solve."""
    roughly(monkeypatch)
    tracing = Tracing()
    study = Study(None, Pool(tracing))
    names = [name for family in FAMILIES.values() for name, m in family.items() if m.form.name != "distilled"]
    end_points(Case("toy", 3), names, [12], grids=["quadratic"], denoise="on", study=study)
    end_points(Case("digits", 2), ["genie"], [3], grids=["linear"], study=study)
    end_points(Case("toy", 3), ["ttm2", "ab2"], [6], forms=list(FORMS)[:4], grids=["edm"], study=study)
    local_errors(Case("smooth", 3), ["ddim", "ab4", "unipc3", "f-pndm"], [0.3], 2, study)
    assert study.failures == []
    assert tracing.cells > len(names)
    assert tracing.missed == {}


# Edits: the key of a measurement moves for every function and constant that it executes, and for no others.


def _edited(value):
    """Return a function that does the same by other code, or another constant."""
    if isinstance(value, property):
        return property(_edited(value.fget))
    if isinstance(value, staticmethod | classmethod):
        return type(value)(_edited(value.__func__))
    if isinstance(value, types.FunctionType):

        def edited(*args, **kwargs):
            return value(*args, **kwargs)

        edited.__isabstractmethod__ = getattr(value, "__isabstractmethod__", False)
        return edited
    return -value if isinstance(value, int | float) else (*value, 1.0)


FUNCTIONS = [
    "solvers.march.march",
    "solvers.march.final",
    "solvers.taylor.Taylor.step",
    "solvers.interface.along",
    "solvers.adams.Adams.step",
    "solvers.adams.Adams.weights",
    "solvers.clock.hermite_weights",
    "solvers.clock.as_float",
    "solvers.grids.power",
    "solvers.grids.edm",
    "solvers.exponential.ExponentialTaylor.step",
    "solvers.runge_kutta.advance",
    "solvers.runge_kutta.RungeKutta.step",
    "solvers.predictor_corrector.Corrected.step",
    "solvers.stochastic.Maruyama.step",
    "solvers.stochastic.Ancestral.step",
    "solvers.stochastic.moved",
    "solvers.splitting.Strang.step",
    "problems.forms.Flow.jet",
    "problems.forms.DDIM.jet",
    "problems.forms.DDIM.enter",
    "problems.forms.DDIM.leave",
    "problems.forms.ReverseSDE.jet",
    "problems.forms.Localization.jet",
    "problems.forms.Form.kick",
    "problems.noise.Brownian.over",
    "problems.noise.philox",
    "problems.schedule.VP.gamma",
    "problems.schedule.VP.alpha",
    "problems.schedule.VE.gamma",
    "problems.series.convolve",
    "problems.series.sqrt",
    "problems.mixture.Mixture.nearest",
    "problems.mixture.Mixture._follow",
    "problems.textbook.Gaussian._follow",
    "problems.textbook.Gaussian.sample",
    "problems.wrappers.Guided.expand",
    "problems.langevin.mix",
    "problems.covariance.UncertainDDIM.kick",
    "analysis.methods.method.Method.sample",
    "analysis.methods.method.Method.solvers",
    "analysis.measure.case.Case.sample",
    "analysis.measure.case._latents",
    "analysis.measure.reference.by_series",
    "analysis.measure.reference._solve",
    "analysis.measure.ends.end_point",
    "analysis.measure.steps.single_step",
    "analysis.measure.steps.leading_term",
    "analysis.measure.laws.Law.compare",
    "analysis.measure.metrics.frechet",
    "analysis.lte.draw",
    "analysis.lte.report",
    "analysis.gte.tabulated",
    "analysis.gte.draw",
    "analysis.show.plots.curves",
    "analysis.show.tables.show",
]

CONSTANTS = {
    "analysis.measure.reference.REVISED": {"ddim on toy", "ab2 on toy", "ddpm on toy", "step of ddim"},
    "analysis.measure.reference.NUMBERS": {"ddim on toy", "ab2 on toy", "ddpm on toy", "step of ddim"},
    "analysis.measure.reference.SETTLED": {"ddim on digits"},
    "solvers.adaptive_taylor.AdaptiveTaylor.longest": None,
    "problems.noise.DEPTH": {"ddpm on toy"},
    "analysis.measure.case.BATCH": set(),
    "analysis.lte.TIMES": set(),
    "analysis.measure.statistics.LEVEL": set(),
    "analysis.show.plots.WIDTH": set(),
    "analysis.measure.fits.FLOOR": set(),
}

TIMES = Aside((0.2, 0.1))
PROBES = {
    "ddim on toy": (end_point, lambda: end_of("ddim")),
    "ab2 on toy": (end_point, lambda: end_of("ab2")),
    "ddpm on toy": (end_point, lambda: end_of("ddpm")),
    "ddim on digits": (end_point, lambda: end_of("ddim", "digits", 2)),
    "step of ddim": (
        single_step,
        lambda: {"case": Case("toy", 4), "method": METHODS["ddim"], "t": 0.2, "dt": 0.1, "times": TIMES},
    ),
}

MUST_NOT = {
    "ddim on toy": ("adams", "clock", "exponential", "runge_kutta", "predictor", "stochastic", "splitting",
                    "textbook", "langevin", "covariance", "laws", "metrics", "lte", "gte", "show", "steps",
                    "VE", "edm", "Guided"),
    "ab2 on toy": ("exponential", "runge_kutta", "predictor", "stochastic", "splitting", "textbook",
                   "langevin", "covariance", "laws", "lte", "show", "steps", "VE", "edm"),
    "ddpm on toy": ("adams", "exponential", "runge_kutta", "predictor", "splitting", "textbook", "langevin",
                    "laws", "lte", "show", "steps", "VE", "edm"),
    "ddim on digits": ("exponential", "predictor", "stochastic", "splitting", "textbook", "langevin",
                       "laws", "lte", "show", "steps", "VE", "edm"),
    "step of ddim": ("adams", "clock", "exponential", "runge_kutta", "predictor", "stochastic", "splitting",
                     "textbook", "langevin", "covariance", "laws", "metrics", "lte", "gte", "show", "VE"),
}  # fmt: skip
"""Words in the names of what another family of methods, problem, grid or experiment has for itself."""


def _found(name):
    """Return the owner of a dotted name, and its last part."""
    parts = name.split(".")
    count = max(i for i in range(1, len(parts)) if ".".join(parts[:i]) in sys.modules)
    return functools.reduce(getattr, parts[count:-1], sys.modules[".".join(parts[:count])]), parts[-1]


def _code(value):
    while not hasattr(value, "__code__"):
        value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value.__wrapped__
    return value.__code__


@pytest.fixture(scope="module")
def probes():
    """The arguments of every probe, its key, and the code that it executes from scratch."""
    found = {}
    for name, (measure, make) in PROBES.items():
        arguments = make()
        for cached in vars(importlib.import_module("analysis.measure.case")).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        with pytest.MonkeyPatch.context() as patch, traced() as called:
            roughly(patch)
            measure(**arguments)
        found[name] = measure, arguments, key_of(measure, arguments), called
    return found


def test_there_are_enough_edits():
    assert len(FUNCTIONS) + len(CONSTANTS) >= 60


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_edit_moves_the_keys_of_what_executes_it(name, probes, monkeypatch):
    owner, last = _found(name)
    value = inspect.getattr_static(owner, last)
    moved = {probe for probe, (_, _, _, called) in probes.items() if _code(value) in called}
    edited = _edited(value.__wrapped__ if hasattr(value, "cache_clear") else value)
    everywhere(monkeypatch, owner, last, edited)
    keys = Keys()
    for probe, (measure, arguments, before, _) in probes.items():
        if probe not in moved and not any(word in name for word in MUST_NOT[probe]):
            continue
        measure = getattr(sys.modules[measure.__module__], measure.__name__)
        if "reference" in name:  # a case holds on to how it is solved
            arguments = PROBES[probe][1]()
        after = keys.key(measure, arguments)
        if probe in moved:
            assert after != before, f"{name} is executed by {probe}"
        else:
            assert after == before, f"{name} is none of {probe}'s"


@pytest.mark.parametrize("name", [n for n, probes in CONSTANTS.items() if probes is not None])
def test_a_constant_moves_the_keys_of_what_uses_it(name, probes, monkeypatch):
    owner, last = _found(name)
    everywhere(monkeypatch, owner, last, _edited(getattr(owner, last)))
    keys = Keys()
    moved = {
        probe
        for probe, (measure, arguments, before, _) in probes.items()
        if keys.key(measure, arguments) != before
    }
    assert moved == CONSTANTS[name]


def test_all_methods_have_keys_of_their_own():
    keys = Keys()
    case = Case("toy", 4)
    found = {
        name: keys.key(end_point, end_of(name, case=case, method=method)) for name, method in METHODS.items()
    }
    assert len(set(found.values())) == len(METHODS)


@dataclass(frozen=True)
class Mine(Taylor):
    """A solver whose class attribute decides what it does."""

    gain = 1.0

    def step(self, eq, y, s0, s1, past):
        f = eq.jet(y, s0)[0]
        return y + self.gain * (s1 - s0) * f, Node(s0, (f,))


def test_attributes_of_a_class_count_where_they_are_named(monkeypatch):
    before = key_of(end_point, end_of("ddim", method=Method(Mine(1))))
    monkeypatch.setattr(Mine, "another", 2.0, raising=False)
    assert key_of(end_point, end_of("ddim", method=Method(Mine(1)))) == before
    monkeypatch.setattr(Mine, "gain", 2.0)
    assert key_of(end_point, end_of("ddim", method=Method(Mine(1)))) != before


def test_operators_of_torch_have_keys_that_their_use_does_not_move():
    """What an operator remembers of its calls would make the key of a network differ between processes."""
    rules = {torch.ops.aten.silu.default: 1.0, torch.ops.aten.glu: 2.0}
    before = Keys().value(rules)[0]
    torch.ops.aten.silu.default(torch.ones(3))
    torch.ops.aten.silu.default._new_cache = 3
    try:
        assert Keys().value(rules)[0] == before
    finally:
        del torch.ops.aten.silu.default._new_cache
    assert Keys().value({torch.ops.aten.silu.default: 1.0, torch.ops.aten.elu: 2.0})[0] != before
