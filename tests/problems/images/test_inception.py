"""Inception-v3: written a second time from the paper with functions only, on weights that the tests make."""

import copy
import functools
import io
import math
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from problems.images.checkpoints import CheckpointError
from problems.images.inception import Inception, load

COUNTER = ".num_batches_tracked"


@functools.cache
def shapes():
    with torch.device("meta"):
        return {name: t.shape for name, t in Inception().state_dict().items()}


@functools.cache
def weights():
    """Weights that let a signal through: entries of variance 2/(number of inputs), all else of order one."""
    source = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=source)
        if name.endswith("conv.weight") or name == "fc.weight":
            made[name] = noise * math.sqrt(2.0 / shape[1:].numel())
        elif name.endswith(("bn.weight", "running_var")):
            made[name] = 1.0 + 0.3 * torch.rand(shape, generator=source)
        elif not name.endswith(COUNTER):
            made[name] = 0.3 * noise
    return made


def blank():
    """Weights of the right names and shapes that take no room in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes().items()}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(weights(), path)
    return load(path)


@pytest.fixture(scope="module")
def w():
    return {name: t.double() for name, t in weights().items()}


def uniform(*shape):
    """Numbers between -1 and 1."""
    return 2.0 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1.0


def test_sizes(network):
    """The public file holds 23,885,392 numbers.

    17,216 channels have a mean and a variance each, which are no parameters; 1,008 classes have 2,048 weights
    and a bias. torchvision, whose network has the same trunk, states 27,161,264 parameters: 3,326,696 of its
    auxiliary classifier and 1000 · 2049 of its 1,000 classes are not here.
    """
    tensors = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTER)}
    assert len(tensors) == 94 * 5 + 2
    assert sum(t.numel() for n, t in tensors.items() if n.endswith("running_var")) == 17_216
    trunk = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("fc."))
    assert sum(t.numel() for t in tensors.values()) == 23_885_392
    assert trunk == 23_885_392 - 2 * 17_216 - 1008 * 2049 == 27_161_264 - 3_326_696 - 1000 * 2049
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())


class Written:
    """The network once more: functions on the public names of the weights."""

    def __init__(self, w):
        self.w = w

    def conv(self, x, name, stride=1, padding=0):
        w = {part: self.w[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        w = {part: t.reshape(-1, 1, 1) for part, t in w.items()}
        x = functional.conv2d(x, self.w[f"{name}.conv.weight"], stride=stride, padding=padding)
        x = (x - w["running_mean"]) / torch.sqrt(w["running_var"] + 0.001)
        return (x * w["weight"] + w["bias"]).clamp_min(0.0)

    @staticmethod
    def mean(x):
        """Of those of the nine neighbours that lie inside."""
        nine = torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype)
        total = functional.conv2d(x, nine, padding=1, groups=x.shape[1])
        return total / functional.conv2d(torch.ones_like(x), nine, padding=1, groups=x.shape[1])

    @staticmethod
    def largest(x):
        """Of the nine neighbours, outside of which nothing is."""
        inside = functional.pad(x, (1, 1, 1, 1), value=-math.inf)
        return inside.unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))

    @staticmethod
    def halved(x):
        return x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))

    def stem(self, x):
        x = self.conv(x, "Conv2d_1a_3x3", stride=2)
        x = self.conv(x, "Conv2d_2a_3x3")
        x = self.halved(self.conv(x, "Conv2d_2b_3x3", padding=1))
        x = self.conv(x, "Conv2d_3b_1x1")
        return self.halved(self.conv(x, "Conv2d_4a_3x3"))

    def mixed_5(self, x, b):
        five = self.conv(self.conv(x, f"{b}.branch5x5_1"), f"{b}.branch5x5_2", padding=2)
        three = self.conv(self.conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", padding=1)
        three = self.conv(three, f"{b}.branch3x3dbl_3", padding=1)
        pool = self.conv(self.mean(x), f"{b}.branch_pool")
        return torch.cat([self.conv(x, f"{b}.branch1x1"), five, three, pool], 1)

    def mixed_6a(self, x, b):
        double = self.conv(self.conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", padding=1)
        double = self.conv(double, f"{b}.branch3x3dbl_3", stride=2)
        return torch.cat([self.conv(x, f"{b}.branch3x3", stride=2), double, self.halved(x)], 1)

    def mixed_6(self, x, b):
        wide, high = (0, 3), (3, 0)
        seven = self.conv(self.conv(x, f"{b}.branch7x7_1"), f"{b}.branch7x7_2", padding=wide)
        seven = self.conv(seven, f"{b}.branch7x7_3", padding=high)
        double = self.conv(x, f"{b}.branch7x7dbl_1")
        for k, padding in ((2, high), (3, wide), (4, high), (5, wide)):
            double = self.conv(double, f"{b}.branch7x7dbl_{k}", padding=padding)
        pool = self.conv(self.mean(x), f"{b}.branch_pool")
        return torch.cat([self.conv(x, f"{b}.branch1x1"), seven, double, pool], 1)

    def mixed_7a(self, x, b):
        three = self.conv(self.conv(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", stride=2)
        seven = self.conv(self.conv(x, f"{b}.branch7x7x3_1"), f"{b}.branch7x7x3_2", padding=(0, 3))
        seven = self.conv(seven, f"{b}.branch7x7x3_3", padding=(3, 0))
        seven = self.conv(seven, f"{b}.branch7x7x3_4", stride=2)
        return torch.cat([three, seven, self.halved(x)], 1)

    def mixed_7(self, x, b, pool):
        def fork(x, name):
            wide, high = (self.conv(x, f"{name}{c}", padding=p) for c, p in (("a", (0, 1)), ("b", (1, 0))))
            return torch.cat([wide, high], 1)

        three = fork(self.conv(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2")
        double = self.conv(self.conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", padding=1)
        double = fork(double, f"{b}.branch3x3dbl_3")
        pooled = self.conv(pool(x), f"{b}.branch_pool")
        return torch.cat([self.conv(x, f"{b}.branch1x1"), three, double, pooled], 1)

    def mixed_7b(self, x, b):
        return self.mixed_7(x, b, self.mean)

    def mixed_7c(self, x, b):
        return self.mixed_7(x, b, self.largest)


FIVE, SIX = Written.mixed_5, Written.mixed_6
BLOCKS = {
    "Mixed_5b": (192, 256, FIVE),
    "Mixed_5c": (256, 288, FIVE),
    "Mixed_5d": (288, 288, FIVE),
    "Mixed_6a": (288, 768, Written.mixed_6a),
    "Mixed_6b": (768, 768, SIX),
    "Mixed_6c": (768, 768, SIX),
    "Mixed_6d": (768, 768, SIX),
    "Mixed_6e": (768, 768, SIX),
    "Mixed_7a": (768, 1280, Written.mixed_7a),
    "Mixed_7b": (1280, 2048, Written.mixed_7b),
    "Mixed_7c": (2048, 2048, Written.mixed_7c),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name, network, w):
    inputs, outputs, written = BLOCKS[name]
    block = copy.deepcopy(network.get_submodule(name)).double()
    x = uniform(2, inputs, 6, 5).double()
    with torch.inference_mode():
        made, known = block(x), written(Written(w), x, name)
    assert made.shape[:2] == (2, outputs)
    assert made.shape == known.shape
    # At most six layers, each of sums of at most 4,032 products: errors of 6 · √4032 · 2⁻⁵³ = 4e-14.
    assert (made - known).norm() < 1e-13 * known.norm()
    assert known.std() > 0.1


def resized(image, size=299):
    """Interpolate between the centres of pixels, of which the outermost go on to the border."""

    def places(n):
        at = [max((i + 0.5) * n / size - 0.5, 0.0) for i in range(size)]
        below = [int(s) for s in at]
        share = torch.tensor([s - k for s, k in zip(at, below, strict=True)], dtype=torch.float64)
        return below, [min(k + 1, n - 1) for k in below], share

    below, above, t = places(image.shape[-1])
    image = (1.0 - t) * image[..., below] + t * image[..., above]
    below, above, t = places(image.shape[-2])
    return (1.0 - t[:, None]) * image[..., below, :] + t[:, None] * image[..., above, :]


class SeenError(Exception):
    pass


@pytest.mark.parametrize("shape", [(3, 2, 3), (1, 8, 8), (3, 310, 640)])
def test_the_stem_sees_images_of_the_right_size(shape, network):
    """Smaller and larger ones, colourful and grey ones."""

    def stop(_, inputs):
        raise SeenError(inputs[0])

    hook = network.get_submodule("Conv2d_1a_3x3").register_forward_pre_hook(stop)
    x = uniform(2, *shape).double()
    with pytest.raises(SeenError) as caught:
        network.features(x)
    hook.remove()
    (seen,) = caught.value.args
    assert seen.shape == (2, 3, 299, 299)
    # The places are rounded: 640 · 2⁻⁵³ of a pixel, between neighbours that differ by up to 2.
    assert (seen - resized(x).expand(-1, 3, -1, -1)).abs().max() < 8 * 640 * 2.0**-53


def test_the_whole_network(network, w):
    """Features and logits of one image, in float32, are those of the functions in float64."""
    x = uniform(1, 3, 20, 20)
    written = Written(w)
    with torch.inference_mode():
        known = written.stem(resized(x.double()))
        assert known.shape == (1, 192, 35, 35)
        for name, (_, _, block) in BLOCKS.items():
            known = block(written, known, name)
        assert known.shape == (1, 2048, 8, 8)
        known = known.mean((2, 3))
        made = network.features(x)
        assert made.dtype == torch.float32
        # 47 layers one after the other, sums of at most 4,032 products: 47 · √4032 · 2⁻²⁴ = 1.8e-4.
        assert (made - known).norm() < 2e-4 * known.norm()
        logits = known @ w["fc.weight"].T + w["fc.bias"]
        assert (network(x) - logits).norm() < 2e-4 * logits.norm()


def test_images_do_not_see_each_other(network):
    x = uniform(2, 1, 8, 8)
    x[1] = x[1].round()
    with torch.inference_mode():
        together = network.features(x)
        alone = torch.cat([network.features(image[None]) for image in x])
        assert together.shape == (2, 2048)
        assert (together - alone).norm() < 2e-4 * alone.norm()
        assert torch.pdist(alone).min() > 2e-2 * alone.norm()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "half"])
def test_kinds_of_files(kind, tmp_path):
    """Archives and the format before them, with and without the counters of training."""
    made = weights()
    counted = made | {n: torch.tensor(7) for n in shapes() if n.endswith(COUNTER)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "zip":
        torch.save(counted, path)
    elif kind == "old":
        torch.save(made, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(made, path)
    else:
        made = {n: t.half() for n, t in made.items()}
        torch.save(made, path)
    found = load(path).state_dict()
    assert found.keys() == shapes().keys()
    assert all(torch.equal(found[n], t.float()) for n, t in made.items())
    assert all(found[n].dtype == torch.float32 for n in made)


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        load(path)
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    assert "use pt_inception-2015-12-05-6726825d.pth" in told
    return told


def without(tensors, name):
    return {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda t: without(t, "Mixed_7c.branch3x3_2b.bn.bias"), "1 tensors, Mixed_7c.branch3x3_2b.bn.bias"),
        (lambda t: {**t, "AuxLogits.fc.bias": torch.zeros(1000)}, "1 tensors, AuxLogits.fc.bias"),
        (  # torchvision's own network
            lambda t: {**t, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)},
            "2 tensors, fc.bias",
        ),
        (lambda t: {**t, "fc.bias": torch.zeros(1008, dtype=torch.int64)}, "1 tensors, fc.bias"),
        (lambda t: {**t, "fc.bias": 1008 * [0.0]}, "1 tensors, fc.bias"),
        (lambda t: {**t, 3: torch.zeros(1)}, "1 tensors, 3 among"),
        (lambda t: {"model": t}, "473 tensors, Conv2d_1a_3x3.bn.bias"),
        (lambda t: {}, "472 tensors, Conv2d_1a_3x3.bn.bias"),
    ],
)
def test_other_weights_are_refused(change, odd, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(change(blank()), path)
    assert f"does not fit the Inception-v3 network of the FID ({odd}" in refusal(path)


def test_blank_weights_are_not_refused(tmp_path):
    """They are what the others are made of that are."""
    path = tmp_path / "w.pth"
    torch.save(blank(), path)
    assert not load(path).fc.weight.any()


@pytest.mark.parametrize("content", [b"", b"weights", [torch.zeros(3)], torch.zeros(3), 3, None])
def test_what_holds_no_weights_is_refused(content, tmp_path):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
        path.with_suffix(".safetensors").write_bytes(content)
        assert "is damaged, or holds more than weights" in refusal(path.with_suffix(".safetensors"))
    else:
        torch.save(content, path)
    assert "is damaged, or holds more than weights" in refusal(path)
    path.unlink()
    assert "is missing" in refusal(path)
    path.mkdir()
    assert "is missing" in refusal(path)


@pytest.mark.parametrize("modern", [True, False])
def test_files_that_were_cut_off_are_refused(modern, tmp_path):
    path, whole = tmp_path / "w.pth", io.BytesIO()
    torch.save(blank(), whole, _use_new_zipfile_serialization=modern)
    content = whole.getvalue()
    path.write_bytes(content)
    load(path)
    for share in (0.0, 0.01, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        assert "is damaged" in refusal(path)
    path = tmp_path / "w.safetensors"
    save_file({"fc.bias": torch.zeros(1008)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged" in refusal(path)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("save", [torch.save, lambda it, path: path.write_bytes(pickle.dumps(it))])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pkl"])
def test_code_in_a_file_is_not_run(save, name, tmp_path):
    done, path = tmp_path / "done", tmp_path / name
    save(blank() | {"fc.bias": Harm(done)}, path)
    refusal(path)
    assert not done.exists()
    pickle.loads(pickle.dumps(Harm(done)))
    assert done.exists()  # it would have been


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("name", ["inception-2015-12-05.pt", "inception.pth"])
def test_programs_are_refused(name, tmp_path, recwarn):
    path = tmp_path / name
    torch.jit.script(torch.nn.ReLU()).save(str(path))
    recwarn.clear()
    refusal(path)
    assert not recwarn
