"""Which norm layer a network is built with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meta_learning.networks.norms.base import MetaNorm
from utils.registry import made
from utils.registry.choices import GIVEN, choice


@dataclass(frozen=True)
class NormChoice:
    """Which norm a network is built with; the meanings are those of the config keys."""

    layer: str = "batch_norm"
    """A value of the key `norm_layer`."""
    n_rows: int = 1
    """R, rows of batch norm's running statistics."""
    n_parameter_rows: int | None = None
    """Rows of weights and biases; None: R."""
    learn_weight: bool = True
    learn_bias: bool = True
    momentum: float = 0.1
    learnable_momentum: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that are the layer's own."""
    given: Callable[..., Any] | None = None
    """What makes the layer in place of the one that is called `layer`."""

    @property
    def affine(self) -> dict[str, Any]:
        """Return rows of weights and biases, and which of them are learned: arguments of `AffineNorm`."""
        n_rows = self.n_rows if self.n_parameter_rows is None else self.n_parameter_rows
        return {"n_parameter_rows": n_rows, "learn_weight": self.learn_weight, "learn_bias": self.learn_bias}

    def build(self, shape: tuple[int, int, int]) -> MetaNorm:
        """Build the norm layer of a feature map (F, H, W).

        Raises:
            ConfigError: the layer cannot be made for this map.
        """
        make, name = self.given, GIVEN
        if make is None:
            make, name = choice("norm_layer", self.layer).make, self.layer
        return made("norm_layer", name, MetaNorm, make, shape, self, **self.own)
