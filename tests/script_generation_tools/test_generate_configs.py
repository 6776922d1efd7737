"""Templates and values become configs: what is generated, how names come about, and what is refused."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from script_generation_tools.generate_configs import expand_templates, generate_configs, substitute
from tests.tools.gate import few_of
from utils.config import load_config
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT
from utils.prepare_dataset.catalogue import command_for

TEMPLATES = REPOSITORY_ROOT / "experiment_template_config"
CONFIGS = REPOSITORY_ROOT / "experiment_config"
SHIPPED_TEMPLATES = (
    "mini_imagenet_maml",
    "mini_imagenet_maml++",
    "mini_imagenet_maml_2017",
    "omniglot_maml",
    "omniglot_maml++",
    "omniglot_maml_2017",
    "omniglot_maml_ablation",
    "quickstart",
    "sinusoid_maml",
    "sinusoid_maml++",
    "synthetic_strokes_maml",
    "synthetic_strokes_maml++",
    "tiered_imagenet_maml",
    "tiered_imagenet_maml++",
    "cifar_fs_maml",
    "cifar_fs_maml++",
    "fc100_maml",
    "fc100_maml++",
    "cub_maml",
    "cub_maml++",
    "quickdraw_maml",
    "quickdraw_maml++",
)


def promised_names() -> set[str]:
    """Names of the configs that come with the code; beside them the folders may hold anything of the user's own."""
    names = {
        f"{method}_{ways}way_{shots}shot_seed{seed}"
        for dataset, all_ways in (("omniglot", (5, 20)), ("mini_imagenet", (5,)))
        for method in (f"{dataset}_maml", f"{dataset}_maml++")
        for ways in all_ways
        for shots in (1, 5)
        for seed in (0, 1, 2)
    }
    names |= {f"mini_imagenet_maml++_5way_1shot_{steps}_seed0" for steps in ("1step", "2steps", "3steps", "4steps")}
    parts = (
        "multi_step_loss",
        "learned_inner_rates",
        "per_step_batch_norm",
        "cosine_annealing",
        "derivative_order_annealing",
    )
    names |= {f"omniglot_maml_{part}_20way_1shot_seed0" for part in parts}
    names |= {f"{dataset}_maml_2017_5way_1shot_seed0" for dataset in ("omniglot", "mini_imagenet")}
    names |= {f"synthetic_strokes_{method}_5way_{shots}shot_seed0" for method in ("maml", "maml++") for shots in (1, 5)}
    names |= {
        f"{dataset}_{method}_5way_{shots}shot_seed0"
        for dataset in ("tiered_imagenet", "cifar_fs", "fc100", "cub")
        for method in ("maml", "maml++")
        for shots in (1, 5)
    }
    names |= {
        f"quickdraw_{method}_{ways}way_{shots}shot_{samples}samples_seed0"
        for method in ("maml", "maml++")
        for ways in (5, 10)
        for shots in (1, 5, 10)
        for samples in (20, 100)
    }
    names |= {f"sinusoid_{method}_10shot_seed0" for method in ("maml", "maml++")}
    return names | {"quickstart"}


@pytest.fixture
def shipped(tmp_path):
    """A folder with the templates that come with the code, and values.toml, without templates of the user's own."""
    templates = tmp_path / "shipped"
    templates.mkdir()
    for name in SHIPPED_TEMPLATES:
        shutil.copy(TEMPLATES / f"{name}.json", templates)
    shutil.copy(TEMPLATES / "values.toml", templates)
    return templates


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


def test_regenerating_the_committed_configs_changes_nothing(shipped, tmp_path):
    copy = tmp_path / "experiment_config"
    copy.mkdir()
    for name in promised_names():
        shutil.copy(CONFIGS / f"{name}.json", copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    outcome = generate_configs(shipped, copy)
    assert (outcome.written, outcome.kept, outcome.outdated) == ([], [], [])
    assert {note for note in outcome.notes if "there is no template" not in note} == set()
    assert {path.name: path.read_bytes() for path in copy.glob("[!.]*")} == before
    manifest = json.loads((CONFIGS / ".generated.json").read_text())
    assert json.loads((copy / ".generated.json").read_text()).items() <= manifest.items()


def test_the_twelve_published_runs_on_quickdraw_are_there_with_their_values():
    """Values of the runs that were published with the QuickDraw meta-dataset: as many query as support images."""
    for ways, shots, samples in itertools.product((5, 10), (1, 5, 10), (20, 100)):
        config = load_config(CONFIGS / f"quickdraw_maml_{ways}way_{shots}shot_{samples}samples_seed0.json")
        assert (config.num_classes_per_set, config.num_samples_per_class, config.num_target_samples) == (
            ways,
            shots,
            shots,
        )
        tasks, inner_rate, meta_rate, test_tasks = {20: (10, 0.005, 0.0005, 1000), 100: (25, 0.01, 0.001, 2500)}[
            samples
        ]
        assert (config.batch_size, config.init_inner_loop_learning_rate, config.meta_learning_rate) == (
            tasks,
            inner_rate,
            meta_rate,
        )
        assert (config.total_epochs, config.total_iter_per_epoch, config.num_evaluation_tasks) == (50, 100, test_tasks)
        assert (config.cnn_num_filters, config.number_of_training_steps_per_iter, config.second_order) == (20, 5, True)
        assert config.dataset_name == f"quickdraw_{samples}_samples_seed123"
        assert shots + config.num_target_samples <= samples


def test_every_dataset_of_a_committed_config_has_a_command_that_prepares_it():
    for name in promised_names():
        config = load_config(CONFIGS / f"{name}.json")
        command = command_for(config.dataset_name)
        assert "folder --from" not in command or config.dataset_name in ("synthetic_strokes", "sinusoid"), command


@pytest.mark.parametrize(
    ("dataset", "side", "normalisation"),
    [
        ("tiered_imagenet", 84, "tiered_imagenet"),
        ("cifar_fs", 32, "cifar100"),
        ("fc100", 32, "cifar100"),
        ("cub", 84, "imagenet"),
    ],
)
def test_maml_and_maml_plus_plus_differ_in_the_parts_of_the_latter_alone(dataset, side, normalisation):
    for shots in (1, 5):
        plain, plus = (
            load_config(CONFIGS / f"{dataset}_{m}_5way_{shots}shot_seed0.json").to_json_dict()
            for m in ("maml", "maml++")
        )
        assert {key for key in plain if plain[key] != plus[key]} == {
            "experiment_name", "per_step_bn_statistics", "learnable_per_layer_per_step_inner_loop_learning_rate",
            "use_multi_step_loss_optimization", "min_learning_rate",
        }  # fmt: skip
        assert (plain["image_height"], plain["image_width"], plain["normalisation"]) == (side, side, normalisation)


def test_every_committed_config_is_valid_and_runs_in_its_own_folder():
    configs = [load_config(CONFIGS / f"{name}.json") for name in promised_names()]
    assert all(config.notes == tuple(note for note in config.notes if "no effect" not in note) for config in configs)
    assert len({config.experiment_name for config in configs}) == len(configs)


def test_the_promised_settings_are_there():
    configs = read(CONFIGS)
    assert promised_names() <= {Path(name).stem for name in configs}
    assert all(configs[f"{name}.json"]["experiment_name"] == name for name in promised_names())


def test_each_ablation_changes_one_part_of_maml():
    configs = {name: config for name, config in read(CONFIGS).items() if Path(name).stem in promised_names()}
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
    assert outcome.notes == [
        "values.toml: small.json does not use $num_filters$: its values have no effect; take them out of "
        '["small"], or write the variable into the template'
    ]
    assert outcome.written == ["small_32.json"]


def user_configs(templates: Path) -> tuple[dict[str, dict], list[str]]:
    """What the template users_own.json makes, and the notes on it."""
    texts, notes = expand_templates(templates)
    configs = {name: json.loads(text) for name, text in texts.items() if name.startswith("users_own")}
    return configs, [note for note in notes if "users_own" in note]


def readme_sections() -> list[str]:
    """The TOML examples of the templates' README, for a template users_own.json."""
    examples = re.findall(r"```toml\n(.*?)```", (TEMPLATES / "README.md").read_text(), flags=re.DOTALL)
    return ["\n" + re.sub(r"^   ", "", text, flags=re.MULTILINE).replace("my_photos", "users_own") for text in examples]


def add_values(templates: Path, text: str) -> None:
    with open(templates / "values.toml", "a") as file:
        file.write(text)


def test_a_copied_template_works_with_the_default_values_and_names_them(shipped):
    shutil.copy(shipped / "mini_imagenet_maml++.json", shipped / "users_own.json")
    configs, notes = user_configs(shipped)
    assert list(configs) == ["users_own_5way_1shot_seed0"]
    assert len(notes) == 1
    assert notes[0].startswith("users_own.json has no section in values.toml: [defaults] used: batch_size = 8, ")
    assert "init_inner_loop_learning_rate = 0.1, " in notes[0]
    # The lines that it ends with do what they promise, and then there is nothing left to say.
    lines = notes[0].splitlines()[-2:]
    assert lines == ['  ["users_own"]', '  like = "mini_imagenet_maml++"']
    add_values(shipped, "\n" + "\n".join(lines) + "\n")
    assert user_configs(shipped)[1] == []


OF_ALL_KINDS = ("mini_imagenet_maml++", "omniglot_maml_ablation", "quickstart", "sinusoid_maml", "quickdraw_maml")


@pytest.mark.parametrize("template", few_of(SHIPPED_TEMPLATES, *OF_ALL_KINDS))
def test_a_copy_like_its_template_gets_the_same_values(shipped, template):
    text = (shipped / f"{template}.json").read_text()
    text = text.replace('"experiment_name": "omniglot_maml_$part$', '"experiment_name": "users_own_$part$')
    (shipped / "users_own.json").write_text(text)
    add_values(shipped, f'\n["users_own"]\nlike = "{template}"\n')
    texts, notes = expand_templates(shipped)
    assert not [note for note in notes if "users_own" in note]
    configs = {name: json.loads(text) for name, text in texts.items() if name.startswith("users_own")}
    prefix = template.removesuffix("_ablation")
    assert configs == {
        name: json.loads(texts[name.replace("users_own", prefix)]) | {"experiment_name": name} for name in configs
    }
    assert len(configs) == len([name for name in promised_names() if re.fullmatch(names_of(template), name)])


def names_of(template: str) -> str:
    """A pattern of the names of the configs of a template."""
    if template == "quickstart":
        return "quickstart"
    part = r"_(?!2017)[a-z_]+" if template.endswith("_ablation") else ""
    return re.escape(template.removesuffix("_ablation")) + part + r"_\d+(way|shot)_.*"


def test_own_values_stand_over_inherited_ones_and_their_settings(folders):
    templates, configs = folders
    shutil.copy(templates / "small.json", templates / "tiny.json")
    write_values(
        templates,
        small='experiment_name = "$template$_$num_filters$_$train_seed$"\ntrain_seed = 7\n'
        "settings = [{num_filters = 8}, {num_filters = 9, train_seed = 1}]",
        tiny='like = "small"\ntrain_seed = [3, 4]',
    )
    generate_configs(templates, configs)
    assert sorted(read(configs)) == [
        "small_8_7.json", "small_9_1.json", "tiny_8_3.json", "tiny_8_4.json", "tiny_9_3.json", "tiny_9_4.json",
    ]  # fmt: skip


def test_the_examples_of_the_readme_work_as_printed(shipped):
    text = (shipped / "mini_imagenet_maml++.json").read_text()
    values = (shipped / "values.toml").read_text()
    short, long = readme_sections()
    (shipped / "users_own.json").write_text(text)
    add_values(shipped, short)
    configs, notes = user_configs(shipped)
    assert notes == []
    expected = {name for name in promised_names() if name.startswith("mini_imagenet_maml++")}
    assert set(configs) == {name.replace("mini_imagenet_maml++", "users_own") for name in expected}

    (shipped / "users_own.json").write_text(text.replace('_value": 0.0', '_value": $dropout$'))
    (shipped / "values.toml").write_text(values + long)
    configs, notes = user_configs(shipped)
    assert notes == []
    assert set(configs) == {
        f"users_own_{n}way_{k}shot_dropout{dropout}_seed{seed}"
        for n in (5, 10) for k in (1, 5) for dropout in ("0.0", "0.1") for seed in (0, 1, 2)
    }  # fmt: skip
    config = configs["users_own_10way_5shot_dropout0.1_seed2"]
    assert (config["dropout_rate_value"], config["batch_size"]) == (0.1, 2)
    assert config["init_inner_loop_learning_rate"] == 0.01


def test_the_lines_of_the_page_about_own_images_make_one_config_for_each_seed(shipped):
    """Of the ten that the template makes, which docs/own_data.md and the README of the templates say."""
    page = (REPOSITORY_ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    (shipped / "my_birds.json").write_text((shipped / "mini_imagenet_maml++.json").read_text())
    add_values(shipped, "\n" + re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL)[1])
    for old, new in re.findall(r"sed -i 's/([^/]+)/([^/]+)/'", page):
        text = (shipped / "my_birds.json").read_text()
        assert old in text
        (shipped / "my_birds.json").write_text(text.replace(old, new))
    names = expand_templates(shipped)[0]
    assert len([name for name in names if name.startswith("mini_imagenet_maml++_")]) == 10
    assert [name for name in names if name.startswith("my_birds")] == [
        f"my_birds_5way_1shot_seed{seed}" for seed in (0, 1, 2)
    ]
    config = json.loads(expand_templates(shipped)[0]["my_birds_5way_1shot_seed0"])
    expected = {"sets_are_pre_split": False, "normalisation": "imagenet", "dataset_name": "my_birds"}
    assert expected.items() <= config.items()
    # 15 plain class folders of 8 images will do, as the page says.
    assert 3 * config["num_classes_per_set"] == 15
    assert config["num_samples_per_class"] + config["num_target_samples"] == 8
    line = re.search(r"`(settings = [^`]*)`", (TEMPLATES / "README.md").read_text(encoding="utf-8"))[1]
    assert line in page


@pytest.mark.parametrize("keep_settings", [True, False])
def test_a_name_that_lacks_a_variable_is_one_message_with_the_line_to_paste(shipped, keep_settings):
    text = (shipped / "mini_imagenet_maml++.json").read_text()
    (shipped / "users_own.json").write_text(text.replace('_value": 0.0', '_value": $dropout$'))
    long = re.sub(r"(?m)^experiment_name.*\n", "", readme_sections()[1])
    if not keep_settings:
        long = re.sub(r"settings = \[.*?^\]", "", long, flags=re.DOTALL | re.MULTILINE)
    add_values(shipped, long)
    with pytest.raises(ConfigError) as error:
        expand_templates(shipped)
    message = str(error.value)
    assert message.count("two configs end in the name") == 1
    assert "They differ in $dropout$ (0.0 and 0.1)" in message
    line = message.splitlines()[-1]
    assert tomllib.loads(line)["experiment_name"].count("$dropout$") == 1
    add_values(shipped, line + "\n")
    assert len(user_configs(shipped)[0]) == (24 if keep_settings else 72)


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


def test_the_lines_around_a_forgotten_comma_are_shown(folders):
    (folders[0] / "small.json").write_text('{\n "experiment_name": "$experiment_name$"\n "seed": 1\n}\n')
    assert refusal(folders) == (
        "small.json: not valid JSON once its variables are filled in (Expecting ',' delimiter, line 3)\n"
        '  line 2:  "experiment_name": "$experiment_name$"\n'
        '  line 3:  "seed": 1'
    )


def test_like_that_leads_nowhere_is_refused(folders):
    write_values(folders[0], small='like = "smal"')
    assert refusal(folders) == (
        'values.toml: like = "smal" under ["small"] names no section of this file; did you mean "small"?'
    )
    write_values(folders[0], small='like = "tiny"', tiny='like = "small"')
    assert "leads back to itself" in refusal(folders)


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


def test_a_space_in_a_templates_own_name_is_told_as_such(folders):
    (folders[0] / "small.json").rename(folders[0] / "my small.json")
    write_values(folders[0], **{"my small": 'num_filters = 8\ntrain_seed = 0\nexperiment_name = "$template$_a"'})
    assert refusal(folders) == (
        'my small.json: "my small_a", made from the template\'s own file name, which is to be changed, cannot be a '
        "file name here; use letters, digits and _ + = , . ( ) -"
    )


def test_hidden_files_among_the_templates_are_left_out(folders):
    """Those of an editor, of macOS, of an archive, whatever is in them."""
    for name in ("._small.json", ".#small.json", ".json"):
        (folders[0] / name).write_bytes(b"\0\5\26\7\260")
    assert generate_configs(*folders).written == ["small_16.json", "small_8.json"]


def test_a_foreign_file_among_the_templates_is_one_line_with_its_name(folders):
    (folders[0] / "folder.json").mkdir()
    (folders[0] / "latin.json").write_bytes('{"experiment_name": "café"}'.encode("latin-1"))
    lines = refusal(folders).splitlines()
    assert len(lines) == 2 and "folder.json: " in lines[0] and "latin.json: " in lines[1]


def test_an_unknown_word_in_a_name_is_refused(folders):
    write_values(folders[0], small='num_filters = 8\ntrain_seed = 0\nexperiment_name = "small_$colour$"')
    assert "$colour$ in the experiment_name" in refusal(folders)


def test_broken_values_are_refused(folders):
    (folders[0] / "values.toml").write_text("[small\n")
    assert "values.toml: not valid TOML (" in refusal(folders)
    write_values(folders[0], small='settings = "x"')
    assert 'values.toml: "small" must be a section' in refusal(folders)
    write_values(folders[0], small="train_seed = 2026-01-01")
    assert "values.toml: a date or time, which nothing here has; write it in quotes" in refusal(folders)


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
    folders = ("experiment_template_config", "script_generation_tools", "experiment_config", "utils", "meta_learning")
    for folder in folders:
        shutil.copytree(REPOSITORY_ROOT / folder, tmp_path / "check out" / folder)
    tools = tmp_path / "check out" / "script_generation_tools"
    (tools.parent / "experiment_template_config" / "quickstart.json").unlink()
    result = subprocess.run(
        [sys.executable, "generate_configs.py", "--prune"], cwd=tools, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(
        "removed experiment_config/quickstart.json\ntheir scripts stay until: "
        "python script_generation_tools/generate_scripts.py --prune\n"
    )
    (tools.parent / "experiment_template_config" / "values.toml").unlink()
    result = subprocess.run(
        [sys.executable, "generate_configs.py"], cwd=tools, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "values.toml: cannot be read (No such file or directory)" in result.stderr
    assert "Traceback" not in result.stderr
