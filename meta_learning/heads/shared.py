"""The head of UNICORN-MAML: one learned vector and bias, repeated for every class.

    W_c = w, b_c = b for each class c;   query logits = (W f + b) / temperature

Any number of ways, and no answer depends on the order of the labels. Their released code is first order; here w is
differentiated through the inner loop as everything else is.

What is common to all classes changes no softmax: with cross-entropy w and b have no effect at all, at no step, and a
meta-gradient of zero; the learner is that of the head `zero`, and the temperature all that is left. With binary
cross-entropy, whose questions are independent, they count.

Source: Ye & Chao 2022, "How to train your MAML to excel in few-shot classification", section 5; released code
(Han-Jia/UNICORN-MAML, MAMLUnicorn.py), from which the temperature of the query logits alone is.
"""

import torch
from torch import Tensor, nn

from meta_learning.heads.base import Head
from utils.registry import Key, register_head


class SharedHead(Head):
    """One learned vector for all classes.

    Args:
        n_features: D.
        temperature: of the query logits.
    """

    title = "UNICORN-MAML"
    classes_begin_alike = True

    def __init__(self, n_features: int, *, temperature: float = 1.0) -> None:
        super().__init__(n_features)
        self.temperature = temperature
        bound = n_features**-0.5  # as the layer `nn.Linear(D, 1)` of the released code
        self.weight = nn.Parameter(torch.empty(n_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(()).uniform_(-bound, bound))

    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        """Return the same row for every class; features (B, n, D) say how many tasks there are."""
        n_tasks = len(features)
        return {
            "head.weight": self.weight.expand(n_tasks, n_way, -1),
            "head.bias": self.bias.expand(n_tasks, n_way),
        }


register_head(
    "shared",
    SharedHead,
    keys={"temperature": Key(1.0, "What the logits of query images are divided by; UNICORN-MAML: 0.5.", gt=0.0)},
    meaning="one learned vector for all classes, for any number of ways (UNICORN-MAML)",
)
