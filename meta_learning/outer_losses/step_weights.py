"""Choices of the outer loop, and the weights of the query losses over inner steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OuterLoop:
    """Choices of the outer loss; the meanings are those of the config keys."""

    sharpness_radius: float = 0.0
    second_order: bool = True
    first_order_to_second_order_epoch: int = -1
    multi_step_loss_epochs: int = 0
    """0: no multi-step loss."""


def multi_step_loss_weights(epoch: int, n_steps: int, n_epochs: int) -> list[float]:
    """Weigh the query losses after each inner step (multi-step loss, MSL).

    For epoch e < E, S steps, with m = 0.03 / S:
        v[i] = max(1/S - e / (S E), m) for i < S-1,   v[S-1] = 1 - sum of the others
    and the last step alone, as MAML does, from epoch E on. The weights sum to one.

    Source: Antoniou et al. 2019, section 4 (MSL); constants of the released code.
    """
    if epoch >= n_epochs:
        # S = 0 (ProtoNet) gives [1.0] as well: there is no step, but one query pass.
        return [0.0] * (n_steps - 1) + [1.0]
    # 0.03 is fixed in the released code, which never reads its key minimum_per_task_contribution. With E up to 33 no
    # weight comes down to the floor before the last step stands alone.
    floor = 0.03 / n_steps
    other = max((1 - epoch / n_epochs) / n_steps, floor)
    return [other] * (n_steps - 1) + [1 - (n_steps - 1) * other]
