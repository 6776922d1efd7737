"""The matrix of domains: which runs it is made of, what it does not do twice, and the pages that it writes."""

import json

import pytest

from benchmarks import glyph_matrix
from benchmarks.parts.trained_runs import TrainedRun
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
    matrix(folder)
    assert [tag for _, tag in starts] == [None] * 4  # trained ones cost a second, and nothing is tested again


def test_parts_share_the_runs_and_the_page_comes_from_all(world, capsys):
    folder, starts = world
    for part in ("0/3", "1/3", "2/3"):
        matrix(folder, "--part", part)
    assert sorted(name for name, tag in starts if tag is None) == sorted({name for name, _ in starts})
    assert not (folder / "matrix").exists()
    matrix(folder)
    assert "| omniglot_maml_5way_1shot_seed0 | glyphs_icons | 75.50 ± 6.35 | 50.50 ± 6.35 |" in capsys.readouterr().out
    page = (folder / "matrix/matrix.html").read_text(encoding="utf-8")
    assert page.count("<rect") >= 4 and "75.50 ± 6.35" in page and "glyphs_icons abc" in page
    cells = json.loads((folder / "matrix/matrix.json").read_text(encoding="utf-8"))
    assert {(c["trained_on"], c["tested_on"]): c["means"] for c in cells}["glyphs_icons", "glyphs_icons"] == [
        0.75,
        0.76,
    ]


def test_a_list_that_is_missing_and_a_part_that_is_none_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no task list. Run: python -m utils.prepare_dataset tasks --domain emoji"):
        glyph_matrix.task_list_of("glyphs_emoji", "5way_1shot")
    with pytest.raises(ConfigError, match=r"--part 4/4: must be such as 0/4 to 3/4"):
        glyph_matrix.part_of("4/4")
