"""The matrix of domains: which runs it is made of, what it does not do twice, and the pages that it writes."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import glyph_matrix
from benchmarks.parts import diversity
from benchmarks.parts.matrix_cells import cells_of, effects_of
from benchmarks.parts.trained_runs import TrainedRun
from tests.tools.learners import Episodes
from utils.errors import ConfigError

DOMAINS = ("glyphs_icons", "glyphs_scripts")
METHOD = "omniglot_maml_5way_1shot_seed0"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two domains with task lists, and runs that write down what they were started with and give a result."""
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    for domain in DOMAINS:
        (tmp_path / "datasets" / f"{domain}_tasks").mkdir(parents=True)
        (tmp_path / "datasets" / f"{domain}_tasks/5way_1shot.tasks.json").write_text("{}")
    starts = []

    def carry_out(run, **one_start):
        starts.append((run.experiment_name, one_start.get("tag")))
        if one_start:
            (run.folder / "logs").mkdir(parents=True, exist_ok=True)
            trained_here = one_start["tag"].startswith(run.overrides["dataset_name"])
            mean = 0.5 + 0.25 * trained_here + 0.01 * run.overrides["train_seed"]
            summary = {"test_accuracy_mean": mean, "test_accuracy_ci95": 0.01, "task_list_digest": "abc"}
            (run.folder / f"logs/test_summary_{one_start['tag']}.json").write_text(json.dumps(summary))

    monkeypatch.setattr(TrainedRun, "carry_out", carry_out)
    monkeypatch.setattr(glyph_matrix, "domain_images", lambda folder: folder.name)
    monkeypatch.setattr(glyph_matrix, "by_pixels", lambda *_: {"5way_1shot": (0.95, 0.01)})
    monkeypatch.setattr(glyph_matrix, "diversities", lambda _: dict.fromkeys(DOMAINS, 0.125))
    return tmp_path, starts


def matrix(folder, *more):
    arguments = ["--domains", *DOMAINS, "--methods", METHOD, "--seeds", "0", "1", "--output", str(folder / "matrix")]
    return glyph_matrix.main([*arguments, *more])


def test_each_run_is_trained_once_and_tested_on_every_domain(world, capsys):
    folder, starts = world
    assert matrix(folder, "--", "--total_epochs", "2") == 0
    assert len(starts) == 4 * 3 and len({name for name, _ in starts}) == 4
    assert "--total_epochs 2" in capsys.readouterr().err
    starts.clear()
    matrix(folder, "--domains", *(name.removeprefix("glyphs_") for name in DOMAINS))
    assert [tag for _, tag in starts] == [None] * 4  # trained ones cost a second, and nothing is tested again


def test_parts_share_the_runs_and_the_page_comes_from_all(world, capsys):
    folder, starts = world
    for part in ("0/3", "1/3", "2/3"):
        matrix(folder, "--part", part)
    assert sorted(name for name, tag in starts if tag is None) == sorted({name for name, _ in starts})
    assert not (folder / "matrix").exists()
    matrix(folder)
    assert (
        "| omniglot_maml_5way_1shot_seed0 | glyphs_icons | 0.1250 | 75.50 ± 6.35 | 50.50 ± 6.35 |"
        in capsys.readouterr().out
    )
    page = (folder / "matrix/matrix.html").read_text(encoding="utf-8")
    assert page.count("<rect") >= 4 and "75.50 ± 6.35" in page and "glyphs_icons abc" in page
    cells = json.loads((folder / "matrix/matrix.json").read_text(encoding="utf-8"))["cells"]
    assert {(c["trained_on"], c["tested_on"]): c["means"] for c in cells}["glyphs_icons", "glyphs_icons"] == [
        0.75,
        0.76,
    ]
    starts.clear()
    matrix(folder, "--only_pages")
    assert not starts


def test_a_list_that_is_missing_and_a_part_that_is_none_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no task list. Run: python -m utils.prepare_dataset tasks --domain emoji"):
        glyph_matrix.task_list_of("glyphs_emoji", "5way_1shot")
    with pytest.raises(ConfigError, match=r"--part 4/4: must be such as 0/4 to 3/4"):
        glyph_matrix.part_of("4/4")


def test_a_domain_that_nearest_neighbour_on_pixels_solves_is_none_of_the_matrix(world, monkeypatch, capsys):
    _, starts = world
    found = {"glyphs_icons": (0.6, 0.01), "glyphs_scripts": (0.951, 0.004)}
    monkeypatch.setattr(glyph_matrix, "by_pixels", lambda _, name: {"5way_1shot": found[name]})
    assert matrix(world[0]) == 1
    text = "glyphs_scripts: nearest neighbour on pixels, 5way_1shot: 95.1 ± 0.4 %; too easy for the matrix (above 95 %)"
    assert text in capsys.readouterr().err and not starts


# Against a classifier.

RIGHT = {
    "maml": [[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]],
    "classifier": [[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 1, 0]],
}
"""Method -> of each of four tasks, whether each of three queries is right."""


def write_test(run, right, digest="abc", beside=None):
    """The files of a test, with scores of three classes that give these right answers."""
    labels = torch.tensor([[0, 1, 2]]).expand(len(right), -1)
    answers = (labels + 1 - torch.tensor(right)) % 3
    scores = torch.nn.functional.one_hot(answers, 3).float()[None] + torch.zeros(2, 1, 1, 1)  # of two models
    (run.folder / "logs").mkdir(parents=True)
    save_file(
        {"query_labels": labels.contiguous(), "scores.transductive": scores},
        run.folder / "logs/test_predictions_t.safetensors",
    )
    test = {"test_accuracy_mean": float(np.mean(right)), "test_accuracy_ci95": 0.01, "task_list_digest": digest}
    test |= {} if beside is None else {"baselines": {"rows": beside}}
    (run.folder / "logs/test_summary_t.json").write_text(json.dumps(test))


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))
    return {(method, "icons", 0): TrainedRun(method, method) for method in RIGHT}


def test_an_effect_is_the_paired_difference_over_the_tasks_and_its_size(two_runs):
    for (method, *_), run in two_runs.items():
        write_test(run, RIGHT[method])
    (effect,) = effects_of(cells_of(two_runs, {"emoji": "t"}), "classifier")
    # By hand: 1/3, 1/3, 0, -1/3; mean 1/12, deviation sqrt((3 * 1/9 - 4 / 144) / 3), t[0.975, 3] = 3.18245.
    deviation = math.sqrt((3 / 9 - 4 / 144) / 3)
    assert (effect.difference, effect.cohens_d) == (pytest.approx(1 / 12), pytest.approx(1 / 12 / deviation))
    assert effect.ci95 == pytest.approx(3.182446 * deviation / 2, rel=1e-6)
    assert (effect.method, effect.tasks, effect.verdict) == ("maml", 4, "not told apart")
    assert effect.text == "+8.33 ± 50.78 (d +0.26)"
    assert glyph_matrix.answers([effect]) == [
        "maml: better than classifier in 0 of 1 cells, worse in 0, not told apart in 1 (95 % interval of the paired "
        "difference over tasks)"
    ]


def test_tests_on_other_tasks_are_not_compared(two_runs):
    for (method, *_), run in two_runs.items():
        write_test(run, RIGHT[method], digest=method)
    assert effects_of(cells_of(two_runs, {"emoji": "t"}), "classifier") == []


def test_what_stands_beside_a_result_is_shown_as_what_the_model_is_above_it(two_runs):
    row = {"mean": 0.5, "difference": -0.25, "difference_ci95": 0.02}
    for (method, *_), run in two_runs.items():
        write_test(run, RIGHT[method], beside={"pixels": row, "chance": row, "untrained": row | {"difference": 0.1}})
    cells = list(cells_of(two_runs, {"emoji": "t"}))
    assert cells[0].text == "66.67 ± 1.00"  # over tasks, of one seed
    tables = glyph_matrix.tables_of(cells, effects_of(cells, "classifier"), ["emoji"], {"icons": 0.25})
    assert list(tables) == [
        "Accuracy", "Points above classifier, and Cohen's d",
        "Beside each result: accuracy (what the model is above it)",
    ]  # fmt: skip
    assert tables["Accuracy"] == (
        ["method", "trained on", "diversity", "on emoji"],
        [["maml", "icons", "0.2500", "66.67 ± 1.00"], ["classifier", "icons", "0.2500", "58.33 ± 1.00"]],
    )
    assert tables["Beside each result: accuracy (what the model is above it)"][1][0] == [
        "maml", "icons", "emoji", "66.67 ± 1.00", "50.00 (+25.00 ± 2.00)", "50.00 (-10.00 ± 2.00)", "",
    ]  # fmt: skip


def test_the_mean_cosine_distance_is_that_of_all_pairs():
    vectors = torch.randn(2, 4, 5, dtype=torch.float64)
    pairs = [1 - torch.cosine_similarity(vectors[:, i], vectors[:, j]) for i, j in itertools.combinations(range(4), 2)]
    torch.testing.assert_close(diversity.mean_cosine_distance(vectors), torch.stack(pairs).mean(0))


def test_diversity_grows_with_what_tells_classes_apart_and_needs_no_order():
    """A task's classes are copies of one drawing in which more and more pixels are turned; without any, one class."""
    generator, n_tasks = torch.Generator().manual_seed(0), 40
    drawing = torch.rand(n_tasks, 1, 28, 28, generator=generator).round()
    noise = torch.rand(n_tasks, 3, 28, 28, generator=generator)

    def found(share, order=(0, 1, 2)):
        images = torch.where(noise < share, 1 - drawing, drawing)[:, list(order), None]  # (n_tasks, 3, 1, 28, 28)
        labels = torch.arange(3).expand(n_tasks, 3)
        return diversity.diversity(Episodes(images, labels, images, labels, torch.zeros(n_tasks, dtype=torch.int64)))

    assert found(0.0) == pytest.approx(0, abs=1e-6)
    assert 1e-4 < found(0.02) < found(0.1) < found(0.4) < 1
    assert found(0.1, (2, 0, 1)) == pytest.approx(found(0.1), abs=1e-6)


def test_a_domain_that_is_not_split_has_the_split_of_its_task_lists():
    domains = ["omniglot_dataset", "synthetic_strokes", "glyphs_icons"]
    runs = glyph_matrix.runs_of([METHOD], domains, [0], {"train_val_test_split": [0.5, 0.25, 0.25]})
    found = [(run.overrides["sets_are_pre_split"], run.overrides["dataset_name"]) for run in runs.values()]
    assert found == [(False, "omniglot_dataset"), (False, "synthetic_strokes"), (True, "glyphs_icons")]
    (strokes,) = glyph_matrix.runs_of([METHOD], domains[1:2], [0], {}).values()
    assert strokes.overrides["train_val_test_split"] == [0.6, 0.15, 0.25]
