"""Files of score_sde: what is read, with which weights, on which process, and what is refused."""

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch

from problems.images.checkpoints import CheckpointError
from problems.models import genie, score_sde
from problems.models.ncsnpp import Config, Ladder, NCSNpp, Pyramid
from problems.models.opening import opened
from problems.models.options import Options
from tests.problems.models.states import images, randomised, read_back, state

ARCHITECTURE = Config(8, 3, 16, (1, 2), 1, (4,))
MODEL = {
    "name": "ncsnpp",
    "nf": 16,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "resamp_with_conv": True,
    "conditional": True,
    "fir": False,
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "attention_type": "ddpm",
    "embedding_type": "positional",
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "init_scale": 0.0,
    "fourier_scale": 16,
    "conv_size": 3,
    "dropout": 0.1,
    "ema_rate": 0.9999,
    "scale_by_sigma": False,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "sigma_min": 0.01,
    "sigma_max": 50,
    "num_scales": 1000,
}
CONFIG = {
    "model": MODEL,
    "data": {"image_size": 8, "num_channels": 3, "centered": True, "dataset": "CIFAR10"},
    "training": {"sde": "vpsde", "continuous": True, "batch_size": 128},
    "seed": 42,
}
LEVELS = {"sigmas": torch.logspace(math.log10(50.0), -2.0, 1000, dtype=torch.float64)}
VE = {"sde": "vesde", "continuous": True}
FOURIER = {"embedding_type": "fourier", "scale_by_sigma": True}


def changed(**options):
    """The configuration with other values; the section of each is where it stands, or model."""
    config = copy.deepcopy(CONFIG)
    for name, value in options.items():
        section = next((s for s in ("data", "training") if name in config[s]), "model")
        config[section][name] = value
    return config


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint_8.pth"


def content_of(architecture=ARCHITECTURE):
    """The state of a network, and the network with the average of its weights."""
    average = randomised(NCSNpp(architecture), 1)
    return state(randomised(NCSNpp(architecture), 0), average, LEVELS), average


def compare(problem, gamma, scale, expected):
    """Compare ε with that of a network at x = scale x̄, from its output."""
    xbar = images(2, 3, 8, 8, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(
            problem.flow_jet(xbar, gamma)[0], expected(xbar * scale), rtol=1e-4, atol=1e-5
        )


def test_variance_preserving_networks_are_told_999_times_the_time(path):
    content, average = content_of()
    content = read_back(path, content)
    assert score_sde.recognises(content)
    assert not genie.recognises(content)
    problem = score_sde.read(path, content, config=CONFIG)
    assert problem.event_shape == (3, 8, 8)
    assert (problem.schedule.start, problem.schedule.stop) == (1.0, 1e-3)
    integral = 0.1 * 0.3 + 0.5 * 19.9 * 0.3**2
    time = torch.full((2,), 999 * 0.3)
    compare(problem, math.sqrt(math.expm1(integral)), math.exp(-integral / 2), lambda x: average(x, time))


def test_sub_variance_preserving_networks_have_a_smaller_noise(path):
    content, average = content_of()
    problem = score_sde.read(path, read_back(path, content), config=changed(sde="subvpsde"))
    integral = 0.1 * 0.3 + 0.5 * 19.9 * 0.3**2
    alpha, sigma = math.exp(-integral / 2), 1.0 - math.exp(-integral)
    time = torch.full((2,), 999 * 0.3)
    compare(problem, sigma / alpha, alpha, lambda x: average(x, time))


def test_networks_that_are_not_continuous_see_the_nodes_of_their_table(path):
    content, average = content_of()
    problem = score_sde.read(path, read_back(path, content), config=changed(continuous=False))
    kept = math.prod(1.0 - (0.1 + 19.9 * i / 999) / 1000 for i in range(301))
    time = torch.full((2,), 300.0)
    compare(problem, math.sqrt((1.0 - kept) / kept), math.sqrt(kept), lambda x: average(x, time))


def test_variance_exploding_networks_are_told_the_noise_and_predict_the_score(path):
    architecture = Config(8, 3, 16, (1, 2), 1, (4,), fourier=True, divide=True, centred=False)
    content, average = content_of(architecture)
    frequencies = torch.linspace(-2.0, 2.0, 16)
    average.all_modules[0].W.copy_(frequencies)
    content["model"]["module.all_modules.0.W"] = frequencies  # not trained, so not in the average
    config = changed(**VE, **FOURIER, centered=False)
    problem = score_sde.read(path, read_back(path, content), config=config)
    sigma = 3.7
    time = torch.full((2,), sigma)
    compare(problem, sigma, 1.0, lambda x: -sigma * average(x, time))
    assert problem.data_std == 0.25
    assert problem.schedule.stop == 1e-5


def test_variance_exploding_networks_that_are_not_continuous_are_told_the_index_of_the_noise(path):
    architecture = Config(8, 3, 16, (1, 2), 1, (4,), divide=True, ladder=Ladder(0.01, 50.0, 1000))
    content, average = content_of(architecture)
    config = changed(sde="vesde", continuous=False, scale_by_sigma=True)
    problem = score_sde.read(path, read_back(path, content), config=config)
    sigma = float(LEVELS["sigmas"][250])
    time = torch.full((2,), 250.0)
    compare(problem, sigma, 1.0, lambda x: -sigma * average(x, time))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        (
            Config(8, 3, 16, (1, 2), 1, (4,), taps=(1.0, 3.0, 3.0, 1.0), input_pyramid=Pyramid.RESIDUAL),
            {"fir": True, "progressive_input": "residual"},
        ),
        (
            Config(
                8,
                3,
                16,
                (1, 2),
                1,
                (4,),
                taps=(1.0, 3.0, 3.0, 1.0),
                input_pyramid=Pyramid.SKIP,
                output_pyramid=Pyramid.SKIP,
                concatenate=True,
            ),
            {
                "fir": True,
                "progressive_input": "input_skip",
                "progressive": "output_skip",
                "progressive_combine": "cat",
            },
        ),
        (
            Config(8, 3, 32, (1, 2), 1, (4,), resampling_blocks=False, rescale=False, group=1),
            {"name": "ddpm", "nf": 32},
        ),
    ],
)
def test_options_choose_the_architecture(path, architecture, options):
    content, average = content_of(architecture)
    problem = score_sde.read(path, read_back(path, content), config=changed(**options))
    gamma, time = float(problem.schedule.gamma(0.2)), torch.full((2,), 999 * 0.2)
    compare(problem, gamma, (1 + gamma**2) ** -0.5, lambda x: average(x, time))


def test_sections_may_be_left_out(path):
    content, average = content_of()
    flat = {**MODEL, "image_size": 8, "num_channels": 3, "centered": True, "sde": "VPSDE", "continuous": True}
    problem = score_sde.read(path, read_back(path, content), config=flat)
    gamma, time = float(problem.schedule.gamma(0.2)), torch.full((2,), 999 * 0.2)
    compare(problem, gamma, (1 + gamma**2) ** -0.5, lambda x: average(x, time))
    with pytest.raises(CheckpointError, match=r"unknown option model\.heads"):
        score_sde.read(path, content, config={**flat, "heads": 4})


def test_a_network_of_genie_is_read_from_a_file_of_score_sde(path):
    content, average = content_of()
    of_genie = {name: MODEL[name] for name in MODEL if name in genie._KNOWN and name != "scale_by_sigma"}
    of_genie |= {"image_size": 8, "num_in_channels": 3, "num_out_channels": 3, "pred": "eps", "M": 999.0}
    of_genie["act_name"] = of_genie.pop("nonlinearity")
    config = {"diffusion_model": of_genie, "sde": {"beta_min": 0.1, "beta_d": 19.9}}
    problem = score_sde.read(path, read_back(path, content), config=config)
    gamma, time = float(problem.schedule.gamma(0.2)), torch.full((2,), 999 * 0.2)
    compare(problem, gamma, (1 + gamma**2) ** -0.5, lambda x: average(x, time))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, r"unknown option model\.width"),
        ({"name": "ncsnv2"}, r"model\.name = 'ncsnv2'; ncsnpp or ddpm is read"),
        ({"nonlinearity": "elu"}, r"model\.nonlinearity = 'elu'; swish is read"),
        ({"sde": "cosine"}, r"training\.sde = 'cosine'; vpsde or subvpsde or vesde"),
        ({"progressive": "skip"}, r"model\.progressive = 'skip'; none or output_skip or residual"),
        ({"fir": 1}, r"model\.fir = 1; true or false"),
        ({"nf": "16"}, r"model\.nf = '16'; a positive whole number"),
        ({"ch_mult": 2}, r"model\.ch_mult = 2; a list of positive whole numbers"),
        ({"beta_min": -1.0}, r"model\.beta_min = -1\.0; a positive number"),
        ({"conv_size": 5}, r"model\.conv_size = 5; 3 alone"),
        (
            {"embedding_type": "fourier", "continuous": False},
            r"embedding_type = 'fourier'; positional is read",
        ),
        ({"scale_by_sigma": True}, "must be told it, or its index"),
        ({"image_size": 9}, "9 pixels"),
        ({"fir": True, "fir_kernel": [1, 2, 1]}, "even number of taps"),
        ({"nf": 2}, "describes no network"),
        ({**VE, **FOURIER, "sigma_max": 90}, r"model\.sigma_max = 90 where the file has 50"),
    ],
)
def test_options_that_are_not_read_are_refused_by_name(path, options, message):
    content, _ = content_of()
    with pytest.raises(CheckpointError, match=message):
        score_sde.read(path, content, config=changed(**options))


@pytest.mark.parametrize("name", ["model.nf", "model.skip_rescale", "data.image_size", "training.continuous"])
def test_missing_options_are_named(path, name):
    config, (section, key) = copy.deepcopy(CONFIG), name.split(".")
    del config[section][key]
    content, _ = content_of()
    with pytest.raises(CheckpointError, match=f"does not say {name}"):
        score_sde.read(path, content, config=config)


def test_what_a_network_does_not_have_is_refused(path):
    content, _ = content_of()
    with pytest.raises(CheckpointError, match=r"checkpoint_8\.config\.json"):
        score_sde.read(path, content)
    with pytest.raises(CheckpointError, match="no classes"):
        score_sde.read(path, content, config=CONFIG, labels=1)
    with pytest.raises(CheckpointError, match="configuration of GENIE"):
        score_sde.read(path, content, config=CONFIG, head=Path("head.pth"))


def lacking(content):
    del content["model"]["module.all_modules.2.weight"]


def surplus(content):
    content["model"]["module.extra"] = torch.zeros(3)


def reshaped(content):
    content["ema"]["shadow_params"][4] = torch.zeros(3)


def shorter(content):
    content["ema"]["shadow_params"].pop()


def without_average(content):
    del content["ema"]


def odd_average(content):
    content["ema"] = {"shadow_params": 3}


def whole_numbers(content):
    content["ema"]["shadow_params"][4] = torch.zeros(16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lacking, r"lacks the tensor all_modules\.2\.weight"),
        (surplus, "no use for the tensor extra"),
        (reshaped, r"shape \(3,\)"),
        (shorter, "average of .* tensors"),
        (without_average, "no average of its weights"),
        (odd_average, "no average of its weights"),
        (whole_numbers, "no floating-point numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(path, damage, message):
    content, _ = content_of()
    damage(content)
    with pytest.raises(CheckpointError, match=message):
        score_sde.read(path, content, config=CONFIG)


@pytest.mark.parametrize("content", [None, [], {}, {"model": 3, "step": 1}, {"model": {"a": 3}, "step": 1}])
def test_other_contents_are_not_recognised(content):
    assert not score_sde.recognises(content)
    assert not genie.recognises(content)


def test_a_cut_off_file_is_refused(path):
    read_back(path, content_of()[0])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        opened(path)


class Trap:
    """An object whose unpickling would make a file."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_nothing_in_a_file_is_executed(path, tmp_path):
    victim = tmp_path / "executed"
    content, _ = content_of()
    torch.save({**content, "optimizer": Trap(victim)}, path)
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        opened(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Trap(victim)))
    assert victim.exists()


def test_an_option_is_read_from_its_section_or_from_the_top_level():
    options = Options.of(Path("a.pth"), {"model": {"nf": 3}, "beta": 2})
    assert options.get("model.nf", int) == 3
    assert options.get("sde.beta", int) == 2
    assert options.get("model.other", int, 7) == 7
