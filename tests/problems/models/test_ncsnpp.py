"""The layers and networks of score_sde: definitions, closed forms and published sizes."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.signal import convolve2d, correlate2d, upfirdn
from torch import nn

from problems.graph import Traced
from problems.models import ddpm_unet
from problems.models.blocks import Block, few
from problems.models.layers import (
    NIN,
    FilteredConv,
    FilteredDown,
    FilteredUp,
    Fourier,
    attend,
    sinusoid,
)
from problems.models.ncsnpp import Config, Ladder, NCSNpp, Pyramid
from tests.problems.models.states import images, randomised

TAPS = [(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 5.0, 3.0), (1.0, 1.0)]
TINY = Config(8, 3, 16, (1, 2), 1, (4,))
SKIP = replace(TINY, taps=TAPS[0], input_pyramid=Pyramid.SKIP, output_pyramid=Pyramid.SKIP)
KINDS = {
    "ddpm++": TINY,
    "residual": replace(TINY, taps=TAPS[0], input_pyramid=Pyramid.RESIDUAL, fourier=True, divide=True),
    "skip": replace(SKIP, centred=False),
    "cat": replace(SKIP, concatenate=True),
    "residual out": replace(TINY, output_pyramid=Pyramid.RESIDUAL, rescale=False),
    "ddpm": replace(TINY, width=32, resampling_blocks=False, group=1, rescale=False),
    "means": replace(TINY, resampling_blocks=False, convolve=False, conditional=False),
    "ladder": replace(TINY, divide=True, ladder=Ladder(0.01, 50.0, 1000)),
}


@pytest.mark.parametrize("taps", TAPS)
def test_filtered_upsampling_is_zeros_between_pixels_and_a_filter(taps):
    x, n = images(2, 3, 6, 8), len(taps)
    row = 2.0 * torch.tensor(taps).double() / sum(taps)
    full = upfirdn(row, upfirdn(row, x.double(), up=2, axis=2), up=2, axis=3)
    first = n // 2 - 1
    expected = torch.from_numpy(full)[:, :, first : first + 12, first : first + 16]
    torch.testing.assert_close(FilteredUp(taps)(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taps", TAPS)
def test_filtered_downsampling_is_a_filter_and_every_second_pixel(taps):
    x, n = images(2, 3, 6, 8), len(taps)
    row = torch.tensor(taps).double() / sum(taps)
    full = torch.from_numpy(upfirdn(row, upfirdn(row, x.double(), axis=2), axis=3))
    expected = full[:, :, n // 2 :: 2, n // 2 :: 2][:, :, :3, :4]
    torch.testing.assert_close(FilteredDown(taps)(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taps", TAPS)
def test_filtered_convolution_is_both_one_after_the_other(taps):
    x, layer, n = images(1, 2, 6, 6), randomised(FilteredConv(2, 4, taps), 1), len(taps)
    kernel = torch.outer(torch.tensor(taps), torch.tensor(taps)) / sum(taps) ** 2
    margin = n // 2 - 1
    for channel in range(4):
        expected = torch.zeros(3, 3)
        for image, weight in zip(x[0], layer.weight[channel].detach(), strict=True):
            blurred = convolve2d(image, kernel)[margin : margin + 7, margin : margin + 7]
            expected += torch.from_numpy(correlate2d(blurred, weight, mode="valid")[::2, ::2])
        found = layer(x)[0, channel].detach() - layer.bias[channel].detach()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_filter_of_odd_length_is_refused():
    with pytest.raises(ValueError, match="even number of taps"):
        FilteredDown((1.0, 2.0, 1.0))


def test_attention_is_an_average_over_all_pixels():
    q, k, v = (images(2, 5, 3, 3, seed=seed).double() for seed in range(3))
    found = attend(q, k, v).flatten(2)
    for n in range(2):
        flat = [t[n].flatten(1) for t in (q, k, v)]
        for i in range(9):
            weights = [math.exp(float(flat[0][:, i] @ flat[1][:, j]) / math.sqrt(5)) for j in range(9)]
            value = sum(w * flat[2][:, j] for j, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(found[n, :, i], value)


def test_a_map_of_the_channels_is_its_matrix_at_every_pixel():
    layer, x = randomised(NIN(3, 4), 0), images(2, 3, 2, 5)
    expected = torch.einsum("nchw,cd->ndhw", x, layer.W) + layer.b[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_embeddings_are_sines_and_then_cosines():
    time = torch.tensor([0.0, 3.7], dtype=torch.float64)
    frequencies = [1.0, 10000.0 ** (-1 / 3), 10000.0 ** (-2 / 3), 1e-4]
    found = sinusoid(time, 9)
    for row, t in zip(found.tolist(), time.tolist(), strict=True):
        waves = [math.sin(w * t) for w in frequencies] + [math.cos(w * t) for w in frequencies]
        assert row == pytest.approx([*waves, 0.0], abs=1e-15)
    layer = Fourier(2).double()
    layer.W.copy_(torch.tensor([0.5, 0.25]))
    expected = [
        math.sin(math.pi * 3.7),
        math.sin(math.pi * 1.85),
        math.cos(math.pi * 3.7),
        math.cos(math.pi * 1.85),
    ]
    assert layer(time)[1].tolist() == pytest.approx(expected)
    assert not layer.W.requires_grad


def test_a_block_whose_last_convolution_is_zero_hands_on_its_input():
    block = randomised(Block(8, 8, 4, few, rescale=True), 0)
    nn.init.zeros_(block.Conv_1.weight)
    nn.init.zeros_(block.Conv_1.bias)
    x = images(2, 8, 4, 4)
    torch.testing.assert_close(block(x, images(2, 4)), x / math.sqrt(2.0))


def test_groups_have_at_least_four_channels_and_there_are_at_most_32():
    assert [few(c) for c in (4, 16, 100, 128, 512)] == [1, 4, 25, 32, 32]
    old = replace(TINY, group=1)
    assert [old.groups(c) for c in (32, 128, 512)] == [32, 32, 32]


def test_levels_are_geometric_and_fall():
    sigma = Ladder(0.01, 50.0, 1000).sigma(torch.arange(1000).double())
    expected = torch.logspace(math.log10(50.0), -2.0, 1000, dtype=torch.float64)
    torch.testing.assert_close(sigma, expected)


def test_networks_have_the_size_of_those_that_their_makers_code_makes():
    large = replace(TINY, size=256, width=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(16,))
    old = ddpm_unet.Config(128, 3, 128, (1, 1, 2, 2, 4, 4, 4), 2, (16,))
    with torch.device("meta"):
        networks = {
            106_632_579: NCSNpp(Config(32, 3, 128, (1, 2, 2, 2), 8, (16,))),  # DDPM++ deep of CIFAR-10
            111_569_923: NCSNpp(replace(large, resampling_blocks=False, rescale=False)),  # DDPM of churches
            148_029_955: ddpm_unet.UNet(old),  # GENIE's of churches
        }
    for count, network in networks.items():
        assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_the_same_function_in_float64(kind):
    network, x, time = randomised(NCSNpp(KINDS[kind]), 0), images(2, 3, 8, 8), torch.tensor([3.0, 400.0])
    with torch.no_grad():
        plain, double = network(x, time), network.double()(x.double(), time.double())
    assert double.dtype == torch.float64
    assert (plain - double).norm() < 1e-4 * double.norm()


@pytest.mark.parametrize("kind", ["residual", "ladder"])
def test_networks_can_be_traced_at_one_point_and_evaluated_at_another(kind):
    network, x, time = randomised(NCSNpp(KINDS[kind]), 0), images(2, 3, 8, 8), torch.tensor([3.0, 400.0])
    with torch.no_grad():
        graph = Traced(network, [images(2, 3, 8, 8, seed=1), time / 2])
        torch.testing.assert_close(graph.expand().push(x, time), network(x, time))


def test_images_that_are_not_centred_are_centred_by_the_network():
    centred = randomised(NCSNpp(TINY), 0)
    other = randomised(NCSNpp(replace(TINY, centred=False)), 0)
    x, time = images(1, 3, 8, 8), torch.tensor([3.0])
    torch.testing.assert_close(other((x + 1.0) / 2.0, time), centred(x, time), rtol=1e-4, atol=1e-5)


def test_networks_that_divide_by_the_noise_level_do_so():
    time = torch.tensor([2.0])
    for config in (KINDS["ladder"], KINDS["residual"]):
        undivided = randomised(NCSNpp(replace(config, divide=False)), 0)
        divided = randomised(NCSNpp(config), 0)
        sigma = time if config.ladder is None else 50.0 * (0.01 / 50.0) ** (time / 999.0)
        x = images(1, 3, 8, 8)
        torch.testing.assert_close(divided(x, time) * sigma, undivided(x, time))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 9},
        {"taps": TAPS[0], "output_pyramid": Pyramid.RESIDUAL},
        {"taps": TAPS[0], "resampling_blocks": False},
        {"divide": True},
    ],
)
def test_networks_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ValueError, match=r"pixels|filter|noise level"):
        replace(TINY, **wrong)


@pytest.mark.parametrize("attention", [(4,), (8, 4)])
def test_the_layer_before_the_last_normalisation_is_named(attention):
    x, time, heard = images(1, 3, 8, 8), torch.tensor([0.5]), {}
    old = ddpm_unet.UNet(ddpm_unet.Config(8, 3, 32, (1, 2), 1, attention))
    new = NCSNpp(replace(TINY, attention=attention))
    for network, last in ((old, (old.norm_out, old.conv_out)), (new, new.all_modules[-2:])):
        randomised(network, 0)
        for name in (network.features, network.embedding):
            network.get_submodule(name).register_forward_hook(
                lambda *a, name=name: heard.update({name: a[2]})
            )
        result = network(x, time)
        norm, conv = last
        torch.testing.assert_close(conv(nn.functional.silu(norm(heard[network.features]))), result)
        assert heard[network.embedding].shape == (1, 4 * network.config.width)
