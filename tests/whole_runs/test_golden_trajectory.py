"""50 meta-updates in float64 give the losses of the release before: nothing changes silently.

After a change that is meant to change them: python tests/whole_runs/test_golden_trajectory.py
"""

import json
from pathlib import Path

import pytest
import torch

from few_shot_learning_system import build_learner
from tests.tools.runs import PLUS_PLUS, TINY, tiny_data
from utils.config import check_config

GOLDEN = Path(__file__).parent / "golden" / "trajectory.json"
CHANGES = PLUS_PLUS | {
    "precision": "float64", "total_epochs": 5, "total_iter_per_epoch": 10, "multi_step_loss_num_epochs": 3,
    "first_order_to_second_order_epoch": 1, "class_rotation": True, "dropout_rate_value": 0.1, "batch_size": 3,
}  # fmt: skip


def trajectory():
    """50 outer losses and gradient norms, and then the norm of every tensor of the state."""
    config = check_config(TINY | CHANGES, "test")
    data, learner = tiny_data(config), build_learner(config, "cpu")
    losses, norms = [], []
    for iteration in range(50):
        epoch = iteration // 10
        result = learner.meta_gradients(data.episodes("train", range(3 * iteration, 3 * iteration + 3)), epoch)
        learner.meta_update(result, epoch)
        losses.append(float(result.metrics["loss"]))
        norms.append(float(result.metrics["gradient_norm"]))
    state = {name: float(torch.linalg.vector_norm(value.double())) for name, value in learner.state_tensors().items()}
    return {"loss": losses, "gradient_norm": norms, "state_norms": state}


def test_fifty_updates_are_those_of_the_golden_run():
    golden, ours = json.loads(GOLDEN.read_text()), trajectory()
    assert ours["loss"] == pytest.approx(golden["loss"], rel=1e-6)
    assert ours["gradient_norm"] == pytest.approx(golden["gradient_norm"], rel=1e-6)
    # A bias before a batch norm has no gradient but rounding, hence the absolute part.
    assert ours["state_norms"] == pytest.approx(golden["state_norms"], rel=1e-6, abs=1e-8)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(trajectory(), indent=1) + "\n")
