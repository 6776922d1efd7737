"""The way to the outer gradient that a config's `outer_update` names."""

from collections.abc import Callable

from meta_learning.outer_gradients.base import OuterGradient
from meta_learning.outer_gradients.displacement import Displacement
from meta_learning.outer_gradients.implicit_gradient import Implicit
from meta_learning.outer_gradients.unrolled import Unrolled
from utils.config import ExperimentConfig

OUTER_GRADIENTS: dict[str, Callable[[ExperimentConfig], OuterGradient]] = {
    "gradient": lambda config: Unrolled(recomputed=config.gradient_checkpointing),
    "displacement": lambda config: Displacement(),
    "implicit": lambda config: Implicit(config.implicit_gradient_iterations),
}


def build_outer_gradient(config: ExperimentConfig) -> OuterGradient:
    """Build the outer gradient of a config."""
    return OUTER_GRADIENTS[config.outer_update](config)
