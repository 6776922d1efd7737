"""Pickles of arrays are read, real ones of every protocol and of Python 2; hostile ones are refused and run nothing."""

import collections
import functools
import io
import os
import pickle
import struct
import subprocess
import tracemalloc

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


DEEP_TUPLE = b"(" * 10**5 + b"t" * 10**5
"""Its hash needs more stack than a process has."""
SHARED_TUPLE = b")q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00"
"""Two times the tuple before, 60 times: its hash and its text never end."""
U8 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1tR"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.", "it changes a function"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "an array of 'O', which is neither numbers nor text"),
        (b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", "it asks for os.system"),
        (b"(X\x04\x00\x00\x00trueios\nsystem\n.", "it uses the instruction INST"),
        (b"(cos\nsystem\nX\x04\x00\x00\x00trueo.", "it asks for os.system"),
        (b"(cnumpy\nndarray\nX\x04\x00\x00\x00trueo.", "it uses the instruction OBJ"),
        (b"\x80\x02cnumpy\nndarray\nX\x04\x00\x00\x00true\x85\x81.", "it uses the instruction NEWOBJ"),
        (b"\x80\x05\x97.", "it uses the instruction NEXT_BUFFER"),
        (b"Pabc\n.", "it uses the instruction PERSID"),
        (b"\x80\x02\x82\x01.", "it uses the instruction EXT1"),
        (b"(" * 50 + b"t" * 50 + b".", "nested more than 20 deep"),
        (b"]q\x00h\x00a.", "nested more than 20 deep"),
        (b"(" + DEEP_TUPLE + b"K\x01d.", "it has a tuple as key"),
        (b"}(" + DEEP_TUPLE + b"K\x01u.", "it has a tuple as key"),
        (b"}" + DEEP_TUPLE + b"K\x01s.", "it has a tuple as key"),
        (DEEP_TUPLE + b".", "nested more than 20 deep"),
        (b"(" * 10**5 + b"l" * 10**5 + b".", "nested more than 20 deep"),
        (DEEP_TUPLE + b")R.", "it calls a tuple"),
        (b"}" + SHARED_TUPLE + b"K\x01s.", "it has a tuple as key"),
        (SHARED_TUPLE + b".", "nested more than 20 deep"),
        (b"cbuiltins\nbytes\n" + SHARED_TUPLE + b"\x85R.", "it makes bytes out of something else"),
        (b"cnumpy\ndtype\n" + SHARED_TUPLE + b"\x85R.", "an array of a tuple, which is neither numbers nor text"),
        (b"c_codecs\nencode\n" + SHARED_TUPLE + b"\x85R.", "it encodes a tuple as 'latin1'"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00a" + SHARED_TUPLE + b"tR.", "it encodes text as a tuple"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + SHARED_TUPLE + U8 + b"\x89C\x01atb.", "without a shape"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)" + SHARED_TUPLE + b"\x89C\x01atb.", "without a dtype"),
        (b"cnumpy.core.numeric\n_frombuffer\n(C\x01a" + U8 + b")" + SHARED_TUPLE + b"tR.", "in the order a tuple"),
        (b"cnumpy.core.numeric\n_frombuffer\n(" + SHARED_TUPLE + U8 + b")X\x01\x00\x00\x00CtR.", "is not bytes"),
        (b"(" + b"G" * 1 + bytes(8) + b"K\x01d.", "it has a float as key"),
        (b"}\x8a\x08" + b"\xff" * 7 + b"\x7fK\x01s.", "it has a int as key"),
        (b"\x8b\x00\x10\x00\x00" + b"\x11" * 4096 + b".", "it holds a number of more than 512 bits"),
        (b"]K\x01\x94(a.", "damaged, or not a pickle"),
        (b"K\x01K\x02a.", "it adds to a int"),
        (b"]K\x01K\x02s.", "it sets an item of a list"),
        (b"]K\x01b.", "it changes a list"),
        (b"K\x01)R.", "it calls a int"),
        (b"0.", "damaged, or not a pickle"),
        (b"h\x07.", "damaged, or not a pickle"),
        (b"\x80\x04\x8f.", "it holds a set"),
        (b"\x80\x04(\x91.", "it holds a set"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "it holds a bytearray"),
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


def test_parts_that_are_named_more_often_than_there_is_time_are_refused(load):
    """17 lists of 16, each 16 times the one before: whoever follows every name never ends."""
    nested = [1]
    for _ in range(17):
        nested = [nested] * 16
    for data in (nested, {"labels": nested}, [b"x" * 2**20] * 100, [np.zeros(2**20, np.uint8)] * 100):
        with pytest.raises(DataError, match="it names its parts more often than an honest file would"):
            load(pickle.dumps(data))


def test_a_bytearray_cannot_grow_under_its_array(load):
    """The array of protocol 5 lies in a bytearray, to which the pickle then adds."""
    array = pickle.dumps(np.zeros(4, np.uint8), 5)
    content = array.index(b"\x96")
    grown = array[: content + 13] + b"(K\x01e" + array[content + 13 :]
    with pytest.raises(DataError, match="it adds to a bytearray"):
        load(without_frames(grown))


def test_numbering_of_parts_takes_no_memory(load):
    tracemalloc.start()
    assert load(b"K\x01r\xff\xff\xff\x7f.") == 1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_letters_that_there_are_not_are_refused(load):
    array = np.frombuffer(b"\xff" * 8, "<u4").view("<U1")
    with pytest.raises(DataError, match="text of letters that there are not"):
        load(pickle.dumps(array))


def test_endless_programs_are_refused(load, monkeypatch):
    monkeypatch.setattr(restricted_unpickler, "MOST_INSTRUCTIONS", 1000)
    with pytest.raises(DataError, match="it has more than 1000 instructions"):
        load(b"}" * 2000 + b".")


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
