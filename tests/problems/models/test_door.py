"""The door: what a path is, is told by its content, and what is no model is refused in a sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from problems import InTurn, load
from problems.images.checkpoints import CheckpointError
from problems.images.score import shipped, weights


def test_a_checkpoint_of_the_suite_and_the_head_beside_it(tmp_path):
    for suffix in (".safetensors", ".json"):
        for part in ("digits", "digits-head"):
            shutil.copy(weights(part).with_suffix(suffix), tmp_path)
    x = torch.randn(2, 1, 8, 8)
    problem = load(tmp_path / "digits.safetensors")
    assert torch.equal(problem(x, 0.4), shipped("digits")(x, 0.4))
    assert problem.distilled is not None
    (tmp_path / "digits-head.safetensors").unlink()
    assert load(str(tmp_path / "digits.safetensors")).distilled is None
    named = load(tmp_path / "digits.safetensors", head=weights("digits-head"))
    assert named.distilled is not None


def test_labels_of_a_checkpoint_of_the_suite():
    problem = load(weights("digits-classes"), labels=3)
    assert torch.equal(
        problem(torch.ones(2, 1, 8, 8), 0.4),
        shipped("digits-classes").labelled(3)(torch.ones(2, 1, 8, 8), 0.4),
    )
    assert load(weights("digits-classes"), labels=InTurn(10)).labels_of(3).tolist() == [0, 1, 2]


def nothing(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("hello")


def folder(path):
    path.mkdir()


def tensors(path):
    torch.save({"weight": torch.zeros(3)}, path)


STRANGE = {
    "nowhere": (lambda path: None, "there is no file or folder"),
    "empty": (nothing, "empty"),
    "text": (text, "no file of weights"),
    "a folder": (folder, "folder without model_index.json"),
    "tensors of nobody": (tensors, "of no maker that is known; read are"),
}


@pytest.mark.parametrize(("make", "words"), STRANGE.values(), ids=STRANGE)
def test_what_is_no_model(make, words, tmp_path):
    path = tmp_path / "model.pth"
    make(path)
    with pytest.raises(CheckpointError, match=words) as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "nowhere.pth"}, "there is no file nowhere.pth"),
        ({"config": "nowhere.json"}, "there is no file"),
    ],
)
def test_files_that_are_named_and_not_there(options, words, tmp_path):
    path = tmp_path / "model.pt"
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight")
    torch.save({name: torch.zeros(2, 2) for name in names}, path)
    with pytest.raises(CheckpointError, match=words):
        load(path, **options)


@pytest.mark.parametrize(("written", "words"), [("{", "no whole JSON"), ("[1]", "no JSON object")])
def test_a_damaged_configuration(written, words, tmp_path):
    path = tmp_path / "model.pt"
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight")
    torch.save({name: torch.zeros(2, 2) for name in names}, path)
    Path(tmp_path / "model.config.json").write_text(written)
    with pytest.raises(CheckpointError, match=words):
        load(path)
    Path(tmp_path / "model.config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError):
        load(path)
