"""Recording and replaying, with a stand-in for CUDA's recorder; the real one needs a GPU."""

import copy
import logging
from contextlib import contextmanager

import pytest
import torch

from meta_learning.execution.cuda_graphs import WARM_UPS, CudaRecorder, GraphedComputation, recorder_for
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner, worst_difference


class StandIn:
    """Records like CUDA: the function runs once more at each replay, from the same places into the same places."""

    def __init__(self):
        self.n_recordings = self.n_replays = 0

    def __call__(self, function):
        self.n_recordings += 1
        result = function()
        recorder, place = self, result.clone()

        class Recording:
            def replay(self):
                recorder.n_replays += 1
                place.copy_(function())

        place.fill_(float("nan"))  # CUDA computes nothing while it records
        return Recording(), place


def doubled(inputs):
    """Two levels of results."""
    return {"a": {"x": inputs["x"] * 2, "sum": inputs["x"].sum()}, "b": {"y": inputs["y"] + 1}}


def test_every_result_is_that_of_a_replay_from_the_values_of_the_call():
    recorder = StandIn()
    computation = GraphedComputation(recorder)
    first = computation(doubled, {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(5.0)}, "key")
    second = computation(doubled, {"x": torch.tensor([3.0, 4.0]), "y": torch.tensor(6.0)}, "key")
    assert (recorder.n_recordings, recorder.n_replays) == (1, 2)
    assert first["a"]["x"].tolist() == [2.0, 4.0], "a later replay does not touch an earlier result"
    assert float(first["a"]["sum"]) == 3.0
    assert second["a"]["x"].tolist() == [6.0, 8.0]
    assert float(second["b"]["y"]) == 7.0


def test_other_shapes_and_other_keys_are_recorded_apart():
    recorder = StandIn()
    computation = GraphedComputation(recorder)
    for size, key in ((2, "a"), (3, "a"), (2, "b"), (3, "a"), (2, "a")):
        assert computation(doubled, {"x": torch.ones(size), "y": torch.tensor(0.0)}, key)["a"]["x"].shape == (size,)
    assert (recorder.n_recordings, recorder.n_replays) == (3, 5)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(caplog):
    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    computation, inputs = GraphedComputation(fails), {"x": torch.ones(1), "y": torch.tensor(0.0)}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert float(computation(doubled, inputs, "key")["b"]["y"]) == 1.0
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are off: this computation cannot be recorded (operation not permitted when stream is capturing)."
    ]


def test_running_out_of_memory_is_for_the_caller():
    def fails(function):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with pytest.raises(torch.OutOfMemoryError):
        GraphedComputation(fails)(doubled, {"x": torch.ones(1), "y": torch.tensor(0.0)}, "key")


def test_running_out_of_memory_gives_back_that_of_other_recordings():
    class Full(StandIn):
        def __call__(self, function):
            if self.n_recordings:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return super().__call__(function)

    computation, inputs = GraphedComputation(Full()), {"x": torch.ones(1), "y": torch.tensor(0.0)}
    computation(doubled, inputs, "key")
    assert len(computation._recordings) == 1
    with pytest.raises(torch.OutOfMemoryError):
        computation(doubled, inputs, "other key")
    assert not computation._recordings


class FakeCuda:
    """The parts of torch.cuda that record, on a machine without: who is current, and what was recorded where."""

    def __init__(self, monkeypatch):
        self.device, self.stream, self.recorded = None, "outside", []
        for name in ("current_stream", "Stream", "graph_pool_handle", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "device", lambda device: self._inside("device", device))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self._inside("stream", stream))
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))

    @contextmanager
    def _inside(self, name, value):
        before = getattr(self, name)
        setattr(self, name, value)
        yield
        setattr(self, name, before)  # not reached after an error, as with torch's recording

    def _current_stream(self):
        return self._Stream("outside")

    def _Stream(self, name="own"):
        fake = self

        class Stream(str):
            def wait_stream(self, other):
                fake.recorded.append(f"{self} waits for {other}")

        return Stream(name)

    def _graph_pool_handle(self):
        return object()

    def _CUDAGraph(self):
        return object()

    @contextmanager
    def _graph(self, graph, pool, stream, capture_error_mode):
        self.recorded.append((self.device, pool, stream))
        self.stream = stream
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.stream = "outside"


def test_a_recording_is_made_on_its_device_and_shares_stream_and_memory_with_the_others(monkeypatch):
    fake, streams = FakeCuda(monkeypatch), []
    recorder = CudaRecorder(torch.device("cuda", 1))
    for _ in range(2):
        recorder(lambda: streams.append(str(fake.stream)) or torch.ones(1))
    assert (fake.device, fake.stream) == (None, "outside")
    assert streams == ["own"] * 2 * (WARM_UPS + 1)
    assert fake.recorded[:2] == ["own waits for outside", "outside waits for own"]
    first, second = (entry for entry in fake.recorded if isinstance(entry, tuple))
    assert first == second
    assert first[0] == torch.device("cuda", 1)


def test_a_recording_that_fails_says_why_and_leaves_its_stream(monkeypatch):
    fake, calls = FakeCuda(monkeypatch), []

    def runs_out_of_memory():
        calls.append(None)
        if len(calls) > WARM_UPS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return torch.ones(1)

    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2 GiB"):
        CudaRecorder(torch.device("cuda", 0))(runs_out_of_memory)
    assert fake.stream == "outside"


def test_only_cuda_records():
    assert recorder_for(torch.device("cpu"), wanted=True) is None
    assert recorder_for(torch.device("cuda"), wanted=False) is None
    assert recorder_for(torch.device("cuda"), wanted=True) is not None


@pytest.mark.parametrize("chunk_size", ["auto", 3])
def test_a_learner_records_once_for_each_phase_of_its_schedules_and_gets_the_same_gradients(chunk_size):
    changes = PLUS_PLUS | {
        "multi_step_loss_num_epochs": 3,
        "first_order_to_second_order_epoch": 1,
        "task_chunk_size": chunk_size,
    }
    plain, graphed = small_learner(**changes), small_learner(**changes)
    recorder = StandIn()
    graphed.execution.replayed = GraphedComputation(recorder)
    for epoch in range(6):
        episodes = random_episodes(small_config(), seed=epoch)
        ours, theirs = graphed.meta_gradients(episodes, epoch), plain.meta_gradients(episodes, epoch)
        assert worst_difference(ours.gradients, theirs.gradients) <= 1e-12
        assert all(torch.equal(ours.statistics[name], value) for name, value in theirs.statistics.items())
        assert ours.metrics.keys() == theirs.metrics.keys()
        torch.testing.assert_close(ours.metrics, theirs.metrics, equal_nan=True)
        for learner in (plain, graphed):
            learner.meta_update(theirs, epoch)
    # First order; second order with all query losses; second order with the last one: new weights and rates record
    # nothing.
    assert (recorder.n_recordings, recorder.n_replays) == (3, 6)


def test_an_evaluation_is_replayed_too():
    plain, graphed = small_learner(**PLUS_PLUS), small_learner(**PLUS_PLUS)
    recorder = StandIn()
    graphed.execution.replayed = GraphedComputation(recorder)
    for seed, statistics in ((1, "transductive"), (2, "transductive"), (3, "support")):
        episodes = random_episodes(small_config(), seed)
        ours, theirs = (vars(learner.evaluate(episodes, statistics=statistics)) for learner in (graphed, plain))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items() if value is not None)
    assert (recorder.n_recordings, recorder.n_replays) == (2, 3)


def test_a_copy_of_a_learner_records_anew():
    learner, recorder = small_learner(), StandIn()
    learner.execution.replayed = GraphedComputation(recorder)
    episodes = random_episodes(small_config())
    learner.meta_gradients(episodes, 0)
    other = copy.deepcopy(learner)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    ours, theirs = other.meta_gradients(episodes, 0).gradients, learner.meta_gradients(episodes, 0).gradients
    assert recorder.n_recordings == 2
    assert worst_difference(ours, theirs) > 1e-6
