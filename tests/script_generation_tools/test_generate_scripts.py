"""One script per config, around one launcher."""

import json
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from script_generation_tools.generate_scripts import generate_scripts, seeds_of_settings
from tests.script_generation_tools.test_generate_configs import promised_names
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT

TEMPLATE = REPOSITORY_ROOT / "script_generation_tools" / "local_run_template_script.sh"
SCRIPTS = REPOSITORY_ROOT / "experiment_scripts"


@pytest.fixture
def folders(tmp_path):
    """A folder with one config, and the place of its script."""
    configs = tmp_path / "experiment_config"
    configs.mkdir()
    (configs / "small.json").write_text('{"experiment_name": "small"}')
    return configs, tmp_path / "experiment_scripts"


def test_regenerating_the_committed_scripts_changes_nothing(tmp_path):
    configs, scripts = tmp_path / "experiment_config", tmp_path / "experiment_scripts"
    configs.mkdir()
    scripts.mkdir()
    for name in promised_names():
        shutil.copy(REPOSITORY_ROOT / "experiment_config" / f"{name}.json", configs)
        shutil.copy(SCRIPTS / f"{name}.sh", scripts)
    for name in seeds_of_settings(promised_names()):
        shutil.copy(SCRIPTS / f"{name}.sbatch", scripts)
    before = {path.name: path.read_bytes() for path in scripts.iterdir()}
    outcome = generate_scripts(configs, scripts, TEMPLATE)
    assert (outcome.written, outcome.kept, outcome.outdated) == ([], [], [])
    assert {path.name: path.read_bytes() for path in scripts.glob("[!.]*")} == before
    manifest = json.loads((SCRIPTS / ".generated.json").read_text())
    assert json.loads((scripts / ".generated.json").read_text()).items() <= manifest.items()


def test_every_committed_config_has_a_script_of_three_lines():
    assert all(len((SCRIPTS / f"{name}.sh").read_text().splitlines()) == 3 for name in promised_names())


def test_a_script_passes_on_its_config(folders):
    generate_scripts(*folders, TEMPLATE)
    assert "train_maml_system.py experiment_config/small.json" in (folders[1] / "small.sh").read_text()


def test_a_name_with_spaces_and_quotes_is_quoted_for_the_shell(folders, tmp_path):
    name = "it's a $HOME test"
    (folders[0] / f"{name}.json").write_text("{}")
    template = tmp_path / "template.sh"
    template.write_text("printf '%s' $experiment_config$\n")
    generate_scripts(*folders, template)
    printed = subprocess.run(["bash", folders[1] / f"{name}.sh"], capture_output=True, text=True, check=True).stdout
    assert printed == f"experiment_config/{name}.json"


def test_an_edited_bash_template_rewrites_the_scripts(folders, tmp_path):
    generate_scripts(*folders, TEMPLATE)
    edited = tmp_path / "template.sh"
    edited.write_text(TEMPLATE.read_text().replace("exec", "export DATASET_DIR=/data\nexec"))
    assert generate_scripts(*folders, edited).written == ["small.sh"]
    assert "export DATASET_DIR=/data" in (folders[1] / "small.sh").read_text()


def test_several_that_generate_at_once_write_the_same_scripts(folders):
    """Each from the empty folder, as three commands started together; nothing of one is in the way of another."""
    for number in range(40):
        (folders[0] / f"small_{number}.json").write_text("{}")
    all_ready = threading.Barrier(4)

    def generate(_):
        all_ready.wait()
        return generate_scripts(*folders, TEMPLATE)

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(generate, range(4)))
    assert all(outcome.kept == outcome.outdated == [] for outcome in outcomes)
    assert len(list(folders[1].glob("[!.]*.sh"))) == 41 and not list(folders[1].glob(".*.partial"))
    assert generate_scripts(*folders, TEMPLATE).written == []


def test_hand_written_and_edited_scripts_are_left_alone(folders):
    generate_scripts(*folders, TEMPLATE)
    (folders[1] / "mine.sh").write_text("echo mine\n")
    (folders[1] / "small.sh").write_text("echo edited\n")
    outcome = generate_scripts(*folders, TEMPLATE, prune=True)
    assert outcome.kept == ["small.sh"]
    assert (folders[1] / "mine.sh").read_text() == "echo mine\n"
    assert (folders[1] / "small.sh").read_text() == "echo edited\n"


def test_what_was_written_is_named_where_it_is_little(folders):
    for names, line in (("", "(small.sbatch, small.sh), 0 "), ("ab", "(a.sbatch, a.sh, b.sbatch, b.sh), 2 ")):
        for name in names:
            (folders[0] / f"{name}.json").write_text("{}")
        outcome = generate_scripts(*folders, TEMPLATE)
        assert outcome.report(folders[1]).endswith(f"written {line}unchanged")
    assert generate_scripts(*folders, TEMPLATE).report(folders[1]).endswith(": 0 written, 6 unchanged")
    for name in "cdef":
        (folders[0] / f"{name}.json").write_text("{}")
    assert generate_scripts(*folders, TEMPLATE).report(folders[1]).endswith(": 8 written, 6 unchanged")


def test_scripts_without_a_config_are_listed_and_pruned(folders):
    generate_scripts(*folders, TEMPLATE)
    (folders[0] / "small.json").unlink()
    assert generate_scripts(*folders, TEMPLATE).outdated == ["small.sbatch", "small.sh"]
    assert generate_scripts(*folders, TEMPLATE, prune=True).removed == ["small.sbatch", "small.sh"]
    assert not (folders[1] / "small.sh").exists()


def test_a_bash_template_without_the_place_of_the_config_is_refused(folders, tmp_path):
    template = tmp_path / "template.sh"
    template.write_text("echo\n")
    with pytest.raises(ConfigError, match=r"template\.sh: holds no \$experiment_config\$"):
        generate_scripts(*folders, template)


def test_a_damaged_manifest_is_refused_not_ignored(folders):
    generate_scripts(*folders, TEMPLATE)
    (folders[1] / ".generated.json").write_text("{")
    with pytest.raises(ConfigError, match=r"\.generated\.json: not valid JSON"):
        generate_scripts(*folders, TEMPLATE)


def test_without_its_manifest_a_folder_is_recognised_again(folders):
    generate_scripts(*folders, TEMPLATE)
    (folders[1] / ".generated.json").unlink()
    assert generate_scripts(*folders, TEMPLATE).unchanged == ["small.sbatch", "small.sh"]
    (folders[0] / "small.json").unlink()
    assert generate_scripts(*folders, TEMPLATE).outdated == ["small.sbatch", "small.sh"]


def test_a_setting_has_one_job_over_its_seeds(folders):
    for name in ("a_seed0", "a_seed2", "a_seed10", "b_seed1", "c_seed", "d_seed01"):
        (folders[0] / f"{name}.json").write_text("{}")
    generate_scripts(*folders, TEMPLATE)
    assert seeds_of_settings(["a_seed2", "a_seed10", "small"]) == {"a": [2, 10], "small": []}
    jobs = {path.stem: path.read_text() for path in folders[1].glob("*.sbatch")}
    assert sorted(jobs) == ["a", "b", "c_seed", "d_seed01", "small"]
    assert "#SBATCH --job-name=a\n#SBATCH --array=0,2,10\n" in jobs["a"] and "#SBATCH --array=1\n" in jobs["b"]
    assert "--array" not in jobs["small"] and jobs["small"].endswith(' experiment_scripts/small "$@"\n')


def test_the_job_of_a_name_with_spaces_is_one_word_for_sbatch_and_quoted_for_the_shell(folders):
    (folders[0] / "it's a test_seed3.json").write_text("{}")
    generate_scripts(*folders, TEMPLATE)
    text = (folders[1] / "it's a test.sbatch").read_text()
    assert "#SBATCH --job-name=it_s_a_test\n#SBATCH --array=3\n" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
