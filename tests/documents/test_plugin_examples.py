"""The examples of docs/any_modality.md: data that are no images, from a plugin to a tested and reported run."""

import json
import shutil

import numpy as np
import pytest

import train_maml_system
from experiment_tools.adapt import main as adapt
from experiment_tools.check_gradients.__main__ import main as check_gradients
from experiment_tools.compare.__main__ import main as compare
from experiment_tools.export.__main__ import main as export
from experiment_tools.show_data import main as show_data
from few_shot_classifier import FewShotClassifier
from tests.tools.documented_commands import all_blocks
from utils import registry
from utils.config import load_config
from utils.paths import REPOSITORY_ROOT
from utils.registry import choices, load_plugins, registered_dataset

EXAMPLES = REPOSITORY_ROOT / "docs" / "plugin_example"
SHORT = ["--total_epochs", "1", "--total_iter_per_epoch", "8", "--num_evaluation_tasks", "20", "--gpu_to_use", "cpu"]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch, tmp_path):
    for table in ("_backbones", "_datasets", "_plugins"):
        monkeypatch.setattr(registry, table, {})
    monkeypatch.setattr(choices, "_chosen", {})
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))


@pytest.mark.parametrize("name", ["sounds", "table", "time_series", "sentences"])
def test_an_example_trains_and_is_tested_beside_nearest_centroids(name, tmp_path, capsys, monkeypatch):
    plugin, config = EXAMPLES / f"{name}.py", EXAMPLES / f"{name}.json"
    assert train_maml_system.main([str(config), "--plugin", str(plugin), *SHORT]) == 0
    run = tmp_path / f"{name}_example"
    (result,) = json.loads((run / "logs" / "test_summary.json").read_text())["results"]
    rows = result["baselines"]["rows"]
    assert rows["centroids"]["mean"] > rows["chance"]["mean"] == 0.2
    assert ("inputs" in rows) == (name != "sentences") and "pixels" not in rows
    report = (run / "visual_outputs" / "report.html").read_text()
    assert "Examples are arrays, of which there are no pictures." in report
    assert "its body, class centroids" in report and ("nearest neighbour on the inputs" in report) == ("inputs" in rows)
    out = capsys.readouterr().out
    assert f"Next: FewShotClassifier.from_experiment('{name}_example').fit(examples, labels), in Python" in out
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "again")
    assert compare([run.name, "again"]) == 0
    assert "again" in capsys.readouterr().out
    settings = load_config(config, {})
    for kind, examples in list(registered_dataset(settings.dataset_name)(settings)["test"].items())[:2]:
        parts = (
            {f"{kind}/{part}": array for part, array in examples.items()} if name == "sentences" else {kind: examples}
        )
        for file, array in parts.items():
            (tmp_path / "few" / file).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "few" / f"{file}.npy", array[:3])
    arguments = ["--experiment", run.name, "--support", "few", "--formats", "safetensors", "--output", "exported"]
    assert export([*arguments, "--plugin", str(plugin)]) == 0
    assert f"{kind.replace('_', chr(92) + '_')} (3)" in (tmp_path / "exported" / "README.md").read_text()
    files = ["--support", str(tmp_path), "--query", str(tmp_path), "--output", str(tmp_path / "adapted")]
    code = adapt(["--experiment", run.name, *files])
    assert code == 1 and f"{run.name}: its examples are arrays (input_shape [" in capsys.readouterr().err


def test_what_the_text_example_has_learned_classifies_sentences_in_python(tmp_path):
    overrides = load_plugins({"plugin": str(EXAMPLES / "sentences.py")})
    config = load_config(EXAMPLES / "sentences.json", overrides)
    test = registered_dataset("sentences")(config)["test"]
    classifier = FewShotClassifier(
        **{key: value for key, value in json.loads((EXAMPLES / "sentences.json").read_text()).items()
           if key not in ("experiment_name", "dataset_name", "backbone")} | {"network": "transformer"}
    )  # fmt: skip
    kinds = list(test)[:3]
    few = {part: np.concatenate([test[kind][part][:5] for kind in kinds]) for part in ("ids", "mask")}
    predicted = classifier.fit(few, np.repeat(kinds, 5)).predict({part: test[kinds[0]][part] for part in few})
    assert predicted.shape == (20,) and set(predicted) <= set(kinds)


@pytest.mark.parametrize("name", ["table", "sentences"])
def test_tools_that_look_into_a_config_take_it(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(EXAMPLES / f"{name}.json"), "--plugin", str(EXAMPLES / f"{name}.py")]
    assert show_data([*words, "--to", "shown"]) == 0
    assert [path.name for path in (tmp_path / "shown").iterdir()] == ["classes.csv"]
    assert check_gradients([*words, "--mlp_hidden_sizes", "6"]) == 0, capsys.readouterr().out


def test_the_update_rule_of_the_page_keeps_the_laws_though_it_divides_the_rounding_of_a_bias(tmp_path, capsys):
    (rule,) = [block for block in all_blocks() if block.marks_of("write to") == ["unit.py"]]
    (tmp_path / "unit.py").write_text(rule.text, encoding="utf-8")
    assert check_gradients(["--plugin", str(tmp_path / "unit.py")]) == 0, capsys.readouterr().out


def test_a_plugin_of_a_network_is_checked_with_images_and_one_of_other_examples_asks_for_a_config(capsys):
    assert check_gradients(["--plugin", str(EXAMPLES / "small_network.py")]) == 0, capsys.readouterr().out
    assert check_gradients(["--plugin", str(EXAMPLES / "time_series.py")]) == 1
    assert (
        "It was given images of 1 x 28 x 28: if it takes other examples, give a config that has them, by "
        "--name_of_args_json_file" in capsys.readouterr().err
    )


def test_a_plugin_of_datasets_has_no_gradient_to_check(capsys):
    assert check_gradients(["--plugin", str(EXAMPLES / "table.py")]) == 1
    assert "the --plugin registers no more than datasets, which have no gradient" in capsys.readouterr().err
