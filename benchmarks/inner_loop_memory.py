"""Peak memory and time of a second-order meta-gradient through ResNet-12: activations kept, or recomputed.

    python benchmarks/inner_loop_memory.py [--steps 5 10] [--rounds 2] [--backbone resnet12] [--image_size 84]

`recomputed` is `gradient_checkpointing`. --check also compares the gradients in float64 at a small size.

84 x 84, 5-way 1-shot, 1 query image per class, one task. Every measurement is a process of its own, in turns; memory
is the peak of the process above what it needed before the gradient (on a GPU, of torch's allocator). The CPU's
seconds count where other programs run.
"""

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.measuring import in_own_process, random_episodes
from utils.machine.devices import choose_device, clock

KINDS = ("kept", "recomputed")


def learner_and_episodes(backbone: str, image_size: int, n_steps: int, *, recompute: bool, precision: str = "float32"):
    """Build a learner and one task of random images for it."""
    import torch

    from few_shot_learning_system import build_learner
    from utils.config import check_config

    config = check_config(
        {
            "experiment_name": "memory",
            "dataset_name": "random",
            "backbone": backbone,
            "image_height": image_size,
            "image_width": image_size,
            "image_channels": 3,
            "batch_size": 1,
            "num_target_samples": 1,
            "number_of_training_steps_per_iter": n_steps,
            "gradient_checkpointing": recompute,
            "init_inner_loop_learning_rate": 0.01,
            "precision": precision,
        },
        "benchmark",
    )
    device = choose_device("auto")
    learner = build_learner(config, device)
    return learner, random_episodes(config, device, getattr(torch, precision))


def measure(backbone: str, image_size: int, n_steps: int, kind: str) -> dict[str, float]:
    """Return peak memory in GiB, seconds, and seconds of the CPU, of one meta-gradient in this process."""
    import torch

    learner, episodes = learner_and_episodes(backbone, image_size, n_steps, recompute=kind == "recomputed")
    device, before = episodes.support_images.device, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = clock(device), time.process_time()
    learner.meta_gradients(episodes, 0)
    seconds, cpu_seconds = clock(device) - start, time.process_time() - cpu_start
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"peak_gib": peak, "seconds": seconds, "cpu_seconds": cpu_seconds}


def check(backbone: str) -> None:
    """Print how far the two gradients are apart, in float64 on small images."""
    from experiment_tools.check_gradients.checks import relative_difference

    gradients = {}
    for kind in KINDS:
        learner, episodes = learner_and_episodes(backbone, 24, 3, recompute=kind == "recomputed", precision="float64")
        gradients[kind] = learner.meta_gradients(episodes, 0).gradients
    difference = relative_difference(gradients["recomputed"], gradients["kept"])
    print(f"recomputed against kept: {difference:.1e} (float64, 24 x 24, 3 steps)")


def main() -> None:
    """Print the table; the last line is its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backbone", default="resnet12")
    parser.add_argument("--image_size", type=int, default=84)
    parser.add_argument("--check", action="store_true", help="also see that the gradients are equal")
    options = parser.parse_args()
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _, steps, kind in itertools.product(range(options.rounds), options.steps, KINDS):
        measured = in_own_process(measure, options.backbone, options.image_size, steps, kind)
        results.setdefault((steps, kind), []).append(measured)
    rows = []
    print("                                                            of kept:")
    print("steps  activations             peak GiB  seconds  of CPU    memory   time  CPU time")
    for (steps, kind), measured in results.items():
        row = {"steps": steps, "activations": kind} | {
            key: statistics.median(m[key] for m in measured) for key in measured[0]
        }
        plain = {key: statistics.median(m[key] for m in results[steps, "kept"]) for key in measured[0]}
        memory, seconds, cpu_seconds = (row[key] / plain[key] for key in ("peak_gib", "seconds", "cpu_seconds"))
        rows.append(row)
        print(
            f"{steps:5d}  {kind:<22} {row['peak_gib']:9.2f} {row['seconds']:8.2f} {row['cpu_seconds']:7.2f} "
            f"{memory:9.2f} {seconds:6.2f} {cpu_seconds:9.2f}"
        )
    if options.check:  # last: a process begins with the peak of the one that starts it
        check(options.backbone)
    print(json.dumps({"backbone": options.backbone, "image_size": options.image_size, "rows": rows}))


if __name__ == "__main__":
    main()
