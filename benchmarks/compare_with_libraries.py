"""Seconds per meta-iteration of the loops of docs/own_loop.md: plain torch, the libraries that are installed, and here.

    python benchmarks/compare_with_libraries.py [--rounds 5] [--iterations 4] [--ways 5]

The network of MAML's paper (four convolutions of 64 filters with batch norm of the batch at hand, 28 x 28), 8 tasks of
1 shot and 1 query, 5 inner steps, second order, and a step of Adam, all in turns. "here, the same module" is given the
very module that the others have, "here, its own backbone" is the same network by `backbone: vgg`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mamlkit import build_learner, episodes_from_arrays, load_config, meta_gradients
from utils.machine.host import tune_host

N_TASKS, N_STEPS, N_FILTERS, INNER_RATE = 8, 5, 64, 0.1
Tasks = tuple[Tensor, Tensor, Tensor, Tensor]


def paper_network(n_way: int) -> nn.Module:
    """Return the network as a plain module."""

    def block(n_inputs: int) -> nn.Module:
        norm = nn.BatchNorm2d(N_FILTERS, track_running_stats=False)
        return nn.Sequential(nn.Conv2d(n_inputs, N_FILTERS, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2))

    blocks = [block(1 if place == 0 else N_FILTERS) for place in range(4)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(N_FILTERS, n_way))


def of_query(network: Callable[[Tensor], Tensor], query_x: Tensor, query_y: Tensor) -> None:
    """Add a task's share to the meta-gradient."""
    (cross_entropy(network(query_x), query_y) / N_TASKS).backward()


def plain_torch(network: nn.Module, tasks: Iterable[Sequence[Tensor]]) -> None:
    """Compute the meta-gradient with `torch.func.functional_call`."""
    for support_x, support_y, query_x, query_y in tasks:
        params = dict(network.named_parameters())
        for _ in range(N_STEPS):
            loss = cross_entropy(torch.func.functional_call(network, params, support_x), support_y)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: params[name] - INNER_RATE * value for name, value in zip(params, gradients, strict=True)}
        of_query(lambda x, params=params: torch.func.functional_call(network, params, x), query_x, query_y)


def with_learn2learn(network: nn.Module, tasks: Iterable[Sequence[Tensor]]) -> None:
    """Compute it as its users do."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(network, lr=INNER_RATE)
    for support_x, support_y, query_x, query_y in tasks:
        learner = maml.clone()
        for _ in range(N_STEPS):
            learner.adapt(cross_entropy(learner(support_x), support_y))
        of_query(learner, query_x, query_y)


def with_higher(network: nn.Module, tasks: Iterable[Sequence[Tensor]]) -> None:
    """Compute it as its users do."""
    import higher

    inner_optimizer = torch.optim.SGD(network.parameters(), lr=INNER_RATE)
    for support_x, support_y, query_x, query_y in tasks:
        with higher.innerloop_ctx(network, inner_optimizer, copy_initial_weights=False) as (copy, inner):
            for _ in range(N_STEPS):
                inner.step(cross_entropy(copy(support_x), support_y))
            of_query(copy, query_x, query_y)


def with_torchopt(network: nn.Module, tasks: Iterable[Sequence[Tensor]]) -> None:
    """Compute it as its users do."""
    import torchopt

    inner = torchopt.MetaSGD(network, lr=INNER_RATE)
    starts = [torchopt.extract_state_dict(each, by="reference") for each in (network, inner)]
    for support_x, support_y, query_x, query_y in tasks:
        for _ in range(N_STEPS):
            inner.step(cross_entropy(network(support_x), support_y))
        of_query(network, query_x, query_y)
        for each, start in zip((network, inner), starts, strict=True):
            torchopt.recover_state_dict(each, start)


def with_iteryne(network: nn.Module, tasks: Iterable[Sequence[Tensor]]) -> None:
    """Compute it as its users do."""
    from iteryne import MAML

    maml = MAML(network, inner_lr=INNER_RATE, inner_steps=N_STEPS)
    for support_x, support_y, query_x, query_y in tasks:
        learner = maml.clone()
        learner.adapt_on(cross_entropy, support_x, support_y)
        of_query(learner, query_x, query_y)


LIBRARIES = {
    "learn2learn": with_learn2learn, "higher": with_higher, "torchopt": with_torchopt, "iteryne": with_iteryne
}  # fmt: skip


def contenders(n_way: int) -> dict[str, Callable[[], Any]]:
    """Return name -> what takes one meta-iteration, each with a network of its own."""
    images, labels = torch.randn(2, N_TASKS, n_way, 1, 28, 28), torch.arange(n_way).expand(N_TASKS, -1)
    tasks: Tasks = (images[0], labels, images[1], labels)

    def there(compute: Callable[..., None]) -> Callable[[], None]:
        network = paper_network(n_way)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001)

        def iterate() -> None:
            optimizer.zero_grad()
            compute(network, zip(*tasks, strict=True))
            optimizer.step()

        return iterate

    def here(**network: Any) -> Callable[[], None]:
        keys = {"experiment_name": "own_loop", "num_classes_per_set": n_way, "image_channels": 1, "batch_size": N_TASKS}
        keys |= {"init_inner_loop_learning_rate": INNER_RATE, "number_of_training_steps_per_iter": N_STEPS}
        learner = build_learner(load_config(None, keys), "cpu", **network)
        optimizer = torch.optim.Adam(learner.meta_parameters().values(), lr=0.001)

        def iterate() -> None:
            meta_gradients(learner, episodes_from_arrays(*tasks))
            optimizer.step()

        return iterate

    found = {"plain torch": there(plain_torch)}
    found |= {name: there(compute) for name, compute in LIBRARIES.items() if find_spec(name)}
    return found | {"here, the same module": here(network=paper_network(n_way)), "here, its own backbone": here()}


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4, help="of a round, after one that does not count")
    parser.add_argument("--ways", type=int, default=5)
    options = parser.parse_args()
    tune_host()
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, iterate in contenders(options.ways).items():
            iterate()
            start = time.perf_counter()
            for _ in range(options.iterations):
                iterate()
            times.setdefault(name, []).append((time.perf_counter() - start) / options.iterations)
    ours = statistics.median(times["here, its own backbone"])
    print("| | seconds per iteration, median (rounds) | times that of the last row |\n| --- | --- | --- |")
    for name, seconds in times.items():
        rounds = ", ".join(f"{value:.3f}" for value in seconds)
        print(f"| {name} | {statistics.median(seconds):.3f} ({rounds}) | {statistics.median(seconds) / ours:.2f} |")
    print(f"\nnot installed: {', '.join(name for name in LIBRARIES if name not in times) or 'none'}")


if __name__ == "__main__":
    main()
