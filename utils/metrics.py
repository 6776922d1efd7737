"""Numbers over tasks and iterations: running mean and deviation, and the 95 % interval of a mean."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean over tasks, sample standard deviation, half width of the 95 % interval of the mean (None for one task)."""

    mean: float
    std: float
    ci95: float | None
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and 95 % interval of independent values by Student's t: mean +- t[0.975, n-1] * std / sqrt(n).

    Raises:
        ValueError: no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("no values to summarise")
    mean = math.fsum(values) / count
    return _summary(mean, math.fsum((value - mean) ** 2 for value in values), count)


def _summary(mean: float, squares: float, count: int) -> Summary:
    if count == 1:
        return Summary(mean, 0.0, None, 1)
    std = math.sqrt(squares / (count - 1))
    return Summary(mean, std, student_t_quantile(count - 1) * std / math.sqrt(count), count)


def pooled(parts: Sequence[Summary]) -> Summary:
    """Return what `summarise` gives of the values of all parts."""
    count = sum(part.count for part in parts)
    mean = math.fsum(part.count * part.mean for part in parts) / count
    squares = math.fsum((part.count - 1) * part.std**2 + part.count * (part.mean - mean) ** 2 for part in parts)
    return _summary(mean, squares, count)


def student_t_quantile(degrees_of_freedom: int) -> float:
    """Return the factor of a two-sided 95 % interval, e.g. 2.262 for 9 degrees of freedom."""
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, which takes four times as long to import

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def percent(summary: Summary) -> str:
    """Return '93.80 % +- 0.41' of an accuracy in 0..1."""
    return ACCURACY.text(summary.mean, summary.ci95)


@dataclass(frozen=True)
class Score:
    """The score of a task, the higher the better, and how it is reported."""

    key: str
    """In test_summary.json."""
    name: str
    """Of the number that `text` shows."""

    def text(self, mean: float, ci95: float | None = None) -> str:
        """Return '93.80 % +- 0.41' of an accuracy; '0.3512 +- 0.0120' of a mean squared error, minus the score."""
        if self is ACCURACY:
            return f"{100 * mean:.2f} %" + ("" if ci95 is None else f" +- {100 * ci95:.2f}")
        return f"{-mean:.4f}" + ("" if ci95 is None else f" +- {ci95:.4f}")

    def short_text(self, mean: float) -> str:
        """Return '93.8 %', or '0.3512'."""
        return f"{100 * mean:.1f} %" if self is ACCURACY else f"{-mean:.4f}"


ACCURACY = Score("accuracy", "accuracy")
MINUS_SQUARED_ERROR = Score("minus_mean_squared_error", "mean squared error")


def score_named(key: str | None) -> Score:
    """Return the score that a test_summary.json names; earlier releases named none and had accuracies alone."""
    return MINUS_SQUARED_ERROR if key == MINUS_SQUARED_ERROR.key else ACCURACY


def score_of(is_regression: bool) -> Score:
    """Return the score of tasks whose labels are real numbers, or classes."""
    return MINUS_SQUARED_ERROR if is_regression else ACCURACY


def finite_or_none(value: float) -> float | None:
    """Return a number as it goes into JSON and CSV: None where it was not computed or is not finite."""
    return float(value) if math.isfinite(value) else None


@dataclass
class RunningStatistics:
    """Count, mean and population deviation of a stream of numbers (Welford 1962); its fields are all its state.

    Values that are not finite stand for "not computed" and are left out.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self.count += 1
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

    def result(self) -> tuple[float | None, float | None]:
        """Return (mean, standard deviation), both None without values."""
        if self.count == 0:
            return None, None
        # By n, not n - 1: numpy's std, which fills these columns in the reference.
        return self.mean, math.sqrt(self.squares / self.count)


class MetricSums:
    """Running statistics by metric name, per element: name -> one RunningStatistics for each entry of the metric."""

    def __init__(self, state: dict[str, list[dict[str, float]]] | None = None):
        self._sums = {name: [RunningStatistics(**entry) for entry in row] for name, row in (state or {}).items()}

    def add(self, name: str, values: Iterable[float]) -> None:
        values = list(values)
        sums = self._sums.setdefault(name, [RunningStatistics() for _ in values])
        for statistics, value in zip(sums, values, strict=True):
            statistics.add(value)

    def result(self) -> dict[str, list[tuple[float | None, float | None]]]:
        """Return name -> [(mean, standard deviation) of each entry]."""
        return {name: [statistics.result() for statistics in sums] for name, sums in self._sums.items()}

    def state(self) -> dict[str, list[dict[str, float]]]:
        """Return everything, JSON-able; `MetricSums(state)` goes on from it."""
        return {name: [asdict(statistics) for statistics in sums] for name, sums in self._sums.items()}


def task_scores(outputs: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the score of each task, by what its labels are.

        classes:      mean over images of (argmax of the outputs = label)
        real numbers: - mean over points and output dimensions of (output - label)^2

    Args:
        outputs: (B, n, N), higher is better; (B, n, D) for real numbers.
        labels: int64 (B, n); float (B, n, D) for real numbers.
    Returns:
        (B,), of the outputs' dtype.
    """
    if is_regression(labels):
        return -(outputs - labels).square().mean(dim=(1, 2))
    return (outputs.argmax(dim=-1) == labels).to(outputs.dtype).mean(dim=1)


def is_regression(labels: "Tensor") -> bool:
    """Return whether labels are real numbers and not classes."""
    return labels.is_floating_point()


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose confidence lies in one of equally wide bins."""

    confidence: float
    accuracy: float
    count: int


def calibration_bins(probabilities: "np.ndarray", labels: "np.ndarray", n_bins: int = 10) -> list[CalibrationBin]:
    """Sort predictions by their confidence, the largest of the probabilities (..., N), into bins; empty ones are left
    out.
    """
    confidence, right = probabilities.max(axis=-1).ravel(), (probabilities.argmax(axis=-1) == labels).ravel()
    place = (confidence * n_bins).astype(int).clip(max=n_bins - 1)
    return [
        CalibrationBin(float(confidence[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(n_bins)
        if (place == b).any()
    ]


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return sum over bins of count / total * |accuracy - confidence| (Guo et al. 2017, expected calibration error)."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total
