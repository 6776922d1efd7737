"""Few-shot learning from Python, with scikit-learn's conventions: `from few_shot_classifier import
FewShotClassifier`.
"""

from few_shot_classifier.arrays import InputError
from few_shot_classifier.classifier import Accuracy, FewShotClassifier, run_checkpoint
from few_shot_classifier.estimator import NotFittedError

__all__ = ["Accuracy", "FewShotClassifier", "InputError", "NotFittedError", "run_checkpoint"]
