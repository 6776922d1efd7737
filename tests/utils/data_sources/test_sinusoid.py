"""The sinusoid problem: waves as the paper draws them, regression end to end, and a score of minus the error all the
way.
"""

import csv
import json
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from experiment_parts.runs.checkpoints import list_epochs, load_checkpoint
from experiment_tools import runs
from experiment_tools.compare.comparison import compare_runs
from experiment_tools.compare.figures import figure_of, validation_pictures
from experiment_tools.compare.tables import accuracy_table, caption, difference_table
from experiment_tools.parts.run_reading import read_run
from few_shot_learning_system import build_learner
from tests.tools.runs import SINUSOID, run_tiny, tiny_data
from utils.config import check_config
from utils.data_sources.sinusoid import SinusoidData, draw_waves
from utils.episodes.drawing import EpisodeShape


def data_of(n_shot=10, n_query=10, **changes):
    return SinusoidData(
        shape=EpisodeShape(1, n_shot, n_query), seeds={"train": 0, "val": 1, "test": 1}, dtype=torch.float64, **changes
    )


def points(episodes, role):
    x, y = getattr(episodes, f"{role}_images"), getattr(episodes, f"{role}_labels")
    return x.flatten(1).numpy(), y.squeeze(-1).numpy()


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_support_and_query_points_lie_on_one_wave_of_the_papers_range():
    """a sin x + b cos x is a wave of amplitude sqrt(a^2 + b^2) and phase atan2(-b, a); the fit leaves nothing."""
    episodes = data_of().episodes("train", range(200))
    for task in range(200):
        (support_x, support_y), (query_x, query_y) = (
            (x[task], y[task]) for x, y in (points(episodes, r) for r in ("support", "query"))
        )
        columns = np.stack([np.sin(support_x), np.cos(support_x)], axis=1)
        (a, b), *_ = np.linalg.lstsq(columns, support_y, rcond=None)
        assert a * np.sin(query_x) + b * np.cos(query_x) == pytest.approx(query_y, abs=1e-9)
        assert 0.1 - 1e-9 <= math.hypot(a, b) <= 5 + 1e-9
        assert -1e-6 <= math.atan2(-b, a) <= math.pi + 1e-6
        assert np.abs(support_x).max() <= 5 and np.abs(query_x).max() <= 5 and len({*support_x, *query_x}) == 20


def test_waves_and_places_are_uniform():
    """Means within four standard errors: width / sqrt(12 n)."""
    waves = draw_waves(3, "train", range(20_000), 1, 1)
    drawn = {
        (0.1, 5.0): waves.amplitudes,
        (0.0, math.pi): waves.phases,
        (-5.0, 5.0): np.concatenate([waves.support, waves.query]),
    }
    for (low, high), values in drawn.items():
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * values.size))
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() < high


def test_a_task_depends_on_its_number_alone():
    together, alone = data_of().episodes("val", [3, 7, 8]), data_of().episodes("val", [7])
    assert torch.equal(together.support_images[1], alone.support_images[0])
    assert torch.equal(together.query_labels[1], alone.query_labels[0]) and together.seeds[1] == alone.seeds[0]
    more = data_of().episodes("val", [7], EpisodeShape(1, 20, 10))
    assert torch.equal(more.support_labels[:, :10], alone.support_labels) and torch.equal(
        more.query_images, alone.query_images
    )
    assert not torch.equal(data_of().episodes("test", [7]).query_labels, alone.query_labels)


def test_a_pool_of_training_tasks_is_met_again_and_tests_are_not():
    data, endless = data_of(n_train_tasks=4), data_of()
    first, again = data.episodes("train", range(4)), data.episodes("train", range(4, 8))
    assert torch.equal(first.support_labels, again.support_labels) and not torch.equal(first.seeds, again.seeds)
    assert torch.equal(data.episodes("test", [9]).query_labels, endless.episodes("test", [9]).query_labels)


def test_a_digest_names_the_tasks():
    data = data_of()
    digest = data.task_list_digest("test", range(5))
    assert digest == data_of().task_list_digest("test", range(5), EpisodeShape(1, 10, 10))
    assert len({digest, data.task_list_digest("test", range(6)), data.task_list_digest("val", range(5)),
                data.task_list_digest("test", range(5), EpisodeShape(1, 5, 10))}) == 4  # fmt: skip


# --- learning ---------------------------------------------------------------------------------------------------------


def test_the_meta_gradient_is_that_of_a_plain_loop_over_waves():
    config = check_config(
        SINUSOID | {"precision": "float64", "number_of_training_steps_per_iter": 3, "batch_size": 4}, "test"
    )
    learner, episodes = build_learner(config, "cpu"), tiny_data(config).episodes("train", range(4))
    plain = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    own = learner.network.state_dict()
    names = {"layer0": "0", "layer1": "2", "head": "4"}
    plain.load_state_dict(
        {
            name.replace(ours, theirs): own[name]
            for ours, theirs in names.items()
            for name in own
            if name.startswith(ours)
        }
    )
    parameters = dict(plain.named_parameters())
    losses = []
    for task in range(4):
        fast = parameters
        for _ in range(3):
            outputs = torch.func.functional_call(plain, fast, (episodes.support_images[task].flatten(1),))
            loss = nn.functional.mse_loss(outputs, episodes.support_labels[task])
            gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {
                name: value - 0.1 * gradient for (name, value), gradient in zip(fast.items(), gradients, strict=True)
            }
        outputs = torch.func.functional_call(plain, fast, (episodes.query_images[task].flatten(1),))
        losses.append(nn.functional.mse_loss(outputs, episodes.query_labels[task]))
    expected = dict(
        zip(parameters, torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values())), strict=True)
    )
    ours = learner.meta_gradients(episodes, 0)
    assert float(ours.metrics["loss"]) == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-12)
    assert float(ours.metrics["accuracy"]) == pytest.approx(-float(ours.metrics["loss"]), rel=1e-12)
    for our_name, plain_name in names.items():
        for kind in ("weight", "bias"):
            assert torch.allclose(
                ours.gradients[f"network.{our_name}.{kind}"], expected[f"{plain_name}.{kind}"], rtol=1e-9, atol=1e-12
            )


def test_adapting_beats_the_best_that_does_not(tmp_path):
    """Without adaptation the best answer to all tasks is their mean wave, E[A] E[sin(x - phase)] = -2.55 (2 / pi)
    cos(x). Its error is

    E[A^2] / 2 - 2.55^2 (2 / pi)^2 E[cos^2(x)] = 8.503 / 2 - 2.635 (1/2 + sin(10) / 20) = 3.00.
    """
    changes = {
        "total_iter_per_epoch": 75,
        "meta_learning_rate": 0.01,
        "num_evaluation_tasks": 100,
        "batch_size": 25,
        "num_samples_per_class": 10,
        "mlp_hidden_sizes": [40, 40],
        "init_inner_loop_learning_rate": 0.02,
        "log_every_iterations": 75,
    }
    folder = run_tiny(tmp_path, **SINUSOID | changes)
    rows = list(csv.DictReader((folder / "logs" / "summary_statistics.csv").open()))
    errors = [float(row["val_query_loss_after_2_steps"]) for row in rows]
    assert errors[-1] < 2.0 and float(rows[-1]["val_query_loss_after_0_steps"]) > 2.5
    assert [float(row["val_accuracy_mean"]) for row in rows] == pytest.approx([-error for error in errors], rel=1e-9)


# --- the score --------------------------------------------------------------------------------------------------------


def test_the_smallest_error_is_the_best_score_and_people_read_an_error(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    changes = SINUSOID | {
        "total_epochs": 4,
        "max_models_to_save": 2,
        "number_of_ensemble_models": 2,
        "test_curve": True,
    }
    folder = run_tiny(tmp_path, **changes)
    rows = list(csv.DictReader((folder / "logs" / "summary_statistics.csv").open()))
    by_error = sorted(rows, key=lambda row: float(row["val_loss_mean"]))
    summary = json.loads((folder / "logs" / "test_summary.json").read_text())
    assert summary["ensemble"]["epochs"] == [int(row["epoch"]) for row in by_error[:2]]
    assert set(list_epochs(folder / "saved_models")) == {*summary["ensemble"]["epochs"], 3, 4}
    assert (summary["score"], summary["protocol"]["ways"]) == ("minus_mean_squared_error", 1)
    assert summary["test_accuracy_mean"] < 0
    error = f"{-summary['test_accuracy_mean']:.4f} +- {summary['test_accuracy_ci95']:.4f}"
    assert (
        f"Test mean squared error of the ensemble of 2 models: {error} (95 % interval over 3 tasks)\n  5 points to "
        "adapt to, 4 to" in caplog.text
    )
    first = by_error[0]
    assert f"epoch {first['epoch']} alone: {-summary['models'][0]['test_accuracy_mean']:.4f}" in caplog.text
    assert f"(validation {float(first['val_loss_mean']):.4f})" in caplog.text
    assert (
        f"mean squared error {float(rows[0]['train_loss_mean']):.4f}; val loss" in caplog.text
        and " %;" not in caplog.text
    )
    columns = next(csv.DictReader((folder / "logs" / "test_summary.csv").open()))
    assert list(columns)[:3] == ["test_accuracy_mean", "test_accuracy_std", "test_accuracy_ci95"]
    assert columns["score"] == "minus_mean_squared_error"
    curve = list(csv.DictReader((folder / "logs" / "test_curve.csv").open()))
    assert all(float(row["test_accuracy_mean"]) < 0 for row in curve)


def test_the_ensemble_is_the_mean_of_the_models_outputs(tmp_path):
    folder = run_tiny(tmp_path, **SINUSOID, number_of_ensemble_models=2)
    tensors, _ = load_checkpoint(folder / "logs" / "test_predictions.safetensors")
    outputs, labels = (
        tensors["scores.transductive"].double(),
        tensors["query_labels"].double(),
    )  # (2, T, Q, 1), (T, Q, 1)
    summary = json.loads((folder / "logs" / "test_summary.json").read_text())
    assert summary["test_accuracy_mean"] == pytest.approx(-float((outputs.mean(0) - labels).square().mean()), rel=1e-6)
    for model, alone in zip(summary["models"], outputs, strict=True):
        assert model["test_accuracy_mean"] == pytest.approx(-float((alone - labels).square().mean()), rel=1e-12)


def test_training_stops_early_on_the_error(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = run_tiny(
        tmp_path, **SINUSOID | {"total_epochs": 30, "early_stopping_patience": 1, "meta_learning_rate": 0.3}
    )
    rows = list(csv.DictReader((folder / "logs" / "summary_statistics.csv").open()))
    errors = [float(row["val_loss_mean"]) for row in rows]
    assert len(rows) < 30 and errors[-1] >= min(errors[:-1]) and errors[:-1] == sorted(errors[:-1], reverse=True)
    assert f"Training stopped early, after {len(rows)} of 30 epochs" in caplog.text


def test_one_table_over_several_numbers_of_points(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_tiny(tmp_path, **SINUSOID, test_num_samples_per_class=[5, 20])
    assert "Test mean squared error of the ensemble of 2 models" in caplog.text
    table = caplog.text[caplog.text.index("  dataset  ") :].splitlines()
    assert table[0].split()[-3:] == ["mean", "squared", "error"]
    assert [line.split()[:4] for line in table[1:3]] == [["sinusoid", "1", "5", "4"], ["sinusoid", "1", "20", "4"]]


def test_lists_and_comparisons_of_runs_show_errors(tmp_path, capsys):
    folders = [
        run_tiny(tmp_path, **SINUSOID | {"experiment_name": name, "meta_learning_rate": rate})
        for name, rate in (("slow", 0.0001), ("fast", 0.1))
    ]
    errors = [
        -json.loads((folder / "logs" / "test_summary.json").read_text())["test_accuracy_mean"] for folder in folders
    ]
    assert runs.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for folder, error in zip(folders, errors, strict=True):
        assert f"{error:.4f} +- " in next(
            line for line in lines if line.startswith(folder.name)
        ) and "%" not in "".join(lines)
    comparison = compare_runs([read_run(folder) for folder in folders])
    cells = [cell for row in accuracy_table(comparison)[1:] for cell in row[1:]]
    assert sorted(cell.split()[0] for cell in cells) == sorted(f"{error:.4f}" for error in errors)
    (difference,) = difference_table(comparison)[1:]
    first, second = (
        next(e for e, row in zip(errors, comparison.labels.values(), strict=True) if row == name)
        for name in difference[1].split(" - ")
    )
    assert float(difference[2]) == pytest.approx(first - second, abs=1e-4)
    low, high = (float(bound) for bound in difference[3].split(" to "))
    assert low <= float(difference[2]) <= high
    assert caption(comparison).startswith("Test mean squared error: mean and")
    slow = [read_run(folders[0])]
    (picture,) = validation_pictures(compare_runs(slow), slow)
    axes = figure_of(picture.panels, "title").axes[0]
    assert axes.get_ylabel() == "Mean squared error" and axes.get_lines()[0].get_ydata()[0] > 0
