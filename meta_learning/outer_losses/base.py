"""What every outer loss is: the one number that the outer loop descends, of the query losses of a meta-batch."""

from collections.abc import Sequence

from torch import Tensor, nn


class OuterLoss(nn.Module):
    """Of the losses of B tasks, each summed over the inner steps that count. Its `nn.Parameter`s are meta-learned."""

    is_mean = False
    """Whether each task counts alike, whatever the others lose; else every meta-batch is passed through twice."""

    def step_weights(self, epoch: int, n_steps: int) -> Sequence[float] | None:
        """Return the S weights of the query losses after each inner step (one for S = 0), zero where none is needed;
        None: those that the config's keys say.

        Args:
            epoch: from 0.
            n_steps: S.
        """
        return None

    def forward(self, losses: Tensor) -> Tensor:
        """Return the outer loss, of shape (), of the tasks' losses (B,)."""
        raise NotImplementedError
