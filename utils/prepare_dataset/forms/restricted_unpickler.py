"""Read the pickles in which datasets circulate, without running anything of theirs. The one place that reads pickles.

A pickle is a program that may call any function. Here it can call five stand-ins, written below, which build numpy
arrays from bytes; whatever else it asks for is refused by name before it is looked up. Admitted: numpy arrays of
numbers and text, bytes, str, numbers, lists, tuples and dicts.
"""

import functools
import math
import pickle  # the standard library's machine that steps through the file; see find_class
import pickletools
import re
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from utils.errors import DataError
from utils.words import printable

MOST_BYTES = 2**36
"""64 GiB; the largest file of the field has about 9."""
DEEPEST_NESTING = 20

_REFUSED_OPCODES = {
    "PERSID",
    "BINPERSID",
    "EXT1",
    "EXT2",
    "EXT4",
    "INST",
    "OBJ",
    "NEWOBJ",
    "NEWOBJ_EX",
    "NEXT_BUFFER",
    "READONLY_BUFFER",
}
"""What no list of arrays needs: persistent ids, the registry of extensions, making objects of classes, outside
buffers.
"""
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU]\d{1,6})")
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    ImportError,
    RecursionError,
    AssertionError,
)
"""What the standard library raises for a damaged file, depending on where the damage is."""


class _Refusal(Exception):
    """A pickle that asks for something that is not admitted."""


def load_restricted(path: Path) -> Any:
    """Read a pickle of arrays and plain containers; text of Python 2 is read as latin-1.

    Both numpy 1's and numpy 2's module names are known. Arrays are read-only.

    Raises:
        DataError: the file asks for anything else, is damaged, too large or nested too deeply. Nothing of it was
            executed.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise DataError(
            f"{printable(path)}: {size / 2**30:.0f} GiB; pickles above {MOST_BYTES / 2**30:.0f} GiB are not read."
        )
    try:
        with open(path, "rb") as file:
            _check_opcodes(file)
            file.seek(0)
            return _plain(_RestrictedUnpickler(file, size).load(), {}, 0)
    except _Refusal as refusal:
        raise DataError(
            f"{printable(path)}: refused, because {refusal}. Only numpy arrays, bytes, text, numbers, lists and dicts "
            "are read"
            " from a pickle. Nothing of it was executed. Fetch the file again from a source that you trust."
        ) from refusal
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{printable(path)}: damaged, or not a pickle: {reason}. Fetch it again.") from error


def _check_opcodes(file: BinaryIO) -> None:
    """Check the program without running it."""
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in _REFUSED_OPCODES:
            raise _Refusal(f"it uses the instruction {opcode.name}")
        if opcode.name in _PUTS and argument > position:  # a memo of that size would fill the memory
            raise _Refusal(f"it numbers its parts up to {argument}")


class _StandIn:
    """A function that a pickle may call. It can be given no state, which is how a pickle could change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refusal("it changes a function")


class _Encoder:
    """Text to bytes, as Python 3 writes bytes for Python 2, until more has been made than an honest file needs."""

    def __init__(self, file_size: int):
        self._remaining = 2 * file_size

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise _Refusal(f"it encodes text as {encoding!r}")
        self._remaining -= len(text)
        if self._remaining < 0:  # the same text again and again
            raise _Refusal("it makes more bytes than it holds")
        return text.encode("latin1")


class _Dtype:
    """Stands for a numpy dtype while reading."""

    __slots__ = ("_encode", "text")

    def __init__(self, encode: _Encoder, text: Any, *_: Any):
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise _Refusal(f"it holds an array of {str(text)[:40]!r}, which is neither numbers nor text")
        self._encode = encode
        self.text = text

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "=") or state[2] is not None or state[3] is not None:
            raise _Refusal("it holds an array of records")
        self.text = state[1] + self.text.lstrip("<>=|")

    def array(self, data: Any, shape: Any, order: str) -> np.ndarray:
        """Return the bytes as an array; they must be exactly as many as the shape says."""
        dtype = np.dtype(self.text)
        data = self._encode(data) if isinstance(data, str) else data
        shape = tuple(shape)
        if any(not isinstance(side, int) or side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(
            data
        ):
            raise _Refusal(f"an array of shape {shape} does not have its {len(data)} bytes")
        return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)


class _Array:
    """Stands for a numpy array until its content is known."""

    __slots__ = ("value",)

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | str):
            raise _Refusal("it holds an array whose content is not bytes")
        self.value = dtype.array(data, shape, "F" if is_fortran else "C")


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple, order: str, axis_order: None = None) -> np.ndarray:
    if axis_order is not None or order not in ("C", "F"):
        raise _Refusal(f"it holds an array in the order {order!r}")
    return dtype.array(data, shape, order)


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
    return dtype.array(data, (), "C").item()


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise _Refusal("it makes bytes out of something else")
    return b""


def _admitted(encode: _Encoder) -> dict[tuple[str, str], _StandIn]:
    """Return (module, name) -> what is called in its place; numpy has moved its modules once."""
    array = _StandIn(_Array)
    table = {
        ("numpy", "ndarray"): array,
        ("numpy", "dtype"): _StandIn(functools.partial(_Dtype, encode)),
        ("_codecs", "encode"): _StandIn(encode),
        ("__builtin__", "bytes"): _StandIn(_empty_bytes),
        ("builtins", "bytes"): _StandIn(_empty_bytes),
    }
    for core in ("numpy.core", "numpy._core"):
        table |= {
            (f"{core}.multiarray", "_reconstruct"): array,
            (f"{core}.multiarray", "scalar"): _StandIn(_scalar),
            (f"{core}.numeric", "_frombuffer"): _StandIn(_from_buffer),
        }
    return table


class _RestrictedUnpickler(pickle.Unpickler):
    """Everything that a pickle names goes through find_class; here that is a closed table."""

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file, encoding="latin1")
        self._table = _admitted(_Encoder(size))

    def find_class(self, module: str, name: str) -> _StandIn:
        if (module, name) not in self._table:
            raise _Refusal(f"it asks for {printable(module)[:80]}.{printable(name)[:80]}")
        return self._table[module, name]


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Return the same containers with arrays in place of their stand-ins, each object visited once."""
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refusal("it holds an array without content")
        return value.value
    if value is None or isinstance(value, str | bytes | bool | int | float | np.ndarray):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if depth >= DEEPEST_NESTING:
        raise _Refusal(f"it is nested more than {DEEPEST_NESTING} deep")
    if isinstance(value, dict):
        items = ((_plain(k, done, depth + 1), _plain(v, done, depth + 1)) for k, v in value.items())
        result: Any = dict(items)
    elif isinstance(value, list | tuple):
        result = type(value)(_plain(item, done, depth + 1) for item in value)
    else:
        raise _Refusal(f"it holds a {type(value).__name__.lstrip('_')}")
    done[id(value)] = (value, result)  # the value is kept, so that its id is not used again
    return result
