"""docs/plain_maml.py is MAML: its meta-gradient is the engine's, tensor by tensor; and it stands on torch alone."""

import ast
import importlib.util

import pytest
import torch

from tests.tools.learners import plain_parameters, random_episodes, small_config, small_learner, worst_difference
from utils.paths import REPOSITORY_ROOT

PATH = REPOSITORY_ROOT / "docs" / "plain_maml.py"
MOST_LINES = 60
"""Of code, beside docstrings and comments: what one reads in one sitting."""


@pytest.fixture(scope="module")
def plain_maml():
    specification = importlib.util.spec_from_file_location("plain_maml", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def meta_gradient_of_the_page(plain_maml, theta, episodes, step_weights, rate):
    """The gradient of the mean outer loss, task by task, named as in the learner."""
    losses = []
    for support, labels, query, query_labels in zip(
        episodes.support_images, episodes.support_labels, episodes.query_images, episodes.query_labels, strict=True
    ):
        loss, _ = plain_maml.outer_loss(theta, ((support, labels), (query, query_labels)), step_weights, rate)
        losses.append(loss)
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))
    return {f"network.{name}": value for name, value in zip(theta, gradients, strict=True)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n_shot", "n_steps", "multi_step"), [(1, 5, True), (1, 1, False), (2, 3, False)])
def test_its_meta_gradient_is_the_engines(plain_maml, n_shot, n_steps, multi_step, seed):
    choices = {
        "num_classes_per_set": 5, "num_samples_per_class": n_shot, "number_of_training_steps_per_iter": n_steps,
        "use_multi_step_loss_optimization": multi_step,
    }  # fmt: skip
    learner, episodes = small_learner(**choices), random_episodes(small_config(**choices), seed)
    found = learner.meta_gradients(episodes, epoch=1)
    page = meta_gradient_of_the_page(
        plain_maml, plain_parameters(learner), episodes, learner.multi_step_loss_weights(1), rate=0.2
    )
    assert worst_difference(found.gradients, page) <= 1e-9


def test_its_meta_gradient_is_of_second_order(plain_maml):
    """The law above would not see a first-order page if the inner gradients did not matter; here they do."""
    learner, episodes = small_learner(), random_episodes(small_config())
    first_order = small_learner(second_order=False).meta_gradients(episodes, epoch=0)
    page = meta_gradient_of_the_page(plain_maml, plain_parameters(learner), episodes, (0, 0, 1), rate=0.2)
    assert worst_difference(first_order.gradients, page) > 1e-3


def test_its_own_initial_weights_are_those_of_a_network_of_the_config(plain_maml):
    """Names and shapes, so that what a reader learns there is found again here."""
    names = ("SIDE", "FILTERS", "BLOCKS", "N")
    side, filters, blocks, n_way = (getattr(plain_maml, name) for name in names)
    learner = small_learner(
        image_height=side, image_width=side, cnn_num_filters=filters, num_stages=blocks, num_classes_per_set=n_way
    )
    ours = {name: value.shape for name, value in learner.network.named_parameters()}
    assert {name: value.shape for name, value in plain_maml.initial_weights().items()} == ours


def test_it_trains(plain_maml, capsys, monkeypatch):
    monkeypatch.setattr(plain_maml, "B", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain_maml.main(n_iterations=20)
    assert capsys.readouterr().out.startswith("iteration 20: accuracy ")


def test_it_is_short_and_imports_torch_alone():
    text = PATH.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imported} == {"torch"}
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef)]
    assert all(ast.get_docstring(node) for node in documented)
    prose = {line for node in documented for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = [line.strip() for number, line in enumerate(text.splitlines(), start=1) if number not in prose]
    assert len([line for line in lines if line and not line.startswith("#")]) <= MOST_LINES
