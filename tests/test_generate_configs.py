"""Templates and values become configs: what is generated, how names come about, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from script_generation_tools.generate_configs import expand_templates, generate_configs, substitute
from utils.config import REPOSITORY_ROOT, load_config
from utils.errors import ConfigError

TEMPLATES = REPOSITORY_ROOT / "experiment_template_config"
CONFIGS = REPOSITORY_ROOT / "experiment_config"


@pytest.fixture
def folders(tmp_path):
    """A template folder with one small template, and the place of its configs."""
    templates = tmp_path / "experiment_template_config"
    templates.mkdir()
    (templates / "small.json").write_text(
        '{"experiment_name": "$experiment_name$", "train_seed": $train_seed$, "cnn_num_filters": $num_filters$}'
    )
    write_values(templates, small='num_filters = [8, 16]\ntrain_seed = 0\nexperiment_name = "small_$cnn_num_filters$"')
    return templates, tmp_path / "experiment_config"


def write_values(templates: Path, **sections: str) -> None:
    (templates / "values.toml").write_text("".join(f'["{name}"]\n{text}\n' for name, text in sections.items()))


def read(folder: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("[!.]*.json")}


def refusal(folders) -> str:
    """The message with which generating is refused; nothing may have been written."""
    with pytest.raises(ConfigError) as error:
        generate_configs(*folders)
    assert not folders[1].exists()
    return str(error.value)


# What this checkout holds


def test_regenerating_the_committed_configs_changes_nothing(tmp_path):
    copy = shutil.copytree(CONFIGS, tmp_path / "experiment_config")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    outcome = generate_configs(TEMPLATES, copy)
    assert (outcome.written, outcome.kept, outcome.outdated, outcome.notes) == ([], [], [], [])
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_every_committed_config_is_valid_and_runs_in_its_own_folder():
    configs = [load_config(path) for path in CONFIGS.glob("[!.]*.json")]
    assert all(config.notes == tuple(note for note in config.notes if "no effect" not in note) for config in configs)
    assert len({config.experiment_name for config in configs}) == len(configs)


def test_the_promised_settings_are_there():
    expected = {
        f"{method}_{ways}way_{shots}shot_seed{seed}"
        for dataset, all_ways in (("omniglot", (5, 20)), ("mini_imagenet", (5,)))
        for method in (f"{dataset}_maml", f"{dataset}_maml++")
        for ways in all_ways
        for shots in (1, 5)
        for seed in (0, 1, 2)
    }
    expected |= {f"mini_imagenet_maml++_5way_1shot_{steps}_seed0" for steps in ("1step", "2steps", "3steps", "4steps")}
    parts = (
        "multi_step_loss",
        "learned_inner_rates",
        "per_step_batch_norm",
        "cosine_annealing",
        "derivative_order_annealing",
    )
    expected |= {f"omniglot_maml_{part}_20way_1shot_seed0" for part in parts}
    expected |= {f"{dataset}_maml_2017_5way_1shot_seed0" for dataset in ("omniglot", "mini_imagenet")}
    expected |= {f"synthetic_strokes_{m}_5way_{k}shot_seed0" for m in ("maml", "maml++") for k in (1, 5)} | {
        "quickstart"
    }
    configs = read(CONFIGS)
    assert {Path(name).stem for name in configs} == expected
    assert all(config["experiment_name"] == Path(name).stem for name, config in configs.items())


def test_each_ablation_changes_one_part_of_maml():
    configs = read(CONFIGS)
    maml = configs["omniglot_maml_20way_1shot_seed0.json"]
    changed = {
        name.removeprefix("omniglot_maml_").removesuffix("_20way_1shot_seed0.json"): {
            key: value for key, value in config.items() if value != maml[key] and key != "experiment_name"
        }
        for name, config in configs.items()
        if name.startswith("omniglot_maml_") and name.endswith("_20way_1shot_seed0.json")
    }
    assert changed == {
        "20way_1shot_seed0.json": {},
        "multi_step_loss": {"use_multi_step_loss_optimization": True},
        "learned_inner_rates": {"learnable_per_layer_per_step_inner_loop_learning_rate": True},
        "per_step_batch_norm": {"per_step_bn_statistics": True},
        "cosine_annealing": {"min_learning_rate": 0.00001},
        "derivative_order_annealing": {"first_order_to_second_order_epoch": 49},
    }


# Filling in


def test_a_placeholder_is_a_json_value_alone_and_text_inside_a_string():
    template = '{"a": $flag$, "b": "x_$flag$_$word$", "c": $word$, "d": $list$, "e": "costs $5", "f": "\\"$word$\\""}'
    values = {"flag": True, "word": 'say "hi"', "list": [-3, -2]}
    assert json.loads(substitute(template, values)) == {
        "a": True,
        "b": 'x_true_say "hi"',
        "c": 'say "hi"',
        "d": [-3, -2],
        "e": "costs $5",
        "f": '"say "hi""',
    }


def test_each_value_makes_a_config_named_after_it(folders):
    outcome = generate_configs(*folders)
    assert outcome.written == ["small_16.json", "small_8.json"]
    assert {name: config["experiment_name"] for name, config in read(folders[1]).items()} == {
        "small_16.json": "small_16",
        "small_8.json": "small_8",
    }


def test_values_of_one_setting_go_together(folders):
    templates, configs = folders
    settings = "[{train_seed = 0, num_filters = 8}, {train_seed = [1, 2], num_filters = 9}]"
    write_values(templates, small=f'experiment_name = "s_$train_seed$_$num_filters$"\nsettings = {settings}')
    generate_configs(templates, configs)
    assert sorted(read(configs)) == ["s_0_8.json", "s_1_9.json", "s_2_9.json"]


def test_a_new_variable_needs_values_but_no_code(folders):
    templates, configs = folders
    text = (templates / "small.json").read_text()
    (templates / "small.json").write_text(text.replace("{", '{"dropout_rate_value": $drop$, ', 1))
    with pytest.raises(ConfigError, match=r'small\.json: variable \$drop\$ has no values.*\["small"\].*values\.toml'):
        generate_configs(templates, configs)
    write_values(templates, small='num_filters = 8\ntrain_seed = 0\ndrop = [0.0, 0.5]\nexperiment_name = "drop_$drop$"')
    generate_configs(templates, configs)
    assert sorted(read(configs)) == ["drop_0.0.json", "drop_0.5.json"]


def test_a_variable_replaced_by_a_constant_is_one_note_and_the_grid_shrinks(folders):
    templates, configs = folders
    (templates / "small.json").write_text((templates / "small.json").read_text().replace("$num_filters$", "32"))
    outcome = generate_configs(templates, configs)
    assert outcome.notes == ["values.toml: small.json does not use $num_filters$: their values have no effect"]
    assert outcome.written == ["small_32.json"]


def test_a_copied_template_works_with_the_default_values(tmp_path):
    templates = shutil.copytree(TEMPLATES, tmp_path / "templates")
    shutil.copy(templates / "omniglot_maml++.json", templates / "my_photos.json")
    texts, notes = expand_templates(templates)
    assert [name for name in texts if name.startswith("my_photos")] == ["my_photos_5way_1shot_seed0"]
    assert notes == []


def test_a_name_written_into_the_template_may_hold_several_variables(folders):
    templates, configs = folders
    text = (templates / "small.json").read_text()
    (templates / "small.json").write_text(
        text.replace("$experiment_name$", "mine_$num_filters$_filters_seed_$train_seed$")
    )
    generate_configs(templates, configs)
    assert {name: config["experiment_name"] for name, config in read(configs).items()} == {
        "small_8.json": "mine_8_filters_seed_0",
        "small_16.json": "mine_16_filters_seed_0",
    }


# Refusals


def test_a_template_that_fails_the_schema_is_refused_with_its_name_and_key(folders):
    templates, _ = folders
    text = (templates / "small.json").read_text()
    (templates / "small.json").write_text(text.replace("cnn_num_filters", "cnn_num_filter"))
    assert refusal(folders) == 'small.json: unknown key "cnn_num_filter"; did you mean "cnn_num_filters"?'


def test_text_that_is_no_json_is_refused(folders):
    (folders[0] / "small.json").write_text('{"experiment_name": "$experiment_name$",}')
    assert refusal(folders).startswith("small.json: not valid JSON once its variables are filled in (")


def test_a_key_given_twice_is_refused(folders):
    (folders[0] / "small.json").write_text('{"experiment_name": "$experiment_name$", "seed": 1, "seed": 2}')
    assert refusal(folders) == 'small.json: key "seed" is given 2 times'


def test_two_configs_with_one_file_name_are_refused(folders):
    write_values(folders[0], small='num_filters = [8, 16]\ntrain_seed = 0\nexperiment_name = "all"')
    message = refusal(folders)
    assert message.startswith(
        'small.json: two configs end in the name "all". They differ in $num_filters$ (8 and 16): put that'
    )


def test_two_configs_with_one_experiment_name_are_refused(folders):
    text = (folders[0] / "small.json").read_text()
    (folders[0] / "small.json").write_text(text.replace("$experiment_name$", "constant"))
    message = refusal(folders)
    assert 'two configs end in the name "constant"' in message
    assert "$num_filters$ (8 and 16): put that into the template's experiment_name" in message


def test_two_templates_with_one_name_are_refused(folders):
    shutil.copy(folders[0] / "small.json", folders[0] / "tiny.json")
    values = 'num_filters = 8\ntrain_seed = 0\nexperiment_name = "same"'
    write_values(folders[0], small=values, tiny=values)
    assert refusal(folders) == (
        'tiny.json and small.json: two configs end in the name "same". Give one of them another experiment_name'
    )


def test_a_name_that_is_no_file_name_is_refused(folders):
    write_values(folders[0], small='num_filters = 8\ntrain_seed = 0\nexperiment_name = "../small"')
    assert 'small.json: "../small", made from the experiment_name in values.toml, cannot be a file name' in refusal(
        folders
    )


def test_an_unknown_word_in_a_name_is_refused(folders):
    write_values(folders[0], small='num_filters = 8\ntrain_seed = 0\nexperiment_name = "small_$colour$"')
    assert "$colour$ in the experiment_name" in refusal(folders)


def test_broken_values_are_refused(folders):
    (folders[0] / "values.toml").write_text("[small\n")
    assert "values.toml: not valid TOML (" in refusal(folders)
    write_values(folders[0], small='settings = "x"')
    assert 'values.toml: "small" must be a section' in refusal(folders)


def test_values_without_a_template_are_a_note(folders):
    with open(folders[0] / "values.toml", "a") as file:
        file.write("[gone]\nbatch_size = 1\n")
    assert generate_configs(*folders).notes == [
        'values.toml: there is no template gone.json for the values in ["gone"]'
    ]


# Files of people in the same folder


def test_a_hand_written_config_is_left_alone(folders):
    templates, configs = folders
    generate_configs(templates, configs)
    (configs / "mine.json").write_text('{"experiment_name": "mine"}')
    outcome = generate_configs(templates, configs, prune=True)
    assert (configs / "mine.json").read_text() == '{"experiment_name": "mine"}'
    assert (outcome.kept, outcome.outdated, outcome.removed) == ([], [], [])


def test_a_generated_config_edited_by_hand_is_kept_and_named(folders):
    templates, configs = folders
    generate_configs(templates, configs)
    (configs / "small_8.json").write_text('{"experiment_name": "edited"}')
    outcome = generate_configs(templates, configs, prune=True)
    assert outcome.kept == ["small_8.json"]
    assert "experiment_config/small_8.json: written or edited by hand, so it stays as it is. To have it generated" in (
        outcome.report(configs)
    )
    assert (configs / "small_8.json").read_text() == '{"experiment_name": "edited"}'


def test_a_changed_template_rewrites_its_configs(folders):
    templates, configs = folders
    generate_configs(templates, configs)
    text = (templates / "small.json").read_text()
    (templates / "small.json").write_text(text.replace("{", '{"total_epochs": 3, ', 1))
    assert generate_configs(templates, configs).written == ["small_16.json", "small_8.json"]
    assert all(config["total_epochs"] == 3 for config in read(configs).values())


def test_outdated_configs_are_listed_and_pruned_unless_edited(folders):
    templates, configs = folders
    generate_configs(templates, configs)
    write_values(templates, small='num_filters = 4\ntrain_seed = 0\nexperiment_name = "small_4"')
    (configs / "small_8.json").write_text("{}")
    outcome = generate_configs(templates, configs)
    assert outcome.outdated == ["small_16.json"]
    assert "outdated, nothing generates them any more (--prune removes them):\n  experiment_config/small_16.json" in (
        outcome.report(configs)
    )
    assert generate_configs(templates, configs, prune=True).removed == ["small_16.json"]
    assert sorted(read(configs)) == ["small_4.json", "small_8.json"]


def test_two_configs_sharing_a_run_folder_are_a_note(folders):
    templates, configs = folders
    generate_configs(templates, configs)
    shutil.copy(configs / "small_8.json", configs / "copy.json")
    assert any(
        'its experiment_name "small_8" is also that of copy.json' in note for note in generate_configs(*folders).notes
    )


# The command


def test_the_command_works_from_its_folder_and_with_prune(tmp_path):
    for folder in ("experiment_template_config", "script_generation_tools", "experiment_config", "utils"):
        shutil.copytree(REPOSITORY_ROOT / folder, tmp_path / "check out" / folder)
    tools = tmp_path / "check out" / "script_generation_tools"
    (tools.parent / "experiment_template_config" / "quickstart.json").unlink()
    result = subprocess.run(
        [sys.executable, "generate_configs.py", "--prune"], cwd=tools, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "removed experiment_config/quickstart.json" in result.stdout
    (tools.parent / "experiment_template_config" / "values.toml").unlink()
    result = subprocess.run(
        [sys.executable, "generate_configs.py"], cwd=tools, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "values.toml: cannot be read (No such file or directory)" in result.stderr
    assert "Traceback" not in result.stderr
