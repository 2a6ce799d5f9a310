"""Files of GENIE: its networks, what they predict, their heads, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from problems.images.checkpoints import CheckpointError
from problems.models import adm_network, ddpm_unet, genie, score_sde
from problems.models.genie_head import Config, Head
from problems.models.ncsnpp import Config as NCSNppConfig
from problems.models.ncsnpp import NCSNpp
from tests.problems.models.states import images, randomised, read_back, state

UNET = ddpm_unet.Config(8, 3, 32, (1, 2), 1, (4,))
CONFIG = {
    "diffusion_model": {
        "name": "ddpm",
        "nf": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "resamp_with_conv": True,
        "dropout": 0.0,
        "ema_rate": 0.9999,
        "image_size": 8,
        "num_in_channels": 3,
        "num_out_channels": 3,
        "pred": "eps",
        "M": 1.0,
        "ckpt_path": "none",
    },
    "genie_model": {
        "nf": 16,
        "num_in_channels": 38,
        "num_out_channels": 9,
        "num_res_blocks": 1,
        "normalize_xemb": True,
        "apply_act_before_res": False,
        "skip_rescale": True,
        "is_upsampler": False,
        "fir": False,
    },
    "sde": {"beta_min": 0.1, "beta_d": 19.9},
    "sampler": {"eps": 1e-3},
}
ADM = {
    "name": "openai",
    "attn_resolutions": [2],
    "num_heads": None,
    "num_head_channels": 16,
    "num_head_upsample": -1,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
    "num_classes": None,
    "fourier_scale": 16,
}
TIME = 0.3
INTEGRAL = 0.1 * TIME + 0.5 * 19.9 * TIME**2
ALPHA, GAMMA = math.exp(-INTEGRAL / 2), math.sqrt(math.expm1(INTEGRAL))


def changed(**options):
    """The configuration with other values, of the head where it has them and of the network otherwise."""
    config = copy.deepcopy(CONFIG)
    for name, value in options.items():
        heads = name.startswith("head_")
        config["genie_model" if heads else "diffusion_model"][name.removeprefix("head_")] = value
    return config


def unet():
    return ddpm_unet.UNet(UNET)


def adm(classes=0):
    options = adm_network.Options(
        32,
        (1, 2),
        1,
        (2,),
        head_channels=16,
        classes=classes,
        block_resampling=True,
        interleaved=False,
    )
    return adm_network.UNet(options, genie.LogFourier(32))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint_300000.pth"


def written(path, make=unet):
    """Write the state of a network; return the content of the file, and the average of the network."""
    average = randomised(make(), 1)
    fixed = {
        f"module.{name}": p.detach() for name, p in average.named_parameters() if not p.requires_grad
    }  # not in the average
    content = state(randomised(make(), 0), average)
    content["model"] |= fixed
    return read_back(path, content), average


def head_of(normalise=True, activate=False):
    return randomised(Head(Config(32, 16, 1, normalise=normalise, activate=activate), ()), 5)


def write_head(path, head, extra=None):
    content = state(head, extra=extra)
    content["model"] = {
        name.replace("module.", "module.all_modules.0."): tensor for name, tensor in content["model"].items()
    }
    return read_back(path, content)


def states(seed=3):
    return images(2, 3, 8, 8, seed=seed)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_networks_of_churches_are_told_the_time_itself(path):
    content, average = written(path)
    assert genie.recognises(content)
    assert not score_sde.recognises(content)
    problem = genie.read(path, content, config=CONFIG)
    assert problem.event_shape == (3, 8, 8)
    assert problem.distilled is None
    with torch.no_grad():
        close(problem.flow_jet(states(), GAMMA)[0], average(ALPHA * states(), torch.full((2,), TIME)))


def test_networks_of_cifar10_are_those_of_score_sde(path):
    content, average = written(path, lambda: NCSNpp(NCSNppConfig(8, 3, 32, (1, 2), 1, (4,))))
    options = {
        "name": "ncsnpp",
        "M": 999.0,
        "act_name": "swish",
        "conditional": True,
        "fir": False,
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "progressive_combine": "sum",
        "embedding_type": "positional",
    }
    head = path.with_name("genie_checkpoint_20000.pth")
    write_head(head, head_of())
    problem = genie.read(path, content, config=changed(**options), head=head)
    with torch.no_grad():
        expected = average(ALPHA * states(), torch.full((2,), 999.0 * TIME))
    close(problem.flow_jet(states(), GAMMA)[0], expected)
    assert problem.distilled.flow_jet(states(), GAMMA, 2)[1].shape == (2, 3, 8, 8)
    timeless = NCSNppConfig(8, 3, 32, (1, 2), 1, (4,), conditional=False)
    content, _ = written(path, lambda: NCSNpp(timeless))
    with pytest.raises(CheckpointError, match="no head of GENIE can listen"):
        genie.read(path, content, config=changed(**{**options, "conditional": False}), head=head)


def test_networks_of_cats_predict_v(path):
    content, average = written(path, adm)
    problem = genie.read(path, content, config=changed(**ADM, pred="v"))
    x = ALPHA * states()
    with torch.no_grad():
        v = average(x, torch.full((2,), TIME))
        close(problem.flow_jet(states(), GAMMA)[0], ALPHA * v + ALPHA * GAMMA * x)


def test_conditional_networks_take_labels(path):
    content, average = written(path, lambda: adm(classes=5))
    config = changed(**{**ADM, "num_classes": 5})
    assert genie.read(path, content, config=config).labels_of(6).tolist() == [0, 1, 2, 3, 4, 0]
    write_head(path.with_name("checkpoint_300000_head.pth"), head_of())
    problem = genie.read(path, content, config=config, labels=3)
    with torch.no_grad():
        expected = average(ALPHA * states(), torch.full((2,), TIME), torch.tensor([3, 3]))
    close(problem.flow_jet(states(), GAMMA)[0], expected)
    heard = average.time_embed(torch.full((2,), TIME)) + average.label_emb(torch.tensor([3, 3]))
    features = {}
    average.output_blocks[-1].register_forward_hook(lambda *a: features.update(last=a[2]))
    with torch.no_grad():
        average(ALPHA * states(), torch.full((2,), TIME), torch.tensor([3, 3]))
        slope = head_of()(states(), torch.tensor(GAMMA), expected, features["last"], heard)
    close(problem.distilled.flow_jet(states(), GAMMA, 2)[1], slope)
    unconditional, _ = written(path, adm)
    with pytest.raises(CheckpointError, match="no classes; give no labels"):
        genie.read(path, unconditional, config=changed(**ADM), labels=3)


@pytest.mark.parametrize("gamma", [0.05, 1.0, 30.0])
def test_a_head_with_constant_outputs_is_its_formula(path, gamma):
    content, _ = written(path)
    head, beside = head_of(), path.with_name("checkpoint_300000_head.pth")
    last = head.all_modules[-1]
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.5, -1.0, 2.0]).repeat_interleave(3)
    assert genie.recognises(write_head(beside, head))
    problem = genie.read(path, content, config=CONFIG)
    eps, slope = problem.distilled.flow_jet(states(), gamma, 2)
    close(eps, problem.flow_jet(states(), gamma)[0])
    expected = -0.5 / gamma - 1.0 * gamma / (1 + gamma**2) + 2.0 / (gamma * (1 + gamma**2))
    close(slope, torch.full_like(slope, expected))


def test_a_new_head_says_that_epsilon_does_not_change(path):
    content, _ = written(path)
    head = head_of()
    nn.init.zeros_(head.all_modules[-1].weight)
    nn.init.zeros_(head.all_modules[-1].bias)
    beside = path.with_name("other.pth")
    write_head(beside, head)
    problem = genie.read(path, content, config=CONFIG, head=beside)
    assert not problem.distilled.flow_jet(states(), GAMMA, 2)[1].any()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("activate", [False, True])
def test_a_head_sees_the_image_epsilon_and_the_last_features(path, normalise, activate):
    content, average = written(path)
    head = head_of(normalise, activate)
    beside = path.with_name("head.pth")
    write_head(beside, head)
    config = changed(head_normalize_xemb=normalise, head_apply_act_before_res=activate)
    problem = genie.read(path, content, config=config, head=beside)
    time, features = torch.full((2,), TIME), {}
    average.norm_out.register_forward_pre_hook(lambda _, given: features.update(last=given[0]))
    with torch.no_grad():
        eps = average(ALPHA * states(), time)
        layers = list(head.all_modules)
        last = layers.pop(0)(features["last"]) if normalise else features["last"]
        h = layers.pop(0)(torch.cat([ALPHA * states(), eps, last], dim=1))
        h = layers[0](nn.functional.silu(h) if activate else h, average.temb(time))
        first, second, third = layers[2](nn.functional.silu(layers[1](h))).split(3, dim=1)
        square = 1 + GAMMA**2
        expected = -first / GAMMA + second * GAMMA / square + third / (GAMMA * square)
    close(problem.distilled.flow_jet(states(), GAMMA, 2)[1], expected)


def test_the_section_of_the_network_may_be_given_alone(path):
    content, _ = written(path)
    flat = {**CONFIG["diffusion_model"], **CONFIG["sde"]}
    problem = genie.read(path, content, config=flat)
    assert problem.schedule.beta_max == 20.0
    with pytest.raises(CheckpointError, match=r"does not say sde\.beta_min"):
        genie.read(path, content, config=CONFIG["diffusion_model"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, r"unknown option diffusion_model\.width"),
        ({"name": "openai_upsampler"}, "'openai_upsampler'; ncsnpp or ddpm or openai is read"),
        ({"pred": "x0"}, "pred = 'x0'; eps or v is read"),
        ({"M": 0}, "M = 0; a positive number"),
        ({"num_out_channels": 6}, "num_out_channels = 6; 3 alone"),
        ({"image_size": 9}, "9 pixels"),
        ({"resamp_with_conv": 3}, r"^the configuration of \S+ says diffusion_model\.resamp_with_conv = 3;"),
        ({"nf": 33}, "describes no network"),
        ({"ch_mult": [1, 2, 2]}, "lacks .* tensors"),
        ({"num_res_blocks": 2}, "lacks .* tensors"),
        ({"head_is_upsampler": True}, "is_upsampler = True; False alone"),
        ({"head_num_res_blocks": 2}, r"head\.pth lacks .* tensors"),
        ({"head_num_in_channels": 39}, "num_in_channels = 39; 38 alone is read"),
        ({"head_normalize_xemb": False}, r"head\.pth lacks .* tensors"),
    ],
)
def test_options_that_do_not_fit_are_refused(path, options, message):
    content, _ = written(path)
    head = path.with_name("head.pth")
    write_head(head, head_of())
    with pytest.raises(CheckpointError, match=message):
        genie.read(path, content, config=changed(**options), head=head)


def test_files_in_the_wrong_place_are_refused(path):
    content, _ = written(path)
    head = path.with_name("head.pth")
    with pytest.raises(CheckpointError, match="give this file as head="):
        genie.read(path, write_head(head, head_of()), config=CONFIG)
    with pytest.raises(CheckpointError, match="no head of GENIE"):
        genie.read(path, content, config=CONFIG, head=path)
    more = path.with_name("more.pth")
    write_head(more, head_of(), extra={"more": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="no use for the tensor more"):
        genie.read(path, content, config=CONFIG, head=more)
    with pytest.raises(CheckpointError, match="cannot be read"):
        genie.read(path, content, config=CONFIG, head=path.with_name("none.pth"))
    without = {name: section for name, section in CONFIG.items() if name != "genie_model"}
    with pytest.raises(CheckpointError, match="add genie_model"):
        genie.read(path, content, config=without, head=head)
    head.write_bytes(head.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        genie.read(path, content, config=CONFIG, head=head)
    with pytest.raises(CheckpointError, match="no average of its weights"):
        genie.read(path, {**content, "ema": None}, config=CONFIG)
    with pytest.raises(CheckpointError, match=r"checkpoint_300000\.config\.json"):
        genie.read(path, content)
