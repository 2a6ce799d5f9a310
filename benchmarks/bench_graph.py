"""Exact derivatives from the graph of a network: their cost, beside one call of the network as it is.

The last network is the suite's own, whose layers have their power series written by hand: its rows are the
cost of the same derivatives by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from problems import EDM, Network, Problem, Table
from problems.console import keep_freed_memory
from problems.images.score import Learned
from problems.images.unet import Config, ScoreNetwork
from problems.models.edm_networks import SongUNet
from problems.models.edm_options import SongOptions


class Called(nn.Module):
    """A network of diffusers, called with a state, a time and perhaps labels."""

    def __init__(self, network: nn.Module, labels: str) -> None:
        super().__init__()
        self.network, self.name = network, labels

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction."""
        given = {} if labels is None else {self.name: labels}
        value: Tensor = self.network(x, timestep=time, return_dict=False, **given)[0]
        return value[:, : x.shape[1]]


class Tokens(nn.Module):
    """A transformer of torch's own layers, on patches of 7x7 of 28x28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.end = nn.Conv2d(1, 64, 7, stride=7), nn.ConvTranspose2d(64, 1, 7, stride=7)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the prediction."""
        waves = time[:, None] * torch.exp(-math.log(1e4) / 31.0 * torch.arange(32.0, device=x.device))
        told = torch.cat([waves.sin(), waves.cos()], 1)[:, None]
        h = self.layers(torch.cat([self.begin(x).flatten(2).mT, told], 1))
        return self.end(h[:, :-1].mT.reshape(-1, 64, 4, 4))


class Own(nn.Module):
    """The suite's own network, as a module like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ScoreNetwork(CONFIG, EDM())

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return ε."""
        value: Tensor = self.network(x, time[:, None, None, None])
        return value


CONFIG = Config(size=32, colours=3, channels=32, multipliers=(1, 2, 2), data_std=0.5)


def unet() -> tuple[Network, int]:
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    network = UNet2DModel(32, 3, 3, block_out_channels=(64, 128, 128), attention_head_dim=64, **blocks)
    return Network(Called(network, "class_labels"), Table.linear(), (3, 32, 32)), 4


def dit() -> tuple[Network, int]:
    network = DiTTransformer2DModel(
        6, 32, in_channels=4, out_channels=8, num_layers=6, sample_size=16, num_embeds_ada_norm=10
    )
    module = Called(network, "class_labels")
    return Network(module, Table.linear(), (4, 16, 16), classes=10, no_class=10), 8


def edm() -> tuple[Network, int]:
    options = SongOptions(img_resolution=32, in_channels=3, out_channels=3, model_channels=32, num_blocks=2)
    return Network(SongUNet(options), EDM(), (3, 32, 32)), 4


def transformer() -> tuple[Network, int]:
    return Network(Tokens(), Table.linear(), (1, 28, 28)), 64


def own() -> tuple[Network, int]:
    return Network(Own(), EDM(), (3, 32, 32)), 32


NETWORKS: dict[str, Callable[[], tuple[Network, int]]] = {
    "UNet2DModel": unet,
    "DiT": dit,
    "EDM": edm,
    "transformer": transformer,
    "own": own,
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[Network, Tensor]:
    keep_freed_memory()
    torch.manual_seed(0)
    model, batch = NETWORKS[request.param]()
    return model, torch.randn(batch, *model.event_shape)


@pytest.mark.benchmark(group="derivatives from the graph")
@pytest.mark.parametrize("derivatives", [0, 1, 2])
def test_graph(benchmark, derivatives, network):
    """ε and its derivatives; none is the call of the network as it is."""
    model, x = network
    benchmark.extra_info["derivatives"] = derivatives
    with torch.inference_mode():
        benchmark.pedantic(model.flow_jet, (x, 0.7, derivatives + 1), rounds=7, warmup_rounds=2)


@pytest.mark.benchmark(group="derivatives from the graph")
@pytest.mark.parametrize("derivatives", [0, 1, 2])
def test_layers_of_the_suite(benchmark, derivatives):
    """The same network as ``own`` by the suite's layers."""
    keep_freed_memory()
    torch.manual_seed(0)
    model: Problem = Learned(ScoreNetwork(CONFIG, EDM()))
    x = torch.randn(32, 3, 32, 32)
    benchmark.extra_info["derivatives"] = derivatives
    with torch.inference_mode():
        benchmark.pedantic(model.flow_jet, (x, 0.7, derivatives + 1), rounds=7, warmup_rounds=2)
