"""The network behind the demo page: adapts to a few images of some classes and classifies another after each inner
step.

Letters: n images of C x H x W pixels, N classes, S inner steps.
"""

import threading
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from data import NORMALISATIONS
from experiment_tools.demo.drawn_images import pen_of
from few_shot_classifier import FewShotClassifier
from few_shot_classifier.adapted_task import AdaptedLearner, adapt
from few_shot_classifier.arrays import as_input
from utils.errors import ConfigError
from utils.registry.choices import fact

MOST_CLASSES = 20
"""Where the head allows any number; a page with more is hard to read."""


class DemoNetwork:
    """One network for all visitors, used by one at a time; what it was adapted to last is kept until somebody asks
    for something else.

    Args:
        classifier: what was learned.
        statistics: of batch norm; "support" gives one query image an answer of its own.
    Raises:
        ConfigError: it classifies no images.
    """

    def __init__(self, classifier: FewShotClassifier, statistics: str = "support", steps: int | None = None) -> None:
        changes: dict[str, Any] = {} if steps is None else {"number_of_evaluation_steps_per_iter": steps}
        self.config: dict[str, Any] = classifier.meta_config_
        if fact("loss", self.config["loss"], "is_regression", False):
            raise ConfigError(f"{self.config['experiment_name']}: is a regression; the demo is for classifiers")
        works_with = fact("norm_layer", self.config["norm_layer"], "statistics", None)
        if works_with is None or statistics in works_with:
            changes |= {"batch_norm_statistics": statistics, "test_batch_norm_statistics": None}
        self.learner = classifier.set_params(**changes).initial_learner()
        self.n_outputs = self.config["num_classes_per_set"] if self.config["head"] == "learned" else None
        self.most_classes = self.n_outputs or MOST_CLASSES
        self.n_steps = self.learner.n_evaluation_steps
        self._lock = threading.Lock()
        self._adapted: tuple[Hashable, AdaptedLearner] | None = None
        blank = np.zeros(
            (2, self.config["image_channels"], self.config["image_height"], self.config["image_width"]), np.uint8
        )
        self.probabilities(
            "torch starts here, and what cannot work is said before the page is open", blank, [0, 1], blank[0]
        )

    def probabilities(self, key: Hashable, support: np.ndarray, ranks: Sequence[int], query: np.ndarray) -> np.ndarray:
        """Return the probabilities (S+1, N) of one query image before adaptation and after each inner step.

        Args:
            key: equal for equal support images and ranks.
            support: uint8 (n, C, H, W); ranks: their classes, 0..N-1.
            query: uint8 (C, H, W).
        """
        import torch

        with self._lock:
            if self._adapted is None or self._adapted[0] != key:
                labels = torch.tensor(ranks, dtype=torch.int64)
                self._adapted = key, adapt(self.learner, self._as_input(support), labels, max(ranks) + 1)
            adapted = self._adapted[1]
            image = self._as_input(query[None])
            logits = [adapted.logits(image, step)[0].double() for step in range(len(adapted.path))]
        return torch.softmax(torch.stack(logits), -1).cpu().numpy()

    def _as_input(self, pixels: np.ndarray) -> Any:
        return as_input(
            pixels, NORMALISATIONS[self.config["normalisation"]], reverse_channels=self.config["reverse_channels"]
        )


def description(network: DemoNetwork, name: str) -> dict[str, Any]:
    """Return what the page says of a network."""
    config = network.config
    return {
        "run": name,
        "dataset": config["dataset_name"],
        "steps": network.n_steps,
        "mostClasses": network.most_classes,
        "fixedHead": network.n_outputs is not None,
        "drawings": config["image_channels"] == 1,
        "penWidth": pen_of(config).width,
    }
