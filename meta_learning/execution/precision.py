"""Convolutions in a narrow number format, and the guard that compares their meta-gradient with the wide one's."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from meta_learning.networks.layers import MetaConv2d
from utils.errors import ConfigError

log = logging.getLogger(__name__)


class ConvolutionPrecision:
    """Computes the products of a network's convolutions in another dtype; sums, norms, losses and parameters keep
    theirs.

    Args:
        dtype: None: that of the parameters.
        error_limit: of `error`, above which training stops.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None, error_limit: float = 0.25) -> None:
        self._layers = [module for module in network.modules() if isinstance(module, MetaConv2d)]
        self.dtype, self.error_limit = dtype, error_limit
        self._checked_epoch: int | None = None
        self._set(dtype)

    def _set(self, dtype: torch.dtype | None) -> None:
        self.current = dtype
        for layer in self._layers:
            layer.compute_dtype = dtype

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in the dtype of the parameters inside."""
        self._set(None)
        try:
            yield
        finally:
            self._set(self.dtype)

    def check(self, meta_gradient: Callable[[], Mapping[str, Tensor]], epoch: int) -> None:
        """Compare the meta-gradients of one meta-batch in both formats, at the start of a run and once in each
        epoch; waits for the device.

            error = norm(narrow - exact) / norm(exact), over all meta-parameters together

        Raises:
            ConfigError: the error is above the limit.
        """
        if self.current is None or epoch == self._checked_epoch:
            return
        narrow = _flat(meta_gradient())
        with self.exact():
            exact = _flat(meta_gradient())
        error = float((narrow - exact).norm() / exact.norm())
        name = str(self.dtype).removeprefix("torch.")
        log.info(
            "epoch %d: the meta-gradient in %s differs from that in float32 by %.3g of its norm.",
            epoch + 1,
            name,
            error,
        )
        # Not error > limit: nan must stop the run, too. Second-order MAML++ in bfloat16 was measured at 0.48 to 0.93,
        # first order at 0.23 to 0.51 (docs/performance.md).
        if not error <= self.error_limit:
            raise ConfigError(
                f'"precision" {name}: in epoch {epoch + 1} the meta-gradient of one meta-batch differs from that in '
                f"float32 by {error:.3g} "
                f'of its norm; "precision_error_limit" allows {self.error_limit:g}. Set "precision" to float32, or '
                "allow more: a rerun goes on"
            )
        self._checked_epoch = epoch


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()
