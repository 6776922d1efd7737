"""Part of `meta_iteration.py`, `scaling.py`, `methods_on_omniglot.py`, `inner_loop_memory.py`, `data_supply.py`,
`baseline_cost.py` and `observation_cost.py`: random episodes, the time and memory that they take, processes of their
own for measurements, and the command line of those that measure a config.
"""

import itertools
import json
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from utils.config import ExperimentConfig, load_config
from utils.config.command_line import options_of, read_command_line
from utils.config.messages import COMMAND_LINE
from utils.errors import ConfigError, prints_user_errors
from utils.machine.devices import choose_device, clock, make_deterministic
from utils.machine.host import tune_host
from utils.paths import REPOSITORY_ROOT

if TYPE_CHECKING:
    import torch

    from few_shot_learning_system import FewShotLearner
    from utils.episodes.source import EpisodeSource


def in_own_process(function: Callable[..., Any], *arguments: Any, begin: Callable[[], None] | None = None) -> Any:
    """Return what a function of a benchmark gives in a fresh process, in which `begin` comes before it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin) as pool:
        return pool.submit(function, *arguments).result()


def seconds_of(step: Callable[[], Any], device: "torch.device") -> float:
    """Take a step, wait for the device, and return how long both took."""
    start = clock(device)
    step()
    return clock(device) - start


@prints_user_errors
def measure_config(
    arguments: list[str], help_text: str, measure: Callable[[ExperimentConfig], Any], table: Callable[..., str]
) -> int:
    """Run the command line of a benchmark of any config, by default the quickstart's; return the exit code.

    Args:
        measure: of the config; what it returns is for `table`, beside the config.
    """
    if {"-h", "--help"}.intersection(arguments):
        print(help_text)
        return 0
    path, overrides = read_command_line(options_of(arguments))
    config = load_config(
        path or REPOSITORY_ROOT / "experiment_config" / "quickstart.json", overrides, place=COMMAND_LINE
    )
    tune_host()
    print(table(config, measure(config)))
    return 0


def timed_iterations(
    learner: "FewShotLearner", data: "EpisodeSource", n_tasks: int, epoch: int, device: "torch.device"
) -> Iterator[tuple[float, float]]:
    """Train on and on; yields the seconds of an iteration's episodes and of its step, each waited for."""
    for first in itertools.count(0, n_tasks):
        start = clock(device)
        episodes = data.episodes("train", range(first, first + n_tasks))
        supplied = clock(device)
        learner.meta_update(learner.meta_gradients(episodes, epoch), epoch)
        yield supplied - start, clock(device) - supplied


def random_episodes(config: ExperimentConfig, device, dtype):
    """Draw a meta-batch of random images of the config's shapes."""
    import torch

    from data import EpisodeBatch

    n_tasks, shape = config.tasks_per_meta_batch, config.validation_shape
    generator = torch.Generator().manual_seed(0)
    sides = (config.image_channels, config.image_height, config.image_width)

    def images_and_labels(per_class: int):
        images = torch.rand(n_tasks, shape.n_way * per_class, *sides, generator=generator, dtype=dtype)
        labels = torch.arange(shape.n_way).repeat_interleave(per_class).expand(n_tasks, -1)
        return images.to(device), labels.contiguous().to(device)

    support_images, support_labels = images_and_labels(shape.n_shot)
    query_images, query_labels = images_and_labels(shape.n_query)
    return EpisodeBatch(
        support_images=support_images,
        support_labels=support_labels,
        query_images=query_images,
        query_labels=query_labels,
        seeds=torch.arange(n_tasks, device=device),
        n_way=shape.n_way,
        n_shot=shape.n_shot,
        n_query=shape.n_query,
        split="train",
        indices=tuple(range(n_tasks)),
        class_ids=None,
    )


def time_iterations(config: ExperimentConfig, iterations: int, epoch: int, warm_up: int = 2) -> dict:
    """Return the measurements of `iterations` meta-iterations at `epoch`, after `warm_up` that do not count."""
    tune_host()
    import torch

    from few_shot_learning_system import build_learner

    if config.deterministic:
        make_deterministic()
    device = choose_device(config.gpu_to_use)
    dtype = getattr(torch, config.parameter_format)
    learner = build_learner(config, device)
    episodes = random_episodes(config, device, dtype)

    def iterate() -> None:
        learner.meta_update(learner.meta_gradients(episodes, epoch), epoch)

    seconds = [seconds_of(iterate, device) for _ in range(warm_up + iterations)][warm_up:]
    median = statistics.median(seconds)
    return {
        "ms_per_iteration_median": 1000 * median,
        "ms_per_iteration_fastest": 1000 * min(seconds),
        "ms_per_iteration_slowest": 1000 * max(seconds),
        "iterations": iterations,
        "epoch": epoch,
        "tasks_per_s": config.tasks_per_meta_batch / median,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "experiment_name": config.experiment_name,
    }


def peak_memory_bytes(device) -> int:
    """Return the most memory so far: of torch's allocator on a GPU, else of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def whole_number(overrides: dict, key: str, default: int, least: int) -> int:
    """Take an option of this benchmark out of the overrides.

    Raises:
        ConfigError: no integer, or below `least`.
    """
    value = overrides.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"command line: --{key} is {json.dumps(value)}, but must be: an integer of at least {least}")
    return value


def names_among(known: Collection[str], overrides: dict, key: str) -> list[str]:
    """Take the names that an option of this benchmark lists out of the overrides; without the option, all known ones.

    Raises:
        ConfigError: an unknown name.
    """
    given = overrides.pop(key, list(known))
    names = given if isinstance(given, list) else [given]
    if unknown := [json.dumps(name) for name in names if name not in known]:
        there = ", ".join(map(json.dumps, known))
        raise ConfigError(f"command line: --{key}: there is no {unknown[0]}; there are: {there}")
    return names
