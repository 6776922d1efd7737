"""No space, a limit on file sizes, a read-only disk: the last good checkpoint survives, and the rerun goes on
exactly.
"""

import os
import resource
import subprocess
from contextlib import contextmanager

import pytest

from experiment_parts.runs.checkpoints import epoch_path, load_checkpoint
from experiment_parts.runs.comparison import differences
from tests.tools.disks import mounted
from tests.tools.gate import few_of
from tests.tools.runs import run_tiny
from utils.errors import StorageError
from utils.machine.failures import report_failure

CHANGES = {
    "batch_size": 1,
    "number_of_training_steps_per_iter": 1,
    "log_every_iterations": 1,
    "total_iter_per_epoch": 24,
    "total_epochs_before_pause": 1,
    "checkpoint_every_s": 1e-9,
}


@contextmanager
def largest_file(n_bytes):
    """No file of this process may grow beyond `n_bytes`, as under a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    run_tiny(root, **CHANGES)
    return run_tiny(root, **CHANGES)


def fails(root, path_in_text):
    with pytest.raises(StorageError, match=r": cannot be written \(.*\)(; \d+ MiB free on that disk)?\.") as raised:
        run_tiny(root, **CHANGES)
    assert path_in_text in str(raised.value)
    assert report_failure(raised.value) == 4


@pytest.mark.parametrize(
    "stops_at", few_of(["tiny/config.json", "tiny/logs/metrics.jsonl", "tiny/saved_models/"], "tiny/saved_models/")
)
def test_a_limit_on_file_sizes(tmp_path, whole, stops_at):
    folder = run_tiny(tmp_path, **CHANGES)
    a_line_too_much = (folder / "logs" / "metrics.jsonl").stat().st_size + 10
    limits = {"tiny/config.json": 100, "tiny/logs/metrics.jsonl": a_line_too_much, "tiny/saved_models/": 15000}
    assert limits["tiny/config.json"] < (folder / "config.json").stat().st_size < a_line_too_much
    first = epoch_path(folder / "saved_models", 1)
    before = first.read_bytes()
    assert len(before) > 15000
    with largest_file(limits[stops_at]):
        fails(tmp_path, stops_at)
    assert first.read_bytes() == before
    assert not list(folder.rglob("*.partial"))
    assert differences(run_tiny(tmp_path, **CHANGES), whole) == []


@pytest.mark.parametrize("kib", [56, *(pytest.param(kib, marks=pytest.mark.full) for kib in (72, 88))])
def test_a_full_disk(tmp_path, whole, kib):
    """Some sizes have room for one checkpoint and not for two, or for the results and not for all of them."""
    root = tmp_path / "disk"
    with mounted(root, f"size={kib}k"):
        with pytest.raises(StorageError, match=r"No space left on device\); 0 MiB free"):
            for _ in range(2):
                run_tiny(root, **CHANGES)
        for path in (root / "tiny" / "saved_models").glob("*.safetensors"):
            load_checkpoint(path)
        subprocess.run(["mount", "-o", "remount,size=4m", str(root)], check=True)
        for _ in range(2):
            folder = run_tiny(root, **CHANGES)
        assert differences(folder, whole) == []


def test_a_disk_that_became_read_only(tmp_path, whole):
    root = tmp_path / "disk"
    with mounted(root, "size=4m"):
        run_tiny(root, **CHANGES)
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        with pytest.raises(StorageError, match=r"no permission to write there|Read-only file system"):
            run_tiny(root, **CHANGES)
        subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)
        assert differences(run_tiny(root, **CHANGES), whole) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, whole):
    folder = run_tiny(tmp_path, **CHANGES)
    (folder / "saved_models").chmod(0o555)
    with pytest.raises(StorageError, match="no permission to write there"):
        run_tiny(tmp_path, **CHANGES)
    (folder / "saved_models").chmod(0o755)
    assert differences(run_tiny(tmp_path, **CHANGES), whole) == []
