"""A scratch copy of the project in which documented commands run in seconds, and what their readers bring along."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import draw_dataset, draw_image
from tests.experiment_tools.test_convert_checkpoint import reference_tensors, save
from tests.script_generation_tools.test_convert_config import REFERENCE
from tests.script_generation_tools.test_convert_fmu2_config import REPRODUCE, TEST
from utils.paths import REPOSITORY_ROOT

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "experiments", "__pycache__", ".pytest_cache", ".ruff_cache", "*.tar.*", ".packed", ".sources"
)
SHORT = {
    "total_epochs": 2,
    "total_iter_per_epoch": 2,
    "num_evaluation_tasks": 4,
    "batch_size": 2,
    "num_target_samples": 2,
}
"""What training is cut down to, in every template, and in the defaults of the keys."""
SERVERS = ("tensorboard ", "python -m experiment_tools.demo")
"""How commands begin that go on until they are stopped: they count as run once they name their address."""
TIMEOUT_S = 600.0
RUNS_BEFORE = (
    "quickstart",
    "omniglot_maml++_5way_1shot_seed0",
    "omniglot_maml++_5way_1shot_seed1",
    "omniglot_maml_5way_1shot_seed0",
)
"""Runs that a reader of docs/ has made."""
OLD_CHECKPOINTS_CONFIG = {
    "experiment_name": "my_old_run",
    "dataset_name": "omniglot_dataset",
    "dataset_path": "omniglot_dataset",
    "sets_are_pre_split": False,
    "train_val_test_split": [0.709, 0.031, 0.26],
    "image_height": 12,
    "image_width": 12,
    "image_channels": 1,
    "num_stages": 2,
    "cnn_num_filters": 3,
    "num_classes_per_set": 3,
    "number_of_training_steps_per_iter": 3,
    "number_of_evaluation_steps_per_iter": 3,
    "num_evaluation_tasks": 4,
    "num_target_samples": 1,
    "dropout_rate_value": 0.0,
    "total_epochs_before_pause": 100,
}
"""What makes the original's config fit the checkpoint that test_convert_checkpoint draws."""

READERS_PYTHON = """
import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy as my_loss
from few_shot_classifier import FewShotClassifier

generator = np.random.default_rng(0)
five_images = generator.integers(0, 256, (5, 28, 28), dtype=np.uint8)
more_images = generator.integers(0, 256, (7, 28, 28), dtype=np.uint8)
images = generator.integers(0, 256, (20, 28, 28), dtype=np.uint8)
labels = 4 * ["aleph", "beth", "gimel", "daleth", "he"]
pictures = generator.integers(0, 256, (120, 28, 28), dtype=np.uint8)
names = [f"class {number % 20}" for number in range(120)]
train_dataset, val_dataset, test_dataset = (pictures, names), (pictures, names), (pictures, names)
my_module = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 5))
"""
"""What the reader of a page's Python has: images, labels, datasets, a network, a loss."""


def copy_project(root: Path) -> None:
    """Copy the project to `root` and make its trainings short."""
    shutil.copytree(REPOSITORY_ROOT, root, ignore=NOT_COPIED)
    for path in [
        *(root / "experiment_template_config").glob("*.json"),
        *(root / "docs" / "plugin_example").glob("*.json"),
    ]:
        path.write_text(_shortened(path.read_text(encoding="utf-8")), encoding="utf-8")
    schema = root / "utils" / "config" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    for key, value in SHORT.items():
        text = re.sub(rf"(    {key}: int = Field\()\d+", rf"\g<1>{value}", text)
    schema.write_text(text, encoding="utf-8")
    for program in ("generate_configs.py", "generate_scripts.py"):
        subprocess.run([sys.executable, program], cwd=root / "script_generation_tools", check=True, capture_output=True)


def _shortened(config: str) -> str:
    for key, value in SHORT.items():
        config = re.sub(rf'("{key}": )[^,\n]+', rf"\g<1>{value}", config)
    config = re.sub(r'("image_(?:height|width)": )(?:32|84)\b', r"\g<1>28", config)
    return re.sub(
        r'("dataset_path": )', r'"on_bad_image": "skip", \1', config
    )  # a small dataset in a known one's place


def bring_readers_files(root: Path, home: Path) -> None:
    """Draw small datasets where the real ones would be, photographs, drawings, and files of older projects."""
    datasets = root / "datasets"
    draw_dataset(
        datasets / "omniglot_dataset",
        [f"alphabet_{n // 20:02}/character_{n:03}" for n in range(170)],
        images_per_class=4,
    )
    draw_dataset(
        datasets / "mini_imagenet_full_size",
        [f"{split}/n{n}" for split in ("train", "val", "test") for n in range(6)],
        8,
        28,
        3,
    )
    photos = [
        f"{split}/{name}_{split}"
        for split in ("train", "val", "test")
        for name in ("ant", "bee", "cat", "dog", "eel", "fox")
    ]
    draw_dataset(datasets / "my_photos", photos, 8, 32, 3)
    draw_dataset(home / "my_birds", [f"bird_{n:02}" for n in range(15)], 8, 32, 3)  # as few as 5 ways can do with
    shutil.make_archive(str(home / "my_birds"), "zip", home, "my_birds")
    for role, images in (("examples", 1), ("questions", 2)):
        draw_dataset(root / "my_drawings" / role, ["circle", "cross", "house", "star", "tree"], images, 28)
    draw_image(1, 2, 40).save(root / "my_drawings" / "questions" / "unknown.png")
    old = root / "old"
    old.mkdir()
    (old / "my_old_run.json").write_text(json.dumps(REFERENCE | OLD_CHECKPOINTS_CONFIG))
    (old / "train.yaml").write_text(json.dumps(REPRODUCE))  # JSON is YAML
    (old / "test.yaml").write_text(json.dumps(TEST))
    (old / "saved_models").mkdir()
    save(old / "saved_models" / "train_model_40", reference_tensors())
    (root / "my_runs").mkdir()


def environment(home: Path) -> dict[str, str]:
    """The environment of a reader with an activated environment, and without a network."""
    prefix = Path(sys.prefix)
    kept = {
        key: value for key, value in os.environ.items() if key not in ("DATASET_DIR", "EXPERIMENTS_DIR", "PYTHONPATH")
    }
    return kept | {
        "VIRTUAL_ENV": str(prefix),
        "PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "MPLBACKEND": "agg",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "PYTEST_ADDOPTS": "-k test_every_link_into_the_project",  # of `bash run_tests.sh`, which is what runs all this
    }


def run_command(text: str, root: Path, home: Path, folder: Path | None = None) -> tuple[int, str, Path]:
    """Run a command of a page in a folder of the scratch copy; return its exit code, what it printed, and where it
    has gone (`cd`).
    """
    folder = folder or root
    if text.startswith(SERVERS):
        return *_run_until_it_serves(text, folder, home), folder
    place = home / "folder"
    try:
        result = subprocess.run(
            ["bash", "-c", f'{text}\nstatus=$?\npwd >"$HOME/folder"\nexit $status'],
            cwd=folder,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return 124, f"{error.output}\nnot finished after {TIMEOUT_S:.0f} s", folder
    return result.returncode, result.stdout, Path(place.read_text().strip()) if place.exists() else folder


def _run_until_it_serves(text: str, folder: Path, home: Path) -> tuple[int, str]:
    output = home / "server.log"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=folder,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 60
            while (
                process.poll() is None
                and time.monotonic() < deadline
                and "http://" not in output.read_text(errors="replace")
            ):
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    printed = output.read_text(errors="replace")
    return (0 if "http://" in printed else 1), printed


def run_python(blocks: list[tuple[str, str]], root: Path, home: Path) -> tuple[int, str]:
    """Run pieces of Python (place, text) one after the other in one process of the scratch copy."""
    pieces = [READERS_PYTHON, *(f"# {place}\n{text}" for place, text in blocks)]
    (root / "page.py").write_text("\n".join(pieces), encoding="utf-8")
    return run_command("python page.py", root, home)[:2]
