"""Peak memory and time of a second-order meta-gradient: activations kept or recomputed, all weights adapted or LoRA.

    python benchmarks/inner_loop_memory.py [--steps 5 10] [--rounds 2] [--backbone resnet12] [--image_size 84]
        [--kinds kept recomputed]

Kinds: `kept`; `recomputed`, which is `gradient_checkpointing`; of the backbone `vit`, a small vision transformer of
torch's own layers with random weights, also `lora` (of rank 8 beside the linear layers of every block, with the head),
`lora_recomputed`, `lora_frozen` (the body not learned) and `lora_last` (the same beside the last of six blocks alone).
--check also compares the gradients of the first two in float64 at a small size.

84 x 84, 5-way 1-shot, 1 query image per class, one task. Every measurement is a process of its own, in turns; memory
is the peak of the process above what it needed before the gradient (on a GPU, of torch's allocator). The CPU's
seconds count where other programs run.
"""

import argparse
import ctypes
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
from utils.registry import register_backbone

RECOMPUTED = {"gradient_checkpointing": True}
LORA = {"adapter_kind": "lora", "adapter_rank": 8, "adapter_targets": ["*.linear?"]}
FROZEN = LORA | {"adapter_base": "frozen"}
KINDS = {
    "kept": {},
    "recomputed": RECOMPUTED,
    "lora": LORA,
    "lora_recomputed": LORA | RECOMPUTED,
    "lora_frozen": FROZEN,
    "lora_last": FROZEN | {"adapter_targets": ["*.5.linear?"]},
}
"""Name -> config keys."""


def small_vit(config, image_shape, n_way):
    """Build six pre-norm blocks of width 192 on patches of 12 x 12 pixels, a class token, a linear head."""
    import torch
    from torch import nn

    class SmallViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(image_shape[0], 192, 12, stride=12)
            n_patches = (image_shape[1] // 12) * (image_shape[2] // 12)
            self.places = nn.Parameter(0.02 * torch.randn(1, n_patches + 1, 192))
            block = nn.TransformerEncoderLayer(
                192, 3, 768, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(block, 6, nn.LayerNorm(192), enable_nested_tensor=False)
            self.head = nn.Linear(192, n_way)

        def forward(self, images):
            patches = self.patches(images).flatten(2).transpose(1, 2)
            tokens = nn.functional.pad(patches, (0, 0, 1, 0)) + self.places
            return self.head(self.blocks(tokens)[:, 0])

    return SmallViT()


register_backbone("vit", small_vit)


def learner_and_episodes(backbone: str, image_size: int, n_steps: int, kind: str, precision: str = "float32"):
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
            **KINDS[kind],
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

    learner, episodes = learner_and_episodes(backbone, image_size, n_steps, kind)
    if sys.platform == "linux":  # building a module of a user's differentiates it, too, and frees that again
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
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
    from experiment_tools.check_gradients.comparing import relative_differences

    gradients = {}
    for kind in ("kept", "recomputed"):
        learner, episodes = learner_and_episodes(backbone, 24, 3, kind, precision="float64")
        gradients[kind] = learner.meta_gradients(episodes, 0).gradients
    difference = max(relative_differences(gradients["recomputed"], gradients["kept"]).values())
    print(f"recomputed against kept: {difference:.1e} (float64, 24 x 24, 3 steps)")


def main() -> None:
    """Print the table; the last line is its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backbone", default="resnet12")
    parser.add_argument("--image_size", type=int, default=84)
    parser.add_argument("--kinds", nargs="+", default=["kept", "recomputed"], choices=KINDS, metavar="KIND")
    parser.add_argument("--check", action="store_true", help="also see that the gradients are equal")
    options = parser.parse_args()
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _, steps, kind in itertools.product(range(options.rounds), options.steps, options.kinds):
        measured = in_own_process(measure, options.backbone, options.image_size, steps, kind)
        results.setdefault((steps, kind), []).append(measured)
    rows = []
    first = options.kinds[0]
    print(f"                                                            of {first}:")
    print("steps  activations             peak GiB  seconds  of CPU    memory   time  CPU time")
    for (steps, kind), measured in results.items():
        row = {"steps": steps, "activations": kind} | {
            key: statistics.median(m[key] for m in measured) for key in measured[0]
        }
        plain = {key: statistics.median(m[key] for m in results[steps, first]) for key in measured[0]}
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
