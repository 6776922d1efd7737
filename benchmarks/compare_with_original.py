"""Time the meta-iteration of the original "How to train your MAML in PyTorch" and of this project, in turns.

    python benchmarks/compare_with_original.py --original PATH_OF_ITS_CHECKOUT [--ways 5 20] [--rounds 3] \
        [--iterations 10]

MAML++ on random Omniglot-shaped images: 1 shot, 1 query, 8 tasks, 5 steps, 64 filters, multi-step loss on. Each round
runs both in processes of their own, one after the other, so that a noisy machine disturbs both alike. The last line
is one JSON object.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

N_TASKS, N_STEPS, N_FILTERS = 8, 5, 64


def time_original(checkout: Path, n_way: int, iterations: int, warm_up: int = 2) -> float:
    """Return the median seconds of the original's `run_train_iter`, with the config keys of its Omniglot template."""
    sys.path.insert(0, str(checkout))
    warnings.filterwarnings("ignore")
    import numpy as np
    import torch

    settings = SimpleNamespace(
        batch_size=N_TASKS,
        use_cuda=torch.cuda.is_available(),
        seed=0,
        num_classes_per_set=n_way,
        task_learning_rate=0.1,
        number_of_training_steps_per_iter=N_STEPS,
        number_of_evaluation_steps_per_iter=N_STEPS,
        learnable_per_layer_per_step_inner_loop_learning_rate=True,
        meta_learning_rate=1e-3,
        min_learning_rate=1e-5,
        total_epochs=100,
        multi_step_loss_num_epochs=10,
        enable_inner_loop_optimizable_bn_params=False,
        second_order=True,
        first_order_to_second_order_epoch=-1,
        use_multi_step_loss_optimization=True,
        dataset_name="omniglot_dataset",
        per_step_bn_statistics=True,
        learnable_bn_gamma=True,
        learnable_bn_beta=True,
        norm_layer="batch_norm",
        max_pooling=True,
        cnn_num_filters=N_FILTERS,
        num_stages=4,
        conv_padding=True,
    )
    images = np.random.default_rng(0).random((N_TASKS, n_way, 1, 1, 28, 28), dtype=np.float32)
    labels = np.tile(np.arange(n_way, dtype=np.float32)[None, :, None], (N_TASKS, 1, 1))
    seconds = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every shape
        from few_shot_learning_system import MAMLFewShotClassifier

        device = torch.device("cuda" if settings.use_cuda else "cpu")
        learner = MAMLFewShotClassifier(im_shape=(2, 1, 28, 28), device=device, args=settings)
        for _ in range(warm_up + iterations):
            start = time.perf_counter()
            learner.run_train_iter((images, images, labels, labels), epoch=0)
            if settings.use_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def time_ours(n_way: int, iterations: int) -> float:
    """Return the median seconds of our meta-iteration, by `meta_iteration.py`."""
    keys = {
        "experiment_name": "benchmark", "num_classes_per_set": n_way, "num_target_samples": 1, "batch_size": N_TASKS,
        "number_of_training_steps_per_iter": N_STEPS, "cnn_num_filters": N_FILTERS, "per_step_bn_statistics": "true",
        "use_multi_step_loss_optimization": "true", "learnable_per_layer_per_step_inner_loop_learning_rate": "true",
        "iterations": iterations,
    }  # fmt: skip
    arguments = [text for key, value in keys.items() for text in (f"--{key}", str(value))]
    output = _run([str(Path(__file__).with_name("meta_iteration.py")), *arguments])
    return json.loads(output.splitlines()[-1])["ms_per_iteration_median"] / 1000


def _run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Print a table of medians per round, and the ratio of the medians over rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="folder of a checkout of the original")
    parser.add_argument("--ways", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--original_only", type=int, metavar="WAY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.original / "inner_loop_optimizers.py").is_file():
        parser.error(f"{options.original} is no checkout of the original: inner_loop_optimizers.py is not there")
    if options.original_only:
        print(time_original(options.original, options.original_only, options.iterations))
        return
    rows = []
    for n_way in options.ways:
        original, ours = [], []
        for number in range(1, options.rounds + 1):
            command = [__file__, "--original", str(options.original), "--iterations", str(options.iterations)]
            original.append(float(_run([*command, "--original_only", str(n_way)])))
            ours.append(time_ours(n_way, options.iterations))
            print(f"{n_way}-way, round {number}: original {original[-1]:.3f} s, ours {ours[-1]:.3f} s", flush=True)
        row = {"ways": n_way, "original_s": statistics.median(original), "ours_s": statistics.median(ours)}
        rows.append(row | {"times_faster": row["original_s"] / row["ours_s"]})
        print(f"{n_way}-way: {rows[-1]['times_faster']:.2f} times as fast (ratio of medians)")
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
