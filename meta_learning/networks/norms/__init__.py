"""Norm layers over B tasks at once, one per file, and what their statistics are made from.

Letters: B tasks, n images per task, F filters, H x W pixels, R rows (one per inner step). The task axis is folded
into the channels, (n, B*F, H, W).

Which images the statistics of batch norm come from is a choice of the pass:

    transductive   the set that is classified: support images for support, query images for query
    running        while meta-training as above; at evaluation the per-step running statistics, for both sets
    support        query images go through one forward with the support images and are normalised with their statistics
    episodic       support as above; query with a moving average, from (0, 1), over the support passes of the episode
    mixed          each layer has a choice of its own among these
"""

from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.norms.group_norm import MetaGroupNorm
from meta_learning.networks.norms.layer_norm import MetaLayerNorm
from meta_learning.networks.passes import Pass

__all__ = ["MetaGroupNorm", "MetaLayerNorm", "NormChoice", "Pass"]  # documented as of `meta_learning.norm_layers`
