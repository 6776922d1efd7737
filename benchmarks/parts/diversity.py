"""How different the classes are that training tasks are made of, by the features of one fixed random network."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.episodes.source import Episodes

FILTERS, STAGES, SEED = 32, 4, 0


def random_features(images: Tensor) -> Tensor:
    """Return the features of a network that no domain has trained: STAGES times convolution, ReLU and max-pooling.

    It has no batch norm, which would give every domain the same spread.

    Args:
        images: (n, C, H, W) in 0..1, dark on white; of 16 pixels a side or more.
    Returns:
        (n, D).
    """
    generator = torch.Generator().manual_seed(SEED)
    features = 1 - images.mean(dim=1, keepdim=True)  # ink is 1, so that equal paper makes no two classes alike
    for _ in range(STAGES):
        shape = (FILTERS, features.shape[1], 3, 3)
        weight = torch.randn(shape, generator=generator) * math.sqrt(2 / (9 * shape[1]))  # He et al. 2015
        features = F.max_pool2d(F.relu(F.conv2d(features, weight, padding=1)), 2)
    return features.flatten(1)


def mean_cosine_distance(vectors: Tensor) -> Tensor:
    """Return 1 - the mean cosine of two different ones of N vectors: (..., N, D) -> (...).

    The mean is (|sum of the unit vectors|^2 - N) / (N (N - 1)).
    """
    n = vectors.shape[-2]
    total = F.normalize(vectors.double(), dim=-1).sum(dim=-2)
    return 1 - (total.square().sum(-1) - n) / (n * (n - 1))


def diversity(episodes: Episodes) -> float:
    """Return the mean cosine distance between the mean features of two classes of a task.

    2306.13841's coefficient is the expected cosine distance of two tasks' Task2Vec embeddings, for which a probe
    network is fine-tuned on every task. Here tasks differ by the classes that are drawn for them alone, evenly and
    without replacement, so two of a task are as far apart as two of two tasks are; and a random network stands for the
    probe, which prefers no domain and is the same for everybody. Nothing is fine-tuned.
    """
    images = torch.cat([episodes.support_images, episodes.query_images], dim=1)  # (B, n, C, H, W)
    labels = torch.cat([episodes.support_labels, episodes.query_labels], dim=1)  # (B, n)
    features = random_features(images.flatten(0, 1)).unflatten(0, labels.shape)  # (B, n, D)
    members = F.one_hot(labels, episodes.n_way).to(features).transpose(1, 2)  # (B, N, n)
    return mean_cosine_distance(members @ features).mean().item()  # cosines need no division of the sums
