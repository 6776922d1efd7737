"""Would one convolution call for support and query images pay? Two calls with n images against one call with 2 n.

    python benchmarks/convolution_calls.py [--images 5 20 75] [--tasks 8] [--filters 64]

Grouped convolutions of the inner blocks of the Omniglot network (14 x 14, 7 x 7 and 3 x 3 pixels, channels last,
float32), forward and backward on the CPU. Prints a table of medians in milliseconds: a sum over the blocks for each
number of images per task.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

SIDES = (14, 7, 3)
WARM_UPS, REPETITIONS = 3, 15


def milliseconds(work: Callable[[], object]) -> float:
    """Median of the repetitions."""
    times = []
    for _ in range(WARM_UPS + REPETITIONS):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UPS:])


def forward_and_backward(n_images: int, side: int, n_tasks: int, n_filters: int) -> float:
    """Milliseconds of a forward and a backward pass with a task in each group."""
    n_channels = n_tasks * n_filters
    images, grad = (
        torch.randn(n_images, n_channels, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    weight = torch.randn(n_channels, n_filters, 3, 3)
    backward = torch.ops.aten.convolution_backward
    return milliseconds(lambda: torch.conv2d(images, weight, None, 1, 1, 1, n_tasks)) + milliseconds(
        lambda: backward(
            grad, images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], n_tasks, [True, True, False]
        )
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[5, 20, 75], help="of a task, in each of the two sets")
    parser.add_argument("--tasks", type=int, default=8, help="computed together")
    parser.add_argument("--filters", type=int, default=64, help="of each block")
    options = parser.parse_args()
    print("| images per task | two calls, ms | one call, ms |\n| --- | --- | --- |")
    for n_images in options.images:
        two, one = (
            sum(calls * forward_and_backward(factor * n_images, side, options.tasks, options.filters) for side in SIDES)
            for calls, factor in ((2, 1), (1, 2))
        )
        print(f"| {n_images} | {two:.1f} | {one:.1f} |", flush=True)


if __name__ == "__main__":
    main()
