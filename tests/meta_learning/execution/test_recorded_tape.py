"""What a CUDA graph would compute, with a tape of operators in its place: never a value of the time of its
recording.
"""

import gc

import pytest
import torch

from few_shot_learning_system import build_learner
from meta_learning.execution.cuda_graphs import GraphedComputation
from tests.tools.learners import small_config, small_learner, worst_difference
from tests.tools.methods.method_matrix import BY_CHANGE, BY_GRAPH, METHODS, episodes_of, epochs_of, users_networks
from tests.tools.methods.recorded_tape import TapeRecorder

EPOCHS = (0, 1, 1, 2, 3, 4)
"""Of methods with schedules: first and second order, weights of the query losses on their way, all of them and the
last one.
"""
FEW_EPOCHS = (0, 3, 3)
"""Of the others, whose meta learning rate alone changes."""


@pytest.fixture(autouse=True)
def plugins():
    with users_networks():
        yield


def taped(learner):
    learner.execution.replayed = GraphedComputation(TapeRecorder())
    return learner


def agree(ours, theirs):
    assert worst_difference(ours.gradients, theirs.gradients) <= 1e-12
    for group in ("statistics", "metrics"):
        torch.testing.assert_close(getattr(ours, group), getattr(theirs, group), rtol=1e-12, atol=0, equal_nan=True)


def test_the_tape_has_numbers_of_its_recording_and_tensors_of_now():
    weight, factor = torch.nn.Parameter(torch.tensor(2.0)), [3.0]
    replayed = GraphedComputation(TapeRecorder())

    def result(x):
        return float(
            replayed(lambda inputs: {"": {"y": inputs["x"] * weight * factor[0]}}, {"x": torch.tensor(x)}, "key")[""][
                "y"
            ]
        )

    assert result(1.0) == 6.0
    factor[0] = 5.0
    assert result(2.0) == 12.0, "a number of Python is that of the recording"
    with torch.no_grad():
        weight.add_(1.0)
    assert result(2.0) == 18.0, "a parameter that was written to is read again"
    weight.data = torch.tensor(7.0)
    assert result(2.0) == 18.0, "other memory is not looked at"


@pytest.mark.parametrize("name", BY_CHANGE)
def test_a_replay_computes_what_the_learner_computes(name):
    changes = METHODS[name]
    plain, replaying = small_learner(**changes), taped(small_learner(**changes))
    epochs = FEW_EPOCHS if len(epochs_of(changes)) == 1 else EPOCHS
    for iteration, epoch in enumerate(epochs):
        episodes = episodes_of(changes, seed=iteration)
        theirs = plain.meta_gradients(episodes, epoch)
        agree(replaying.meta_gradients(episodes, epoch), theirs)
        for learner in (plain, replaying):
            learner.meta_update(theirs, epoch)
        if (
            iteration == len(epochs) // 2
        ):  # the process ends here; another one has recorded before it reads the checkpoint
            state = {name: value.clone() for name, value in plain.state_tensors().items()}
            replaying = taped(build_learner(small_config(**changes), "cpu"))
            for recorded_epoch in (epoch, epochs[iteration + 1]):
                replaying.meta_gradients(episodes, recorded_epoch)
            replaying.load_state_tensors(state)
        ours, expected = (vars(learner.evaluate(episodes)) for learner in (replaying, plain))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    assert replaying.execution.replayed._record is not None, "nothing fell back to an ordinary run"


@pytest.mark.parametrize("name", BY_GRAPH)
def test_no_graph_outlives_a_computation(name, monkeypatch):
    """A node that gathers a parameter's gradients keeps the stream on which it was made: one that is left over
    breaks the next recording.
    """
    learner, epoch, marked = small_learner(**METHODS[name]), 4, []
    learner.execution.chunks.reuse(
        learner.execution.chunks.size
    )  # no look at the memory of a task, which holds tensors of its own on a CPU

    def gatherers():
        return [value.view_as(value).grad_fn.next_functions[0][0] for value in learner.meta_parameters().values()]

    def grad(*args, **kwargs):
        for node in gatherers():
            node.metadata["seen"] = True
        marked.append(sum("seen" in node.metadata for node in gatherers()))
        return original(*args, **kwargs)

    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", grad)
    gc.collect()
    gc.disable()
    try:
        result = learner.meta_gradients(episodes_of(METHODS[name]), epoch)
        left = [node for node in gatherers() if "seen" in node.metadata]
        assert not left and not any(value.requires_grad for value in result.tensors())
        learner.evaluate(
            episodes_of(METHODS[name]), statistics="transductive" if "running" in str(METHODS[name]) else None
        )
        assert not [node for node in gatherers() if "seen" in node.metadata]
    finally:
        gc.enable()
    assert max(marked) > 0, "nodes that are in use are seen"
