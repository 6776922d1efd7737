"""Which images the statistics of batch norm come from; in words at the head of this folder."""

import logging
from functools import cache

from meta_learning.networks.passes import StatisticsChoice, statistics_named
from utils.registry import register_batch_norm_statistics

log = logging.getLogger(__name__)


@cache
def warn_of_unfit(statistics: str, trained_with: str) -> None:
    """Say once where the inner steps adapt a body to statistics that it has not been trained with, and which measured
    near chance.
    """
    asked = statistics_named(statistics)
    if asked.evaluates_with_running:
        reason = "the inner steps move the means that these averages were made of"
    elif asked.moves_within_episode and statistics != trained_with:
        reason = f'they begin at mean 0 and variance 1 in each task, and training was with "{trained_with}"'
    else:
        return
    log.warning(
        '"%s" batch-norm statistics and a body that the inner steps adapt: %s. MAML and MAML++ measured near chance '
        'with them; "support" is inductive, too',
        statistics,
        reason,
    )


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
