"""The meta-gradient of MAML in the adjoint form of MixFlow-MG (arXiv 2505.00793), to be measured against the engine's.

    python benchmarks/adjoint_gradient.py [--backbone conv4] [--image_size 24] [--steps 3]

prints how far its gradients are from the engine's, in float64 on one task of random images;
benchmarks/inner_loop_memory.py measures memory and time.

Only the adapted parameters of each step are kept. Backwards over the steps, with a the inner learning rate,

    adjoint[S] = d L(theta[S], query) / d theta[S]
    adjoint[s] = adjoint[s+1] - a * H[s] adjoint[s+1],   H[s] = d^2 L(theta[s], support) / d theta^2

The product with H[s] is the forward-mode derivative of the gradient along the adjoint, so that no graph of a
gradient is ever kept. The same pass gives the share of the parameters that are not adapted. MAML with fixed rates
and transductive batch norm alone.
"""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from meta_learning.networks import batch_norm as norm_layers
from meta_learning.networks import convolutional as convolutional_networks
from meta_learning.networks import layers
from meta_learning.networks.passes import BatchStatistics, Pass


@contextmanager
def plain_operations():
    """Inside, layers are made of torch's operations, whose backward passes have forward-mode derivatives; ours have
    none.
    """

    def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        scale = weight * torch.rsqrt(var + eps)
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None], mean, var

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any, *_: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    def pool_and_activate(x: Tensor, window: tuple[int, int], negative_slope: float) -> Tensor:
        return F.leaky_relu(F.max_pool2d(x, window), negative_slope)

    with (
        patch.object(norm_layers, "batch_norm", batch_norm), patch.object(layers, "convolve", convolve),
        patch.object(convolutional_networks, "pool_and_activate", pool_and_activate),
    ):  # fmt: skip
        yield


def adjoint_meta_gradients(learner: Any, episodes: Any) -> dict[str, Tensor]:
    """Return the gradients that `learner.meta_gradients(episodes, 0)` has, by the adjoint form."""
    meta = {name.removeprefix("network."): value for name, value in learner.meta_parameters().items()}
    adapted = list(learner.inner_loop.names)
    others = [name for name in meta if name not in adapted]
    rate, n_tasks = float(learner.inner_loop.rates(0)[0]), len(episodes.support_labels)

    def mean_losses(role: str, values: list[Tensor]) -> Tensor:
        outputs = learner.network(
            getattr(episodes, f"{role}_images"),
            dict(zip(adapted, values, strict=True)),
            Pass(collected=BatchStatistics()),
        )
        return learner.loss.per_task_loss(outputs, getattr(episodes, f"{role}_labels"))

    def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        inputs = [*leaves, *(meta[name] for name in others)]
        return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))

    path = [[meta[name].detach().expand(n_tasks, *meta[name].shape).clone() for name in adapted]]
    for _ in range(learner.n_steps):
        leaves = [value.detach().requires_grad_() for value in path[-1]]
        steps = torch.autograd.grad(mean_losses("support", leaves).sum(), leaves)
        path.append([value - rate * step for value, step in zip(path[-1], steps, strict=True)])
    leaves = [value.detach().requires_grad_() for value in path.pop()]
    values = gradients(mean_losses("query", leaves).mean(), leaves)
    while path:
        leaves = [value.detach().requires_grad_() for value in path.pop()]
        with forward_mode.dual_level():
            duals = [forward_mode.make_dual(leaf, value) for leaf, value in zip(leaves, values, strict=False)]
            products = [
                forward_mode.unpack_dual(value).tangent
                for value in gradients(mean_losses("support", duals).sum(), leaves)
            ]
        values = [
            value if product is None else value - rate * product
            for value, product in zip(values, products, strict=True)
        ]
    return {
        f"network.{name}": value.sum(0) if name in adapted else value
        for name, value in zip([*adapted, *others], values, strict=True)
    }


def main() -> None:
    """Print how far the two are apart."""
    from benchmarks.inner_loop_memory import gradient_of, learner_and_episodes
    from experiment_tools.check_gradients.checks import relative_difference

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="conv4", help="of the config key of that name (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=24, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of the inner loop (default: %(default)s)")
    options = parser.parse_args()
    task = learner_and_episodes(
        options.backbone, options.image_size, options.steps, recompute=False, precision="float64"
    )
    difference = relative_difference(gradient_of("adjoint", *task), gradient_of("kept", *task))
    print(
        f"{options.backbone}, {options.image_size} x {options.image_size}, {options.steps} steps: relative difference "
        f"{difference:.1e} (float64)"
    )


if __name__ == "__main__":
    main()
