"""Which images the statistics of batch norm come from; in words at the head of this folder."""

from meta_learning.networks.passes import StatisticsChoice
from utils.registry import register_batch_norm_statistics


class Transductive(StatisticsChoice):
    """Those of the set that is classified, as in the reference."""


class Running(StatisticsChoice):
    """Per-step running statistics at evaluation, as the MAML++ paper describes."""

    evaluates_with_running = True


class OfSupport(StatisticsChoice):
    """Those of the support set for both sets: inductive."""

    query_needs_support = True


class Episodic(StatisticsChoice):
    """For query images a moving average over the support passes of the episode."""

    moves_within_episode = True


register_batch_norm_statistics("transductive", Transductive, meaning="those of the set that is classified")
register_batch_norm_statistics("running", Running, meaning="per-step running statistics at evaluation")
register_batch_norm_statistics("support", OfSupport, meaning="those of the support set, for both sets")
register_batch_norm_statistics(
    "episodic",
    Episodic,
    meaning="for query images a moving average over the support passes of the episode",
)
