"""Checkpoints: what is written is read to the last bit, what cannot be used is refused in one sentence."""

import dataclasses
import functools
import hashlib
import json
import pickle
from dataclasses import replace

import pytest
import torch

from problems import VP, CosineVP
from problems.images import checkpoints
from problems.images.checkpoints import CheckpointError
from problems.images.score import Learned, load
from problems.images.unet import Config, ScoreNetwork
from tests.networks import TINY, head, network, states

CLASSES = replace(TINY, classes=3, data_std=0.7)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def about(config=CLASSES, **others):
    schedule = {"name": "VP", **dataclasses.asdict(VP())}
    return {"kind": "score network", "config": dataclasses.asdict(config), "schedule": schedule, **others}


@functools.cache
def weights(seed):
    return network(CLASSES, seed=seed).float().state_dict()


def stored(folder, name="digits", seed=0, **card):
    path = folder / f"{name}.safetensors"
    checkpoints.save(path, weights(seed), about(**card))
    return path


def stored_head(folder, of, seed=1):
    path = folder / "head.safetensors"
    config = {"channels": 8, "blocks": 1, "parameterisation": "mixed"}
    card = {"kind": "head", "config": config, "tariff": {"jvp": 1.5, "head": 0.25}}
    checkpoints.save(
        path, head(config=CLASSES, seed=seed).float().state_dict(), {**card, "network": sha256(of)}
    )
    return path


def edit(path, **changes):
    """Change the card of a checkpoint; None takes an entry away."""
    beside = path.with_suffix(".json")
    card = {**json.loads(beside.read_text()), **changes}
    beside.write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def refused(path, **arguments):
    """The sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as raised:
        load(path, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path.parent) in message
    return message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_to_the_last_bit(tmp_path, dtype):
    tensors = {
        "a.b": torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype),
        "transposed": torch.arange(6.0).reshape(2, 3).T.to(dtype),
        "odd": torch.tensor([torch.inf, -0.0, torch.finfo(dtype).tiny], dtype=dtype),
        "none": torch.empty(0, 5, dtype=dtype),
        "one": torch.tensor(7.0, dtype=dtype),
    }
    path = tmp_path / "new" / "file.safetensors"
    checkpoints.save(path, tensors, {"kind": "anything", "losses": [0.1, 1e-30]})
    back = checkpoints.load(path, "anything")
    assert back.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back.tensors[name].dtype == dtype
        assert torch.equal(back.tensors[name], value)
        assert torch.equal(back.tensors[name].signbit(), value.signbit())
    assert back.card == {"kind": "anything", "losses": [0.1, 1e-30], "sha256": sha256(path)}


def test_views_of_one_tensor_are_saved_as_two(tmp_path):
    whole = torch.arange(6.0)
    checkpoints.save(tmp_path / "x.safetensors", {"a": whole[:3], "b": whole}, {"kind": "x"})
    back = checkpoints.load(tmp_path / "x.safetensors", "x").tensors
    assert torch.equal(back["a"], whole[:3])
    assert torch.equal(back["b"], whole)


def test_nothing_but_the_checkpoint_is_left(tmp_path):
    stored(tmp_path)
    stored(tmp_path, seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.json", "digits.safetensors"]


def test_a_network_comes_back(tmp_path):
    path = stored(tmp_path, losses=[0.25])
    model, card = load(path, head=stored_head(tmp_path, path))
    assert model.network.config == CLASSES
    assert model.schedule == VP()
    assert card["losses"] == [0.25]
    x = states(2).float()
    truth = Learned(network(CLASSES).float(), head=head(config=CLASSES).float())
    for a, b in zip(model.distilled.jet(x, 0.4, 2), truth.distilled.jet(x, 0.4, 2), strict=True):
        assert torch.equal(a, b)


def test_a_network_comes_back_with_its_schedule(tmp_path):
    path = stored(tmp_path)
    edit(path, schedule={"name": "CosineVP", "offset": 0.01, "start": 0.99, "stop": 0.002})
    assert load(path)[0].schedule == CosineVP(0.01, 0.99, 0.002)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_half_a_checkpoint(tmp_path, suffix):
    path = stored(tmp_path)
    path.with_suffix(suffix).unlink()
    assert f"digits{suffix} is missing" in refused(path)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_truncated_file(tmp_path, keep):
    """Told apart from its card; and where the card agrees, by safetensors."""
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "do not belong together" in refused(path)
    edit(path, sha256=sha256(path))
    assert "not a whole safetensors file" in refused(path)


def test_a_flipped_bit(tmp_path):
    path = stored(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "do not belong together" in refused(path)


def test_the_card_of_another_file(tmp_path):
    path, other = stored(tmp_path), stored(tmp_path, "other", seed=1)
    other.with_suffix(".json").replace(path.with_suffix(".json"))
    assert "digits.json do not belong together" in refused(path)


def test_another_kind(tmp_path):
    path = stored(tmp_path)
    assert "is a head, where a score network is needed" in refused(stored_head(tmp_path, path))
    assert "is a score network, where a head is needed" in refused(path, head=path)


def test_the_head_of_another_network(tmp_path):
    path, other = stored(tmp_path), stored(tmp_path, "other", seed=1)
    assert "distilled from another network" in refused(path, head=stored_head(tmp_path, other))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"kind"', '{"kind": "score network"}', "\ufffd\x00", "[" * 100_000]
)
def test_a_card_that_is_none(tmp_path, text):
    path = stored(tmp_path)
    path.with_suffix(".json").write_text(text)
    assert "digits.json is not the card of a checkpoint" in refused(path)


def test_a_card_that_is_no_text(tmp_path):
    path = stored(tmp_path)
    path.with_suffix(".json").write_bytes(b"\xff\xfe\x00")
    assert "is not the card of a checkpoint" in refused(path)


NONSENSE = [
    {"config": None},
    {"config": "nonsense"},
    {"config": []},
    {"config": 3},
    *[
        {"config": {**dataclasses.asdict(CLASSES), **change}}
        for change in (
            {"chanels": 8},
            {"channels": 12},
            {"channels": "8"},
            {"channels": 8.5},
            {"channels": []},
            {"multipliers": []},
            {"multipliers": 2},
            {"multipliers": [1, 2, 2, 2]},
            {"multipliers": ["1"]},
            {"blocks": -1},
            {"classes": -2},
            {"classes": "many"},
            {"data_std": "wide"},
            {"data_std": 0.0},
            {"embedding": "smooth"},
            {"embedding": []},
            {"prediction": "__import__('os')"},
        )
    ],
    {"schedule": None},
    {"schedule": "VP"},
    {"schedule": {"name": "Linear"}},
    {"schedule": {"name": []}},
    {"schedule": {"beta_min": 0.1}},
    {"schedule": {"name": "VP", "beta": 0.1}},
    {"data": "digits"},
    {"data": 3},
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
def test_a_card_that_describes_no_network(tmp_path, nonsense):
    path = stored(tmp_path)
    edit(path, **nonsense)
    assert "describes no network of this suite" in refused(path)


@pytest.mark.parametrize(
    "nonsense",
    [
        *[
            {"config": c}
            for c in (None, "mixed", {"channels": 12}, {"parameterisation": "all"}, {"width": 3})
        ],
        *[{"tariff": t} for t in (None, "free", {"nfe": 1.0})],
    ],
    ids=repr,
)
def test_a_card_that_describes_no_head(tmp_path, nonsense):
    path = stored(tmp_path)
    of = stored_head(tmp_path, path)
    edit(of, **nonsense)
    assert "describes no head of this suite" in refused(path, head=of)


@pytest.mark.parametrize(
    "change", [{"channels": 16}, {"blocks": 2}, {"classes": 4}, {"classes": 0}, {"colours": 3}]
)
def test_weights_of_another_architecture(tmp_path, change):
    path = stored(tmp_path)
    edit(path, config={**dataclasses.asdict(CLASSES), **change})
    assert "does not fit the architecture on its card" in refused(path)


class Bomb:
    """What a pickle would execute."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, write):
    path, mark = stored(tmp_path), tmp_path / "executed"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weights": Bomb(mark)}, path)
    edit(path, sha256=sha256(path))
    assert "not a whole safetensors file" in refused(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


def test_a_pickle_for_a_card(tmp_path):
    path, mark = stored(tmp_path), tmp_path / "executed"
    path.with_suffix(".json").write_bytes(pickle.dumps(Bomb(mark)))
    assert "is not the card of a checkpoint" in refused(path)
    assert not mark.exists()


def test_half_precision_weights_are_read_as_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    net = network(CLASSES).half()
    checkpoints.save(path, net.state_dict(), about())
    model, _ = load(path)
    for name, value in model.network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, net.state_dict()[name].float())


def test_a_configuration_survives_its_card(tmp_path):
    config = Config(16, 3, 24, (1, 2, 2), 1, 10, "fourier", "v", 0.5)
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, ScoreNetwork(config, VP()).state_dict(), about(config))
    assert load(path)[0].network.config == config
