"""What of a law runs at every change, and what only in `-m full`."""

from collections.abc import Iterable
from typing import Any

import pytest


def few_of(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return the values of a parametrisation: those that are chosen at every change, the others in `-m full`."""
    values = list(values)
    assert set(chosen) <= set(values), f"{set(chosen) - set(values)}: no values any more"
    return [value if value in chosen else pytest.param(value, marks=pytest.mark.full) for value in values]
