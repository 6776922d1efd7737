"""Results of different tests do not replace each other."""

import json

import pytest
import torch

from experiment_parts.evaluation.test_results import accuracy_columns, refuse_to_replace, result_suffix, score_models
from utils.errors import ConfigError, NonFiniteError

PROTOCOL = {"ways": 5, "steps": 5, "tasks": 600}
MODELS = [
    {"epoch": epoch, "file": f"train_model_{epoch}.safetensors", "val_accuracy": 0.5 + epoch / 100} for epoch in (3, 2)
]


def with_statistics(protocol, *names):
    return [protocol | {"statistics": name} for name in names]


@pytest.fixture
def summary_file(tmp_path):
    """A test_summary.json of a test with PROTOCOL and transductive statistics."""
    path = tmp_path / "test_summary.json"
    models = [model | {"test_accuracy_mean": 0.6} for model in MODELS]
    path.write_text(
        json.dumps(
            {
                "results": [{"protocol": PROTOCOL | {"statistics": "transductive"}}],
                "models": models,
                "epochs_trained": 3,
            }
        )
    )
    return path


def test_the_same_test_may_be_repeated_and_a_first_one_may_be_written(summary_file, tmp_path):
    refuse_to_replace(summary_file, with_statistics(PROTOCOL, "transductive"), MODELS, 3)
    refuse_to_replace(tmp_path / "nothing.json", with_statistics(PROTOCOL, "running"), MODELS, 3)


def test_a_test_with_another_protocol_needs_a_tag(summary_file):
    with pytest.raises(ConfigError, match=r"test_summary.json: .*steps 5 before, 10 now\)\. .*--tag NAME"):
        refuse_to_replace(summary_file, with_statistics(PROTOCOL | {"steps": 10}, "transductive"), MODELS, 3)
    with pytest.raises(ConfigError, match="another list of batch-norm statistics"):
        refuse_to_replace(summary_file, with_statistics(PROTOCOL, "transductive", "running"), MODELS, 3)


def test_a_test_of_other_models_needs_a_tag_unless_the_run_was_trained_since(summary_file):
    now = with_statistics(PROTOCOL, "transductive")
    for models in (MODELS[:1], [MODELS[0], MODELS[1] | {"val_accuracy": 0.9}]):
        with pytest.raises(
            ConfigError,
            match=r"holds the result of other models \(train_model_3.* of epoch 3, train_model_2.*--tag NAME",
        ):
            refuse_to_replace(summary_file, now, models, 3)
        refuse_to_replace(summary_file, now, models, 4)


def test_chosen_weights_without_a_tag_have_files_of_their_own():
    assert result_suffix("", "") == ""
    assert result_suffix("ten", "3") == "_ten"
    assert result_suffix("", "3") == "_epoch_3"
    assert result_suffix("", "elsewhere/train_model_7.safetensors") == "_train_model_7"


def test_a_model_that_diverges_in_a_test_task_is_named_and_leaves_an_empty_cell_in_the_curve():
    labels, outputs = torch.zeros(3, 4, 1), torch.ones(2, 3, 4, 1)
    assert score_models(outputs, labels, MODELS)["test_accuracy_mean"] == -1.0
    outputs[1, 2] = float("nan")
    with pytest.raises(
        NonFiniteError,
        match=r"train_model_2\.safetensors gives numbers that are not finite in 1 of 3 test tasks, the first one task "
        r"2.*--tag",
    ):
        score_models(outputs, labels, MODELS)
    assert accuracy_columns(outputs[1], labels) == dict.fromkeys(
        ("test_accuracy_mean", "test_accuracy_std", "test_accuracy_ci95")
    )
