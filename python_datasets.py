"""Its name of before: now `few_shot_classifier.datasets`."""

from few_shot_classifier.datasets import *  # noqa: F403
