"""Folders that diffusers wrote, read as problems, against diffusers' own networks and schedulers."""

import json
import pickle
import shutil
import warnings

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

from problems import FlowMatching, Table, load, rescale_betas_zero_snr
from problems.images.checkpoints import CheckpointError
from problems.score import denoise

SMALL = {"norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8, 8)}
BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


def unet(**options):
    torch.manual_seed(0)
    return UNet2DModel(8, 1, 1, **SMALL, **BLOCKS, **options).eval()


def write(folder, network, scheduler=None, part="unet"):
    """Write a pipeline: its network and its scheduler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save_pretrained(folder / part)
        (folder / "model_index.json").write_text("{}")
        if scheduler is not None:
            scheduler.save_pretrained(folder / "scheduler")
    return folder


def states(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


SCHEDULERS = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "v": {"prediction_type": "v_prediction"},
    "data": {"prediction_type": "sample"},
    "trained": {"trained_betas": [0.001 + 0.0002 * i for i in range(100)], "num_train_timesteps": 100},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("options", SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_denoised_state_is_that_of_the_scheduler(options, tmp_path):
    network, scheduler = unet(), DDIMScheduler(clip_sample=False, **options)
    problem = load(write(tmp_path, network, scheduler))
    x = states(2, 1, 8, 8)
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps[1::3]:
        with torch.no_grad():
            output = network(x, t, return_dict=False)[0]
        theirs = scheduler.step(output, t, x).pred_original_sample
        ours = denoise(problem, x, float(t))
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_what_scheduler_files_say_of_the_table(tmp_path):
    folder = write(tmp_path, unet(), DDIMScheduler(rescale_betas_zero_snr=True))
    assert load(folder).schedule == Table(rescale_betas_zero_snr(Table.linear().betas))


def test_flow_matching(tmp_path):
    """x - σ v is the data, with v = noise - data and the network told 1000 σ."""
    network = unet()
    problem = load(write(tmp_path, network, FlowMatchEulerDiscreteScheduler(shift=3.0)))
    assert problem.schedule == FlowMatching()
    x, sigma = states(2, 1, 8, 8), 0.6
    with torch.no_grad():
        v = network(x, 1000.0 * sigma, return_dict=False)[0]
    assert torch.allclose(denoise(problem, x, sigma), x - sigma * v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm(kind, tmp_path):
    network, scheduler = unet(), EDMEulerScheduler(prediction_type=kind)
    problem = load(write(tmp_path, network, scheduler))
    x, sigma = 2.0 * states(2, 1, 8, 8), torch.tensor(1.7)
    with torch.no_grad():
        told = scheduler.precondition_noise(sigma)
        output = network(scheduler.precondition_inputs(x, sigma), told, return_dict=False)[0]
    theirs = scheduler.precondition_outputs(x, output, sigma)
    assert torch.allclose(denoise(problem, x, 1.7), theirs, rtol=1e-4, atol=1e-4)


def test_a_network_with_classes(tmp_path):
    network = unet(num_class_embeds=3)
    folder = write(tmp_path, network, DDIMScheduler())
    x = states(2, 1, 8, 8)
    with torch.no_grad():
        theirs = network(x, 300, class_labels=torch.tensor([2, 0]), return_dict=False)[0]
    problem = load(folder, labels=torch.tensor([2, 0]))
    assert torch.allclose(problem(x, 300.0), theirs, rtol=1e-4, atol=1e-5)
    assert load(folder).labels_of(4).tolist() == [0, 1, 2, 0]


def test_a_transformer_with_a_learned_variance_and_no_class(tmp_path):
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=4,
        norm_num_groups=1,
    ).eval()
    folder = write(tmp_path, network, DDIMScheduler(), "transformer")
    x = states(2, 1, 8, 8)
    for labels, told in ((1, [1, 1]), (None, [4, 4])):
        with torch.no_grad():
            theirs = network(x, torch.tensor([300, 300]), torch.tensor(told), return_dict=False)[0][:, :1]
        problem = load(folder, labels=labels)
        assert torch.allclose(problem(x, 300.0), theirs, rtol=1e-4, atol=1e-5)
    double = problem.to(torch.zeros((), dtype=torch.float64))
    nested = double.nested().flow_jet(x.double(), 0.8, 2)
    for found, truth in zip(double.flow_jet(x.double(), 0.8, 2), nested, strict=True):
        # diffusers computes the waves of the time in float32, where t itself is rounded by 1e-5.
        assert torch.allclose(found, truth, rtol=1e-3, atol=1e-3)


def test_a_network_with_cross_attention(tmp_path):
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        **SMALL,
    ).eval()
    folder = write(tmp_path, network, DDIMScheduler())
    with pytest.raises(CheckpointError, match=r"put conditioning\.safetensors into it"):
        load(folder)
    rows, none = states(2, 3, 6), torch.zeros(3, 6)
    save_file({"encoder_hidden_states": rows, "unconditional": none}, folder / "conditioning.safetensors")
    x = states(2, 1, 8, 8)
    for labels, told in ((torch.tensor([1, 0]), rows.flip(0)), (None, none.expand(2, 3, 6))):
        with torch.no_grad():
            theirs = network(x, 300, told, return_dict=False)[0]
        assert torch.allclose(load(folder, labels=labels)(x, 300.0), theirs, rtol=1e-4, atol=1e-5)


def test_a_network_alone_says_what_is_assumed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no scheduler; taken is the table of Ho et al"):
        problem = load(tmp_path)
    assert problem.schedule == Table.linear()
    said = load(tmp_path, config={"beta_schedule": "squaredcos_cap_v2"})
    assert said.schedule == Table.cosine()


def test_weights_in_half_precision_and_in_a_pickle(tmp_path):
    network = unet()
    folder = write(tmp_path, network, DDIMScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: t.half() for name, t in load_file(file).items()}
    file.unlink()
    torch.save(half, file.with_suffix(".bin"))
    problem = load(folder)
    assert problem.dtype == torch.float32
    name, weight = next(iter(half.items()))
    assert torch.equal(problem.module.network.state_dict()[name], weight.float())


class Hostile:
    def __reduce__(self):
        return exec, ("open('touched', 'w').write('x')",)


def test_a_hostile_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, unet(), DDIMScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.with_suffix(".bin").write_bytes(pickle.dumps({"conv_in.weight": Hostile()}))
    with pytest.raises(CheckpointError, match="executed"):
        load(folder)
    assert not (tmp_path / "touched").exists()


def edited(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove(folder, name):
    (folder / name).unlink()


def without_a_tensor(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file({**tensors, "surplus": torch.zeros(1)}, file)


CONFIG, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
DAMAGES = {
    "truncated weights": (truncate, "not a whole safetensors"),
    "no weights": (
        lambda f: remove(f, "unet/diffusion_pytorch_model.safetensors"),
        "has no weights",
    ),
    "tensors": (without_a_tensor, r"does not fit .* \(2 tensors, conv_in.weight among them\)"),
    "no network": (lambda f: shutil.rmtree(f / "unet"), "no network in the folders unet or transformer"),
    "a damaged configuration": (lambda f: (f / CONFIG).write_text('{"a"'), "no whole JSON file"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "no JSON object"),
    "another network": (
        lambda f: edited(f, CONFIG, _class_name="AutoencoderKL"),
        "is a AutoencoderKL",
    ),
    "nonsense": (lambda f: edited(f, CONFIG, block_out_channels=[8]), "describes no network"),
    "no size": (lambda f: edited(f, CONFIG, sample_size=None), "must give sample_size"),
    "another embedding": (lambda f: edited(f, CONFIG, class_embed_type="timestep"), "a table only"),
    "another table": (
        lambda f: edited(f, SCHEDULER, beta_schedule="sigmoid"),
        "beta_schedule is sigmoid",
    ),
    "another prediction": (lambda f: edited(f, SCHEDULER, prediction_type="flow"), "predicts flow; read are"),
    "no numbers": (lambda f: edited(f, SCHEDULER, trained_betas=[2.0, 3.0]), "describes no noise schedule"),
    "another scheduler": (
        lambda f: (f / SCHEDULER).write_text('{"_class_name": "KarrasVeScheduler"}'),
        "is that of KarrasVeScheduler; read are",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_what_cannot_be_used_is_told_in_a_sentence(damage, words, tmp_path):
    folder = write(tmp_path, unet(), DDIMScheduler())
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_a_pipeline_of_diffusers_is_read_whole(tmp_path):
    network = unet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DDPMPipeline(network, DDIMScheduler()).save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = network(states(1, 1, 8, 8), 10, return_dict=False)[0]
    assert torch.allclose(load(tmp_path)(states(1, 1, 8, 8), 10.0), theirs, rtol=1e-4, atol=1e-5)
