"""The U-Net of guided-diffusion against closed forms and loops, and its files."""

import math
from dataclasses import replace

import pytest
import torch

from problems.graph import Traced
from problems.images.checkpoints import CheckpointError
from problems.models import adm
from problems.models.adm_network import (
    Attention,
    Downsample,
    InterleavedAttention,
    Options,
    Residual,
    UNet,
    Upsample,
    waves,
)
from problems.models.opening import opened

TINY = Options(32, (1, 2), 1, (2,), heads=2, up_heads=2, classes=3, outputs=6)
FLAGS = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "num_heads": 2,
    "class_cond": True,
    "learn_sigma": True,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
}


def seeded(module, seed=0):
    """Give all weights random values, none of them zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
    return module.eval().requires_grad_(False)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stored(folder, options=TINY, **changes):
    """Write the file of a network, and return it with the network."""
    network = seeded(UNet(options))
    path = folder / "ema.pt"
    tensors = {**network.state_dict(), **changes}
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path, network


def loaded(path, labels=1, **flags):
    config = {name: value for name, value in {**FLAGS, **flags}.items() if value is not None}
    return adm.read(path, opened(path), labels=labels, config=config)


def refused(path, *words, **flags):
    with pytest.raises(CheckpointError) as error:
        loaded(path, **flags)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_published_network_for_imagenet_has_the_makers_number_of_parameters():
    options = Options(
        channels=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(2, 4, 8),
        head_channels=64,
        outputs=6,
        classes=1000,
        block_resampling=True,
        interleaved=False,
    )
    with torch.device("meta"):
        network = UNet(options)
    assert sum(p.numel() for p in network.parameters()) == 295_904_454


def test_times_are_embedded_by_cosines_and_sines():
    t = torch.tensor([0.0, 1.0, 37.5, 999.0], dtype=torch.float64)
    found = waves(t, 6)
    for n, time in enumerate(t.tolist()):
        phases = [time * 10000.0 ** (-k / 3.0) for k in range(3)]
        wanted = [*map(math.cos, phases), *map(math.sin, phases)]
        assert found[n].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("kind", [Attention, InterleavedAttention])
def test_attention_is_what_a_loop_over_heads_and_pixels_computes(kind):
    channels, heads, size = 32, 2, 16
    layer = seeded(kind(channels, heads)).double()
    x = numbers(1, channels, 2, 2)
    qkv = layer.qkv(layer.norm(x.flatten(2)))[0]
    seen = torch.zeros(channels, 4, dtype=torch.float64)
    for h in range(heads):
        # Rows of q, k and v: all queries first, or three blocks for each head.
        rows = [(part * heads + h if kind is Attention else h * 3 + part) * size for part in range(3)]
        q, k, v = (qkv[row : row + size] for row in rows)
        for i in range(4):
            weights = [math.exp(float(q[:, i] @ k[:, j]) / math.sqrt(size)) for j in range(4)]
            for j in range(4):
                seen[h * size : (h + 1) * size, i] += weights[j] / sum(weights) * v[:, j]
    wanted = x + layer.proj_out(seen[None]).reshape(x.shape)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


def test_the_time_scales_and_shifts_or_is_added():
    x, features = numbers(2, 32, 4, 4), numbers(2, 128, seed=1)

    def normed(h, norm):
        groups = h.reshape(2, 32, -1)
        centred = groups - groups.mean(2, keepdim=True)
        h = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(h.shape)
        return h * norm.weight[:, None, None] + norm.bias[:, None, None]

    def act(h):
        return h / (1.0 + torch.exp(-h))

    for scale_shift in (True, False):
        block = seeded(Residual(replace(TINY, scale_shift=scale_shift), 32, 32)).double()
        h = block.in_layers[2](act(normed(x, block.in_layers[0])))
        told = (act(features) @ block.emb_layers[1].weight.T + block.emb_layers[1].bias)[:, :, None, None]
        norm = block.out_layers[0]
        scaled = normed(h, norm) * (1.0 + told[:, :32]) + told[:, -32:]
        h = scaled if scale_shift else normed(h + told, norm)
        wanted = x + block.out_layers[3](act(h))
        torch.testing.assert_close(block(x, features), wanted, rtol=1e-10, atol=1e-10)


def test_resolutions_change_by_pixels_and_strides():
    x = numbers(1, 2, 4, 4)
    up, down = seeded(Upsample(2)).double(), seeded(Downsample(2)).double()
    fourfold = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(x), up.conv(fourfold))
    every = torch.nn.functional.conv2d(x, down.op.weight, down.op.bias, padding=1)[:, :, ::2, ::2]
    torch.testing.assert_close(down(x), every)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_shift": False, "conv_resampling": False},
        {"block_resampling": True, "interleaved": False, "head_channels": 16},
        {"classes": 0, "up_heads": 4},
    ],
    ids=str,
)
def test_networks_are_differentiable(changes):
    options = replace(TINY, **changes)
    network = seeded(UNet(options)).double()
    x, t, labels = numbers(2, 3, 8, 8), torch.tensor([3.5, 700.0], dtype=torch.float64), torch.tensor([0, 2])
    dx, dt = numbers(2, 3, 8, 8, seed=1), torch.tensor([1.0, -2.0], dtype=torch.float64)

    def f(x, t):
        return network(x, t, labels) if options.classes else network(x, t)

    value, tangent = torch.func.jvp(f, (x, t), (dx, dt))
    assert value.shape == x.shape
    h = 1e-5
    difference = (f(x + h * dx, t + h * dt) - f(x - h * dx, t - h * dt)) / (2.0 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-7)


def test_a_network_can_be_traced():
    network = seeded(UNet(replace(TINY, block_resampling=True, interleaved=False))).double()
    x, t, labels = numbers(2, 3, 8, 8), torch.tensor([3.5, 700.0], dtype=torch.float64), torch.tensor([0, 2])
    other, later, others = numbers(2, 3, 8, 8, seed=1), 0.7 * t, torch.tensor([1, 1])
    found = Traced(network, [x, t], [labels]).expand(others).push(other, later)
    torch.testing.assert_close(found, network(other, later, others))


def test_a_file_is_the_network_at_the_nodes_of_its_schedule(tmp_path):
    path, network = stored(tmp_path)
    problem = loaded(path)
    assert problem.event_shape == (3, 8, 8)
    assert problem.schedule.start == 999.0
    signal = 1.0
    x = numbers(2, 3, 8, 8, dtype=torch.float32)
    labels = torch.tensor([1, 1])
    for i in range(301):
        signal *= 1.0 - (1e-4 + (0.02 - 1e-4) * i / 999)
    gamma = math.sqrt((1.0 - signal) / signal)
    wanted = network(x, torch.tensor([300.0, 300.0]), labels)
    assert wanted.shape == x.shape
    eps = problem.flow_jet(x / math.sqrt(signal), gamma)[0]
    torch.testing.assert_close(eps, wanted, rtol=1e-4, atol=1e-5)


def test_rescaled_times_and_predicted_data(tmp_path):
    path, network = stored(tmp_path)
    problem = loaded(path, diffusion_steps=50, rescale_timesteps=True, predict_xstart=True)
    gamma = problem.schedule.gamma(20.0)
    signal = 1.0 / (1.0 + gamma**2)
    # β of 50 steps are twenty times those of a thousand.
    known = math.prod(1.0 - (0.1 + 19.9 * i / 49) / 50 for i in range(21))
    assert signal == pytest.approx(known, rel=1e-9)
    x = numbers(2, 3, 8, 8, dtype=torch.float32)
    data = network(x, torch.full((2,), 400.0), torch.tensor([1, 1]))
    wanted = (x - math.sqrt(signal) * data) / math.sqrt(1.0 - signal)
    eps = problem.flow_jet(x / math.sqrt(signal), gamma)[0]
    torch.testing.assert_close(eps, wanted, rtol=1e-4, atol=1e-4)


def test_the_cosine_schedule_and_flags_in_sections(tmp_path):
    path, _ = stored(tmp_path, replace(TINY, classes=0, outputs=3))
    flags = {**FLAGS, "class_cond": False, "learn_sigma": False, "noise_schedule": "cosine"}
    sections = {"model": flags, "diffusion": {"diffusion_steps": flags.pop("diffusion_steps")}}
    problem = adm.read(path, opened(path), config=sections)
    angles = [(i / 1000 + 0.008) / 1.008 * math.pi / 2 for i in (0, 501)]
    signal = (math.cos(angles[1]) / math.cos(angles[0])) ** 2
    assert problem.schedule.gamma(500.0) == pytest.approx(math.sqrt((1.0 - signal) / signal), rel=1e-9)


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path):
    name = "input_blocks.1.0.in_layers.2.weight"
    refused(stored(tmp_path, **{name: None})[0], "lacks", name)
    refused(stored(tmp_path, surplus=torch.zeros(2))[0], "no use", "surplus")
    refused(stored(tmp_path, **{name: torch.zeros(32, 32, 1, 1)})[0], name, "(32, 32, 1, 1)")
    refused(stored(tmp_path, **{name: torch.zeros(32, 32, 3, 3, dtype=torch.int64)})[0], name)
    refused(stored(tmp_path, **{"out.2.weight": torch.zeros(())})[0], "out.2.weight")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"image_size": None}, "image_size"),
        ({"noise_schedule": None}, "noise_schedule"),
        ({"diffusion_steps": None}, "diffusion_steps"),
        ({"num_heads": None}, "num_heads or num_head_channels"),
        ({"num_head": 3}, "num_head "),
        ({"num_channels": 64}, "num_channels"),
        ({"class_cond": False}, "class_cond"),
        ({"learn_sigma": False}, "learn_sigma"),
        ({"noise_schedule": "sigmoid"}, "linear or cosine"),
        ({"diffusion_steps": 1}, "flags"),
        ({"num_heads": 5}, "5 heads"),
        ({"num_head_channels": 48}, "48 channels"),
        ({"num_res_blocks": "two"}, "num_res_blocks"),
        ({"attention_resolutions": "a,b"}, "attention_resolutions"),
        ({"channel_mult": ""}, "channel_mult"),
        ({"resblock_updown": "True"}, "true or false"),
        ({"num_res_blocks": 2}, "lacks"),
        ({"use_scale_shift_norm": False}, "shape"),
    ],
    ids=str,
)
def test_flags_that_are_missing_or_wrong_are_refused_by_name(tmp_path, flags, word):
    refused(stored(tmp_path)[0], word, **flags)


def test_without_labels_all_classes_come_in_turn(tmp_path):
    assert loaded(stored(tmp_path)[0], labels=None).labels_of(4).tolist() == [0, 1, 2, 0]


def test_upsamplers_and_classifiers_are_refused(tmp_path):
    refused(stored(tmp_path, replace(TINY, inputs=6))[0], "upsamplers")
    refused(stored(tmp_path, **{"out.2.weight": None})[0], "classifier")


def test_files_of_guided_diffusion_are_recognised(tmp_path):
    assert adm.recognises(opened(stored(tmp_path)[0]))
    for content in (None, [], {}, {"time_embed.0.weight": torch.zeros(2, 2)}, {"ema": {}}):
        assert not adm.recognises(content)
