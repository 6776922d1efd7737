"""Published accuracies to show beside one's own; the numbers are in published_results.toml."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from utils.files.reading import parse_toml, read_text
from utils.known_datasets import known_by_folder

FILE = Path(__file__).with_name("published_results.toml")


@dataclass(frozen=True)
class PublishedResult:
    """An accuracy in percent as it was published."""

    method: str
    dataset: str
    ways: int
    shots: int
    accuracy: float
    source: str
    plus_minus: float | None = None
    """95 % interval or deviation, as published."""
    confirmed: bool = True
    """Whether the paper or the project itself was read; false: quoted from elsewhere."""

    def text(self) -> str:
        """Return '98.70 ± 0.40'; a question mark where it is not confirmed."""
        interval = "" if self.plus_minus is None else f" ± {self.plus_minus:.2f}"
        return f"{self.accuracy:.2f}{interval}{'' if self.confirmed else ' (?)'}"


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Read all of them."""
    groups = parse_toml(read_text(FILE))["published"]
    return tuple(PublishedResult(**(group | entry)) for group in groups for entry in group.pop("results"))


def published_result(method: str, dataset: str, ways: int, shots: int) -> PublishedResult | None:
    """Return what was published for a method (a name of `experiment_tools.parts.methods.method_name`) on a dataset."""
    dataset = re.sub(r"_seed\d+$", "", dataset)  # whichever samples were drawn
    wanted = (method, known_by_folder(dataset).name or dataset, ways, shots)
    known = {(result.method, result.dataset, result.ways, result.shots): result for result in published_results()}
    return known.get(wanted)
