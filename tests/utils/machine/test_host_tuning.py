"""Freed memory stays with the process, and what the user set for OpenMP stays as it is."""

import os
import platform

import pytest

from utils.machine.host import keep_freed_memory, tune_host


def test_the_switch_is_found_where_the_c_library_is_glibc():
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()
        pytest.skip("not glibc")
    assert keep_freed_memory()


def test_a_spin_count_of_the_users_own_stays(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    tune_host()
    assert os.environ["GOMP_SPINCOUNT"] == "5"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    tune_host()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
