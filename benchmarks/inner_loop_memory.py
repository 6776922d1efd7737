"""Peak memory and time of a second-order meta-gradient through ResNet-12: activations kept, or recomputed.

    python benchmarks/inner_loop_memory.py [--steps 5 10] [--rounds 2] [--backbone resnet12] [--image_size 84]

`recomputed` is `gradient_checkpointing`. --check also compares the gradients in float64 at a small size.

84 x 84, 5-way 1-shot, 1 query image per class, one task. Every measurement is a process of its own, in turns; memory
is the peak of the process above what it needed before the gradient (on a GPU, of torch's allocator). The CPU's
seconds count where other programs run.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

KINDS = ("kept", "recomputed")


def learner_and_episodes(backbone: str, image_size: int, n_steps: int, *, recompute: bool, precision: str = "float32"):
    """Build a learner and one task of random images for it."""
    import torch

    from experiment_tools.check_gradients.checks import random_episodes
    from few_shot_learning_system import build_learner
    from utils.config import check_config
    from utils.machine.devices import choose_device

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
    episodes = random_episodes(learner, (3, image_size, image_size), 1, 5, 1, 1)
    names = ("support_images", "support_labels", "query_images", "query_labels", "seeds")
    moved = {name: getattr(episodes, name).to(device) for name in names}
    moved |= {name: moved[name].to(getattr(torch, precision)) for name in ("support_images", "query_images")}
    return learner, type(episodes)(**(vars(episodes) | moved))


def measure(backbone: str, image_size: int, n_steps: int, kind: str) -> dict[str, float]:
    """Return peak memory in GiB, seconds, and seconds of the CPU, of one meta-gradient in this process."""
    import torch

    learner, episodes = learner_and_episodes(backbone, image_size, n_steps, recompute=kind == "recomputed")
    on_gpu = episodes.support_images.device.type == "cuda"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    learner.meta_gradients(episodes, 0)
    if on_gpu:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"peak_gib": peak, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}


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
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.backbone, options.image_size, int(options.one[0]), options.one[1])))
        return
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    shared = ["--backbone", options.backbone, "--image_size", str(options.image_size)]
    for _ in range(options.rounds):
        for steps in options.steps:
            for kind in KINDS:
                command = [sys.executable, str(Path(__file__).resolve()), *shared, "--one", str(steps), kind]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                results.setdefault((steps, kind), []).append(json.loads(output.splitlines()[-1]))
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
