"""Image data: the same pixels through every container, and one sentence for whatever cannot be read."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from problems.images.data import CIFAR_TRAIN, DataError, load
from problems.makers import digits

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0, 2]
NAMES = [f"0000{k % 2}/img{k}.png" for k in range(6)]
ORDER = [0, 2, 4, 1, 3, 5]  # of the sorted names


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Encode (C, H, W)."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, kind, **options)
    return file.getvalue()


def members(pixels=COLOUR, labels=LABELS, names=NAMES) -> dict[str, bytes]:
    """Return the files of a data set, dataset.json included."""
    files = {name: encoded(image) for name, image in zip(names, pixels, strict=True)}
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
    return files | {"dataset.json": json.dumps({"labels": pairs}).encode()}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def python2_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """Write a batch opcode by opcode as Python 2 and its numpy did, where strings are bytes."""
    n, width = rows.shape

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b")
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    state = b"(" + integer(1) + integer(n) + integer(width) + b"\x86" + dtype + b"\x89"
    state += b"T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    items = text(b"batch_label") + text(b"a batch") + text(b"data") + array + b"\x87R" + state
    items += text(b"labels") + b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


CIFAR_ROWS = RNG.integers(0, 256, (12, 3072), dtype=np.uint8)
CIFAR_LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
TEST = slice(10, 12)


def cifar(write=python2_batch) -> dict[str, bytes]:
    """Return an archive of five training batches of two images and a test batch, out of order."""
    parts = {name: slice(2 * k, 2 * k + 2) for k, name in enumerate(CIFAR_TRAIN)}
    parts = {"test_batch": TEST} | dict(reversed(parts.items()))
    batches = {name: write(CIFAR_ROWS[part], CIFAR_LABELS[part]) for name, part in parts.items()}
    return {f"cifar-10-batches-py/{name}": batch for name, batch in batches.items()}


def python3_batch(rows, labels):
    return pickle.dumps({b"data": rows, b"labels": labels}, protocol=2)


def fortran_batch(rows, labels):
    return python3_batch(np.asfortranarray(rows), labels)


def refusal(source, *mentioned, **options) -> str:
    """Return the sentence with which ``load`` refuses, which must name the file and all ``mentioned``."""
    with pytest.raises(DataError) as caught:
        load(source, **options)
    message = str(caught.value)
    for word in (str(source), *mentioned):
        assert word in message
    assert "\n" not in message
    return message


def test_digits_lose_nothing():
    data = load("digits")
    images, labels = digits()
    assert data.shape == (1, 8, 8)
    assert (len(data), data.classes, data.pixels.dtype) == (1797, 10, torch.uint8)
    assert torch.equal(data.batch(torch.arange(1797)).double(), images)
    assert torch.equal(data.labels, labels)


@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_png_is_exact_and_sorted_by_name(tmp_path, write, pixels):
    data = load(write(tmp_path / "data", members(pixels)))
    assert np.array_equal(data.pixels.numpy(), pixels[ORDER])
    assert data.pixels.is_contiguous()
    assert data.labels.tolist() == [LABELS[k] for k in ORDER]
    assert (data.labels.dtype, data.classes, data.name) == (torch.int64, 3, "data")


def test_batch_maps_black_and_white_to_the_ends_exactly(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    data = load(write_zip(tmp_path / "ramp.zip", members(levels, None, NAMES[:4])))
    batch = data.batch(torch.tensor([3, 0]))
    assert batch.dtype == torch.float32
    expected = data.pixels[[3, 0]].double() * 2 / 255 - 1
    assert (
        float((batch - expected).abs().max()) <= 2**-23
    )  # one rounding of a number below 2, and the result's
    whole = data.batch(torch.arange(4))
    assert (float(whole.min()), float(whole.max())) == (-1.0, 1.0)


def test_jpeg_in_subfolders(tmp_path):
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    colour = np.stack(
        [np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.full((16, 16), 90, np.uint8)]
    )
    files = {
        "a/0.jpg": encoded(colour, "JPEG", quality=100, subsampling=0),
        "a/1.JPEG": encoded(colour, "JPEG"),
    }
    data = load(write_zip(tmp_path / "data.zip", files))
    assert data.shape == (3, 16, 16)
    assert np.abs(data.pixels[0].numpy().astype(int) - colour).max() <= 4
    grey = load(write_zip(tmp_path / "grey.zip", {"0.jpg": encoded(colour[:1], "JPEG", quality=100)}))
    assert np.abs(grey.pixels[0].numpy().astype(int) - colour[:1]).max() <= 4


def test_palette_transparent_and_two_level_images(tmp_path):
    palette = Image.fromarray(GREY[0, 0] % 4)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([0, 128, 255, 255]))
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    data = load(write_zip(tmp_path / "palette.zip", {"p.png": file.getvalue()}))
    assert np.array_equal(data.pixels[0].numpy(), table[GREY[0, 0] % 4].transpose(2, 0, 1))
    veiled = np.concatenate([COLOUR[0], GREY[0]])
    data = load(write_zip(tmp_path / "alpha.zip", {"a.png": encoded(veiled)}))
    assert np.array_equal(data.pixels[0].numpy(), COLOUR[0])
    file = io.BytesIO()
    Image.fromarray(GREY[0, 0] > 127).save(file, "PNG")
    data = load(write_zip(tmp_path / "bits.zip", {"b.png": file.getvalue()}))
    assert np.array_equal(data.pixels[0].numpy(), 255 * (GREY[:1][0] > 127))


def test_labels_may_be_absent(tmp_path):
    files = members(labels=None)
    for data in (
        load(write_zip(tmp_path / "null.zip", files)),
        load(write_folder(tmp_path / "null", files)),
        load(write_zip(tmp_path / "none.zip", {n: c for n, c in files.items() if n != "dataset.json"})),
    ):
        assert data.labels is None
        assert data.classes == 0


def test_subfolders_are_classes_only_if_they_hold_all_images(tmp_path):
    images = [encoded(image) for image in COLOUR]
    files = {"dog/x/1.png": images[0], "cat/1.png": images[1], "dog/0.png": images[2], "readme.txt": b""}
    data = load(write_folder(tmp_path / "pets", files))
    assert np.array_equal(data.pixels.numpy(), COLOUR[[1, 2, 0]])
    assert data.labels.tolist() == [0, 1, 1]
    assert data.classes == 2
    assert load(write_folder(tmp_path / "pets", {"stray.png": images[3]})).labels is None


def test_hidden_files_are_passed_over(tmp_path):
    hidden = {"__MACOSX/00000/._img0.png": b"not an image", ".cache/x.png": b"nor this"}
    for write in (write_zip, write_folder):
        assert len(load(write(tmp_path / write.__name__, members() | hidden))) == 6


@pytest.mark.parametrize("write", [python2_batch, python3_batch, fortran_batch])
def test_cifar_archive(tmp_path, write):
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", cifar(write))
    train, test = load(path), load(path / "test_batch")
    assert np.array_equal(train.pixels.numpy(), CIFAR_ROWS[:10].reshape(10, 3, 32, 32))
    assert train.labels.tolist() == CIFAR_LABELS[:10]
    assert np.array_equal(test.pixels.numpy(), CIFAR_ROWS[TEST].reshape(2, 3, 32, 32))
    assert test.labels.tolist() == CIFAR_LABELS[TEST]
    assert train.classes == test.classes == 10
    assert (train.name, test.name) == ("cifar-10-python.tar.gz", "cifar-10-python.tar.gz/test_batch")


def test_digest_is_of_the_data_and_not_of_their_container(tmp_path):
    names = [f"{k:02}.png" for k in range(10)]
    images = CIFAR_ROWS[:10].reshape(10, 3, 32, 32)
    files = members(images, CIFAR_LABELS[:10], names)
    same = [
        load(write_tar(tmp_path / "cifar.tar.gz", cifar())),
        load(write_zip(tmp_path / "data.zip", files)),
        load(write_zip(tmp_path / "back.zip", dict(reversed(files.items())))),
        load(write_folder(tmp_path / "data", files)),
    ]
    assert len({data.digest for data in same}) == 1
    pixel = images.copy()
    pixel[7, 2, 31, 31] ^= 1
    others = [
        members(pixel, CIFAR_LABELS[:10], names),
        members(images, [*CIFAR_LABELS[:9], 0], names),
        members(images, None, names),
        members(images.transpose(0, 1, 3, 2), CIFAR_LABELS[:10], names),
        members(images.reshape(10, 3, 16, 64), CIFAR_LABELS[:10], names),
    ]
    digests = {load(write_zip(tmp_path / "other.zip", files)).digest for files in others}
    assert len(digests | {same[0].digest}) == 6


def test_resolution_averages_blocks(tmp_path):
    def means(images, side):
        block = images.shape[-1] // side
        out = np.empty((*images.shape[:2], side, side))
        for i in range(side):
            for j in range(side):
                part = images[..., i * block : (i + 1) * block, j * block : (j + 1) * block]
                out[..., i, j] = part.mean(axis=(-2, -1))
        return out

    path = write_zip(tmp_path / "data.zip", members())
    cases = [(path, COLOUR[ORDER], 2), (path, COLOUR[ORDER], 1), (path, COLOUR[ORDER], 4)]
    archive = write_tar(tmp_path / "cifar.tar.gz", cifar())
    cases += [(archive, CIFAR_ROWS[:10].reshape(10, 3, 32, 32), 16)]
    cases += [("digits", (8 * digits()[0].numpy() + 8), 4)]
    for source, images, side in cases:
        small = load(source, side).pixels.numpy()
        assert small.shape[-2:] == (side, side)
        assert np.abs(small - means(images, side)).max() <= 0.5
    refusal(path, "4 x 4", "3 x 3", resolution=3)
    refusal(path, "4 x 4", resolution=8)
    refusal(path, "4 x 4", resolution=0)
    refusal(archive, "data_batch_1", "5 x 5", resolution=5)
    refusal("digits", "8 x 8", resolution=3)
    wide = write_zip(tmp_path / "wide.zip", {"w.png": encoded(COLOUR[0][:, :2])})
    refusal(wide, "w.png", "2 x 4", resolution=2)


def test_missing_and_wrong_files(tmp_path):
    refusal(tmp_path / "nothing.zip", "No such file")
    (tmp_path / "notes.txt").write_text("hello")
    refusal(tmp_path / "notes.txt", "neither")
    (tmp_path / "empty").touch()
    refusal(tmp_path / "empty", "neither")
    (tmp_path / "page.tar.gz").write_bytes(gzip.compress(b"<html>" * 999))
    refusal(tmp_path / "page.tar.gz", "another kind")
    refusal(write_zip(tmp_path / "empty.zip", {}), "no PNG or JPEG")
    refusal(write_zip(tmp_path / "text.zip", {"a.txt": b"", "dataset.json": b"{}"}), "no PNG or JPEG")
    refusal(write_folder(tmp_path / "folder", {"a.txt": b""}), "no PNG or JPEG")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.99, 0.999])
def test_truncated_archives(tmp_path, kept):
    for path in (write_zip(tmp_path / "a.zip", members()), write_tar(tmp_path / "a.tar.gz", cifar())):
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        refusal(path, "truncated")


def test_damage_inside_archives_is_found_by_checksum(tmp_path):
    path = write_zip(tmp_path / "a.zip", members())
    content = bytearray(path.read_bytes())
    content[content.index(encoded(COLOUR[3])) + 50] ^= 1
    path.write_bytes(content)
    refusal(path, NAMES[3], "damaged")
    path = write_tar(tmp_path / "a.tar.gz", cifar())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    refusal(path, "damaged")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused_or_whole(tmp_path, kind):
    content = encoded(RNG.integers(0, 256, (3, 16, 16), dtype=np.uint8), kind)
    path = tmp_path / "data.zip"
    whole = load(write_zip(path, {"x.png": content})).pixels
    for size in range(len(content)):
        write_zip(path, {"x.png": content[:size]})
        if size < len(content) - 20:
            refusal(path, "x.png cannot be read")
        else:  # what is missing is no pixel: PNG ends with two checksums and an empty chunk of 12 bytes
            with suppress(DataError):
                assert torch.equal(load(path).pixels, whole)


def test_images_that_do_not_fit(tmp_path):
    files = members(labels=None)
    odd = files | {NAMES[4]: encoded(COLOUR[4][:, :3]), NAMES[5]: encoded(COLOUR[4][:, :2])}
    refusal(write_zip(tmp_path / "sizes.zip", odd), NAMES[4], "3 x 3 x 4", NAMES[0], "3 x 4 x 4")
    grey = files | {NAMES[2]: encoded(GREY[2])}
    refusal(write_folder(tmp_path / "channels", grey), NAMES[2], "1 x 4 x 4")
    refusal(write_zip(tmp_path / "text.zip", files | {NAMES[1]: b"hello"}), NAMES[1], "another kind")
    file = io.BytesIO()
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(file, "BMP")
    refusal(write_zip(tmp_path / "bmp.zip", files | {NAMES[1]: file.getvalue()}), NAMES[1], "another kind")
    file = io.BytesIO()
    Image.fromarray(GREY[0, 0].astype(np.uint16) * 257).save(file, "PNG")
    refusal(write_zip(tmp_path / "deep.zip", files | {NAMES[1]: file.getvalue()}), NAMES[1], "8 bits")


PAIRS = [list(pair) for pair in zip(NAMES, LABELS, strict=True)]


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ('{"labels": [', "damaged"),
        ("\udcff", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "form"),
        ("{}", "form"),
        ('{"labels": {}}', "list"),
        (json.dumps({"labels": PAIRS[:5]}), NAMES[5]),
        (json.dumps({"labels": [*PAIRS, ["lost.png", 1]]}), "lost.png"),
        (json.dumps({"labels": [*PAIRS, PAIRS[0]]}), "twice"),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], "2"]]}), '"2"'),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], 2.0]]}), "2.0"),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], True]]}), "true"),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], None]]}), "null"),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], -1]]}), "-1"),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], 2**70]]}), str(2**70)),
        (json.dumps({"labels": [*PAIRS[:5], [NAMES[5], 1, 2]]}), "1, 2]"),
        (json.dumps({"labels": [*PAIRS[:5], 7]}), "7"),
    ],
)
def test_wrong_labels(tmp_path, text, mentioned):
    files = members() | {"dataset.json": text.encode(errors="surrogateescape")}
    for write in (write_zip, write_folder):
        refusal(write(tmp_path / write.__name__, files), "dataset.json", mentioned)


def test_cifar_archives_that_do_not_fit(tmp_path):
    path, good = tmp_path / "c.tar.gz", cifar()
    third = "cifar-10-batches-py/data_batch_3"

    def refused(content, mentioned):
        refusal(write_tar(path, good | {third: content}), "data_batch_3", mentioned)

    rows, labels = CIFAR_ROWS[:2], [0, 1]
    refused(good[third][:-1], "truncated")
    refused(good[third][:3000], "truncated")
    refused(b"", "truncated")
    refused(pickle.dumps([1, 2], 2), "another kind")
    refused(pickle.dumps({b"data": b"abc", b"labels": labels}, 2), "another kind")
    refused(python3_batch(rows, [0]), "3 x 32 x 32")
    refused(python3_batch(rows[:, :100], labels), "3 x 32 x 32")
    refused(python3_batch(rows[0], [0] * 3072), "3 x 32 x 32")
    refused(python3_batch(rows.astype(np.float32), labels), "bytes")
    refused(python3_batch(rows, [0, 10]), "0 to 9")
    refused(python3_batch(rows, [0, "1"]), "0 to 9")
    none = {name: python2_batch(rows[:0], []) for name in good}
    refusal(write_tar(path, none), "no images")
    del good[third]
    refusal(write_tar(path, good), "data_batch_3")
    with pytest.raises(DataError, match="no valid_batch"):
        load(path / "valid_batch")


class Evil:
    """Runs a command when unpickled."""

    def __init__(self, target: Path) -> None:
        self.command = f"touch {target}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, protocol):
    target = tmp_path / "touched"
    attack = pickle.dumps({b"data": Evil(target), b"labels": [0]}, protocol)
    path = write_tar(tmp_path / "c.tar.gz", cifar() | {"data_batch_1": attack})
    refusal(path, "data_batch_1", "system")
    assert not target.exists()
    pickle.loads(attack)
    assert target.exists()  # it would have


def test_pickles_cannot_use_what_is_allowed_for_other_ends(tmp_path):
    path = tmp_path / "c.tar.gz"
    attacks = [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"(S'1'\nibuiltins\neval\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\nndarray.tofile\n(S'x'\ntR.",
        b"c_codecs\nlookup\n(S'x'\ntR.",
    ]
    for attack in attacks:
        write_tar(path, cifar() | {"data_batch_2": attack})
        refusal(path, "data_batch_2", "refused")
    huge = b"cnumpy\nndarray\n(" + b"J" + struct.pack("<i", 2**31 - 1) + b"\x85tR."  # no memory is taken
    for attack in (huge, b"cnumpy\nndarray\n}b.", b"c_codecs\nencode\n(cnumpy\ndtype\nU\x06latin1tR."):
        write_tar(path, cifar() | {"data_batch_2": attack})
        refusal(path, "data_batch_2", "another kind")
    write_tar(
        path, cifar() | {"data_batch_2": b"Nr" + b"\xff" * 4 + b"."}
    )  # remember None as the 2³²nd object
    refusal(path, "data_batch_2", "memory")


def test_nothing_is_extracted(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = write_tar(folder / "c.tar.gz", cifar() | {"../escaped": b"x", "/absolute": b"x"})
    images = {"../../img.png": encoded(COLOUR[0]), "/img.png": encoded(COLOUR[1]), "x.txt": b"x"}
    archive = write_zip(folder / "c.zip", images)
    before = sorted(tmp_path.rglob("*"))
    assert len(load(path)) == 10
    assert np.array_equal(load(archive).pixels.numpy(), COLOUR[1:2])
    assert sorted(tmp_path.rglob("*")) == before
