"""Weights that come with the project: file, card and index are one thing, which nobody changes unnoticed."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from data import build_data
from experiment_parts.runs.checkpoints import checkpoint_bytes, load_checkpoint, read_checkpoint_state
from experiment_tools.export.__main__ import main as export
from experiment_tools.verify_pretrained import main
from few_shot_classifier import FewShotClassifier
from tests.conftest import draw_dataset
from tests.tools.runs import PLUS_PLUS, run_tiny
from utils.errors import ConfigError, StorageError
from utils.files import pretrained
from utils.paths import REPOSITORY_ROOT, dataset_root

PUBLISHED = sorted(pretrained.pretrained_index())
SUPPORT = np.random.default_rng(0).integers(0, 256, (3, 10, 10), dtype=np.uint8)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what is published ------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_index_names_and_is_small():
    folder = REPOSITORY_ROOT / "pretrained"
    expected = {"README.md", "index.json", *(f"{name}.{end}" for name in PUBLISHED for end in ("safetensors", "md"))}
    assert "omniglot_5way_1shot" in PUBLISHED and {path.name for path in folder.iterdir()} == expected
    sizes = [(folder / f"{name}.safetensors").stat().st_size for name in PUBLISHED]
    assert max(sizes) < pretrained.MOST_BYTES and sum(sizes) < pretrained.MOST_BYTES_TOGETHER


def test_the_page_lists_every_card_with_its_accuracies():
    folder, expected = REPOSITORY_ROOT / "pretrained", []
    for name in PUBLISHED:
        cells = re.findall(r"-way \d+-shot \| .* \| ([\d.]+) % \+- ([\d.]+) \|", (folder / f"{name}.md").read_text())
        of_card = [f"{accuracy} ± {half_width}" for accuracy, half_width in cells]
        expected += [(name, *of_card[place : place + 2]) for place in range(0, len(of_card), 2)]
    rows = re.findall(r"\| \[`(\S+)`\]\(\1.md\) \| .* \| (.*) \| (.*) \|", (folder / "README.md").read_text())
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_file_card_and_index_have_one_digest_and_the_file_holds_weights_alone(name):
    path = pretrained.pretrained_file(name)
    card = path.with_suffix(".md").read_text()
    assert sha256(path) == pretrained.pretrained_index()[name] and f"sha256 `{sha256(path)}`" in card
    tensors, state = load_checkpoint(path)
    assert {tensor.partition(".")[0] for tensor in tensors} <= {"network", "inner_loop"}
    assert not re.search(r"/(home|root|tmp|work|Users|mnt)\b", json.dumps(state) + card), "a path of somebody's machine"
    for result in state["test"]["results"]:
        protocol, model = result["protocol"], result["models"][0]
        shares = np.array(result["hits"]) / (protocol["ways"] * protocol["queries"])
        assert len(shares) == protocol["tasks"] == 600 and shares.mean() == pytest.approx(model["test_accuracy_mean"])
        assert f"| {protocol['statistics']} | {100 * shares.mean():.2f} % +- " in card
        assert result["task_list_digest"] in card
    for words in ("licence", "MIT", "iterations of", "hours", "bash experiment_scripts/"):
        assert words in card


@pytest.fixture(scope="module")
def omniglot(shared_data, tmp_path_factory):
    """DATASET_DIR with the real archive."""
    archive, root = shared_data("omniglot_dataset.tar.bz2"), tmp_path_factory.mktemp("datasets")
    (root / archive.name).symlink_to(archive)
    return root


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("n_tasks", [20, pytest.param(600, marks=pytest.mark.full)])
def test_published_weights_have_the_accuracy_of_their_card(name, n_tasks, omniglot, monkeypatch, capsys):
    monkeypatch.setenv("DATASET_DIR", str(omniglot))
    assert main([name, "--tasks", str(n_tasks)]) == 0, capsys.readouterr().err
    assert f"{name}: bytes and card are in order, accuracy on {n_tasks} tasks as published: " in capsys.readouterr().out


# --- how it is published ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny run on a dataset of its own, whose best epoch is published as `small`."""
    root = tmp_path_factory.mktemp("pretrained")
    folders = [f"{split}/c{rank}" for split in ("train", "val", "test") for rank in range(4)]
    draw_dataset(root / "datasets" / "tiny", folders, side=10)
    (root / "pretrained").mkdir()
    (root / "pretrained" / "index.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASET_DIR", str(root / "datasets"))
        patch.setenv("EXPERIMENTS_DIR", str(root / "runs"))
        patch.setattr(pretrained, "FOLDER", root / "pretrained")
        changes = {"dataset_name": "tiny", "dataset_path": "tiny", "sets_are_pre_split": True, "total_epochs": 3}
        run_tiny(root / "runs", data=lambda config: build_data(config, "cpu"), **PLUS_PLUS, **changes)
        assert main(["--add", "tiny", "--name", "small", "--tasks", "7"]) == 0
    return root


@pytest.fixture
def published(world, tmp_path, monkeypatch):
    """The folder of the weights, a copy to be damaged."""
    monkeypatch.setenv("DATASET_DIR", str(world / "datasets"))
    monkeypatch.setenv("EXPERIMENTS_DIR", str(world / "runs"))
    folder = shutil.copytree(world / "pretrained", tmp_path / "pretrained")
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def replaced(folder, change):
    """Publish other contents under the same name, as somebody would who can write the index, too."""
    tensors, state = load_checkpoint(folder / "small.safetensors")
    change(tensors, state)
    data = checkpoint_bytes(tensors, state)
    (folder / "small.safetensors").write_bytes(data)
    (folder / "index.json").write_text(json.dumps({"small": hashlib.sha256(data).hexdigest()}))


def test_they_are_the_run_they_were_made_of_to_the_bit(published):
    ours, of_run = FewShotClassifier.from_pretrained("small"), FewShotClassifier.from_experiment("tiny")
    assert ours.initialisation_.keys() == of_run.initialisation_.keys() and ours.meta_config_ == of_run.meta_config_
    assert all(torch.equal(ours.initialisation_[name], value) for name, value in of_run.initialisation_.items())
    answers = [one.fit(SUPPORT, ["a", "b", "c"]).predict_proba(SUPPORT[::-1]) for one in (ours, of_run)]
    np.testing.assert_array_equal(*answers)
    with safe_open(published / "small.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith(("optimizer", "rng"))]  # noqa: SIM118


def test_the_card_has_the_config_that_the_run_was_started_with_and_else_the_nearest(published, world, tmp_path):
    run = shutil.copytree(world / "runs" / "tiny", tmp_path / "copy")
    commands = []
    for place, config in enumerate(("experiment_config/quickstart.json", "experiment_config/of_my_own.json")):
        (run / "environment.json").write_text(json.dumps({"starts": [{"config": config, "data": {}}]}))
        assert main(["--add", str(run), "--name", f"copy{place}", "--tasks", "7"]) == 0
        commands.append(read_checkpoint_state(published / f"copy{place}.safetensors")["command"])
    assert commands[0].startswith("bash experiment_scripts/quickstart.sh --experiment_name tiny ")
    assert commands[1] == read_checkpoint_state(published / "small.safetensors")["command"] != commands[0]


def test_the_card_has_the_trainings_before_and_no_weights_are_looked_for(published, world, tmp_path, capsys):
    beginning = world / "runs" / "tiny" / "saved_models" / "train_model_3.safetensors"
    begun = shutil.copytree(world / "runs" / "tiny", tmp_path / "begun")
    for weights, names in ((str(beginning), ["tiny"]), ("small", ["tiny"]), ("copy0", ["tiny", "tiny"])):
        config = json.loads((begun / "config.json").read_text()) | {"initial_weights": weights}
        (begun / "config.json").write_text(json.dumps(config))
        name = f"copy{0 if '/' in weights else 1 if weights == 'small' else 2}"
        assert main(["--add", str(begun), "--name", name, "--tasks", "7"]) == 0, capsys.readouterr().err
        state, card = read_checkpoint_state(published / f"{name}.safetensors"), (published / f"{name}.md").read_text()
        assert [training["config"]["experiment_name"] for training in state["began_with"]] == names
        assert str(world) not in json.dumps(state) + card and state["config"]["initial_weights"] == ""
        assert card.count("bash experiment_scripts/") == len(names) + 1
        assert re.search(r"\| before that, tiny \| 3-way 1-shot, epoch \d \(validation accuracy .* hours on ", card)
    assert (
        "--initial_weights experiments/tiny/saved_models/train_model_3.safetensors"
        in (published / "copy0.md").read_text()
    )
    config["initial_weights"] = str(shutil.copy(beginning, tmp_path))
    (begun / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["--add", str(begun), "--name", "alone", "--tasks", "7"]) == 1
    assert "belongs on the card, but they are in no folder of a run; put that back there" in capsys.readouterr().err


def test_the_card_has_the_runs_own_test_as_far_as_it_goes(published, world, capsys):
    summary = json.loads((world / "runs" / "tiny" / "logs" / "test_summary.json").read_text())
    state = read_checkpoint_state(published / "small.safetensors")
    (of_run,) = [model for model in summary["models"] if model["epoch"] == state["epoch"]]
    transductive, inductive = state["test"]["results"]
    assert inductive["protocol"]["statistics"] == "support"
    n_tasks = summary["protocol"]["tasks"]
    shares = [hits / 6 for hits in transductive["hits"][:n_tasks]]
    assert n_tasks == 3 and np.mean(shares) == pytest.approx(of_run["test_accuracy_mean"])
    assert main(["--tasks", "3"]) == 0
    accuracy = f"{100 * np.mean(shares):.2f} % +- "
    out = capsys.readouterr().out
    assert f"accuracy on 3 tasks as published: {accuracy}" in out
    assert "(3-way 1-shot, transductive), " in out and "(3-way 1-shot, support)" in out


def test_a_changed_byte_anywhere_is_refused_before_anything_is_read(published, capsys):
    path = published / "small.safetensors"
    good = path.read_bytes()
    for place in (0, 9, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(StorageError, match="not the weights that were published, and not used: its sha256 is"):
            FewShotClassifier.from_pretrained("small")
    assert main(["small"]) == 4
    assert (
        f"git -C {REPOSITORY_ROOT} checkout -- {published.name}/small.safetensors restores" in capsys.readouterr().err
    )
    path.write_bytes(bytes(600_001))
    with pytest.raises(StorageError, match=r"small.safetensors: cannot be read \(larger than"):
        FewShotClassifier.from_pretrained("small")
    path.unlink()
    with pytest.raises(StorageError, match=r"small.safetensors: cannot be read \(No such file"):
        FewShotClassifier.from_pretrained("small")
    with pytest.raises(ConfigError, match=r'no pretrained weights "smal"; .*index.json has: small'):
        FewShotClassifier.from_pretrained("smal")
    with pytest.raises(ConfigError, match=r"weights are named by a text, such as 'small', not by \['small'\]"):
        FewShotClassifier.from_pretrained(["small"])
    (published / "index.json").write_text("[]")
    with pytest.raises(StorageError, match=r"index\.json: not a JSON object, but a list; git -C "):
        FewShotClassifier.from_pretrained("small")


def test_a_name_that_is_not_there_is_told_before_any_is_tested(published, monkeypatch, capsys):
    monkeypatch.setattr("experiment_tools.verify_pretrained.verify", lambda *_: pytest.fail("tested"))
    assert main(["small", "smal"]) == 1
    assert 'there are no pretrained weights "smal"' in capsys.readouterr().err


def test_a_card_that_says_something_else_is_refused(published, capsys):
    card = published / "small.md"
    text = card.read_text()
    card.write_text(re.sub(r"\d( % \+-)", r"x\1", text, count=1))
    assert main([]) == 2
    assert "small.md: does not say what small.safetensors holds; git -C " in capsys.readouterr().err
    card.unlink()
    assert main([]) == 2
    assert re.search(
        r"small.md: cannot be read \(No such file.*checkout -- \S+/small.md restores", capsys.readouterr().err
    )


def test_an_accuracy_or_tasks_that_are_not_found_again_are_refused(published, capsys, monkeypatch):
    def other_hits(tensors, state):
        state["test"]["results"][0]["hits"] = [0] * 7

    def other_tasks(tensors, state):
        state["test"]["results"][0]["task_list_digest"] = "0" * 64

    for change, message in (
        (other_hits, r"small.md: 0\.00 % \+- 0\.00 on 2 tasks with transductive statistics, but \d+\.\d+ % .* here"),
        (other_tasks, "small.md: its test tasks are not those of .*tiny, which has other classes or images"),
    ):
        replaced(published, change)
        monkeypatch.setattr("experiment_tools.verify_pretrained.card_text", lambda *_: "the card")
        (published / "small.md").write_text("the card")
        assert main(["--tasks", "2"]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_on_more_tasks_than_those_of_the_card_both_accuracies_are_told(published, capsys):
    assert main(["--tasks", "9"]) == 0
    out = capsys.readouterr().out
    [card, _] = re.findall(r"\d+\.\d\d % \+- \d+\.\d\d", (published / "small.md").read_text())
    assert f"accuracy on 7 tasks as published: {card} (" in out
    of_nine = FewShotClassifier.from_pretrained("small").accuracy(dataset_root() / "tiny", n_tasks=9)
    assert f"transductive; {100 * of_nine.mean:.2f} % +- {100 * of_nine.ci95:.2f} on 9 tasks)" in out


def test_without_the_dataset_it_says_that_nothing_was_tested(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "nowhere"))
    assert main([]) == 0
    assert f"NOT TESTED: tiny is not in DATASET_DIR, {tmp_path / 'nowhere'}" in capsys.readouterr().out
    assert main(["--tasks", "5"]) == 2
    assert "in order, but --tasks 5 cannot be tested: tiny is not in DATASET_DIR" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--add", "tiny", "--name", "small"], "small.safetensors: exists already and stays as it is; give another"),
        (["--add", "tiny", "--name", "../small"], "--name ../small: a name is 1 to 80 small letters"),
        (["--add", "nowhere"], "nowhere: no such run folder"),
        (["--tasks", "0"], "--tasks 0: give 1 or more"),
        (["--tasks", "9" * 20], '"num_evaluation_tasks" is 99999999999999999999'),
        (["--add", "tiny", "--name", "readme"], "readme.safetensors: exists already and stays as it is"),
        (["--add", "tiny", "small", "other"], "small other: --add tests what it adds alone; leave them out"),
        (["--name", "mine"], "--name mine: is for --add RUN"),
    ],
)
def test_what_cannot_be_published_or_tested_is_one_error(published, capsys, arguments, message):
    before = {path.name: sha256(path) for path in published.iterdir()}
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert {path.name: sha256(path) for path in published.iterdir()} == before


def test_a_card_of_somebody_stays_and_all_weights_together_have_a_limit(published, capsys, monkeypatch):
    (published / "mine.md").write_text("my notes")
    assert main(["--add", "tiny", "--name", "mine", "--tasks", "7"]) == 1
    assert "mine.md: exists already and stays as it is" in capsys.readouterr().err
    monkeypatch.setattr("utils.files.pretrained.MOST_BYTES_TOGETHER", 10_000)
    assert main(["--add", "tiny", "--name", "more", "--tasks", "7"]) == 1
    assert re.search(r"with these weights [\d,]+ bytes, but .* at most 10,000 are taken", capsys.readouterr().err)
    assert (published / "mine.md").read_text() == "my notes" and not list(published.glob("more*"))


def test_weights_that_the_index_does_not_name_are_not_passed_over(published, capsys):
    for index, named in (("{}", "no weights"), (json.dumps({"other": "0"}), "other")):
        (published / "index.json").write_text(index)
        assert main([]) == 2
        assert f"index.json: names {named}, and beside it lie small; git -C " in capsys.readouterr().err


def test_weights_that_are_too_large_are_refused(published, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "MOST_BYTES", 1_000)
    assert main(["--add", "tiny", "--name", "large", "--tasks", "1"]) == 1
    assert re.search(
        r"train_model_\d\.safetensors: [\d,]+ bytes of weights, but .* at most 1,000", capsys.readouterr().err
    )
    assert len(list(published.iterdir())) == 3


def test_they_are_exported_with_their_own_test_and_command(published, tmp_path):
    assert export(["--pretrained", "small", "--formats", "safetensors", "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    state = read_checkpoint_state(published / "small.safetensors")
    accuracy = 100 * state["test"]["results"][0]["test_accuracy_mean"]
    for text in (
        "# small",
        f"**{accuracy:.2f} % +- ",
        "export --pretrained small",
        state["command"],
        "license: mit\n",
        "- **Weights:** MIT, as those",
    ):
        assert text in card
