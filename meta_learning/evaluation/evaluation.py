"""What adaptation without learning shows, as a value: from the learner to who writes it down."""

from dataclasses import dataclass

from torch import Tensor

STEP_METRICS = ("support_loss", "support_accuracy", "query_loss", "query_accuracy")


@dataclass(frozen=True)
class Evaluation:
    """Adaptation without learning. Row s of the metrics: after s inner steps, row 0 before adaptation.

    Attributes:
        query_logits: (B, N*Q, N) after the last step.
        support_loss, support_accuracy, query_loss, query_accuracy: (steps + 1, B).
        support_features, query_features: (B, n, D) before adaptation, where they were asked for.
    """

    query_logits: Tensor
    support_loss: Tensor
    support_accuracy: Tensor
    query_loss: Tensor
    query_accuracy: Tensor
    support_features: Tensor | None = None
    query_features: Tensor | None = None
