"""What a code object says: its instructions, the names that it looks up, the attributes that it asks for."""

from __future__ import annotations

import dis
import functools
import hashlib
import types
from typing import NamedTuple

Chain = tuple[str, ...]
"""A name, and the attributes that are asked of what it holds, one after the other."""

IMPORT = "import "
"""Prefix of a name that is a module, imported on the spot."""


class Scan(NamedTuple):
    """What a code object says.

    Attributes
    ----------
    digest
        Of its instructions and constants, those of inner functions included; not of its docstring.
    names
        The attributes that it asks for.
    chains
        Names that it looks up, each with the attributes that are asked of it at once.
    codes
        It, and the code objects inside.
    """

    digest: str
    names: frozenset[str]
    chains: tuple[Chain, ...]
    codes: frozenset[types.CodeType]


_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")


@functools.cache
def scanned(code: types.CodeType) -> Scan:
    """Read a code object."""
    words: list[str] = [
        f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags}"
    ]
    words.append(repr(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]))
    words.append(code.co_exceptiontable.hex())
    names: set[str] = set()
    chains: dict[Chain, None] = {}
    codes = {code}
    chain: Chain = ()
    module = ""
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasconst:
            inner = step.argval
            if isinstance(inner, types.CodeType):
                scan = scanned(inner)
                words.append(scan.digest)
                names |= scan.names
                chains.update(dict.fromkeys(scan.chains))
                codes |= scan.codes
            else:
                words.append(f"{step.opname} {_constant(inner)}")
        elif (
            step.opcode in dis.hasname
            or step.opcode in dis.haslocal
            or step.opcode in dis.hasfree
            or step.opcode in dis.hasjrel
            or step.opcode in dis.hasjabs
        ):
            words.append(f"{step.opname} {step.argval}")
        else:
            words.append(f"{step.opname} {step.arg}")
        if step.opname in _GLOBAL:
            chain = (str(step.argval),)
            chains[chain] = None
        elif step.opname == "IMPORT_NAME":
            module = f"{IMPORT}{step.argval}"
            chain = (module,)
            chains[chain] = None
        elif step.opname == "IMPORT_FROM":
            chains[(module, str(step.argval))] = None
        elif step.opname in _ATTRIBUTE and chain:
            chain = (*chain, str(step.argval))
            chains[chain] = None
        elif step.opname not in ("PUSH_NULL", "PRECALL", "CACHE", "RESUME"):
            chain = ()
        if step.opname in _ATTRIBUTE or step.opname in ("STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR"):
            names.add(str(step.argval))
    return Scan(hashed(*words), frozenset(names), tuple(chains), frozenset(codes))


def _constant(value: object) -> str:
    if isinstance(value, tuple):
        return f"({' '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{' '.join(sorted(map(_constant, value)))}}}"
    return f"{type(value).__name__} {value!r}"


def hashed(*words: str) -> str:
    """Return the hash of words in their order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for word in words:
        data = word.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
