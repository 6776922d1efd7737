"""Read the pickles in which datasets circulate, without running anything of theirs. The one place that reads pickles.

A pickle is a program that may call any function. The machine that steps through it stands here, and the only calls that
it knows are five stand-ins, written below, which build numpy arrays from bytes; whatever else a pickle asks for is
refused by name. Admitted: numpy arrays of numbers and text, bytes, str, numbers, lists, tuples and dicts. Nothing of
the file's is hashed, compared or printed but text, bytes and numbers: a tuple of tuples can be deeper than the stack of
the interpreter, or have more parts than there is time.
"""

import functools
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import DataError
from utils.words import printable

MOST_BYTES = 2**36
"""64 GiB; the largest file of the field has about 9."""
MOST_INSTRUCTIONS = 2**24
"""Tiered-ImageNet's 450,000 encoded images take about 7 million."""
DEEPEST_NESTING = 20
MOST_PARTS = 2**24
"""Objects, and bytes of text beyond what the file is long, counted each time that they are named."""
MOST_BITS = 512
"""Of a whole number."""

_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Instructions whose argument is a value."""
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU]\d{1,6})")
_BROKEN = (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError)
"""What a damaged file ends in, depending on where the damage is."""


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
            return _plain(_run(file, size), {}, MOST_PARTS + 4 * size)[0]
    except _Refusal as refusal:
        raise DataError(
            f"{printable(path)}: refused, because {refusal}. Only numpy arrays, bytes, text, numbers, lists and dicts "
            "are read"
            " from a pickle. Nothing of it was executed. Fetch the file again from a source that you trust."
        ) from refusal
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{printable(path)}: damaged, or not a pickle: {reason}. Fetch it again.") from error


@dataclass(frozen=True)
class _StandIn:
    """A function that a pickle may call."""

    call: Callable[..., Any]


def _run(file: BinaryIO, size: int) -> Any:
    """Return what the instructions of a pickle make; all that they can do is here."""
    table = _admitted(_Encoder(size))
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_INSTRUCTIONS:
            raise _Refusal(f"it has more than {MOST_INSTRUCTIONS} instructions")
        match opcode.name:
            case name if name in _VALUES:
                stack.append(argument)
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                below.append(stack)
                stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "LIST" | "TUPLE":
                items = since_mark()
                stack.append(items if opcode.name == "LIST" else tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "DICT":
                items = since_mark()
                stack.append(_with_items({}, items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _with_items(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                _with_items(stack[-1], items)
            case "APPEND":
                item = stack.pop()
                _extended(stack[-1], [item])
            case "APPENDS":
                items = since_mark()
                _extended(stack[-1], items)
            case "GLOBAL":
                stack.append(_stand_in(table, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_stand_in(table, module, name))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _StandIn) or not isinstance(arguments, tuple):
                    raise _Refusal(f"it calls a {_kind(function)}")
                stack.append(function.call(*arguments))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if not isinstance(target, _Array | _Dtype) or not isinstance(state, tuple):
                    raise _Refusal(f"it changes a {_kind(target)}")
                target.set_state(*state)
            case "STOP":
                return stack.pop()
            case "EMPTY_SET" | "FROZENSET":
                raise _Refusal("it holds a set")
            case _:
                raise _Refusal(f"it uses the instruction {opcode.name}")
    raise ValueError("no end")


def _kind(value: Any) -> str:
    return "function" if isinstance(value, _StandIn) else type(value).__name__.lstrip("_")


def _stand_in(table: dict[tuple[str, str], _StandIn], module: Any, name: Any) -> _StandIn:
    """Return what is called instead of what a pickle names."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refusal("it asks for something without a name")
    if (module, name) not in table:
        raise _Refusal(f"it asks for {printable(module)[:80]}.{printable(name)[:80]}")
    return table[module, name]


def _with_items(target: Any, items: list[Any]) -> dict[Any, Any]:
    if not isinstance(target, dict):
        raise _Refusal(f"it sets an item of a {_kind(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of a text is secret; numbers of more than 60 bits can be chosen so that all have the same.
        if not (isinstance(key, str | bytes) or (isinstance(key, int) and key.bit_length() <= 60)):
            raise _Refusal(f"it has a {_kind(key)} as key; text, bytes and whole numbers of 60 bits may be")
        target[key] = value
    return target


def _extended(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise _Refusal(f"it adds to a {_kind(target)}")
    target.extend(items)


class _Encoder:
    """Text to bytes, as Python 3 writes bytes for Python 2, until more has been made than an honest file needs."""

    def __init__(self, file_size: int):
        self._remaining = 2 * file_size

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or not isinstance(encoding, str) or encoding != "latin1":
            raise _Refusal(f"it encodes {'text' if isinstance(text, str) else _named(text)} as {_named(encoding)}")
        self._remaining -= len(text)
        if self._remaining < 0:  # the same text again and again
            raise _Refusal("it makes more bytes than it holds")
        return text.encode("latin1")


def _named(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else f"a {_kind(value)}"


class _Dtype:
    """Stands for a numpy dtype while reading."""

    def __init__(self, encode: _Encoder, text: Any, *_: Any):
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise _Refusal(f"it holds an array of {_named(text)}, which is neither numbers nor text")
        self._encode = encode
        self.text = text

    def set_state(self, _: Any, byte_order: Any, subtype: Any, names: Any, *__: Any) -> None:
        """Take over what numpy keeps beside a dtype's name."""
        if byte_order not in ("<", ">", "|", "=") or subtype is not None or names is not None:
            raise _Refusal("it holds an array of records")
        self.text = byte_order + self.text.lstrip("<>=|")

    def array(self, data: Any, shape: Any, order: str) -> np.ndarray:
        """Return the bytes as an array; they must be exactly as many as the shape says."""
        dtype = np.dtype(self.text)
        data = self._encode(data) if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray):
            raise _Refusal("it holds an array whose content is not bytes")
        if not isinstance(shape, tuple) or any(not isinstance(side, int) or not 0 <= side < 2**40 for side in shape):
            raise _Refusal("it holds an array without a shape")
        if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
            raise _Refusal(f"an array of shape {shape[:32]} does not have its {len(data)} bytes")
        if dtype.kind == "U" and (np.frombuffer(data, dtype.str[0] + "u4") > 0x10FFFF).any():
            raise _Refusal("it holds text of letters that there are not")
        return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)


class _Array:
    """Stands for a numpy array until its content is known."""

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def set_state(self, _: Any, shape: Any, dtype: Any, is_fortran: Any, data: Any) -> None:
        """Take over the content."""
        self.value = _from_buffer(data, dtype, shape, "F" if is_fortran is True else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise _Refusal("it holds an array without a dtype")
    if axis_order is not None or order not in ("C", "F"):
        raise _Refusal(f"it holds an array in the order {_named(order)}")
    return dtype.array(data, shape, order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_buffer(data, dtype, (), "C").item()


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


def _plain(value: Any, done: dict[int, Any], most: int, depth: int = 0) -> tuple[Any, int]:
    """Return the same containers with arrays in place of their stand-ins, each object visited once, and how many parts
    and bytes there are for who visits each of them every time that it is named.
    """
    if isinstance(value, _Array):
        value = value.value
        if value is None:
            raise _Refusal("it holds an array without content")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise _Refusal(f"it holds a number of more than {MOST_BITS} bits")
    if value is None or isinstance(value, str | bytes | int | float | np.ndarray):
        return value, 1 + (value.nbytes if isinstance(value, np.ndarray) else _length(value))
    if id(value) in done:
        return done[id(value)][1:]
    if depth >= DEEPEST_NESTING:
        raise _Refusal(f"it is nested more than {DEEPEST_NESTING} deep")
    if not isinstance(value, dict | list | tuple):
        raise _Refusal(f"it holds a {_kind(value)}")
    parts = [_plain(part, done, most, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
    n_parts = 1 + sum(n for _, n in parts) + (sum(map(_length, value)) if isinstance(value, dict) else 0)
    if n_parts > most:
        raise _Refusal("it names its parts more often than an honest file would")
    plain = (part for part, _ in parts)
    result = dict(zip(value, plain, strict=True)) if isinstance(value, dict) else type(value)(plain)
    done[id(value)] = (value, result, n_parts)  # the value is kept, so that its id is not used again
    return result, n_parts


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 0
