"""What every head is: where the weights of the linear head come from at the start of an episode.

Heads that are made per episode are never saved, so the number of ways may differ from episode to episode.
"""

from torch import Tensor, nn


class Head(nn.Module):
    """Makes the weights of the last layer for each episode. Its own `nn.Parameter`s are meta-learned.

    Args:
        n_features: D.
    """

    is_made_per_episode = True
    """false: the weights are the network's own meta-parameters, for one number of ways."""
    uses_features = False
    """Whether `make` reads the features, which costs a pass; else it is given none of them, (B, 0, D). A head that does
    can classify without inner steps.
    """
    classes_begin_alike = False
    """Whether all rows are the same, so that a body alone cannot be adapted to tell classes apart."""
    temperature: float = 1.0
    """What the logits of query images are divided by; adaptation knows none."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        """Return "head.weight" (B, N, D) and "head.bias" (B, N), differentiable with respect to the features.

        Args:
            features: (B, N*K, D) of the support images.
            labels: int64 (B, N*K), 0..N-1, each at least once.
        """
        raise NotImplementedError
