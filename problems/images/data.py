"""Image data sets by path, read completely or refused in one sentence; no code in a file is executed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from problems.images import arrays
from problems.makers import digits

Pixels = npt.NDArray[np.uint8]
Labels = dict[str, int]

SUFFIXES = {".png", ".jpg", ".jpeg"}
GREY, COLOUR = {"1", "L", "LA"}, {"P", "RGB", "RGBA", "CMYK", "YCbCr"}
CIFAR_TRAIN = tuple(f"data_batch_{k}" for k in range(1, 6))
CIFAR_CLASSES = 10
LOSSY = "the data are JPEGs, so distances to them are not comparable with those to lossless images"


class DataError(ValueError):
    """A file is missing, of another kind, damaged or inconsistent; the message names it and the reason."""


@dataclass(frozen=True, eq=False)
class Images:
    """A data set of images in memory.

    Attributes
    ----------
    pixels
        (N, C, H, W), uint8: levels from 0 to ``white``.
    labels
        (N,), int64, from 0 to ``classes`` - 1; None if the images have no labels.
    classes
        Number of classes, 0 without labels.
    name
        Name of the file or folder, without its path.
    white
        The level that is mapped to 1; level 0 is mapped to -1.
    note
        What has to be said wherever a distance to these images is printed; empty if nothing.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: int
    name: str
    white: int = 255
    note: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> torch.Size:
        """Shape (C, H, W) of one image."""
        return self.pixels.shape[1:]

    def batch(self, index: Tensor) -> Tensor:
        """Return the images at ``index`` in [-1, 1], float32, on the device of the pixels."""
        return self.pixels[index].float() / (0.5 * self.white) - 1.0

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of all that training depends on: shape, white, pixels and labels."""
        header = [list(self.pixels.shape), self.white, self.labels is not None]
        digest = hashlib.sha256(json.dumps(header).encode())
        digest.update(self.pixels.cpu().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def load(source: str | Path, resolution: int | None = None) -> Images:
    """Read a data set.

    Parameters
    ----------
    source
        One of the following. The type of a file is recognised by its contents, not by its suffix.

        - ``"digits"``: scikit-learn's 1,797 digits, (1, 8, 8) in 17 grey levels, without a file (a folder of
          that name is ``"./digits"``).
        - A zip file of PNG and JPEG images, the format of EDM's and GENIE's dataset tool. Labels are read
          from ``dataset.json`` at its root, ``{"labels": [["00000/img00000000.png", 6], ...]}``, one for
          every image; ``null`` or no such file means no labels.
        - A folder of PNG and JPEG images at any depth. Labels are read from its ``dataset.json``. Without it,
          the sorted names of the subfolders are the classes, if all images are in subfolders.
        - The official ``cifar-10-python.tar.gz``: its 50,000 training images, in the file's order. A single
          batch is ``cifar-10-python.tar.gz/test_batch``.
        - An ``.npz`` file with one array of images, uint8, (N, H, W, C), (N, C, H, W) or (N, H, W), as
          guided-diffusion writes its samples; a second array of N whole numbers is their labels.

        Images in zip files and folders are sorted by name. Hidden files and files with suffixes other than
        .png, .jpg and .jpeg are ignored. Transparency is dropped.
    resolution
        Side of the square images in pixels, a divisor of the side in the file. Each pixel becomes the mean of
        a block, rounded to an integer level. None keeps the size.

    Raises
    ------
    DataError
        If any part of the data cannot be read; there are no partial results.
    """
    if source == "digits":
        images, labels = digits()
        levels = ((images + 1.0) * 8.0).round().to(torch.uint8).numpy()
        pixels = torch.from_numpy(_shrink("digits", levels, resolution))
        return Images(pixels, labels, classes=10, name="digits", white=16)
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, resolution)
    if path.parent.is_file():
        return _read_cifar(path.parent, [path.name], resolution, f"{path.parent.name}/{path.name}")
    if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
        raise DataError(f"{path} is no regular file; images are in a folder, a zip file or an archive")
    with _reading(str(path)), path.open("rb") as file:
        magic = file.read(2)
    if magic == b"PK" and arrays.is_archive(path):
        return _read_arrays(path, resolution)
    if magic == b"PK":
        return _read_zip(path, resolution)
    if magic == b"\x1f\x8b":
        return _read_cifar(path, CIFAR_TRAIN, resolution, path.name)
    raise DataError(f"{path} is neither a folder, zip or npz file of images nor cifar-10-python.tar.gz")


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn any exception into a ``DataError``; decoders of damaged bytes raise exceptions of all kinds."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:  # a damaged length field can request any amount
        raise DataError(f"{what} cannot be read: it asks for more memory than there is") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or "it is damaged, truncated or of another kind"
        raise DataError(f"{what} cannot be read: {reason}") from error


def _shrink(what: str, pixels: Pixels, resolution: int | None) -> Pixels:
    """Average (..., H, W) over blocks to (..., resolution, resolution)."""
    *lead, height, width = pixels.shape
    if resolution is None or (height, width) == (resolution, resolution):
        return pixels
    if resolution < 1 or height != width or height % resolution:
        raise DataError(
            f"{what} is {height} x {width}, which blocks do not divide into {resolution} x {resolution}"
        )
    block = height // resolution
    blocks = pixels.reshape(*lead, resolution, block, resolution, block)
    means: npt.NDArray[np.float32] = blocks.mean(axis=(-3, -1), dtype=np.float32)
    return np.rint(means).astype(np.uint8)


def _read_zip(path: Path, resolution: int | None) -> Images:
    with _reading(str(path)), zipfile.ZipFile(path) as archive:
        return _read_members(path, archive.namelist(), archive.read, _no_labels, resolution)


def _read_folder(path: Path, resolution: int | None) -> Images:
    with _reading(str(path)):
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return _read_members(path, names, lambda name: (path / name).read_bytes(), _subfolders, resolution)


def _read_arrays(path: Path, resolution: int | None) -> Images:
    """Read an archive of numpy with one array of images, and perhaps one of labels."""
    with _reading(str(path)):
        found = arrays.read(path)
    try:
        images = found.pop(arrays.stack_of(found))
        if images.dtype != np.uint8:
            raise ValueError(f"images are uint8, from 0 to 255, not {images.dtype}")
        pixels = arrays.channels_first(images)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if not len(pixels):
        raise DataError(f"{path} holds no images")
    shrunk, name = torch.from_numpy(_shrink(str(path), pixels, resolution)), path.resolve().name
    labels = [
        a for a in found.values() if a.shape == (len(pixels),) and a.dtype.kind in "iu" and a.min() >= 0
    ]
    if len(labels) != 1:
        return Images(shrunk, None, classes=0, name=name)
    values = torch.from_numpy(labels[0].astype(np.int64))
    return Images(shrunk, values, int(values.max()) + 1, name)


def _no_labels(names: Sequence[str]) -> Labels | None:
    return None


def _subfolders(names: Sequence[str]) -> Labels | None:
    """Return the index of each image's first-level subfolder, if all images are in subfolders."""
    if not all("/" in name for name in names):
        return None
    first = {name: name.split("/")[0] for name in names}
    order = {folder: k for k, folder in enumerate(sorted(set(first.values())))}
    return {name: order[folder] for name, folder in first.items()}


def _read_members(
    path: Path,
    members: Iterable[str],
    read: Callable[[str], bytes],
    unlisted: Callable[[Sequence[str]], Labels | None],
    resolution: int | None,
) -> Images:
    """Read the images among ``members``; ``unlisted`` gives the labels if there is no dataset.json."""
    members = set(members)
    names = sorted(name for name in members if _is_image(PurePosixPath(name)))
    if not names:
        raise DataError(f"{path} holds no PNG or JPEG images")
    listed = "dataset.json" in members
    labels = _listed_labels(f"{path}: dataset.json", read, names) if listed else unlisted(names)
    pixels = torch.from_numpy(_decode_all(path, names, read, resolution))
    name, note = path.resolve().name, _lossy(names)
    if labels is None:
        return Images(pixels, None, classes=0, name=name, note=note)
    values = torch.tensor([labels[image] for image in names], dtype=torch.int64)
    return Images(pixels, values, classes=int(values.max()) + 1, name=name, note=note)


def _lossy(names: Sequence[str]) -> str:
    """Return what compression did to the data; empty if they are PNGs."""
    jpegs = sum(PurePosixPath(name).suffix.lower() != ".png" for name in names)
    if not jpegs:
        return ""
    return LOSSY if jpegs == len(names) else LOSSY.replace("the data", f"{jpegs} of the {len(names)} data")


def _is_image(name: PurePosixPath) -> bool:
    return name.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts)


def _listed_labels(what: str, read: Callable[[str], bytes], names: Sequence[str]) -> Labels | None:
    """Read dataset.json, which must label exactly the images ``names``."""
    with _reading(what):
        content = json.loads(read("dataset.json"))
    if not isinstance(content, dict) or "labels" not in content:
        raise DataError(f'{what} is not of the form {{"labels": ...}}')
    if content["labels"] is None:
        return None
    if not isinstance(content["labels"], list):
        raise DataError(f"{what} must hold a list of labels, or null")
    labels: Labels = {}
    wanted = set(names)
    for entry in content["labels"]:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool) and 0 <= label < 2**31:
                if name in labels:
                    raise DataError(f"{what} labels {name!r} twice")
                if name not in wanted:
                    raise DataError(f"{what} names {name!r}, which is not among the images")
                labels[name] = label
            case _:
                shown = json.dumps(entry)[:80]
                raise DataError(f'{what} must hold pairs ["image name", class number], not {shown}')
    for name in names:
        if name not in labels:
            raise DataError(f"{what} has no label for {name!r}")
    return labels


def _decode_all(
    path: Path, names: Sequence[str], read: Callable[[str], bytes], resolution: int | None
) -> Pixels:
    """Decode images to (N, C, H, W); all must have one size."""
    decoded: list[Pixels] = []
    shape: tuple[int, ...] | None = None
    for name in names:
        image = _decode(f"{path}: {name}", name, read)
        shape = shape or image.shape
        if image.shape != shape:
            raise DataError(
                f"{path}: {name} is {_times(image.shape)} where {names[0]} is {_times(shape)}, "
                "and all images must be of one size (channels x height x width)"
            )
        decoded.append(_shrink(f"{path}: {name}", image, resolution))
    return np.stack(decoded)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _decode(what: str, name: str, read: Callable[[str], bytes]) -> Pixels:
    """Decode a PNG or JPEG image to (1, H, W) if it is grey, else to (3, H, W)."""
    with _reading(what), Image.open(io.BytesIO(read(name)), formats=("PNG", "JPEG")) as image:
        if image.mode not in GREY | COLOUR:
            raise DataError(f"{what} has pixels of mode {image.mode}; save it with 8 bits per channel")
        image.load()
        image.info.pop("transparency", None)
        if image.mode in GREY:
            return np.asarray(image.convert("L"))[None]
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


class _Record:
    """Replaces an object in a pickle: stores its arguments and its state, and executes nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads numbers, strings and arrays of a pickle without imports; arrays become records."""

    ARRAYS = frozenset(
        [
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ]
    )

    def __init__(self, content: bytes, what: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.what = what

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in self.ARRAYS:
            return _Record
        if (module, name) == ("_codecs", "encode"):  # protocol 2 writes bytes this way
            return lambda text, encoding: str.encode(text, "latin-1")
        wanted = f"{module}.{name}"
        raise DataError(f"{self.what} asks for {wanted!r}, which image data do not need, and is refused")


def _read_cifar(path: Path, batches: Sequence[str], resolution: int | None, name: str) -> Images:
    """Read the named batches of CIFAR-10's Python version, in any folder of the archive."""
    content: dict[str, bytes] = {}
    with _reading(str(path)), gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file and (key := PurePosixPath(member.name).name) in batches:
                    content[key] = file.read()
        while stream.read(1 << 20):  # to the end of the stream, where the checksum is
            pass
    for batch in batches:
        if batch not in content:
            raise DataError(f"{path} has no {batch}; the Python version of CIFAR-10 is wanted")
    pairs = [_read_batch(f"{path}: {batch}", content.pop(batch), resolution) for batch in batches]
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in pairs]))
    labels = torch.tensor([label for _, labels in pairs for label in labels], dtype=torch.int64)
    if not len(pixels):
        raise DataError(f"{path} holds no images")
    return Images(pixels, labels, CIFAR_CLASSES, name)


def _read_batch(what: str, content: bytes, resolution: int | None) -> tuple[Pixels, list[int]]:
    """Read one pickled batch: ``data``, an array (n, 3072) of bytes, and ``labels``, a list."""
    with _reading(what):
        batch = _Unpickler(content, what).load()
        _, shape, dtype, fortran, raw = batch[b"data"].state
        if dtype.arguments[0] not in ("u1", b"u1"):
            raise DataError(f"{what} holds other numbers than bytes")
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
        labels = batch[b"labels"]
        if rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32 or len(labels) != len(rows):
            raise DataError(f"{what} holds no labelled images of 3 x 32 x 32 bytes")
        if not all(type(label) is int and 0 <= label < CIFAR_CLASSES for label in labels):
            raise DataError(f"{what} holds labels other than 0 to {CIFAR_CLASSES - 1}")
        return _shrink(what, rows.reshape(-1, 3, 32, 32), resolution), list(labels)
