"""CAVIA: a few context parameters, zero at the start of every episode, from which learned weights make FiLM.

    (scale, shift) = V c + v,   c (k,) adapted from a fixed zero, V and v meta-learned

In the paper c is all that is adapted: `adapted_parameters` body. Each layer that is named has a c of its own; the paper
names one, the third block. Against the released code v begins at zero and the scale is added to one, so that a context
of zero is the plain network at the start, and FiLM comes before the max-pooling, not after it.

Source: Zintgraf et al. 2019, "Fast context adaptation via meta-learning", section 3; released code (lmzintgraf/cavia).
"""

import torch
from torch import Tensor, nn

from meta_learning.networks.adapters.film import Modulation
from utils.registry import register_adapter_kind


class Context(Modulation):
    """Scale and shift made of context parameters.

    Args:
        size: k.
    """

    adapts = ("context",)
    title = "CAVIA"

    def __init__(self, layer: nn.Module, *, size: int) -> None:
        super().__init__(layer)
        self.context = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.film = nn.Linear(size, 2 * self.n_channels)
        nn.init.zeros_(self.film.bias)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return V c + v, for F channels (F,) each."""
        scale, shift = self.film(self.context).chunk(2)
        return scale, shift


register_adapter_kind(
    "context",
    Context,
    reads={"size": "adapter_rank"},
    meaning="so many context parameters as `adapter_rank`, from a fixed zero, of which learned weights make FiLM "
    "(CAVIA)",
)
