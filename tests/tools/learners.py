"""Small learners, random episodes, and an independent plain implementation of MAML to compare with."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from few_shot_learning_system import FewShotLearner, build_learner
from meta_learning.execution.chunk_size import held_by_autograd
from utils.config import check_config

SMALL = {
    "experiment_name": "small",
    "precision": "float64",
    "image_height": 12,
    "image_width": 12,
    "num_stages": 2,
    "cnn_num_filters": 3,
    "num_classes_per_set": 3,
    "num_samples_per_class": 2,
    "num_target_samples": 2,
    "batch_size": 4,
    "number_of_training_steps_per_iter": 3,
    "init_inner_loop_learning_rate": 0.2,
    "class_rotation": False,
}
PLUS_PLUS = {
    "use_multi_step_loss_optimization": True,
    "per_step_bn_statistics": True,
    "learnable_per_layer_per_step_inner_loop_learning_rate": True,
}


@dataclass(frozen=True)
class Episodes:
    """The part of `data.EpisodeBatch` that the learner reads."""

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    seeds: Tensor

    @property
    def n_way(self) -> int:
        """N."""
        return int(self.support_labels.max()) + 1

    def task(self, index: int) -> "Episodes":
        """Return one task as a batch of one."""
        return Episodes(*(value[index : index + 1] for value in vars(self).values()))


def small_config(**changes):
    """Return a config of a tiny network in float64."""
    return check_config(SMALL | changes, "test")


def small_learner(**changes) -> FewShotLearner:
    """Return a learner of a tiny network in float64 on the CPU, its weights moved off their symmetric start."""
    learner = build_learner(small_config(**changes), "cpu")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in learner.network.parameters():
            if parameter.requires_grad and parameter.dim() < 3:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return learner


def random_episodes(config, seed: int = 0) -> Episodes:
    """Draw a meta-batch of random images."""
    generator = torch.Generator().manual_seed(seed)
    n_tasks, n_way = config.tasks_per_meta_batch, config.num_classes_per_set

    def images_and_labels(per_class: int) -> tuple[Tensor, Tensor]:
        shape = (n_tasks, n_way * per_class, config.image_channels, config.image_height, config.image_width)
        labels = torch.arange(n_way).repeat_interleave(per_class).expand(n_tasks, -1).contiguous()
        return torch.randn(shape, generator=generator, dtype=torch.float64), labels

    support, query = images_and_labels(config.num_samples_per_class), images_and_labels(config.num_target_samples)
    return Episodes(*support, *query, torch.arange(n_tasks) + 100)


class PlainBlock(nn.Module):
    """Convolution, norm, leaky ReLU, max-pooling: the reference's order, in plain torch layers."""

    def __init__(self, channels: int, filters: int, padding: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, filters, 3, padding=padding), nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.max_pool2d(F.leaky_relu(self.norm(self.conv(x))), 2)


class PlainNetwork(nn.Module):
    """The network that a config describes, SMALL if none is given, as anybody would write it; its parameter names
    are the project's.
    """

    def __init__(self, config=None) -> None:
        super().__init__()
        config = config or small_config()
        channels, sides = config.image_channels, (config.image_height, config.image_width)
        self.n_blocks = config.num_stages
        for index in range(self.n_blocks):
            self.add_module(
                f"block{index}", PlainBlock(channels, config.cnn_num_filters, padding=int(config.conv_padding))
            )
            channels, sides = (
                config.cnn_num_filters,
                [(side if config.conv_padding else side - 2) // 2 for side in sides],
            )
        self.head = nn.Linear(channels * sides[0] * sides[1], config.num_classes_per_set)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for index in range(self.n_blocks):
            x = getattr(self, f"block{index}")(x)
        return self.head(x.flatten(1))


def plain_network(learner: FewShotLearner) -> PlainNetwork:
    """Return a plain network with the weights of `learner`, through an ordinary strict `load_state_dict`."""
    network = PlainNetwork().double()
    state = dict(learner.network.state_dict())
    state |= {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(state, strict=True)
    return network


def row_of(parameters: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Return the parameters that inner step `step` uses: per-step norm parameters give their row."""
    return {name: value[step] if ".norm." in name and value.dim() == 2 else value for name, value in parameters.items()}


def plain_outer_loss(
    parameters: dict[str, Tensor], rates: Tensor, episodes: Episodes, weights: list[float], *, second_order: bool,
    inner_gradients: list[list[list[Tensor]]] | None = None, network: nn.Module | None = None,
) -> Tensor:  # fmt: skip
    """Return MAML's outer loss task by task, without any of the project's code, in the dtype of the images.

    `inner_gradients[task][step]`, where given, are used as constants in place of the gradients.
    """
    network = network or PlainNetwork().double()
    adapted_names = [name for name in parameters if ".norm." not in name]
    task_losses = []
    for task in range(len(episodes.support_labels)):
        fast = dict(parameters)
        loss = torch.zeros((), dtype=episodes.support_images.dtype)
        for step, weight in enumerate(weights):
            if inner_gradients is None:
                logits = torch.func.functional_call(network, row_of(fast, step), (episodes.support_images[task],))
                support_loss = F.cross_entropy(logits, episodes.support_labels[task])
                gradients = torch.autograd.grad(
                    support_loss, [fast[name] for name in adapted_names], create_graph=second_order
                )
            else:
                gradients = inner_gradients[task][step]
            for index, name in enumerate(adapted_names):
                fast[name] = fast[name] - rates[index, step] * gradients[index]
            if weight:
                logits = torch.func.functional_call(network, row_of(fast, step), (episodes.query_images[task],))
                loss = loss + weight * F.cross_entropy(logits, episodes.query_labels[task])
        task_losses.append(loss)
    return torch.stack(task_losses).mean()


def plain_parameters(learner: FewShotLearner) -> dict[str, Tensor]:
    """Return fresh leaves with the values of the network's parameters."""
    return {name: value.detach().clone().requires_grad_() for name, value in learner.network.named_parameters()}


def worst_difference(ours: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest norm(a - b) / max(norm(b), 1e-6 norm(all b)) over tensors: the project's measure of
    equality.
    """
    assert ours.keys() == other.keys()
    everything = torch.linalg.vector_norm(torch.cat([value.flatten() for value in other.values()]))
    return max(
        float(
            torch.linalg.vector_norm(ours[name] - other[name])
            / max(torch.linalg.vector_norm(other[name]), 1e-6 * everything)
        )
        for name in other
    )


def held_bytes(learner: FewShotLearner, episodes: Episodes) -> int:
    """Return the most bytes that autograd holds at one time while a meta-gradient is computed."""
    with held_by_autograd() as most:
        learner.meta_gradients(episodes, 0)
    return most()
