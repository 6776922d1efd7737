"""The entry point on a tiny dataset: exit codes, messages, and a real process that is killed and started again."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import train_maml_system
from tests.conftest import draw_dataset
from utils.machine import failures
from utils.machine.packages import requirements
from utils.paths import REPOSITORY_ROOT

CONFIG = {
    "experiment_name": "tiny run", "dataset_name": "tiny", "image_height": 14, "image_width": 14,
    "train_val_test_split": [0.34, 0.33], "total_epochs": 2, "total_iter_per_epoch": 3, "batch_size": 2,
    "num_classes_per_set": 3, "num_target_samples": 2, "num_stages": 2, "cnn_num_filters": 4,
    "number_of_training_steps_per_iter": 2, "num_evaluation_tasks": 5, "log_every_iterations": 2,
    "num_dataprovider_workers": 0, "gpu_to_use": "cpu", "use_multi_step_loss_optimization": True,
    "per_step_bn_statistics": True, "learnable_per_layer_per_step_inner_loop_learning_rate": True,
    "report_every_s": 0,
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path, tiny_dataset, monkeypatch):
    """A dataset, a place for experiments and CONFIG in a file, all below `tmp_path`."""
    tiny_dataset("tiny", n_classes=12)
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def main(workplace, capsys):
    """`main("--key", "value")` -> (exit code, standard output, standard error) of a run of CONFIG in this process."""

    def run(*arguments):
        code = train_maml_system.main(["--name_of_args_json_file", str(workplace / "config.json"), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def logs_of(workplace, name="tiny run"):
    return workplace / "experiments" / name / "logs"


def epochs_in_csv(workplace):
    with (logs_of(workplace) / "summary_statistics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def command(workplace, *arguments):
    script = str(REPOSITORY_ROOT / "train_maml_system.py")
    return [sys.executable, script, "--name_of_args_json_file", str(workplace / "config.json"), *arguments]


# --- before a run -----------------------------------------------------------------------------------------------------


WITHOUT_TORCH = "import sys, train_maml_system; train_maml_system.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_needs_no_torch_and_no_config(flag):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "--name_of_args_json_file", "x.json", flag],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: " in result.stdout and "--multi_step_loss_num_epochs  integer >= 1; default 10" in result.stdout


def test_without_arguments_the_usage_is_shown(capsys):
    assert train_maml_system.main([]) == 1
    shown = capsys.readouterr().err
    assert "--name_of_args_json_file is missing" in shown and "usage: bash experiment_scripts/NAME.sh" in shown


def test_a_python_without_the_packages_is_told_how_to_get_them():
    command = [sys.executable, "-E", "-S", str(REPOSITORY_ROOT / "train_maml_system.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"is missing in {sys.executable}. Run once: bash {REPOSITORY_ROOT}/install.sh" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", [package.module for package in requirements() if not package.only_for])
def test_a_single_package_that_is_missing_is_named(tmp_path, package):
    hide = (
        f"import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda n, *a: None if n == {package!r} else "
        "find(n, *a)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide)
    command = [sys.executable, str(REPOSITORY_ROOT / "train_maml_system.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"The package {package} is missing in {sys.executable}. Run once: bash ")


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_a_second_start_shows_the_result_again(main, workplace, monkeypatch):
    code, out, err = main("--report_every_s", "60")
    assert (code, err) == (0, "")
    assert "epoch 2/2: train loss" in out
    assert "Test accuracy of the ensemble of 2 models: " in out
    assert "(95 % interval over 5 tasks)" in out
    files = {
        path.relative_to(workplace / "experiments" / "tiny run").as_posix()
        for path in logs_of(workplace).parent.rglob("*.*")
    }
    assert files == {
        ".lock", "config.json", "environment.json", "logs/curves.json", "logs/metrics.jsonl", "logs/run.log",
        "logs/summary_statistics.csv", "logs/summary_statistics.json", "logs/test_predictions.safetensors",
        "logs/test_summary.csv", "logs/test_summary.json", "saved_models/train_model_1.safetensors",
        "saved_models/train_model_2.safetensors", "logs/validation_episodes.safetensors", "visual_outputs/report.html",
    }  # fmt: skip
    environment = (logs_of(workplace).parent / "environment.json").read_text()
    assert str(workplace) not in environment
    assert json.loads(environment)["starts"][0]["packages"]["torch"] == torch.__version__.split("+")[0]

    before = {path.name: path.read_bytes() for path in logs_of(workplace).iterdir() if path.name != "run.log"}
    monkeypatch.setattr(train_maml_system, "_train_and_test", None)  # would fail if it were called
    code, again, err = main("--report_every_s", "60")
    assert (code, err) == (0, "")
    assert "This experiment is finished (2 epochs). Its result:" in again
    result, rest = out[out.index("Test accuracy") :].split("Report: ")
    report, next_command = rest.splitlines()
    assert again.endswith(f"{result}Report: {report}\n{next_command}\n")
    assert report == str(logs_of(workplace).parent / "visual_outputs/report.html")
    assert (
        next_command == "Next: python -m experiment_tools.adapt --experiment 'tiny run' --support FOLDER --query FOLDER"
    )
    assert before == {path.name: path.read_bytes() for path in logs_of(workplace).iterdir() if path.name != "run.log"}


def test_one_of_a_kind_is_not_told_as_many(main):
    """In everything that a run of one epoch, one iteration, one inner step and one task says, twice."""
    ones = ("total_epochs", "total_iter_per_epoch", "batch_size", "num_evaluation_tasks", "num_target_samples")
    arguments = [word for key in ones for word in (f"--{key}", "1")]
    arguments += ["--number_of_training_steps_per_iter", "1", "--total_epochs_before_pause", "1"]
    code, out, _ = main(*arguments)
    assert code == 0 and "1 epoch x 1 iteration x 1 task;" in out and "1 inner step," in out
    code, again, _ = main(*arguments)
    assert code == 0 and "This experiment is finished (1 epoch)." in again
    assert not re.findall(r"(?<![\d.,])1 (?:inner |test )?(?:\w+[a-z]es|\w*[a-rt-z]s)\b(?!/)", out + again)


def test_a_run_may_leave_the_test_for_later(main, workplace):
    code, out, _ = main("--test_after_training", "false")
    assert code == 0 and "Testing" not in out and not (logs_of(workplace) / "test_summary.json").exists()
    last = (
        "Trained and not tested, as test_after_training is false. To test it: the same command with "
        "--test_after_training true"
    )
    assert out.rstrip().endswith(last)
    code, out, _ = main()
    assert code == 0 and "Test accuracy of" in out and epochs_in_csv(workplace) == [1, 2]
    assert (logs_of(workplace) / "test_summary.json").exists()


def test_a_paused_run_ends_as_one_that_was_not(main, workplace):
    code, out, _ = main("--total_epochs_before_pause", "1")
    assert code == 0
    assert "Paused after 1 epoch, at epoch 1 of 2. Run the same command to go on." in out
    assert main("--total_epochs_before_pause", "1")[0] == 0
    assert main("--experiment_name", "whole")[0] == 0
    paused, whole = (
        json.loads((logs_of(workplace, name) / "test_summary.json").read_text()) for name in ("tiny run", "whole")
    )
    assert paused == whole
    models = [
        (logs_of(workplace, name).parent / "saved_models/train_model_2.safetensors") for name in ("tiny run", "whole")
    ]
    from experiment_parts.runs.checkpoints import load_checkpoint

    first, second = (load_checkpoint(path)[0] for path in models)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("rng."))


def test_the_folders_own_config_json_is_a_valid_input(main, workplace):
    main("--total_epochs_before_pause", "1")
    (workplace / "config.json").write_bytes((logs_of(workplace).parent / "config.json").read_bytes())
    code, out, _ = main("--total_epochs_before_pause", "0")
    assert code == 0
    assert "Resuming after epoch 1 (train_model_1.safetensors)." in out


def test_another_test_of_a_finished_run(main, workplace):
    main("--total_epochs", "1")
    before = (logs_of(workplace) / "test_summary.json").read_bytes()
    code, _, _ = main(
        "--evaluate_on_test_set_only", "true", "--tag", "more", "--num_evaluation_tasks", "7",
        "--number_of_evaluation_steps_per_iter", "4", "--num_target_samples", "3", "--load_checkpoint", "1",
    )  # fmt: skip
    assert code == 0
    protocol = json.loads((logs_of(workplace) / "test_summary_more.json").read_text())["protocol"]
    assert (protocol["tasks"], protocol["steps"], protocol["queries"]) == (7, 4, 3)
    assert (logs_of(workplace) / "test_summary.json").read_bytes() == before
    code, out, _ = main(
        "--total_epochs", "1", "--number_of_ensemble_models", "1", "--test_batch_norm_statistics", "running"
    )
    assert code == 0
    assert "This test used other test keys than the config has now" in out


def test_a_test_repeated_with_other_rows_is_compared_with_what_it_used_itself(main):
    main("--total_epochs", "1", "--test_baselines", "true")
    keys = ("--total_epochs", "1", "--test_baselines", "false")
    assert "other test keys" in main(*keys)[1]
    assert main(*keys, "--evaluate_on_test_set_only", "true")[0] == 0
    assert "This experiment is finished" in main(*keys)[1] and "other test keys" not in main(*keys)[1]
    assert "other test keys" in main("--total_epochs", "1", "--test_baselines", "true")[1]


class Fork:
    """The program in a fork of this process, which has imported everything: like `subprocess.Popen` for a command."""

    def __init__(self, command, stderr, **_):
        self._code, self.pid = None, os.fork()
        if self.pid == 0:
            code = 99
            try:
                sys.stdout = sys.stderr = stderr
                code = train_maml_system.main(command[2:])
            finally:
                stderr.flush()
                os._exit(code)

    def poll(self):
        if self._code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if done else None
        return self._code


@pytest.mark.parametrize("start", [Fork, pytest.param(subprocess.Popen, marks=pytest.mark.full)])
def test_stopped_killed_and_started_again_each_iteration_is_there_once(workplace, start):
    """A process gets SIGTERM in epoch 1; the next SIGKILL in epoch 2, before it has saved anything of that."""
    metrics = logs_of(workplace) / "metrics.jsonl"
    more = ["--total_iter_per_epoch", "4", "--log_every_iterations", "1", "--checkpoint_every_s", "600"]

    def end_after(n_iterations, number):
        with (workplace / "printed").open("w") as printed:
            process = start(command(workplace, *more), stdout=printed, stderr=printed)
        deadline, is_told = time.monotonic() + 120, False
        while process.poll() is None:
            assert time.monotonic() < deadline
            if not is_told and metrics.exists() and metrics.read_text().count("\n") >= n_iterations:
                os.kill(process.pid, number)
                is_told = True
            time.sleep(0.002)
        return process.poll(), (workplace / "printed").read_text()

    code, printed = end_after(1, signal.SIGTERM)
    assert code == 143 and "SIGTERM: saved at iteration " in printed
    assert end_after(5, signal.SIGKILL)[0] == -signal.SIGKILL
    assert epochs_in_csv(workplace) == [1]
    code, printed = end_after(100, None)
    assert code == 0 and "Resuming after epoch 1" in printed, printed
    assert epochs_in_csv(workplace) == [1, 2]
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == list(range(1, 9))
    assert len(json.loads((logs_of(workplace).parent / "environment.json").read_text())["starts"]) == 3


# --- bad input: message and exit code ---------------------------------------------------------------------------------


def test_unknown_key_by_a_real_process(workplace):
    done = subprocess.run(
        command(workplace, "--meta_learning_rat", "0.1"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert 'unknown key "meta_learning_rat"; did you mean "meta_learning_rate"?' in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (workplace / "experiments").exists()


def test_torch_is_not_imported_before_the_config_is_checked():
    code = "import sys, train_maml_system; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", "many"], '"batch_size" is "many"'),
        (["--num_classes_per_set", "1"], '"num_classes_per_set" is 1'),
        (["--nnodes", "2"], "--nnodes is an option of the launcher and stands before a --"),
        (["--evaluate_on_test_set_only", "true"], "no checkpoint to test yet"),
        (["--continue_from_epoch", "3"], "continue_from_epoch 3: tiny run holds no checkpoint"),
        (
            ["--load_checkpoint", "nowhere.safetensors"],
            "load_checkpoint nowhere.safetensors: nowhere.safetensors does not exist",
        ),
        (["--load_checkpoint", "."], "load_checkpoint .: . is no file"),
        (["--load_checkpoint", "²"], "load_checkpoint ²: ² does not exist"),
        (["--load_checkpoint", "1" * 300], ": a name of more than 255 bytes"),
        (["--load_checkpoint", "~nobody-of-this-name/x"], "there is no home folder that ~ could stand for here"),
        (["--dataset_path", "x/" * 2500], "...: a name of more than 255 bytes or a path of more than 4,095"),
        (["--dataset_path", "caf\udce9"], '"dataset_path" is "caf\\udce9", which is no text in UTF-8'),
        (["--experiment_name", "[" * 10**5], '"experiment_name" is "[[['),
        (["--total_epochs", "[" * 10**5], '"total_epochs" is "[[['),
    ],
)
def test_wrong_usage_is_exit_code_1_without_traceback(main, arguments, message):
    code, _, err = main(*arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_a_changed_key_is_exit_code_1_and_names_both_values(main):
    assert main("--total_epochs_before_pause", "1")[0] == 0
    code, _, err = main("--cnn_num_filters", "8")
    assert code == 1
    assert "cnn_num_filters: 4 before, 8 now" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "elsewhere"], "elsewhere"),
        (["--num_classes_per_set", "9"], "9"),
        (["--num_samples_per_class", "5"], "num_samples_per_class 5"),
    ],
)
def test_bad_data_is_exit_code_2_and_leaves_no_run_folder(main, workplace, arguments, message):
    code, _, err = main(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert os.listdir(workplace / "experiments") == []


def test_a_corrupt_image_is_exit_code_2_and_named(main, workplace):
    image = workplace / "datasets" / "tiny" / "alphabet_0" / "character_00" / "03.png"
    image.write_bytes(image.read_bytes()[:60])
    code, _, err = main()
    assert code == 2
    assert "character_00/03.png" in err


def test_a_diverging_run_is_exit_code_3(main, workplace):
    code, _, err = main("--init_inner_loop_learning_rate", "1e30", "--meta_learning_rate", "1e30")
    assert code == 3
    assert "iteration " in err
    assert not list((workplace / "experiments").rglob("*.safetensors"))


def test_an_unwritable_output_folder_is_exit_code_4_before_anything_slow(main, workplace, monkeypatch):
    monkeypatch.setattr(train_maml_system, "_train_and_test", None)
    monkeypatch.setenv("EXPERIMENTS_DIR", str(workplace / "config.json"))
    code, _, err = main()
    assert code == 4
    assert "config.json/tiny run/saved_models: cannot be written (Not a directory)" in err


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore"),
            6,
            "Tried to allocate 3 GiB.\nSet gradient_checkpointing to true or lower one",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 bytes"), 6, "batch_size, task_chunk_size"),
        (MemoryError(), 6, "Out of memory: no memory left"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 6, "libtorch_cpu.so: failed to map"),
        (OSError(12, "Cannot allocate memory"), 6, "Out of memory: [Errno 12] Cannot allocate memory"),
        (ZeroDivisionError("oh"), 70, "ZeroDivisionError: oh"),
    ],
)
def test_other_ends(main, monkeypatch, workplace, error, expected, message):
    def fails(*_):
        raise error

    monkeypatch.setattr(train_maml_system, "_train_and_test", fails)
    code, _, err = main()
    assert code == expected
    assert message in err
    assert ("Traceback" in err) == (expected == failures.BUG)
    assert message.splitlines()[0] in (logs_of(workplace) / "run.log").read_text()


def test_a_user_without_a_home_folder_is_as_good_as_another(main, workplace, monkeypatch):
    """As in containers with an id that no passwd has: nothing asks for the home folder but a path with ~ in front."""

    def of_nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", of_nobody)
    code, _, err = main("--report_every_s", "1e-9")
    assert code == 0 and (logs_of(workplace).parent / "visual_outputs" / "report.html").exists(), err
    monkeypatch.setenv("DATASET_DIR", "~/datasets")
    code, _, err = main("--experiment_name", "b")
    assert code == 1 and err == "~/datasets: there is no home folder that ~ could stand for here; write the path out\n"


def test_a_current_folder_that_was_removed_is_said(main, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = main()
    assert code == 1 and err == "the current folder has been removed; change to one that is there, and start again\n"


@pytest.mark.parametrize("kind", ["pipe", "folder", "deep"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--load_checkpoint", "odd"], {1, 4}),
        (["--initial_weights", "odd"], {1}),
        (["--plugin", "odd.py"], {1}),
    ],
    ids=["checkpoint", "weights", "plugin"],
)
def test_odd_files_are_one_line(main, workplace, monkeypatch, kind, arguments, expected):
    monkeypatch.chdir(workplace)
    for name in ("odd", "odd.py"):
        if kind == "deep":
            (workplace / name).write_text("[" * 10**5)
        else:
            (os.mkfifo if kind == "pipe" else os.mkdir)(workplace / name)
    code, _, err = main(*arguments)
    assert code in expected and "Traceback" not in err and "odd" in err and len(err) < 2000


def test_odd_files_in_the_place_of_ours_are_made_again_or_named(main, workplace):
    assert main()[0] == 0
    folder = logs_of(workplace).parent
    (index,) = (workplace / "datasets" / ".packed").glob("*.json")
    files = [folder / "environment.json", folder / "logs" / "test_summary.json", index]
    for number, make in enumerate((os.mkfifo, lambda path: path.write_text("[" * 10**5))):
        for path in files:
            path.unlink()
            make(path)
        code, _, err = main("--evaluate_on_test_set_only", "true", "--tag", str(number))
        assert code == 0 and "Traceback" not in err
        files[1].touch()
    for path, expected in zip(files, (4, 0, 4), strict=True):
        path.unlink()
        path.mkdir()
        code, _, err = main("--evaluate_on_test_set_only", "true", "--tag", path.name)
        assert code == expected and "Traceback" not in err and (path.name in err) == (expected == 4)
        path.rmdir()


def test_names_of_files_neither_command_the_terminal_nor_forge_a_line(main, workplace, capsys):
    """In what is printed and in run.log, by the preparation and the training, of what is right and what is wrong."""
    from utils.prepare_dataset.__main__ import main as prepare

    forged = "Test accuracy of the model: 100 %"
    names = ["\x1b]0;owned\x07\x1b[2J", f"b\n{forged}\n", "c\r\x9b31m", "d\u202e", "e\udcff", "\x1b[A", "f", "g", "h"]
    source = draw_dataset(workplace / "datasets" / "hostile", [f"{n}\x1b[A/{n}" for n in names], 4)
    for place, bad in enumerate((source / f"{names[0]}\x1b[A" / names[0], source / f"{names[1]}\x1b[A" / names[1])):
        (bad / f"00{names[place]}.png").write_bytes(b"no image")
    arguments = ["--dataset_name", "hostile", "--experiment_name", "h", "--on_bad_image"]
    assert [main(*arguments, "stop")[0], main(*arguments, "skip")[0]] == [2, 0]
    assert prepare(["folder", "--from", str(source), "--name", "q", "--to", str(workplace / "prepared")]) == 0
    assert prepare(["csv", "--from", str(source), "--name", "q2", "--to", str(workplace / "prepared")]) == 2
    main(*arguments, "stop")
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, (logs_of(workplace, "h") / "run.log").read_text()):
        assert not {c for c in text if not c.isprintable()} - {"\n"}
        assert forged not in [line.split(" ", 2)[-1] for line in text.splitlines()] + text.splitlines()
