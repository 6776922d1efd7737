"""Freed memory stays with the process, which changes no result."""

import platform

import pytest

from utils.host_memory import keep_freed_memory


def test_the_switch_is_found_where_the_c_library_is_glibc():
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()
        pytest.skip("not glibc")
    assert keep_freed_memory()
