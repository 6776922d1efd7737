"""Several processes compute what one computes: gradients, statistics, evaluations, whole runs."""

import json
import signal
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiment_parts.evaluation.split_evaluation import evaluate_tasks
from experiment_parts.runs.comparison import differences
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner
from tests.tools.ranks import in_ranks
from tests.tools.runs import PLUS_PLUS as RUN_PLUS_PLUS
from tests.tools.runs import TINY, run_tiny, tiny_data
from utils.config import check_config
from utils.episodes.drawing import EpisodeShape
from utils.errors import Interrupted, NonFiniteError, PeerLostError
from utils.machine.stop_signals import StopSignals
from utils.ranks import group as rank_group
from utils.ranks import run_flags
from utils.ranks.group import ALONE, RankGroup
from utils.ranks.run_flags import RunFlags

TOLERANCE = 1e-9


def parts_of(episodes, group):
    part = group.part(len(episodes.support_labels))
    return replace(episodes, **{name: value[part.start : part.stop] for name, value in vars(episodes).items()})


def assert_equal(ours, other):
    """DESIGN's measure, per tensor."""
    everything = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in other.values()]))
    assert ours.keys() == other.keys()
    for name, value in other.items():
        allowed = TOLERANCE * max(torch.linalg.vector_norm(value), 1e-6 * everything)
        assert torch.linalg.vector_norm(ours[name] - value) <= allowed, name


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("n_tasks", [1, 2, 3, 8, 61])
def test_the_parts_are_all_tasks_once_and_differ_by_one_at_most(size, n_tasks):
    parts = [RankGroup(index, size).part(n_tasks) for index in range(size)]
    assert [place for part in parts for place in part] == list(range(n_tasks))
    assert len(parts[0]) == max(map(len, parts)) and len(parts[0]) - min(map(len, parts)) <= 1


def test_a_process_alone_changes_nothing_on_the_way():
    learner = small_learner(batch_size=2)
    own = learner.meta_gradients(random_episodes(small_config(batch_size=2)), 0)
    mean, flags = ALONE.mean(own, 2, [1.0])
    assert mean is own and flags is None and ALONE.largest(7) == 7 and ALONE.of_main(lambda: {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(("n_tasks", "size"), [(4, 2), (3, 2), (5, 3)])
@pytest.mark.parametrize(
    "changes",
    [PLUS_PLUS | {"batch_norm_statistics": "running"}, {"outer_update": "displacement", "second_order": False}],
)
def test_gradients_and_statistics_over_ranks_are_those_of_one(tmp_path, n_tasks, size, changes):
    learner, episodes = small_learner(batch_size=n_tasks, **changes), random_episodes(small_config(batch_size=n_tasks))

    def tensors_of(meta_gradients):
        groups = {name: getattr(meta_gradients, name) for name in ("gradients", "statistics", "metrics")}
        return {
            f"{group}.{name}": value.detach().nan_to_num(7.0)
            for group, values in groups.items()
            for name, value in values.items()
        }

    def work(group, rank):
        own = learner.meta_gradients(parts_of(episodes, group), 0)
        mean, flags = group.mean(own, n_tasks, [1.0, float(rank.index)])
        assert flags.tolist() == [size, sum(range(size))]
        save_file(tensors_of(mean), tmp_path / f"{rank.index}.safetensors")

    assert in_ranks(size, work) == [0] * size
    first, *others = [load_file(tmp_path / f"{index}.safetensors") for index in range(size)]
    assert_equal(first, tensors_of(learner.meta_gradients(episodes, 0)))
    for other in others:
        assert all(torch.equal(first[name], value) for name, value in other.items())


@pytest.mark.parametrize(
    ("n_tasks", "tasks_per_batch", "shape"),
    [(7, 2, None), (1, 2, None), (4, 8, None), (11, 6, EpisodeShape(3, 3, 2, least_shot=1))],
)
def test_an_evaluation_over_ranks_is_over_the_same_tasks(tmp_path, n_tasks, tasks_per_batch, shape):
    config = check_config(TINY | {"precision": "float64"}, "test")
    learner, data = small_learner(image_height=10, image_width=10, num_samples_per_class=1), tiny_data(config)

    def evaluate(group, before=lambda: None):
        return evaluate_tasks(
            learner,
            data,
            "test",
            n_tasks=n_tasks,
            tasks_per_batch=tasks_per_batch,
            with_scores=True,
            shape=shape,
            before_each_batch=before,
            group=group,
        )

    def work(group, rank):
        asked = []
        result = evaluate(group, lambda: asked.append(group.largest(0)))
        save_file(
            {"scores": result.scores, "labels": result.labels, "asked": torch.tensor(len(asked))},
            tmp_path / f"{rank.index}",
        )
        (tmp_path / f"{rank.index}.json").write_text(json.dumps(result.metrics))

    assert in_ranks(2, work) == [0, 0]
    alone = evaluate(ALONE)
    for index in range(2):
        found = load_file(tmp_path / f"{index}")
        assert torch.equal(found["labels"], alone.labels)
        torch.testing.assert_close(found["scores"], alone.scores, rtol=1e-9, atol=1e-12)
        metrics = json.loads((tmp_path / f"{index}.json").read_text())
        assert metrics["query_accuracy"][-1] == alone.metrics["query_accuracy"][-1]
        torch.testing.assert_close(
            torch.tensor(metrics["query_loss"]), torch.tensor(alone.metrics["query_loss"]), rtol=1e-9, atol=1e-12
        )


def run_in_ranks(root, size=2, **changes):
    """A whole tiny run; returns the exit codes: 3 where a number was not finite."""

    def work(group, rank):
        try:
            run_tiny(root, group=group, **changes)
        except NonFiniteError:
            return 3
        return 0

    return in_ranks(size, work)


WHOLE_RUN = RUN_PLUS_PLUS | {
    "precision": "float64",
    "batch_size": 3,
    "batch_norm_statistics": "running",
    "num_evaluation_tasks": 7,
}


def test_a_whole_run_of_two_ranks_ends_as_that_of_one_to_rounding(tmp_path):
    assert run_in_ranks(tmp_path / "two", **WHOLE_RUN) == [0, 0]
    one, two = run_tiny(tmp_path / "one", **WHOLE_RUN), tmp_path / "two" / "tiny"
    assert sorted(path.name for path in one.rglob("*")) == sorted(path.name for path in two.rglob("*"))
    for name in ("train_model_1.safetensors", "train_model_2.safetensors"):
        ours, other = (load_file(run / "saved_models" / name) for run in (two, one))
        for tensor in other:
            torch.testing.assert_close(ours[tensor], other[tensor], rtol=1e-6, atol=1e-9)
    summaries = [json.loads((run / "logs" / "test_summary.json").read_text()) for run in (two, one)]
    assert summaries[0]["task_list_digest"] == summaries[1]["task_list_digest"]
    assert summaries[0]["test_accuracy_mean"] == pytest.approx(summaries[1]["test_accuracy_mean"], abs=1e-12)
    assert summaries[0]["models"] == [
        model | {"test_accuracy_std": pytest.approx(model["test_accuracy_std"])} for model in summaries[1]["models"]
    ]


@pytest.mark.full
def test_two_ranks_give_the_same_bits_every_time(tmp_path):
    for name in ("first", "second"):
        assert run_in_ranks(tmp_path / name, **WHOLE_RUN) == [0, 0]
    assert differences(tmp_path / "first" / "tiny", tmp_path / "second" / "tiny") == []


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    run_tiny(tmp_path, total_epochs_before_pause=1, **WHOLE_RUN)
    assert run_in_ranks(tmp_path, size=3, **WHOLE_RUN) == [0, 0, 0]
    whole = run_tiny(tmp_path / "one", **WHOLE_RUN)
    ours, other = (load_file(run / "saved_models" / "train_model_2.safetensors") for run in (tmp_path / "tiny", whole))
    for tensor in other:
        torch.testing.assert_close(ours[tensor], other[tensor], rtol=1e-6, atol=1e-9)


def test_all_ranks_stop_at_an_update_that_is_not_finite_on_one(tmp_path):
    """Task 7, that is the second of iteration 3, is on rank 0 alone; the report is of all tasks."""

    def spoil(learner):
        compute = learner.meta_gradients

        def spoiled(episodes, epoch, **order):
            result = compute(episodes, epoch, **order)
            if 7 in episodes.indices:
                result.metrics["loss"].fill_(float("nan"))
            return result

        learner.meta_gradients = spoiled

    assert run_in_ranks(tmp_path, learner_changes=spoil, **WHOLE_RUN) == [3, 3]
    report = json.loads((tmp_path / "tiny" / "logs" / "non_finite_iteration_3.json").read_text())
    assert report["training_tasks"] == [6, 7, 8] and not report["is_finite"]


@pytest.mark.parametrize("told", [1, pytest.param(0, marks=pytest.mark.full)])
def test_a_signal_to_one_rank_stops_all_at_one_iteration(tmp_path, told):
    """And the run goes on to the same bits."""

    def work(group, rank):
        stop = StopSignals()

        def tell(learner):
            compute, calls = learner.meta_gradients, []

            def counted(episodes, epoch):
                calls.append(1)
                if len(calls) == 3 and rank.index == told:
                    stop.received = signal.SIGTERM
                return compute(episodes, epoch)

            learner.meta_gradients = counted

        try:
            run_tiny(tmp_path / "stopped", stop, group=group, learner_changes=tell, **WHOLE_RUN)
        except Interrupted as error:
            assert "saved at iteration 3," in str(error)
            return error.exit_code
        return 0

    assert in_ranks(2, work) == [143, 143]
    assert run_in_ranks(tmp_path / "stopped", **WHOLE_RUN) == [0, 0]
    assert run_in_ranks(tmp_path / "whole", **WHOLE_RUN) == [0, 0]
    assert differences(tmp_path / "stopped" / "tiny", tmp_path / "whole" / "tiny") == []


def test_rank_0_alone_says_when_it_is_time_to_save(tmp_path):
    def work(group, rank):

        now = [0.0]
        run_flags.time = type("clock", (), {"monotonic": staticmethod(lambda: now[0])})
        flags = RunFlags(StopSignals(), group, 60.0, torch.device("cpu"))
        answers = []
        for later_s in (0.0, 61.0 if rank.is_main else 0.0, 0.0, 100.0 if not rank.is_main else 0.0):
            now[0] += later_s
            _, sums = group.mean(Nothing(), 2, flags.to_ride())
            flags.learn(sums)
            answers.append(flags.take()[1])
            if answers[-1]:
                flags.saved()
        assert answers == [False, True, False, False]

    assert in_ranks(2, work) == [0, 0]


def test_on_a_gpu_the_flags_are_read_one_iteration_later():
    flags = RunFlags(StopSignals(), RankGroup(0, 2), 60.0, torch.device("cuda"))
    nobody, is_time, term = (
        torch.tensor(numbers) for numbers in ([0.0] * 4, [0.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0])
    )
    answers = []
    for sums in (nobody, is_time, term, nobody):
        flags.learn(sums)
        answers.append(flags.take())
    assert answers == [(None, False), (None, False), (None, True), (signal.SIGTERM, False)]
    flags.saved()
    assert flags.take() == (None, False) and flags.to_ride() == [0.0, 1.0, 0.0, 0.0]


class Nothing:
    """Meta-gradients of no parameter."""

    def tensors(self):
        return [torch.zeros(1)]

    def with_tensors(self, tensors):
        return self


def test_a_lost_process_is_told_apart_from_a_bug():
    def work(group, rank):
        if rank.index:
            return 5
        try:
            group.wait_for_all()
        except PeerLostError as error:
            assert "contact with another process of this run was lost" in str(error)
            return 4
        return 0

    assert in_ranks(2, work) == [4, 5]


@pytest.mark.full
def test_a_silent_process_is_taken_for_lost_after_the_longest_iteration_but_not_while_data_are_decoded(monkeypatch):
    longest_s = 1
    monkeypatch.setattr(rank_group, "LONGEST_ITERATION", timedelta(seconds=longest_s))

    def work(group, rank):
        with group.in_turn():
            time.sleep((longest_s + 1) * rank.is_main)
        if not rank.is_main:
            time.sleep(longest_s + 2)
            return 5
        begin = time.monotonic()
        with pytest.raises(PeerLostError, match="contact with another process of this run was lost"):
            group.wait_for_all()
        assert longest_s - 0.5 < time.monotonic() - begin < longest_s + 2
        return 4

    assert in_ranks(2, work) == [4, 5]


def test_state_is_handed_over_bit_for_bit():
    def work(group, rank):
        tensors = {"a": torch.tensor([[1.5, -0.0, float("inf")]]), "counts": torch.tensor([3, 4])}
        own = [({"epoch": number}, {"a": tensors["a"] * number}) for number in (1, 2)] if rank.is_main else []
        got, known = group.state_of_main(lambda: (tensors, {"epoch": 3, "rows": [None, "ä"]}))
        assert known == {"epoch": 3, "rows": [None, "ä"]} and all(
            torch.equal(got[name], value) for name, value in tensors.items()
        )
        items = list(group.items_of_main(own))
        assert [item[0]["epoch"] for item in items] == [1, 2] and torch.equal(items[1][1]["a"], tensors["a"] * 2)
        assert group.of_main(lambda: ["text", 1]) == ["text", 1]

    assert in_ranks(3, work) == [0, 0, 0]


def test_rank_0_comes_first_and_the_others_after_it(tmp_path):
    def work(group, rank):
        with group.in_turn():
            assert (tmp_path / "made").exists() == (not rank.is_main)
            (tmp_path / "made").touch()

    assert in_ranks(3, work) == [0, 0, 0]
