"""The networks of EDM against closed forms and loops, and its pickles."""

import math
from types import SimpleNamespace

import pytest
import torch

from problems.graph import Traced
from problems.images.checkpoints import CheckpointError
from problems.models import edm
from problems.models.edm_blocks import ConvDown, Down, SongBlock, Up
from problems.models.edm_networks import DhariwalUNet, Fourier, SongUNet, Waves
from problems.models.edm_options import Options, SongOptions
from problems.models.opening import opened
from problems.prediction import Denoiser
from problems.series import Series
from tests.problems.models.edm_files import Persistent, persistent, written

SMALL = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 3,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
FILTERED = {"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
ADM = {**SMALL, "model_channels": 64}
NETWORKS = {
    "ddpm++": (SongUNet, SongOptions, SMALL),
    "ncsn++": (
        SongUNet,
        SongOptions,
        {**SMALL, **FILTERED, "encoder_type": "residual", "channel_mult": [1, 1, 2]},
    ),
    "skips": (SongUNet, SongOptions, {**SMALL, **FILTERED, "encoder_type": "skip", "decoder_type": "skip"}),
    "adm": (DhariwalUNet, Options, ADM),
}
CONSTANTS = {
    "EDMPrecond": {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": math.inf},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}


def made(name):
    """Return a network with random weights."""
    build, options, keywords = NETWORKS[name]
    network = build(options(**keywords))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
    return network.eval().requires_grad_(False)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def file(folder, name="ddpm++", precond="EDMPrecond", edit=None, inner=None, **constants):
    """Write the pickle of a network, and return it with the network."""
    network = made(name)
    model = persistent(network, inner or type(network).__name__, **NETWORKS[name][2])
    state = {**CONSTANTS.get(precond, {}), **constants, "label_dim": network.options.label_dim}
    outer = Persistent(precond, _parameters={}, _buffers={}, _modules={"model": model}, **state)
    if edit is not None:
        edit(model.state)
    path = folder / "network.pkl"
    path.write_bytes(written({"ema": outer, "loss_fn": Persistent("Loss"), "augment_pipe": None}))
    return path, network


def refused(path, *words, **arguments):
    with pytest.raises(CheckpointError) as error:
        edm.read(path, opened(path), **arguments)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("build", "options", "parameters"),
    [
        (SongUNet, SongOptions(32, 3, 3, channel_mult=(2, 2, 2), augment_dim=9), 55_733_891),
        (SongUNet, SongOptions(32, 3, 3, label_dim=10, channel_mult=(2, 2, 2), augment_dim=9), 55_735_299),
        (
            SongUNet,
            SongOptions(32, 3, 3, channel_mult=(2, 2, 2), augment_dim=9, encoder_type="residual", **FILTERED),
            56_397_827,
        ),
        (DhariwalUNet, Options(64, 3, 3, label_dim=1000), 295_899_267),
    ],
    ids=["CIFAR-10 DDPM++", "CIFAR-10 DDPM++ with classes", "CIFAR-10 NCSN++", "ImageNet-64 ADM"],
)
def test_published_networks_have_the_makers_number_of_parameters(build, options, parameters):
    with torch.device("meta"):
        network = build(options)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_times_are_embedded_by_cosines_and_sines():
    t = torch.tensor([-0.7, 0.0, 999.0], dtype=torch.float64)
    for last in (2, 3):
        for row, time in zip(Waves(6, last)(t).tolist(), t.tolist(), strict=True):
            phases = [time * 10000.0 ** (-k / last) for k in range(3)]
            assert row == pytest.approx([*map(math.cos, phases), *map(math.sin, phases)], abs=1e-10)
    fourier = Fourier(6).double()
    for row, time in zip(fourier(t).tolist(), t.tolist(), strict=True):
        phases = [2.0 * math.pi * f * time for f in fourier.freqs.tolist()]
        assert row == pytest.approx([*map(math.cos, phases), *map(math.sin, phases)], abs=1e-8)


def test_attention_is_what_a_loop_over_heads_and_pixels_computes():
    channels, heads, size = 16, 2, 8
    block = SongBlock(channels, channels, 4, torch.nn.Identity(), torch.nn.Identity(), heads).double()
    block.requires_grad_(False)
    x = numbers(1, channels, 2, 2)
    qkv = block.qkv(block.norm2(x))[0].flatten(1)
    seen = torch.zeros(channels, 4, dtype=torch.float64)
    for c in range(heads):
        # Three rows, of q, k and v, for each channel of a head.
        q, k, v = (qkv[3 * c * size + part : 3 * (c + 1) * size : 3] for part in range(3))
        for i in range(4):
            weights = [math.exp(float(q[:, i] @ k[:, j]) / math.sqrt(size)) for j in range(4)]
            for j in range(4):
                seen[c * size : (c + 1) * size, i] += weights[j] / sum(weights) * v[:, j]
    wanted = block.proj(seen.reshape(x.shape))
    torch.testing.assert_close(block.attended(x), wanted, rtol=1e-12, atol=1e-12)


def test_filters_are_what_loops_over_pixels_compute():
    x, taps = numbers(4, 4), [1.0, 3.0, 3.0, 1.0]
    up, down = Up(taps).double(), Down(taps).double()
    # Along one axis: pixel i of half the size sees 2i - 1, …, 2i + 2, and of twice the size, zeros between.
    halved = torch.zeros(2, 2, dtype=torch.float64)
    doubled = torch.zeros(8, 8, dtype=torch.float64)
    for a in range(4):
        for b in range(4):
            weight = taps[a] * taps[b] / 64.0
            for i in range(2):
                for j in range(2):
                    row, column = 2 * i - 1 + a, 2 * j - 1 + b
                    if 0 <= row < 4 and 0 <= column < 4:
                        halved[i, j] += weight * x[row, column]
            for i in range(4):
                for j in range(4):
                    row, column = 2 * i - 1 + a, 2 * j - 1 + b
                    if 0 <= row < 8 and 0 <= column < 8:
                        doubled[row, column] += 4.0 * weight * x[i, j]
    torch.testing.assert_close(down(x[None, None])[0, 0], halved)
    torch.testing.assert_close(up(x[None, None])[0, 0], doubled)
    plain = x[None, None]
    torch.testing.assert_close(Down([1, 1]).double()(plain), torch.nn.functional.avg_pool2d(plain, 2))
    fourfold = plain.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(Up([1, 1]).double()(plain), fourfold)


def test_a_convolution_before_its_filter_is_one_after_it_up_to_the_margin():
    x = numbers(1, 2, 16, 16)
    layer = ConvDown(2, 3, 3, [1, 3, 3, 1]).double()
    kernel = layer.resample_filter.repeat(2, 1, 1, 1)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    blurred = torch.nn.functional.conv2d(padded, kernel, groups=2)
    wanted = torch.nn.functional.conv2d(blurred, layer.weight, layer.bias, stride=2)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("name", ["ddpm++", "ncsn++", "skips", "adm"])
def test_networks_are_differentiable(name):
    network = made(name).double()
    x, t, labels = numbers(2, 3, 8, 8), torch.tensor([-0.6, 0.3], dtype=torch.float64), torch.tensor([0, 3])
    dx, dt = numbers(2, 3, 8, 8, seed=1), torch.tensor([1.0, -2.0], dtype=torch.float64)

    def f(x, t):
        return network(x, t, labels)

    value, tangent = torch.func.jvp(f, (x, t), (dx, dt))
    assert value.shape == x.shape
    assert value.dtype == torch.float64
    h = 1e-6
    difference = (f(x + h * dx, t + h * dt) - f(x - h * dx, t - h * dt)) / (2.0 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ncsn++", "adm"])
def test_networks_can_be_traced(name):
    network = made(name).double()
    x, t, labels = numbers(2, 3, 8, 8), torch.tensor([-0.6, 0.3], dtype=torch.float64), torch.tensor([0, 3])
    other, later, others = numbers(2, 3, 8, 8, seed=1), 0.7 * t, torch.tensor([3, 1])
    found = Traced(network, [x, t], [labels]).expand(others).push(other, later)
    torch.testing.assert_close(found, network(other, later, others))


def test_networks_of_few_channels_have_no_attention_and_some_have_no_classes():
    network = DhariwalUNet(Options(**{**SMALL, "label_dim": 0}))
    names = [name for name, _ in network.named_parameters()]
    assert not any("qkv" in name or "map_label" in name for name in names)
    assert network(numbers(2, 3, 8, 8, dtype=torch.float32), torch.zeros(2)).shape == (2, 3, 8, 8)


def test_no_class_is_only_zeros_and_the_default():
    for name in ("ddpm++", "adm"):
        network = made(name)
        x, t = numbers(2, 3, 8, 8, dtype=torch.float32), torch.tensor([0.1, 0.2])
        one, none = torch.tensor([1, 1]), torch.tensor([3, 3])
        assert torch.equal(network(x, t, none), network(x, t))
        assert not torch.allclose(network(x, t, none), network(x, t, one))
        network.map_label.weight[:, 1] = 0.0
        assert torch.equal(network(x, t, none), network(x, t, one))


def test_the_factors_of_a_preconditioned_network_are_those_of_its_denoiser():
    s, x, output = 0.7, 1.3, -0.4
    for sigma in (0.002, 0.5, 80.0):
        skip, gain, scale = (c[0] for c in Denoiser(s).factors(None, Series([sigma])))
        c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / math.sqrt(sigma**2 + s**2)
        denoised = c_skip * x + c_out * output
        assert skip * x + gain * output == pytest.approx((x - denoised) / sigma, rel=1e-9)
        assert scale == pytest.approx(1.0 / math.sqrt(sigma**2 + s**2))


def told(precond, sigma):
    """Return c_skip, c_out, c_in and c_noise of Karras et al. (2022), Table 1."""
    if precond == "EDMPrecond":
        total = sigma**2 + 0.25
        return 0.25 / total, sigma * 0.5 / math.sqrt(total), 1.0 / math.sqrt(total), math.log(sigma) / 4.0
    if precond == "VPPrecond":
        t = (math.sqrt(0.01 + 2.0 * 19.9 * math.log(1.0 + sigma**2)) - 0.1) / 19.9
        return 1.0, -sigma, 1.0 / math.sqrt(1.0 + sigma**2), 999.0 * t
    return 1.0, sigma, 1.0, math.log(sigma / 2.0)


@pytest.mark.parametrize("precond", ["EDMPrecond", "VPPrecond", "VEPrecond"])
@pytest.mark.parametrize("name", ["ddpm++", "ncsn++", "adm"])
def test_a_file_is_the_denoiser_of_its_preconditioning(tmp_path, name, precond):
    path, network = file(tmp_path, name, precond)
    x = numbers(2, 3, 8, 8, dtype=torch.float32)
    for labels in (None, 2):
        problem = edm.read(path, opened(path), labels=labels)
        assert problem.event_shape == (3, 8, 8)
        for sigma in (0.3, 1.5):
            c_skip, c_out, c_in, c_noise = told(precond, sigma)
            classes = torch.full((2,), 3 if labels is None else labels)
            output = network(c_in * x, torch.full((2,), c_noise), classes)
            wanted = (x - c_skip * x - c_out * output) / sigma
            torch.testing.assert_close(problem.flow_jet(x, sigma)[0], wanted, rtol=1e-3, atol=1e-3)


def test_sampling_runs_over_the_noise_levels_of_the_makers(tmp_path):
    def ends(precond, **constants):
        schedule = edm.read(path := file(tmp_path, precond=precond, **constants)[0], opened(path)).schedule
        return schedule.gamma(schedule.start), schedule.gamma(schedule.stop)

    assert ends("EDMPrecond") == pytest.approx((80.0, 0.002))
    assert ends("EDMPrecond", sigma_min=0.01, sigma_max=50) == pytest.approx((50.0, 0.01))
    assert ends("VEPrecond") == pytest.approx((100.0, 0.02))
    assert ends("VPPrecond") == pytest.approx(
        [math.sqrt(math.expm1(0.1 * t + 9.95 * t**2)) for t in (1.0, 1e-3)]
    )


def test_the_noise_levels_of_iddpm_are_nodes_of_a_table(tmp_path):
    path, network = file(tmp_path, "adm", "iDDPMPrecond")
    problem = edm.read(path, opened(path))

    def cumulated(j):
        return math.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2

    level = 0.0
    levels = []
    for j in range(1000, 0, -1):  # Karras et al. (2022), Eq. 161
        ratio = max(cumulated(j - 1) / cumulated(j), 0.001)
        level = math.sqrt((level**2 + 1.0) / ratio - 1.0)
        levels.append(level)
    for i in (0, 1, 500, 998, 999):
        assert problem.schedule.gamma(float(i)) == pytest.approx(levels[i], rel=1e-6)
    x, sigma = numbers(2, 3, 8, 8, dtype=torch.float32), levels[500]
    wanted = network(x / math.sqrt(1.0 + sigma**2), torch.full((2,), 500.0))
    torch.testing.assert_close(problem.flow_jet(x, sigma)[0], wanted, rtol=1e-3, atol=1e-3)


def changed(group, name, value):
    """Return an edit of a tensor of the network; None removes it."""

    def edit(state):
        entries = state["_modules"]["map_layer0"].state[group]
        entries[name] = value
        if value is None:
            del entries[name]

    return edit


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path):
    refused(file(tmp_path, edit=changed("_parameters", "bias", None))[0], "lacks", "map_layer0.bias")
    refused(file(tmp_path, edit=changed("_buffers", "more", torch.zeros(1)))[0], "no use", "map_layer0.more")
    refused(file(tmp_path, edit=changed("_parameters", "bias", torch.zeros(3)))[0], "map_layer0.bias", "(3,)")
    refused(file(tmp_path, edit=changed("_parameters", "bias", "text"))[0], "map_layer0.bias")


def options(**changes):
    def edit(state):
        state["_init_kwargs"].update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del state["_init_kwargs"][name]

    return edit


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"depth": 3}, "'depth'"),
        ({"img_resolution": None}, "img_resolution"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"num_blocks": "many"}, "num_blocks"),
        ({"channel_mult": [1] * 60}, "halved"),
        ({"channel_mult": 7}, "channel_mult"),
        ({"model_channels": 10**9}, "no network"),
        ({"model_channels": 32}, "shape"),
        ({"model_channels": 2}, "2 channels"),
        ({"embedding_type": "learned"}, "embedding_type"),
        ({"encoder_type": "none"}, "encoder_type"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter"),
        ({"label_dim": -1}, "label_dim"),
    ],
    ids=str,
)
def test_options_that_are_unknown_or_wrong_are_refused_by_name(tmp_path, changes, word):
    refused(file(tmp_path, edit=options(**changes))[0], word)


def test_classes_that_are_unknown_are_refused_by_name(tmp_path):
    refused(file(tmp_path, precond="MyPrecond")[0], "MyPrecond")
    refused(file(tmp_path, inner="MyUNet")[0], "MyUNet")
    refused(file(tmp_path, precond="VPPrecond", M="x")[0], "M 'x'")
    refused(file(tmp_path, precond="iDDPMPrecond", M=0)[0], "schedule")
    refused(file(tmp_path, precond="EDMPrecond", sigma_data=math.nan)[0], "sigma_data")


def test_modules_that_contain_themselves_are_refused(tmp_path):
    def twice(state):
        state["_modules"]["map_layer1"] = state["_modules"]["map_layer0"]

    refused(file(tmp_path, edit=twice)[0], "map_layer")
    refused(file(tmp_path, edit=lambda state: state.pop("_parameters"))[0], "_parameters")
    refused(file(tmp_path, edit=lambda state: state.update(_init_args=(8,)))[0], "name")


def test_heads_and_configurations_have_no_place(tmp_path):
    path = file(tmp_path)[0]
    refused(path, "config", config={})
    refused(path, "head", head=path)


def test_pickles_of_edm_are_recognised(tmp_path):
    assert edm.recognises(opened(file(tmp_path)[0]))
    for content in (None, [], {}, {"ema": {}}, SimpleNamespace(ema=None)):
        assert not edm.recognises(content)
