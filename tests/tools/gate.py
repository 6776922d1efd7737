"""What of a law runs at every change, and what only in `-m full`."""

from collections.abc import Iterable
from typing import Any

import pytest


def few_of(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return the values of a parametrisation: those that are chosen at every change, the others in `-m full`."""
    values = list(values)
    gone = [value for value in chosen if value not in values]  # values may be lists, which are in no set
    assert not gone, f"{gone}: no values any more"
    return [value if value in chosen else pytest.param(value, marks=pytest.mark.full) for value in values]
