"""Pickles in the layout of EDM, written without EDM: its names exist only while a file is written."""

import collections
import pickle
import sys
import types
from unittest import mock

import numpy as np
from torch import nn


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a file of weights was executed")


class EasyDict(dict):
    pass


class Persistent:
    """What is written as an object of a class that keeps its source code."""

    def __init__(self, class_name, source="raise AssertionError('source code was run')", **state):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": {**state, "_init_args": state.get("_init_args", ())},
        }

    @property
    def state(self):
        return self.meta["state"]

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def persistent(module, class_name="Layer", **kwargs):
    """Return a module and all in it as EDM writes it."""
    children = {}
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleDict):
            children[name] = nn.ModuleDict()
            children[name]._modules = {n: persistent(c) for n, c in child.named_children()}
        elif not isinstance(child, nn.Identity):
            children[name] = persistent(child)
    return Persistent(
        class_name,
        training=False,
        _parameters=collections.OrderedDict(module._parameters),
        _buffers=collections.OrderedDict(module._buffers),
        _modules=collections.OrderedDict(children),
        _non_persistent_buffers_set=set(),
        skip_scale=np.sqrt(0.5),
        _init_kwargs=EasyDict(kwargs),
    )


HOMES = {_reconstruct_persistent_obj: "torch_utils.persistence", EasyDict: "dnnlib.util"}


def written(value, protocol=4):
    """Return the pickle of a value, with the names of EDM in it."""
    modules = {}
    for thing, home in HOMES.items():
        parent, module = home.split(".")[0], types.ModuleType(home)
        setattr(module, thing.__name__, thing)
        modules |= {parent: types.ModuleType(parent), home: module}
        thing.__module__ = home
    try:
        with mock.patch.dict(sys.modules, modules):
            return pickle.dumps(value, protocol)
    finally:
        for thing in HOMES:
            thing.__module__ = __name__
