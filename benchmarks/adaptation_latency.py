"""Milliseconds to adapt to five classes and classify, from Python, one image per class.

    python benchmarks/adaptation_latency.py [--experiment NAME] [--queries 5] [--threads 2] [--repeats 50]

Prints a table: median and 95th percentile of fit, of predict, and of both, the first call aside. Without
--experiment the network is that of the Omniglot templates with the weights it starts with: the numbers do not depend
on what was learned.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from few_shot_classifier import FewShotClassifier
from utils.config import load_config
from utils.paths import REPOSITORY_ROOT

OMNIGLOT = REPOSITORY_ROOT / "experiment_config" / "omniglot_maml++_5way_1shot_seed0.json"


def classifier_to_time(experiment: str | None) -> FewShotClassifier:
    """Return the classifier of a run, or one with the Omniglot template's parameters."""
    if experiment:
        return FewShotClassifier.from_experiment(experiment, gpu_to_use="cpu")
    config = load_config(OMNIGLOT).to_json_dict()
    parameters = {name: value for name, value in config.items() if name in FewShotClassifier.parameter_defaults()}
    return FewShotClassifier(**(parameters | {"gpu_to_use": "cpu"}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", help="name of a run; default: the Omniglot network as it starts")
    parser.add_argument("--queries", type=int, default=5, help="images that are classified")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    classifier = classifier_to_time(options.experiment)
    channels, height, width = (getattr(classifier, f"image_{side}") for side in ("channels", "height", "width"))
    generator = np.random.default_rng(0)
    times = []
    for _ in range(options.repeats + 1):
        support, query = (
            generator.integers(0, 256, (n, channels, height, width), dtype=np.uint8) for n in (5, options.queries)
        )
        start = time.perf_counter()
        classifier.fit(support, list("abcde"))
        fitted = time.perf_counter()
        classifier.predict(query)
        times.append((fitted - start, time.perf_counter() - fitted, time.perf_counter() - start))
    print(
        f"{channels} x {height} x {width}, {classifier.number_of_evaluation_steps_per_iter} inner steps, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    print("| | median ms | 95th percentile ms |\n| --- | --- | --- |")
    for name, column in zip(("fit", f"predict {options.queries}", "both"), 1000 * np.array(times[1:]).T, strict=True):
        print(f"| {name} | {np.median(column):.1f} | {np.percentile(column, 95):.1f} |")
    print(f"first call: {1000 * times[0][2]:.0f} ms")


if __name__ == "__main__":
    main()
