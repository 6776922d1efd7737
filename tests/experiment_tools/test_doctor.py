"""The doctor's lines, and the dry run: what they find, and that nothing is left behind."""

import json
import logging
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import train_maml_system
from experiment_tools import doctor
from experiment_tools.doctor import ERROR, OK, WARNING, Finding, check_folders, check_packages, duration_text
from few_shot_learning_system import FewShotLearner
from utils import registry
from utils.machine.packages import set_up_command
from utils.paths import REPOSITORY_ROOT

CONFIG = {
    "experiment_name": "tiny",
    "dataset_name": "tiny",
    "image_height": 14,
    "image_width": 14,
    "train_val_test_split": [0.34, 0.33],
    "total_epochs": 7,
    "total_iter_per_epoch": 30,
    "batch_size": 2,
    "num_classes_per_set": 3,
    "num_target_samples": 2,
    "num_stages": 2,
    "cnn_num_filters": 4,
    "number_of_training_steps_per_iter": 2,
    "num_evaluation_tasks": 5,
    "num_dataprovider_workers": 0,
    "gpu_to_use": "cpu",
    "first_order_to_second_order_epoch": 3,
}


@pytest.fixture
def workplace(tmp_path, tiny_dataset, monkeypatch):
    """CONFIG in a file beside its dataset; temporary files go to tmp_path/temporary."""
    tiny_dataset("tiny", n_classes=12)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    level = logging.getLogger().level
    yield tmp_path
    logging.getLogger().setLevel(level)


def leftovers(workplace):
    """What is there that was not, apart from the cache folder that importing parts of torch makes."""
    paths = [*workplace.glob("experiments"), *(workplace / "temporary").iterdir()]
    return [path.name for path in paths if not path.name.startswith("torchinductor")]


# --- the doctor -------------------------------------------------------------------------------------------------------


def test_a_config_in_order_is_trained_validated_saved_resumed_and_timed(workplace, capsys):
    assert doctor.main([str(workplace / "config.json")]) == 0
    shown = capsys.readouterr().out
    for line in (
        r"ok       Python 3\.",
        r"ok       torch \d",
        r"ok       config: tiny",
        r"ok       data tiny: train 4 classes with 24 images",
        r"ok       one training iteration: loss \d\.\d+; one validation task: loss \d",
        r"ok       one save: \d+\.\d MiB",
        r"ok       one resume: went on at iteration 2 and was tested",
        r"ok       the whole run: about \d+ s \(7 epochs of 30 iterations of \d+ ms, and 7 validations and 5 tests of "
        r"5 tasks\)",
    ):
        assert re.search(line, shown), (line, shown)
    assert leftovers(workplace) == []


def test_a_wrong_key_and_a_missing_dataset_are_errors_with_what_to_do(workplace, capsys):
    assert doctor.main([str(workplace / "config.json"), "--num_clases_per_set", "5"]) == 1
    assert (
        'error    config: command line: unknown key "num_clases_per_set"; did you mean "num_classes_per_set"?'
        in capsys.readouterr().out
    )
    shutil.rmtree(workplace / "datasets" / "tiny")
    assert doctor.main([str(workplace / "config.json")]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"error    .*datasets/tiny", shown) and "1 error, 0 warnings" in shown
    assert leftovers(workplace) == []


def test_what_data_warn_of_is_a_finding(workplace, monkeypatch):
    images = sorted((workplace / "datasets").glob("tiny/*/*/00.png"))
    Image.new("L", (14, 14), 9).save(images[0])
    shutil.copy(images[1], images[1].with_name("again.png"))
    monkeypatch.setattr(doctor, "_short_run", lambda *_: iter(()))
    config = doctor._config_of([str(workplace / "config.json")])
    warnings = [finding.text for finding in doctor.check_run(config) if finding.level == WARNING]
    assert any("1 of 73 images are of one colour after decoding" in text for text in warnings)
    assert any("left out that are in their class already, as the same file: 1" in text for text in warnings)
    assert len(warnings) == 2
    for path in images[0].parent.iterdir():
        Image.new("L", (14, 14), 9).save(path)
    *_, finding = doctor.check_run(config)
    assert finding.level == ERROR and "6 of 73 images are of one colour" in finding.text


@pytest.mark.parametrize(("step_s", "n_steps"), [(0.1, 6), (1.5, 4), (60.0, 1)])
def test_slow_iterations_are_timed_less_often(monkeypatch, step_s, n_steps):
    class Learner:
        def meta_parameters(self):
            return {"weight": torch.zeros(1)}

    now, steps = [0.0], []

    def step(number):
        now[0] += step_s
        steps.append(number)

    monkeypatch.setattr(doctor, "clock", lambda device: now[0])
    assert doctor._timed(step, Learner()) == pytest.approx(step_s)
    assert len(steps) == n_steps


def test_the_short_run_computes_no_more_than_it_reports(workplace, monkeypatch):
    """Of photographs of 84 x 84 pixels an iteration takes many seconds on a CPU."""
    computed = []
    for name in ("meta_gradients", "evaluate"):
        compute = getattr(FewShotLearner, name)
        monkeypatch.setattr(
            FewShotLearner, name, lambda *a, _c=compute, _n=name, **k: computed.append(_n) or _c(*a, **k)
        )
    monkeypatch.setattr(doctor, "_estimate", lambda *_: Finding(OK, "not timed here"))
    config = doctor._config_of([str(workplace / "config.json")])
    assert [finding.level for finding in doctor.check_run(config)].count(OK) == 6
    assert computed == ["meta_gradients", "evaluate", "meta_gradients", "evaluate", "evaluate", "evaluate"]


def test_a_config_of_this_checkout_may_be_given_by_its_name():
    assert doctor._config_of(["quickstart", "--total_epochs", "3"]).total_epochs == 3
    assert doctor._config_of(["quickstart.json"]).experiment_name == "quickstart"


def test_a_config_of_a_plugin_is_looked_at_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry, "_backbones", {})
    (tmp_path / "net.py").write_text(
        "import mamlkit\nfrom torch import nn\n"
        "mamlkit.register_backbone('mine', lambda config, shape, n_way: nn.Linear(1, n_way))\n"
    )
    words = ["quickstart", "--plugin", str(tmp_path / "net.py"), "--backbone", "mine"]
    assert doctor._config_of(words).backbone == "mine"


def test_memory_that_does_not_suffice_names_the_keys_to_lower(workplace, monkeypatch, capsys):
    def no_memory(*_):
        raise MemoryError("no 80 GiB")

    monkeypatch.setattr(doctor, "_short_run", no_memory)
    assert doctor.main([str(workplace / "config.json")]) == 1
    assert (
        "error    out of memory: no 80 GiB\n         fix: lower one of batch_size, task_chunk_size"
        in capsys.readouterr().out
    )


def test_a_package_that_is_missing_or_too_old_is_an_error_with_the_command(monkeypatch):
    versions = {"torch": "2.9.1+cpu", "scipy": None}
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions.get(name, "9.0"))
    errors = [finding for finding in check_packages() if finding.level == ERROR]
    assert errors == [
        Finding(ERROR, "torch >= 2.11 is needed, found 2.9.1+cpu", set_up_command()),
        Finding(ERROR, "scipy is needed, found nothing", set_up_command()),
    ]


def test_folders_without_space_or_in_the_way_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "file" / "datasets"))
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "new"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 2**30))
    datasets, experiments = check_folders()
    assert datasets.level == ERROR and datasets.fix == "set DATASET_DIR to a folder that you can write to"
    assert experiments.level == WARNING and experiments.text.endswith("1.0 GiB free; it will be made")
    assert not (tmp_path / "new").exists()


def test_durations_are_written_as_people_say_them():
    assert [duration_text(s) for s in (0.4, 89, 600, 4000, 200_000)] == [
        "0 s",
        "89 s",
        "10 min",
        "1 h 7 min",
        "2 days 7 h",
    ]
    assert str(Finding(OK, "fine")) == "ok       fine"


# --- the dry run ------------------------------------------------------------------------------------------------------


def run(workplace, capsys, *arguments):
    code = train_maml_system.main(["--name_of_args_json_file", str(workplace / "config.json"), *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_dry_run_goes_through_everything_once_and_leaves_nothing(workplace, capsys):
    code, out, err = run(workplace, capsys, "--dry_run")
    assert (code, err) == (0, "")
    assert "epoch 1/1: train loss" in out and "(95 % interval over 1 task)" in out
    assert (
        str(workplace / "temporary") not in out and "Report: " not in out and "written to" not in out
    )  # of what is not there any more
    assert "This was a dry run: one training iteration, one validation task and one test task went through in " in out
    assert leftovers(workplace) == []


def test_a_dry_run_touches_no_run_of_that_name(workplace, capsys):
    short = ("--total_epochs", "1", "--total_iter_per_epoch", "2", "--report_every_s", "0")
    assert run(workplace, capsys, *short)[0] == 0
    folder = workplace / "experiments" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(workplace, capsys, "--dry_run", "--load_checkpoint", "1", "--report_every_s", "0")[0] == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_that_fails_leaves_nothing_either(workplace, capsys):
    code, out, err = run(workplace, capsys, "--dry_run", "--init_inner_loop_learning_rate", "1e38")
    assert code == 3 and "the loss is nan" in err and "dry run" not in out
    assert str(workplace / "temporary") not in out + err
    assert leftovers(workplace) == []


def test_a_dry_run_of_a_test_alone_is_refused(workplace, capsys):
    code, _, err = run(workplace, capsys, "--dry_run", "--evaluate_on_test_set_only", "true")
    assert code == 1 and '"dry_run" starts a run of its own and touches no other' in err


def test_without_torch_the_rest_is_looked_at_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = list(doctor.examine(["quickstart"]))
    assert any(finding.level == ERROR and "torch cannot be imported" in finding.text for finding in findings)
    assert findings[-1].text.startswith("config: quickstart")


@pytest.mark.parametrize("made", [True, False])
def test_a_tool_names_a_missing_package_and_where_it_is(tmp_path, made):
    copy = tmp_path / "with space" / "experiment_tools"
    ground = ("utils/paths.py", "utils/errors.py", "utils/words.py")
    for file in ("experiment_tools/__init__.py", "utils/machine/packages.py", *ground, "requirements.txt"):
        (copy.parent / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY_ROOT / file, copy.parent / file)
    (copy / "one.py").write_text("import torch.nn\n")
    (copy / "two.py").write_text("import something_else\n")
    (copy.parent / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    if made:
        (copy.parent / ".venv" / "bin").mkdir(parents=True)
        (copy.parent / ".venv" / "bin" / "activate").touch()

    def start(tool):
        command = [sys.executable, "-m", f"experiment_tools.{tool}"]
        return subprocess.run(command, cwd=copy.parent, capture_output=True, text=True, timeout=60, check=False)

    result = start("one")
    fix = f"source '{copy.parent}/.venv/bin/activate'" if made else f"bash '{copy.parent}/install.sh'"
    assert (result.returncode, result.stderr) == (1, f"The package torch is missing in {sys.executable}. Run: {fix}\n")
    assert "Traceback" in start("two").stderr
