"""The head of MAML: weights and biases are meta-parameters of the network, for one number of ways."""

from meta_learning.heads.base import Head
from utils.registry import register_head


class LearnedHead(Head):
    """Leaves the head to the network."""

    is_made_per_episode = False


register_head("learned", LearnedHead, meaning="weights for one number of ways")
