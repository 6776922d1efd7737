import math

import numpy as np
import pytest
from scipy import stats

from utils.metrics import (
    ACCURACY,
    MINUS_SQUARED_ERROR,
    MetricSums,
    RunningStatistics,
    finite_or_none,
    percent,
    pooled,
    score_of,
    student_t_quantile,
    summarise,
)


@pytest.mark.parametrize(
    ("degrees_of_freedom", "table"), [(1, 12.706), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_t_quantiles_are_those_of_the_printed_table(degrees_of_freedom, table):
    assert student_t_quantile(degrees_of_freedom) == pytest.approx(table, abs=5e-4)


def test_interval_by_hand():
    """1, 2, 3, 4, 5: mean 3, variance 10 / 4, half width 2.776 * sqrt(2.5 / 5)."""
    summary = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert summary.mean == 3.0
    assert summary.std == pytest.approx(math.sqrt(2.5))
    assert summary.ci95 == pytest.approx(2.7764 * math.sqrt(0.5), abs=1e-4)


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(0).uniform(size=600)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    summary = summarise(values.tolist())
    assert summary.mean - summary.ci95 == pytest.approx(low, abs=1e-12)
    assert summary.mean + summary.ci95 == pytest.approx(high, abs=1e-12)


def test_interval_covers_the_true_mean_95_times_out_of_100():
    generator = np.random.default_rng(1)
    summaries = [summarise(generator.normal(0.7, 0.1, size=10).tolist()) for _ in range(2000)]
    covered = np.mean([abs(summary.mean - 0.7) <= summary.ci95 for summary in summaries])
    assert 0.935 < covered < 0.965


def test_pooled_parts_are_the_summary_of_all_values():
    values = np.random.default_rng(1).normal(0.6, 0.2, size=40).tolist()
    whole, together = (
        summarise(values),
        pooled([summarise(values[:1]), summarise(values[1:30]), summarise(values[30:])]),
    )
    assert (together.mean, together.std, together.ci95) == pytest.approx((whole.mean, whole.std, whole.ci95), abs=1e-15)
    assert together.count == 40 and pooled([summarise([0.8])]) == summarise([0.8])


def test_one_task_has_no_interval():
    summary = summarise([0.8])
    assert (summary.mean, summary.std, summary.ci95) == (0.8, 0.0, None)
    assert percent(summary) == "80.00 %"


def test_no_tasks_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_percent_names_the_interval():
    assert percent(summarise([0.9, 0.9, 0.9])) == "90.00 % +- 0.00"


def test_an_error_is_shown_as_an_error_and_not_in_per_cent():
    summary = summarise([-0.5, -0.25])
    assert MINUS_SQUARED_ERROR.text(summary.mean, summary.ci95) == "0.3750 +- 1.5883"
    assert MINUS_SQUARED_ERROR.text(-0.5) == "0.5000"
    assert (MINUS_SQUARED_ERROR.short_text(-1.5), ACCURACY.short_text(0.5)) == ("1.5000", "50.0 %")
    assert ACCURACY.text(0.5) == percent(summarise([0.5]))
    assert score_of(True) is MINUS_SQUARED_ERROR and score_of(False) is ACCURACY


def test_running_statistics_equal_numpy():
    values = np.random.default_rng(2).normal(5, 3, size=100)
    running = RunningStatistics()
    for value in values:
        running.add(float(value))
    mean, deviation = running.result()
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert deviation == pytest.approx(values.std(), rel=1e-12)


def test_running_statistics_leave_out_what_was_not_computed():
    running = RunningStatistics()
    assert running.result() == (None, None)
    for value in (1.0, float("nan"), 3.0):
        running.add(value)
    assert running.result() == (2.0, 1.0)


def test_metric_sums_go_on_from_their_state_bit_for_bit():
    values = np.random.default_rng(3).normal(size=(20, 3)).tolist()
    whole, first = MetricSums(), MetricSums()
    for row in values:
        whole.add("loss", row)
    for row in values[:7]:
        first.add("loss", row)
    second = MetricSums(first.state())
    for row in values[7:]:
        second.add("loss", row)
    assert second.result() == whole.result()


def test_finite_or_none():
    assert finite_or_none(0.5) == 0.5
    assert finite_or_none(float("inf")) is None
    assert finite_or_none(float("nan")) is None
