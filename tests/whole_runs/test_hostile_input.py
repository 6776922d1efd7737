"""Input that nobody would write on purpose, drawn at random: tests/tools/fuzz.py draws it, reads it and judges."""

import mmap
import os
import random
import signal
import time

import pytest

from tests.tools.fuzz import KINDS, MEMORY_BYTES, Kind, fuzz, mutated, user_errors
from utils.errors import DataError


@pytest.mark.parametrize(("seed", "number"), [(0, 25), pytest.param(1, 1000, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_answered_with_content_or_an_error_of_ours(kind, seed, number):
    found = fuzz(kind, seed, number)
    assert not found, "\n".join(f"{given!r}\n{reason}" for given, reason in found)


def test_what_is_not_answered_as_it_should_be_is_found(monkeypatch):
    """A bug, an error that fills the screen, a file elsewhere, a crash and a reader that never ends."""

    def read(data, folder):
        with user_errors():
            match data[0] % 6:
                case 0:
                    raise ZeroDivisionError
                case 1:
                    raise DataError("x" * 10**5)
                case 2:
                    (folder.parent / "elsewhere").touch()
                case 3:
                    os.kill(os.getpid(), signal.SIGSEGV)
                case 4:
                    time.sleep(60)
                case 5:
                    raise DataError("as it should be")

    monkeypatch.setitem(KINDS, "test", Kind(lambda draw: draw.randbytes(1), read))
    monkeypatch.setattr("tests.tools.fuzz.SECONDS", 1)
    found = fuzz("test", 0, 12)
    reasons = {given[0] % 6: reason for given, reason in found}
    expected = ("ZeroDivisionError", "100000 letters", "elsewhere", "SIGSEGV", "SIGALRM, after 1 s")
    assert len(reasons) == 5 and all(text in reasons[place] for place, text in enumerate(expected))


def test_a_process_that_holds_more_memory_than_a_reader_may_take_tries_every_input(monkeypatch):
    def read(data, folder):
        raise ZeroDivisionError(len(bytearray(MEMORY_BYTES // 8)))

    monkeypatch.setitem(KINDS, "test", Kind(lambda draw: draw.randbytes(1), read))
    with mmap.mmap(-1, MEMORY_BYTES + 2**30, mmap.MAP_PRIVATE):
        found = fuzz("test", 0, 3)
    assert len(found) == 3 and all("ZeroDivisionError: 805306368" in reason for _, reason in found)


def test_the_same_seed_draws_the_same_input():
    for kind in KINDS.values():
        assert kind.draw(random.Random("a")) == kind.draw(random.Random("a")) != kind.draw(random.Random("b"))
    assert mutated(random.Random(1), b"abc") == mutated(random.Random(1), b"abc")
