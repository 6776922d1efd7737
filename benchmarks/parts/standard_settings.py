"""Part of `meta_iteration.py`: the table that it prints without a config, every standard setting in a process of its
own.

An iteration gets its episodes from a dataset of random images in memory, as a training run does, and ends with the
meta-update. Arithmetic and memory traffic are counted on one iteration, operator by operator: what each reads and
writes, whether a cache served it or not.
"""

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parts.measuring import peak_memory_bytes, timed_iterations
from utils.config import ExperimentConfig, load_config
from utils.episodes.source import Episodes
from utils.machine.devices import choose_device, clock, describe_device, make_deterministic
from utils.machine.host import tune_host
from utils.paths import REPOSITORY_ROOT

if TYPE_CHECKING:
    import torch

    from data import FewShotData
    from few_shot_learning_system import FewShotLearner

OMNIGLOT, MINI_IMAGENET = "omniglot_maml++_{}way_{}shot_seed0.json", "mini_imagenet_maml++_5way_{}shot_seed0.json"
ONE_QUERY = {"num_target_samples": 1}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"Omniglot {way}-way {shot}-shot": (OMNIGLOT.format(way, shot), {"batch_size": 8, **ONE_QUERY})
        for way in (5, 20)
        for shot in (1, 5)
    },
    **{
        f"84x84 5-way {shot}-shot": (MINI_IMAGENET.format(shot), {"batch_size": 2, "cnn_num_filters": 48})
        for shot in (1, 5)
    },
    "ResNet-12 84x84 5-way 1-shot": (MINI_IMAGENET.format(1), {"backbone": "resnet12", "batch_size": 2, **ONE_QUERY}),
}
"""Name -> config file and changes to it."""
N_CLASSES, N_IMAGES = 64, 24
WARM_UP = 2
COLUMNS = (
    ("ms with multi-step loss", "ms_multi_step_loss", "{:.1f}"),
    ("ms after it", "ms_last_step_loss", "{:.1f}"),
    ("tasks/s", "tasks_per_s", "{:.1f}"),
    ("GFLOP/s (of ceiling)", "flops_per_s", "{:.0f}"),
    ("GB/s (of ceiling)", "bytes_per_s", "{:.0f}"),
    ("operators", "operators", "{}"),
    ("waits for data", "share_of_data", "{:.2%}"),
    ("peak memory, GiB", "peak_memory_bytes", "{:.2f}"),
)


def measure(name: str, iterations: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Time a setting in this process; returns its row."""
    tune_host()
    import torch

    from few_shot_learning_system import build_learner

    file, changes = SETTINGS[name]
    config = load_config(REPOSITORY_ROOT / "experiment_config" / file, changes | overrides)
    if config.deterministic:
        make_deterministic()
    device = choose_device(config.gpu_to_use)
    learner, data = build_learner(config, device), _random_data(config, device)
    row: dict[str, Any] = {
        "setting": name,
        "device": describe_device(device),
        "torch": torch.__version__,
        "iterations": iterations,
    }
    after = config.multi_step_loss_num_epochs + 1
    times = []
    for epoch in (0, after):
        timed = timed_iterations(learner, data, config.tasks_per_meta_batch, epoch, device)
        columns = zip(*itertools.islice(timed, WARM_UP, WARM_UP + iterations), strict=True)
        times.append([1000 * statistics.median(column) for column in columns])
    (supply, step), (_, row["ms_last_step_loss"]) = times
    peak = peak_memory_bytes(device)
    counts = _count(learner, data.episodes("train", range(config.tasks_per_meta_batch)))
    return row | {
        "ms_multi_step_loss": step,
        "tasks_per_s": config.tasks_per_meta_batch / (supply + step) * 1000,
        "share_of_data": supply / (supply + step),
        "flops": counts[0],
        "bytes": counts[1],
        "operators": counts[2],
        "flops_per_s": counts[0] / step * 1000,
        "bytes_per_s": counts[1] / step * 1000,
        "peak_memory_bytes": peak,
        **ceilings(device),
    }


def _random_data(config: ExperimentConfig, device: "torch.device") -> "FewShotData":
    import torch

    from data import Drawing, FewShotData, ImageClasses, Preprocessing

    shape = (N_CLASSES * N_IMAGES, config.image_channels, config.image_height, config.image_width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
    classes = {str(label): range(label * N_IMAGES, (label + 1) * N_IMAGES) for label in range(N_CLASSES)}
    dtype = getattr(torch, config.parameter_format)
    return FewShotData(
        ImageClasses(images, {"train": classes}),
        Drawing(config.validation_shape, {"train": 0}, class_rotation=config.class_rotation),
        Preprocessing(config.normalisation, device=device, dtype=dtype),
    )


def _count(learner: "FewShotLearner", episodes: Episodes) -> tuple[int, int, int]:
    """Floating-point operations of products, bytes that operators read and write, and operators that compute, of one
    meta-gradient.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counter(TorchDispatchMode):
        flops = bytes = operators = 0

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = operator(*args, **(kwargs or {}))
            if not operator.is_view:
                tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
                self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
                self.operators += (
                    "empty" not in operator.overloadpacket.__name__
                )  # on a GPU each starts a kernel or several
            self.flops += flops_of(operator.overloadpacket.__name__, args, out)
            return out

    with learner.execution.replayed.off(), Counter() as counter:  # a replay has no operators to count
        learner.meta_gradients(episodes, 0)
    return counter.flops, counter.bytes, counter.operators


def flops_of(operator: str, args: Any, out: Any) -> int:
    """Return twice the multiplications of a convolution or a matrix product; torch's own counter takes groups for whole
    channels.
    """
    if operator == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if operator == "convolution_backward":
        return 2 * args[0].numel() * args[2][0].numel() * sum(args[-1][:2])
    if operator in ("mm", "bmm", "addmm", "baddbmm", "baddbmm_"):
        return 2 * out.numel() * args[-2].shape[-1]
    return 0


def ceilings(device: "torch.device") -> dict[str, float]:
    """Return what the device reaches at best: a large matrix product in the format of our convolutions, and a copy."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    side, numbers = (8192, 2**28) if device.type == "cuda" else (2048, 2**25)
    matrix, vector = torch.randn(side, side, device=device), torch.randn(numbers, device=device)
    target = torch.empty_like(vector)

    def fastest(work: Any) -> float:
        times = []
        for _ in range(5):
            start = clock(device)
            work()
            times.append(clock(device) - start)
        return min(times)

    return {
        "ceiling_flops_per_s": 2 * side**3 / fastest(lambda: matrix @ matrix),
        "ceiling_bytes_per_s": 8 * numbers / fastest(lambda: target.copy_(vector)),
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table as texts."""
    shown = row | {
        "flops_per_s": row["flops_per_s"] / 1e9,
        "bytes_per_s": row["bytes_per_s"] / 1e9,
        "peak_memory_bytes": row["peak_memory_bytes"] / 2**30,
    }
    texts = {key: form.format(shown[key]) for _, key, form in COLUMNS}
    for key in ("flops_per_s", "bytes_per_s"):
        texts[key] += f" ({row[key] / row[f'ceiling_{key}']:.0%})"
    return [row["setting"], *texts.values()]


def print_table(names: list[str], iterations: int | None, overrides: dict[str, Any]) -> None:
    """Measure settings one after the other; the last line is one JSON object."""
    import torch

    count = iterations or (50 if torch.cuda.is_available() else 5)
    print(
        "| setting | " + " | ".join(title for title, _, _ in COLUMNS) + " |\n|" + " --- |" * (len(COLUMNS) + 1),
        flush=True,
    )
    rows = []
    for name in names:
        command = [sys.executable, __file__, json.dumps([name, count, overrides])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            rows.append({"setting": name, "failed_with_exit_code": done.returncode})
            print(f"| {name} | failed with exit code {done.returncode} |" + " |" * (len(COLUMNS) - 1), flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("| " + " | ".join(cells(rows[-1])) + " |", flush=True)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
