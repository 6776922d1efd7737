"""Laws of the learner, checked against hand-worked gradients, finite differences and a plain implementation."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from few_shot_learning_system import FewShotLearner, OuterLoop
from meta_learning.inner_loop.gradient_descent import GradientDescent
from meta_learning.networks.base import MetaNetwork
from tests.tools.learners import (
    PLUS_PLUS,
    Episodes,
    PlainNetwork,
    plain_outer_loss,
    plain_parameters,
    random_episodes,
    small_config,
    small_learner,
    worst_difference,
)
from utils.errors import ConfigError


class OneWeight(MetaNetwork):
    """logits = (w x, 0): one weight, so that everything can be worked by hand."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.head = SimpleNamespace(out_features=1)  # the episodes below show one class only

    def features(self, images, params, mode):
        """Return w x (B, n, 1) for images (B, n, 1, 1, 1)."""
        return params["weight"][:, None, None] * images.flatten(2)

    def classify(self, features, params):
        """Return logits (B, n, 2)."""
        return torch.cat([features, torch.zeros_like(features)], dim=-1)


def one_weight_learner(weight: float, rate: float, n_steps: int, *, second_order: bool, learn_rates: bool = False):
    inner_loop = GradientDescent(
        {"weight": ()},
        rate,
        n_steps,
        learning_rates="per_layer_per_step" if learn_rates else "fixed",
        dtype=torch.float64,
    )
    return FewShotLearner(OneWeight(weight), inner_loop, OuterLoop(second_order=second_order))


def one_image_episode(support: float, query: float) -> Episodes:
    """One support and one query image of one pixel each, both of class 0."""
    label = torch.zeros(1, 1, dtype=torch.int64)
    images = [torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1, 1) for x in (support, query)]
    return Episodes(images[0], label, images[1], label, torch.zeros(1, dtype=torch.int64))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_meta_gradient_equals_the_one_worked_by_hand(second_order, n_steps):
    """One weight w, loss L(w; x) = log(1 + exp(-w x)), support image a, query image b, inner rate r.

    L'(w; x) = -x sigmoid(-w x),   L''(w; x) = x^2 sigmoid(w x) sigmoid(-w x).
    An inner step is w[s+1] = w[s] + r a sigmoid(-w[s] a), so that
        d w[s+1] / d w[s] = 1 - r L''(w[s]; a)   in second order, 1 with the inner gradient held constant.
    The meta-gradient is L'(w[S]; b) times the product of these over s; that of rate s is
        L'(w[S]; b) * (-L'(w[s]; a)) * product over later steps.
    """
    start, rate, a, b = 0.3, 0.7, 1.3, -0.8
    weight, slopes, inner_gradients = start, [], []
    for _ in range(n_steps):
        gradient = -a * sigmoid(-weight * a)
        slopes.append(1 - rate * a * a * sigmoid(weight * a) * sigmoid(-weight * a) if second_order else 1.0)
        inner_gradients.append(gradient)
        weight -= rate * gradient
    outer_slope = -b * sigmoid(-weight * b)

    learner = one_weight_learner(start, rate, n_steps, second_order=second_order, learn_rates=True)
    result = learner.meta_gradients(one_image_episode(a, b), epoch=0)

    assert float(result.metrics["loss"]) == pytest.approx(math.log1p(math.exp(-weight * b)), rel=1e-12)
    assert float(result.gradients["network.weight"]) == pytest.approx(outer_slope * math.prod(slopes), rel=1e-12)
    expected_rates = [-outer_slope * inner_gradients[s] * math.prod(slopes[s + 1 :]) for s in range(n_steps)]
    assert result.gradients["inner_loop.learning_rates"][0].tolist() == pytest.approx(expected_rates, rel=1e-12)


class BodyAndHead(MetaNetwork):
    """logits = (w u x, 0): a body of one weight u, a head of one weight w."""

    def __init__(self, body: float, head: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(body, dtype=torch.float64))
        self.head = nn.Module()
        self.head.weight, self.head.out_features = nn.Parameter(torch.tensor(head, dtype=torch.float64)), 1

    def features(self, images, params, mode):
        """Return u x (B, n, 1) for images (B, n, 1, 1, 1)."""
        return self.weight * images.flatten(2)

    def classify(self, features, params):
        """Return logits (B, n, 2)."""
        logits = params["head.weight"][:, None, None] * features
        return torch.cat([logits, torch.zeros_like(logits)], dim=-1)


@pytest.mark.parametrize("second_order", [True, False])
def test_anils_meta_gradient_equals_the_one_worked_by_hand(second_order):
    """Body u, head w, features z = u a of the support image and y = u b of the query image, L(w; z) = log(1 + exp(-w
    z)), rate r.

    The inner step moves the head alone: w1 = w + r z sigmoid(-w z). With k = sigmoid(w z) sigmoid(-w z),
        d w1 / d w = 1 - r z^2 k,   d w1 / d z = r (sigmoid(-w z) - w z k);   1 and 0 with the inner gradient held
        constant.
    The outer loss L(w1; y) has the slopes -y sigmoid(-w1 y) in w1 and -w1 sigmoid(-w1 y) in y, so
        head: (d L / d w1) (d w1 / d w),   body: (d L / d w1) (d w1 / d z) a + (d L / d y) b.
    """
    u, w, rate, a, b = 1.4, 0.3, 0.7, 1.3, -0.8
    z, y = u * a, u * b
    curvature = sigmoid(w * z) * sigmoid(-w * z)
    after = w + rate * z * sigmoid(-w * z)
    slope, slope_of_feature = -y * sigmoid(-after * y), -after * sigmoid(-after * y)
    by_head, by_feature = (
        (1 - rate * z * z * curvature, rate * (sigmoid(-w * z) - w * z * curvature)) if second_order else (1.0, 0.0)
    )

    inner_loop = GradientDescent({"head.weight": ()}, rate, 1, dtype=torch.float64)
    learner = FewShotLearner(BodyAndHead(u, w), inner_loop, OuterLoop(second_order=second_order))
    gradients = learner.meta_gradients(one_image_episode(a, b), epoch=0).gradients
    assert float(gradients["network.head.weight"]) == pytest.approx(slope * by_head, rel=1e-12)
    assert float(gradients["network.weight"]) == pytest.approx(slope * by_feature * a + slope_of_feature * b, rel=1e-12)


def finite_difference(function, parameters, directions, step=1e-6):
    """Return the central difference of `function` along `directions`."""

    def at(sign):
        moved = {
            name: (value + sign * step * directions[name]).detach().requires_grad_()
            for name, value in parameters.items()
        }
        return float(function(moved).detach())

    return (at(1) - at(-1)) / (2 * step)


@pytest.mark.parametrize("choices", [{}, PLUS_PLUS], ids=["maml", "maml++"])
def test_second_order_meta_gradient_equals_finite_differences(choices):
    learner, config = small_learner(**choices), small_config(**choices)
    episodes = random_episodes(config)
    ours = learner.meta_gradients(episodes, epoch=0).gradients
    parameters = plain_parameters(learner)
    generator = torch.Generator().manual_seed(3)
    directions = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in parameters.items()
    }
    weights, rates = learner.multi_step_loss_weights(0), learner.inner_loop.learning_rates.detach()

    numeric = finite_difference(
        lambda moved: plain_outer_loss(moved, rates, episodes, weights, second_order=False), parameters, directions
    )
    analytic = sum(float((ours[f"network.{name}"] * direction).sum()) for name, direction in directions.items())
    assert analytic == pytest.approx(numeric, rel=1e-5)


def test_first_order_meta_gradient_equals_finite_differences_with_inner_gradients_held_constant():
    learner, config = small_learner(second_order=False), small_config(second_order=False)
    episodes = random_episodes(config)
    ours = learner.meta_gradients(episodes, epoch=0).gradients
    parameters, rates = plain_parameters(learner), learner.inner_loop.learning_rates.detach()
    weights = learner.multi_step_loss_weights(0)

    # Inner gradients at the unmoved point, found by finite differences of nothing but the plain loss's own autograd.
    constants = []
    for task in range(config.tasks_per_meta_batch):
        recorded = []
        fast = dict(parameters)
        network = PlainNetwork().double()
        names = [name for name in parameters if ".norm." not in name]
        for step in range(3):
            logits = torch.func.functional_call(network, fast, (episodes.support_images[task],))
            loss = nn.functional.cross_entropy(logits, episodes.support_labels[task])
            gradients = torch.autograd.grad(loss, [fast[name] for name in names])
            recorded.append(list(gradients))
            for index, name in enumerate(names):
                fast[name] = (fast[name] - rates[index, step] * gradients[index]).detach().requires_grad_()
        constants.append(recorded)

    generator = torch.Generator().manual_seed(3)
    directions = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in parameters.items()
    }
    numeric = finite_difference(
        lambda moved: plain_outer_loss(moved, rates, episodes, weights, second_order=False, inner_gradients=constants),
        parameters,
        directions,
    )
    analytic = sum(float((ours[f"network.{name}"] * direction).sum()) for name, direction in directions.items())
    assert analytic == pytest.approx(numeric, rel=1e-5)
    assert analytic != pytest.approx(
        sum(
            float((small_learner().meta_gradients(episodes, epoch=0).gradients[f"network.{name}"] * direction).sum())
            for name, direction in directions.items()
        ),
        rel=1e-3,
    )


@pytest.mark.parametrize("choices", [{}, {"second_order": False}, PLUS_PLUS], ids=["maml", "first order", "maml++"])
@pytest.mark.parametrize("chunk", ["auto", 1, 3])
def test_tasks_together_equal_a_plain_loop_over_tasks(choices, chunk):
    choices = choices | {"task_chunk_size": chunk}
    learner, config = small_learner(**choices), small_config(**choices)
    episodes = random_episodes(config)
    ours = learner.meta_gradients(episodes, epoch=0)
    parameters = plain_parameters(learner)
    rates = learner.inner_loop.learning_rates.detach().clone().requires_grad_()
    loss = plain_outer_loss(
        parameters, rates, episodes, learner.multi_step_loss_weights(0), second_order=config.second_order
    )
    expected = torch.autograd.grad(loss, [*parameters.values(), rates])
    expected = dict(
        zip([*(f"network.{name}" for name in parameters), "inner_loop.learning_rates"], expected, strict=True)
    )
    expected = {name: value for name, value in expected.items() if name in ours.gradients}
    assert float(ours.metrics["loss"]) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert worst_difference(ours.gradients, expected) <= 1e-9


def test_learned_rates_that_are_equal_are_gradient_descent():
    plain, learned = small_learner(), small_learner(learnable_per_layer_per_step_inner_loop_learning_rate=True)
    episodes = random_episodes(small_config())
    ours, theirs = learned.meta_gradients(episodes, 0), plain.meta_gradients(episodes, 0)
    for name, gradient in theirs.gradients.items():
        assert torch.equal(ours.gradients[name], gradient)
    assert set(ours.gradients) - set(theirs.gradients) == {"inner_loop.learning_rates"}


def test_derivative_order_annealing_is_first_order_up_to_epoch_k():
    annealed = small_learner(first_order_to_second_order_epoch=2)
    first, second = small_learner(second_order=False), small_learner()
    episodes = random_episodes(small_config())
    for epoch, same in ((0, first), (2, first), (3, second)):
        ours, theirs = (
            annealed.meta_gradients(episodes, epoch).gradients,
            same.meta_gradients(episodes, epoch).gradients,
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_meta_gradients_change_nothing_and_meta_update_does():
    learner = small_learner(**PLUS_PLUS)
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    gradients = learner.meta_gradients(random_episodes(small_config()), 0)
    assert all(torch.equal(before[name], value) for name, value in learner.state_tensors().items())
    learner.meta_update(gradients, 0)
    after = learner.state_tensors()
    without_effect = "network.block0.conv.bias"  # batch norm takes it out again, so that its gradient is exactly zero
    for name in ({*gradients.gradients} - {without_effect}) | {
        "network.block0.norm.running_mean",
        "network.block1.norm.running_var",
    }:
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("statistics", ["transductive", "running"])
@pytest.mark.parametrize("n_steps", [0, 2, 5])
def test_evaluation_leaves_the_learner_as_it_found_it(statistics, n_steps):
    learner = small_learner(**PLUS_PLUS)
    episodes = random_episodes(small_config())
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    result = learner.evaluate(episodes, n_steps, statistics)
    assert result.query_loss.shape == result.support_accuracy.shape == (n_steps + 1, 4)
    assert not result.query_logits.requires_grad
    after = learner.state_tensors()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_evaluation_sees_the_losses_that_training_sees():
    learner = small_learner(**PLUS_PLUS)
    episodes = random_episodes(small_config())
    training, evaluation = learner.meta_gradients(episodes, 0).metrics, learner.evaluate(episodes)
    assert evaluation.query_loss[1:].mean(1).tolist() == pytest.approx(training["query_loss"].tolist(), rel=1e-10)
    assert evaluation.support_loss[:-1].mean(1).tolist() == pytest.approx(training["support_loss"].tolist(), rel=1e-10)
    assert evaluation.query_accuracy[-1].mean() == training["accuracy"]


def test_zero_inner_steps_classify_with_the_meta_parameters():
    learner = small_learner()
    episodes = random_episodes(small_config())
    with torch.no_grad():
        assert torch.allclose(learner.evaluate(episodes, 0).query_logits, learner.network(episodes.query_images))


def test_steps_beyond_the_trained_ones_reuse_the_last_rates_and_norm_rows():
    learner = small_learner(**PLUS_PLUS)
    longer = small_learner(**PLUS_PLUS, number_of_evaluation_steps_per_iter=5)
    longer.load_state_tensors(learner.state_tensors())
    rates = torch.rand(learner.inner_loop.learning_rates.shape, dtype=torch.float64)
    extended = small_learner(**PLUS_PLUS, number_of_training_steps_per_iter=5)
    with torch.no_grad():
        longer.inner_loop.learning_rates.copy_(rates)
        extended.inner_loop.learning_rates.copy_(rates[:, [0, 1, 2, 2, 2]])
        own = dict(longer.network.named_parameters())
        for name, parameter in extended.network.named_parameters():
            parameter.copy_(own[name][[0, 1, 2, 2, 2]] if ".norm." in name else own[name])
    episodes = random_episodes(small_config())
    assert torch.allclose(longer.evaluate(episodes).query_logits, extended.evaluate(episodes).query_logits, rtol=1e-12)


def test_running_statistics_make_a_prediction_independent_of_the_other_queries():
    learner = small_learner(batch_norm_statistics="running")
    episodes = random_episodes(small_config())
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    changed = episodes.query_images.clone()
    changed[:, 1:] += 1.0
    others = replace(episodes, query_images=changed)
    alone, among = (learner.evaluate(batch).query_logits[:, 0] for batch in (episodes, others))
    assert torch.allclose(alone, among, rtol=1e-12)
    alone, among = (
        learner.evaluate(batch, statistics="transductive").query_logits[:, 0] for batch in (episodes, others)
    )
    assert not torch.allclose(alone, among, rtol=1e-3)


def test_running_statistics_are_one_moving_average_step_of_the_mean_over_tasks_and_passes():
    """Row s is fed by the support pass of step s and the query pass after it; here recomputed for the first layer."""
    learner = small_learner(**PLUS_PLUS, batch_norm_momentum=0.25, number_of_training_steps_per_iter=1)
    episodes = random_episodes(small_config())
    conv = learner.network.block0.conv
    with torch.no_grad():
        weight, bias = conv.weight.clone(), conv.bias.clone()
        support = [nn.functional.conv2d(images, weight, bias, padding=1) for images in episodes.support_images]
    rates = learner.inner_loop.learning_rates
    fast_means, fast_vars = [], []
    for task in range(4):
        alone = small_learner(**PLUS_PLUS, number_of_training_steps_per_iter=1)
        one = episodes.task(task)
        params = {name: dict(alone.network.named_parameters())[name][None] for name in alone.inner_loop.names}
        logits = alone.network(one.support_images, params)
        loss = nn.functional.cross_entropy(logits[0], one.support_labels[0])
        index = {name: i for i, name in enumerate(params)}
        gradients = torch.autograd.grad(loss, list(params.values()))
        new = {
            name: params[name] - rates[index[name], 0] * gradients[index[name]]
            for name in ("block0.conv.weight", "block0.conv.bias")
        }
        out = nn.functional.conv2d(
            one.query_images[0], new["block0.conv.weight"][0], new["block0.conv.bias"][0], padding=1
        )
        fast_means.append(out.mean((0, 2, 3)))
        fast_vars.append(out.var((0, 2, 3)))
    mean = (torch.stack([s.mean((0, 2, 3)) for s in support]).mean(0) + torch.stack(fast_means).mean(0)) / 2
    var = (torch.stack([s.var((0, 2, 3)) for s in support]).mean(0) + torch.stack(fast_vars).mean(0)) / 2
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    norm = learner.network.block0.norm
    assert torch.allclose(norm.running_mean, 0.25 * mean.detach(), rtol=1e-9)
    assert torch.allclose(norm.running_var, 0.75 + 0.25 * var.detach(), rtol=1e-9)


def test_chunks_of_tasks_give_the_statistics_of_the_whole_batch():
    episodes = random_episodes(small_config())
    whole, chunked = (small_learner(**PLUS_PLUS, task_chunk_size=size).meta_gradients(episodes, 0) for size in (4, 3))
    assert worst_difference(chunked.statistics, whole.statistics) <= 1e-9
    for name in ("support_loss", "query_accuracy", "gradient_norm"):
        assert torch.allclose(chunked.metrics[name], whole.metrics[name], rtol=1e-9)


def test_learned_momentum_moves_and_gives_the_gradient_of_finite_differences():
    choices = PLUS_PLUS | {"batch_norm_statistics": "running", "learnable_batch_norm_momentum": True}
    learner = small_learner(**choices)
    episodes = random_episodes(small_config())
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    name, momentum = "network.block1.norm.momentum", learner.network.block1.norm.momentum
    analytic = float(learner.meta_gradients(episodes, 0).gradients[name])

    def loss_at(shift):
        with torch.no_grad():
            momentum.add_(shift)
        loss = float(learner.meta_gradients(episodes, 0).metrics["loss"])
        with torch.no_grad():
            momentum.sub_(shift)
        return loss

    assert analytic == pytest.approx((loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, rel=1e-4)


def test_gradient_clamp_bounds_the_networks_gradient_elements_only():
    """After one Adam step from zero moments the first moment is 0.1 times the gradient that was applied."""
    learner = small_learner(**PLUS_PLUS, gradient_clamp=0.01)
    gradients = learner.meta_gradients(random_episodes(small_config()), 0)
    learner.meta_update(gradients, 0)
    for name, parameter in learner.meta_parameters().items():
        applied = learner.meta_optimizer.torch_optimizer.state[parameter]["exp_avg"] / 0.1
        expected = gradients.gradients[name]
        expected = expected.clamp(-0.01, 0.01) if name.startswith("network.") else expected
        assert torch.allclose(applied, expected, rtol=1e-9)
    assert max(gradient.abs().max() for gradient in gradients.gradients.values()) > 0.01


def test_meta_learning_rate_is_annealed_by_a_cosine_over_the_epochs():
    learner = small_learner(total_epochs=10, meta_learning_rate=0.01, min_learning_rate=0.002)
    assert learner.meta_learning_rate(0) == 0.01
    assert learner.meta_learning_rate(5) == pytest.approx(0.006)
    assert learner.meta_learning_rate(10) == pytest.approx(0.002)
    learner.meta_update(learner.meta_gradients(random_episodes(small_config()), 5), 5)
    assert learner.meta_optimizer.torch_optimizer.param_groups[0]["lr"] == pytest.approx(0.006)


def test_a_learner_that_takes_over_a_state_goes_on_with_the_same_bits():
    config = small_config(**PLUS_PLUS)
    one = small_learner(**PLUS_PLUS)
    for seed in range(2):
        one.meta_update(one.meta_gradients(random_episodes(config, seed), 0), 0)
    other = small_learner(**PLUS_PLUS, seed=99)
    other.load_state_tensors({name: value.clone() for name, value in one.state_tensors().items()})
    for learner in (one, other):
        learner.meta_update(learner.meta_gradients(random_episodes(config, 5), 0), 0)
    ours, theirs = one.state_tensors(), other.state_tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_another_network_is_refused_by_name():
    with pytest.raises(
        ConfigError, match=r'tensor "network.block0.conv.bias" has shape \(5,\) there and has shape \(3,\) here'
    ):
        small_learner().load_state_tensors(small_learner(cnn_num_filters=5).state_tensors())


def test_dropout_follows_from_the_episode_and_not_from_its_place_in_the_batch():
    choices = {"dropout_rate_value": 0.3}
    episodes = random_episodes(small_config())
    together, chunked = (small_learner(**choices, task_chunk_size=size).meta_gradients(episodes, 0) for size in (4, 1))
    assert worst_difference(together.gradients, chunked.gradients) <= 1e-9
    other = small_learner(**choices).meta_gradients(replace(episodes, seeds=episodes.seeds + 1), 0)
    assert other.metrics["loss"] != together.metrics["loss"]
    assert torch.equal(
        small_learner(**choices).evaluate(episodes).query_logits, small_learner().evaluate(episodes).query_logits
    )


@pytest.mark.parametrize(
    "choices",
    [
        {"max_pooling": False},
        {"max_pooling": False, "conv_padding": False},
        {"conv_padding": False, "num_stages": 1},
        {"norm_layer": "layer_norm"},
        {"cnn_blocks_per_stage": 2},
        {"enable_inner_loop_optimizable_bn_params": True, "per_step_bn_statistics": True},
        {"learnable_bn_gamma": False},
        {"learnable_bn_beta": False},
        {"image_channels": 3, "image_height": 10, "image_width": 13},
        {"num_samples_per_class": 1, "num_target_samples": 5, "num_classes_per_set": 2},
    ],
    ids=str,
)
def test_every_option_of_the_network_gives_the_gradient_of_finite_differences(choices):
    learner, config = small_learner(**choices), small_config(**choices)
    episodes = random_episodes(config)
    ours = learner.meta_gradients(episodes, 0).gradients
    assert sorted(ours) == sorted(learner.meta_parameters())
    generator = torch.Generator().manual_seed(11)
    directions = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in ours.items()
    }

    def loss_at(step):
        with torch.no_grad():
            for name, parameter in learner.meta_parameters().items():
                parameter.add_(step * directions[name])
        loss = float(learner.meta_gradients(episodes, 0).metrics["loss"])
        with torch.no_grad():
            for name, parameter in learner.meta_parameters().items():
                parameter.sub_(step * directions[name])
        return loss

    analytic = sum(float((ours[name] * directions[name]).sum()) for name in ours)
    # A short step: leaky ReLU and max-pooling have kinks, which a long one crosses.
    assert analytic == pytest.approx((loss_at(1e-8) - loss_at(-1e-8)) / 2e-8, rel=1e-4)


def test_adapted_norm_parameters_are_part_of_the_inner_loop_and_others_are_not():
    adapted = small_learner(enable_inner_loop_optimizable_bn_params=True, learnable_bn_gamma=False).inner_loop.names
    assert "block0.norm.bias" in adapted and "block0.norm.weight" not in adapted
    assert not any(".norm." in name for name in small_learner(**PLUS_PLUS).inner_loop.names)


def test_initial_weights_follow_from_the_seed_and_from_train_seed_without_one():
    def weights(**changes):
        return small_learner(**changes).network.block0.conv.weight

    assert torch.equal(weights(seed=3, train_seed=1), weights(seed=3, train_seed=2))
    assert torch.equal(weights(train_seed=3), weights(seed=3, train_seed=1))
    assert not torch.equal(weights(train_seed=1), weights(train_seed=2))


def test_a_resumed_run_reuses_what_the_machine_chose_and_obeys_what_the_user_set():
    automatic, explicit = small_learner(), small_learner(task_chunk_size=2)
    assert automatic.automatic_choices == {"task_chunk_size": 4} and explicit.automatic_choices == {}
    for learner in (automatic, explicit):
        learner.reuse_choices({"task_chunk_size": 3})
    assert (automatic.execution.chunks.size, explicit.execution.chunks.size) == (3, 2)
