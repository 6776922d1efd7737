"""Pickles of arrays are read, real ones of every protocol and of Python 2; hostile ones are refused and run nothing."""

import collections
import functools
import io
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest

from utils.errors import DataError
from utils.prepare_dataset.forms import restricted_unpickler
from utils.prepare_dataset.forms.restricted_unpickler import load_restricted

CONTENT = {
    "data": np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3),
    "labels": [0, 1, np.int64(2), np.int32(-3)],
    "columns": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    "words": np.array(["a", "much longer"]),
    "raw": np.array([b"ab", b"c"]),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 84, 84, 3), np.uint8),
    "mixed": (b"bytes", b"", "text", 1, 2**70, -2.5, None, True, {"a": [1, [2]]}),
}


@pytest.fixture
def load(tmp_path):
    """Read these bytes as a file."""

    def read(data):
        path = tmp_path / "data.pkl"
        path.write_bytes(data)
        return load_restricted(path)

    return read


def equal(one, other):
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_and_containers_come_back_from_every_protocol_and_both_numpys(load, protocol, core):
    data = pickle.dumps(CONTENT, protocol)
    here = "numpy._core" if b"numpy._core" in data else "numpy.core"
    if core != here:  # rewrite the module names as the other numpy has them, lengths of short texts included
        for module in ("multiarray", "numeric"):
            old, new = f"{here}.{module}".encode(), f"{core}.{module}".encode()
            data = data.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new).replace(
                b"c" + old, b"c" + new
            )
        data = without_frames(data)
        assert here.encode() + b"." not in data
    assert equal(CONTENT, load(data))


def without_frames(data):
    """A pickle without its frames, whose lengths no longer fit."""
    frame = data.find(b"\x95", 0, 3)
    return data if frame < 0 else data[:frame] + data[frame + 9 :]


def text_2(text):
    """A str of Python 2."""
    return b"T" + struct.pack("<i", len(text)) + text


def array_2(array):
    """An array as Python 2 with numpy 1 pickled it, protocol 2."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in array.shape) + b"t"
    kind = array.dtype.str[1:].encode()
    dtype = (
        b"cnumpy\ndtype\n("
        + text_2(kind)
        + b"K\x00K\x01tR(K\x03"
        + text_2(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text_2(b"b") + b"tR"
    return start + b"(K\x01" + shape + dtype + b"\x89" + text_2(array.tobytes()) + b"tb"


def test_a_pickle_of_python_2_is_read_as_latin_1(load):
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 64)
    names = b"(" + text_2(b"n01532829") + text_2("caf\xe9".encode("latin1")) + b"l"
    found = load(b"\x80\x02}(" + text_2(b"data") + array_2(pixels) + text_2(b"names") + names + b"u.")
    assert np.array_equal(found["data"], pixels) and found["names"] == ["n01532829", "café"]


class Runs:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class PlainObject:
    """An object of a class of one's own."""


HOSTILE = {
    "posix.system": lambda file: Runs(os.system, f"touch {file}"),
    "subprocess.Popen": lambda file: Runs(subprocess.Popen, ["touch", str(file)]),
    "builtins.eval": lambda file: Runs(eval, f"open({str(file)!r}, 'w')"),
    "builtins.exec": lambda file: Runs(exec, f"open({str(file)!r}, 'w')"),
    "_io.open": lambda file: Runs(io.open, str(file), "w"),
    "builtins.getattr": lambda file: Runs(getattr, "text", "format"),
    "functools.partial": lambda file: functools.partial(os.system, f"touch {file}"),
    "collections.OrderedDict": lambda file: collections.OrderedDict(a=1),
    "PlainObject": lambda file: PlainObject(),
    "builtins.bytearray": lambda file: Runs(bytearray, 10),
    "numpy.load": lambda file: Runs(np.load, str(file)),
    "numpy.memmap": lambda file: Runs(np.memmap, str(file), "u1", "w+", 0, (10,)),
}


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_calls_something_is_refused_by_name_and_runs_nothing(load, tmp_path, name, protocol):
    victim = tmp_path / "was_here"
    data = pickle.dumps({"data": CONTENT["data"], "labels": HOSTILE[name](victim)}, protocol)
    with pytest.raises(DataError) as refused:
        load(data)
    assert not victim.exists()
    message = str(refused.value)
    assert "data.pkl: refused, because it " in message and "Nothing of it was executed" in message
    # Older protocols make an object through copyreg, the newest with an instruction of its own.
    assert any(
        part in message for part in (f".{name.rpartition('.')[2]}.", "_reconstructor.", "the instruction NEWOBJ")
    ), message


def test_the_hostile_pickles_are_real(tmp_path):
    """An ordinary reader does run them."""
    victim = tmp_path / "was_here"
    pickle.loads(pickle.dumps(HOSTILE["posix.system"](victim)))  # noqa: S301
    assert victim.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.", "it changes a function"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "an array of 'O', which is neither numbers nor text"),
        (b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", "it asks for os.system"),
        (b"(X\x04\x00\x00\x00trueios\nsystem\n.", "it uses the instruction INST"),
        (b"(cos\nsystem\nX\x04\x00\x00\x00trueo.", "it uses the instruction OBJ"),
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.", "it uses the instruction NEWOBJ"),
        (b"Pabc\n.", "it uses the instruction PERSID"),
        (b"\x80\x02\x82\x01.", "it uses the instruction EXT1"),
        (b"K\x01r\xff\xff\xff\x7f.", "it numbers its parts up to 2147483647"),
        (b"(" * 50 + b"t" * 50 + b".", "nested more than 20 deep"),
        (b"]q\x00h\x00a.", "nested more than 20 deep"),
        (b"\x80\x04\x8f.", "it holds a set"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "it encodes text as 'hex'"),
        (b"cbuiltins\nbytes\n(K\x09tR.", "it makes bytes out of something else"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(tR.", "an array without content"),
        (
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00u8tRX\x02\x00\x00\x00abtR.",
            "does not have its 2 bytes",
        ),
        (b"", "damaged, or not a pickle"),
        (b"<html>404</html>", "damaged, or not a pickle"),
        (pickle.dumps(CONTENT)[:-20], "damaged, or not a pickle"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged, or not a pickle"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_the_reason(load, data, reason):
    with pytest.raises(DataError) as refused:
        load(data)
    assert reason in str(refused.value)


def test_arrays_of_objects_and_records_are_refused(load):
    for array in (np.array([{"a": 1}], dtype=object), np.zeros(2, dtype=[("a", "u1")]), np.zeros(2, "M8[s]")):
        with pytest.raises(DataError, match="refused, because it holds an array of"):
            load(pickle.dumps(array))


def test_an_object_that_is_named_often_is_looked_at_once(load):
    """Twenty lists of two, each twice the one before: 2**19 leaves for whoever follows every name."""
    nested = [1]
    for _ in range(18):
        nested = [nested, nested]
    found = load(pickle.dumps(nested))
    assert found[0] is found[1]


def test_a_small_file_cannot_make_large_ones_of_one_text(load):
    """A text of 1,000 letters is named by two bytes; encoding it is six more. Honest files encode each text once."""
    text = b"X" + struct.pack("<i", 1000) + b"a" * 1000 + b"q\x000"  # memo 0, then taken off the stack
    encode = b"c_codecs\nencode\nq\x010" + b"X\x06\x00\x00\x00latin1q\x020"  # memo 1 and 2
    call = b"h\x01h\x00h\x02\x86R"
    assert load(b"\x80\x02" + text + encode + b"(" + call * 2 + b"l.") == [b"a" * 1000] * 2
    with pytest.raises(DataError, match="it makes more bytes than it holds"):
        load(b"\x80\x02" + text + encode + b"(" + call * 50 + b"l.")


def test_a_file_beyond_the_limit_is_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    monkeypatch.setattr(restricted_unpickler, "MOST_BYTES", 5)
    with pytest.raises(DataError, match=r"large.pkl: .* pickles above .* are not read"):
        load_restricted(path)
