"""A run folder that the code of an earlier release made goes on as that code went on.

The folder is an unfinished run on Omniglot, of commit 3502d6b, saved at iteration 5,500 (epoch 10 ended with iteration
5,000); its metrics.jsonl says what the code of then logged of the iterations between.
"""

import json

import numpy as np
import pytest
import torch

from data import build_data
from experiment_builder import build_experiment
from experiment_parts.runs.checkpoints import load_checkpoint
from experiment_parts.runs.opening import open_run_folder
from experiment_parts.runs.random_state import random_state_tensors
from experiment_parts.runs.same_data import has_started_with_copies
from few_shot_learning_system import build_learner
from tests.tools.datasets import unpack
from tests.whole_runs.test_exact_resume import StopsAt
from utils.config import load_config
from utils.errors import Interrupted


def start(root, n_iterations):
    """One start as the program makes it, that ends after so many iterations; returns its learner and its data."""
    config = load_config(root / "long" / "config.json")
    run_folder = open_run_folder(root, "long", config.to_json_dict())
    try:
        data = build_data(config, "cpu", keep_copies=has_started_with_copies(run_folder))
        learner = build_learner(config, "cpu")
        with pytest.raises(Interrupted):
            build_experiment(config, learner, data, [], run_folder, stop=StopsAt(n_iterations, kills=False)).run()
    finally:
        run_folder.unlock()
    return learner, data


@pytest.mark.full
def test_a_run_of_an_earlier_release_goes_on_with_the_numbers_of_its_own_code(shared_data, tmp_path, monkeypatch):
    """It stands where the file stands, to the bit; the iterations after it are those of then, up to the rounding of the
    processor that they were computed on. (On one processor the two codes agree to the last bit.)
    """
    archive = shared_data("omniglot_dataset.tar.bz2")
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    (tmp_path / archive.name).symlink_to(archive)
    unpack(shared_data("omniglot_long_run.tar"), tmp_path)
    folder = tmp_path / "long"
    lines = (folder / "logs/metrics.jsonl").read_text().splitlines()
    (then,) = json.loads((folder / "environment.json").read_text())["starts"]
    (folder / "saved_models/unfinished.safetensors").unlink()
    n_threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(then["threads"])
    try:
        learner, data = start(tmp_path, 0)
        stored, _ = load_checkpoint(folder / "saved_models/train_model_10.safetensors")
        found = learner.state_tensors() | random_state_tensors(torch.device("cpu"))
        assert found.keys() == stored.keys() and all(torch.equal(found[name], stored[name]) for name in stored)
        assert data.summary()["content_sha256"] == then["data"]["content_sha256"]
        start(tmp_path, 10)
    finally:
        torch.set_num_threads(n_threads)
        torch.set_rng_state(random_state)
    ours = (folder / "logs/metrics.jsonl").read_text().splitlines()
    assert ours[:500] == lines[:500] and len(ours) == 501
    now, before = json.loads(ours[500]), json.loads(lines[500])
    assert now.pop("time_tasks_per_s") and before.pop("time_tasks_per_s")
    for name, value in before.items():
        ours_s, then_s = (np.array(row, float) for row in (now[name], value))  # None, where it was not computed, is nan
        np.testing.assert_allclose(ours_s, then_s, rtol=1e-3, err_msg=name)
