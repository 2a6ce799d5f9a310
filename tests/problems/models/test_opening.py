"""Files are opened as what they are, and whatever is in them, nothing is executed."""

import collections
import functools
import io
import operator
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from problems.images.checkpoints import CheckpointError
from problems.models.opening import opened
from problems.models.pickles import Record
from tests.problems.models.edm_files import EasyDict, Persistent, _reconstruct_persistent_obj, written

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.float64)}
VALUES = [1, -2, 3.5, 10**30, None, True, (), (0,), "x" * 300, b"y"]


def at(folder, data, name="file.pkl"):
    path = folder / name
    path.write_bytes(data)
    return path


def torch_file(path, value=TENSORS, archive=True):
    torch.save(value, path, _use_new_zipfile_serialization=archive)
    return path


def edm_file(folder, protocol=4):
    hidden = Persistent(
        "Inner", "import os; os.abort()", weight=torch.nn.Parameter(TENSORS["a"].t()), std=np.float64(0.25)
    )
    value = {"ema": hidden, "kwargs": EasyDict(size=8), "names": {"x"}, "list": VALUES}
    return at(folder, written(value, protocol))


def refused(path, *words):
    with pytest.raises(CheckpointError) as error:
        opened(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("archive", [True, False])
def test_files_of_torch_are_told_by_their_content(tmp_path, archive):
    found = opened(torch_file(tmp_path / "file.pkl", archive=archive))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_safetensors_are_told_by_their_content(tmp_path):
    # 640 bytes of header begin like a pickle of protocol 2.
    for size in (1, 500):
        save_file(TENSORS, tmp_path / "file.pt", metadata={"note": "x" * size})
        found = opened(tmp_path / "file.pt")
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("protocol", [4, 5])
def test_objects_of_edm_become_records(tmp_path, protocol):
    found = opened(edm_file(tmp_path, protocol))
    ema = found["ema"]
    assert type(ema) is Record
    assert ema.class_name == "Inner"
    assert torch.equal(ema.state["weight"], TENSORS["a"].t())
    assert ema.state["std"] == 0.25
    assert type(ema.state["std"]) is float
    assert found["kwargs"] == {"size": 8}
    assert found["list"] == VALUES


class Call:
    """What is pickled as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def touch(marker):
    return f"touch '{marker}'"


CALLS = {
    "posix.system": lambda marker: Call(os.system, touch(marker)),
    "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w').close()"),
    "builtins.exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w').close()"),
    "builtins.getattr": lambda marker: Call(getattr, "x", "upper"),
    "functools.partial": lambda marker: functools.partial(os.system, touch(marker)),
    "operator.attrgetter": lambda marker: operator.attrgetter("system"),
    "torch.hub.load": lambda marker: Call(torch.hub.load, str(marker.parent), "x"),
    "torch.serialization.load": lambda marker: Call(torch.load, str(marker)),
    "shutil.rmtree": lambda marker: Call(shutil.rmtree, str(marker)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("make", ["pickle", "archive", "legacy", "storage"])
def test_names_that_are_not_allowed_are_refused_by_name(tmp_path, name, make):
    marker = tmp_path / "executed"
    evil = CALLS[name](marker)
    if make == "pickle":
        path = at(tmp_path, written({"ema": evil}))
    elif make == "storage":  # the numbers of a tensor, in which the pickle has a pickle
        inner = io.BytesIO()
        torch.save(evil, inner, _use_new_zipfile_serialization=False)
        path = at(tmp_path, written({"ema": Call(torch.storage._load_from_bytes, inner.getvalue())}))
    else:
        path = torch_file(tmp_path / "file.pt", {"ema": evil}, archive=make == "archive")
    refused(path, name.removeprefix("builtins."), "nothing in it was executed")
    assert not marker.exists()


def test_the_hostile_file_does_execute_where_pickles_are_run(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(written({"ema": CALLS["posix.system"](marker)}))
    assert marker.exists()


def text(word):
    return b"\x8c" + bytes([len(word)]) + word.encode()


def named(module, name):
    """Return the instructions that push a name, and nothing checks whether it exists."""
    return text(module) + text(name) + b"\x93"


ALLOWED = {
    "function": ("torch._utils", "_rebuild_tensor_v2"),
    "class": ("collections", "OrderedDict"),
    "container": ("torch.nn.modules.container", "ModuleDict"),
}
CHANGED = "change the state"
INSTRUCTIONS = {
    "dotted name": (
        named("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
        "__globals__",
    ),
    "dotted class": (named("collections", "OrderedDict.__init__.__globals__"), "OrderedDict.__init__"),
    "module of a module": (named("torch.storage", "os.system"), "torch.storage.os.system"),
    "old instruction for a name": (b"cos\nsystem\n", "os.system"),
    "no text as a name": (b"]" + text("x") + b"\x93", "the name"),
    "state of a function": (
        named(*ALLOWED["function"]) + b"}" + text("__code__") + b"Nsb",
        CHANGED,
    ),
    "state of a class": (named(*ALLOWED["class"]) + b"}" + text("__init__") + b"Nsb", CHANGED),
    "slots of a class": (
        named(*ALLOWED["container"]) + b"N}" + text("forward") + b"Ns\x86b",
        CHANGED,
    ),
    "state of a dictionary": (
        named(*ALLOWED["class"]) + b")R}" + text("__class__") + b"Nsb",
        CHANGED,
    ),
    "no text in a state": (named(*ALLOWED["container"]) + b")\x81Nb", CHANGED),
    "items of a class": (named(*ALLOWED["class"]) + text("x") + b"Ns", "set items"),
    "call of a text": (text("x") + b")R", "call a str"),
    "call of a record": (named(*ALLOWED["container"]) + b")\x81)R", "call a Record"),
    "arguments in a list": (named(*ALLOWED["class"]) + b"]R", "call"),
    "class on the stack": (b"(cos\nsystem\n" + text("true") + b"o", "os.system"),
    "instance": (b"(" + text("true") + b"ios\nsystem\n", "INST"),
    "extension": (b"\x82\x01", "EXT1"),
    "persistent name": (text("x") + b"Q", "BINPERSID"),
    "tuple as a key": (b"})Ns", "key"),
    "numbers that are objects": (named("numpy", "dtype") + text("O8") + b"\x89\x88\x87R", "O8"),
    "foreign order of bytes": (
        named("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + text(">")
        + b"NNNJ\xff\xff\xff\xffK\x00tb",
        "byte order",
    ),
}


@pytest.mark.parametrize("case", INSTRUCTIONS)
def test_instructions_that_change_or_call_objects_are_refused(tmp_path, case):
    instructions, word = INSTRUCTIONS[case]
    before = dict(vars(collections.OrderedDict)), torch._utils._rebuild_tensor_v2.__code__
    refused(at(tmp_path, b"\x80\x04" + instructions + b"."), word)
    assert (dict(vars(collections.OrderedDict)), torch._utils._rebuild_tensor_v2.__code__) == before


def test_views_cannot_leave_the_memory_of_their_numbers(tmp_path):
    flat = TENSORS["a"].flatten().untyped_storage()
    storage = torch.storage.TypedStorage(wrap_storage=flat, dtype=torch.float32, _internal=True)
    for offset, size, stride in [
        (0, (7,), (1,)),
        (4, (3,), (1,)),
        (0, (2, 3), (10**12, 1)),
        (-1, (2,), (1,)),
    ]:
        hidden = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
        refused(at(tmp_path, written({"ema": hidden})), "damaged")


def test_nesting_without_end_is_refused(tmp_path):
    n = 20_000
    refused(at(tmp_path, b"\x80\x04" + b"]" * n + b"a" * (n - 1) + b"."), "nested")
    refused(at(tmp_path, b"\x80\x04" + b")" + b"\x85" * n + b"."), "nested")
    refused(at(tmp_path, b"\x80\x04" + b"}" + (text("k") + b"}") * n + b"s" * n + b"."), "nested")


def test_a_list_in_itself_and_doubled_lists_take_no_time(tmp_path):
    found = opened(at(tmp_path, b"\x80\x04]\x94h\x00a."))
    assert found[0] is found
    doubled = b"]" + b"".join(b"\x94]h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(60))
    assert len(opened(at(tmp_path, b"\x80\x04" + doubled + b"."))) == 2


def test_lengths_that_the_file_does_not_have_are_refused(tmp_path):
    for instruction in (b"\x8e", b"\x8d", b"\x8b"):
        length = (
            (2**31 - 1).to_bytes(4, "little") if instruction == b"\x8b" else (2**62).to_bytes(8, "little")
        )
        refused(at(tmp_path, b"\x80\x04" + instruction + length + b"abc."), "damaged")


def whole_files(folder):
    save_file(TENSORS, folder / "whole.safetensors")
    return {
        "archive": torch_file(folder / "whole.pt"),
        "legacy": torch_file(folder / "whole.pth", archive=False),
        "safetensors": folder / "whole.safetensors",
        "edm": edm_file(folder),
    }


@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors", "edm"])
def test_files_that_are_cut_off_are_refused(tmp_path, kind):
    data = whole_files(tmp_path)[kind].read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, 20), *range(20, len(data), max(len(data) // 40, 1)), len(data) - 1]:
        cut.write_bytes(data[:length])
        refused(cut)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    refused(tmp_path, "folder")
    refused(tmp_path / "missing.pt", "No such file")
    refused(at(tmp_path, b""), "empty")
    refused(at(tmp_path, b"import os\nos.system('x')\n"), "no file of weights")
    refused(at(tmp_path, b"cos\nsystem\n(S'true'\ntR."), "no file of weights")
    refused(at(tmp_path, b"\x80\x04not a pickle"), "damaged")


def test_only_the_objects_of_edm_are_read(tmp_path):
    refused(
        at(tmp_path, written({"ema": Call(_reconstruct_persistent_obj, {"type": "function"})})), "damaged"
    )
    refused(at(tmp_path, written(Call(torch._utils._rebuild_parameter, "x", False, {}))), "parameter")
