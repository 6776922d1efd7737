"""Sharpness-aware meta-learning: the outer gradient where the outer loss is higher, at a given distance.

    g = grad F(theta),   gradient = grad F(theta + rho g / |g|)

F is the outer loss, theta the network's parameters and a head's own; what else is learned, such as inner rates, stays
where it is, since its scale is another. The second gradient is taken at the point as it is, not differentiated through.

Source: Foret et al. 2021 (SAM), equations 2 and 3; Abbas et al. 2022 (Sharp-MAML), the upper level.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from meta_learning.meta_gradients import MetaGradients, norm_of
from meta_learning.meta_optimizer import NETWORK


def gradients_uphill(
    compute: Callable[[], MetaGradients], parameters: Mapping[str, nn.Parameter], radius: float
) -> MetaGradients:
    """Return meta-gradients uphill, with losses and statistics of where the parameters are.

    Args:
        compute: the meta-gradients of a meta-batch at the parameters as they are when it is called.
    """
    found = compute()
    with _uphill(parameters, found.gradients, radius):
        above = compute()
    metrics = found.metrics | {"gradient_norm": above.metrics["gradient_norm"]}
    return replace(found, gradients=above.gradients, metrics=metrics)


@contextmanager
def _uphill(parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor], radius: float) -> Iterator[None]:
    """Inside, the network's parameters are moved by `radius` along their gradient; afterwards they are as before."""
    moved = {name: parameter for name, parameter in parameters.items() if name.startswith(NETWORK)}
    norm = norm_of({name: gradients[name] for name in moved})
    # In place, and from copies, to the bit: recorded kernels read these very tensors.
    before = {name: parameter.detach().clone() for name, parameter in moved.items()}
    try:
        with torch.no_grad():
            for name, parameter in moved.items():
                parameter.add_(gradients[name] * (radius / (norm + 1e-12)))  # the constant of SAM's code: norms of zero
        yield
    finally:
        with torch.no_grad():
            for name, parameter in moved.items():
                parameter.copy_(before[name])
