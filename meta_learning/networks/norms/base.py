"""What every norm layer is to a network."""

import torch
from torch import Tensor, nn

from meta_learning.networks.layers import Parameters
from meta_learning.networks.passes import MIXED, Pass, StatisticsChoice, statistics_named


class MetaNorm(nn.Module):
    """What all norm layers are called with: forward(x, params, n_tasks, pass_, name), name being the layer's in the
    network.
    """

    own_statistics: str = "transductive"
    """The layer's choice where the pass says "mixed"."""
    sees_other_images: bool = False
    """Whether an image's result depends on the images beside it, so that the choice of statistics has a meaning."""

    def statistics_of(self, pass_: Pass) -> str:
        """Return where this layer's statistics come from in a pass, a value of `batch_norm_statistics`."""
        return self.own_statistics if pass_.statistics == MIXED else pass_.statistics

    def choice(self, pass_: Pass) -> StatisticsChoice:
        """Return what the layer's statistics ask of a pass."""
        return statistics_named(self.statistics_of(pass_))

    def needs_support(self, pass_: Pass) -> bool:
        """Return whether query images must come together with the support images."""
        return self.sees_other_images and self.choice(pass_).query_needs_support


def per_row(n_filters: int, rows: int) -> tuple[int, ...]:
    """Return the shape of values per filter, in so many rows; a single one is none."""
    return (n_filters,) if rows == 1 else (rows, n_filters)


class AffineNorm(MetaNorm):
    """A weight and a bias per filter, with one row or one per inner step."""

    def __init__(
        self, n_filters: int, *, n_parameter_rows: int = 1, learn_weight: bool = True, learn_bias: bool = True,
        eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.eps = eps
        shape = per_row(n_filters, n_parameter_rows)
        self.weight = nn.Parameter(torch.ones(shape), requires_grad=learn_weight)
        self.bias = nn.Parameter(torch.zeros(shape), requires_grad=learn_bias)

    def affine(self, params: Parameters | None, n_tasks: int, pass_: Pass, name: str) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of this step, (B*F,) each: passed in or the layer's own."""
        return self._affine("weight", params, n_tasks, pass_, name), self._affine("bias", params, n_tasks, pass_, name)

    def _affine(self, key: str, params: Parameters | None, n_tasks: int, pass_: Pass, name: str) -> Tensor:
        if params is not None and key in params:
            return params[key].flatten()
        # Rows gathered without a graph must not serve a pass that is differentiated.
        place = f"{name}.{key}", torch.is_grad_enabled()
        kept = {} if pass_.record.affine_rows is None else pass_.record.affine_rows
        if place not in kept:
            kept[place] = torch.atleast_2d(getattr(self, key)).repeat(1, n_tasks).unbind()
        rows = kept[place]
        return rows[min(pass_.step, len(rows) - 1)]
