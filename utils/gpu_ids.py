"""The GPUs that the key gpu_to_use names. Needs no torch."""

from collections.abc import Sequence

from utils.errors import ConfigError


def gpu_ids(gpu_to_use: str) -> list[int]:
    """The ids that the key names, each once; none for `auto`, `all` and `cpu`."""
    return [] if gpu_to_use in ("auto", "all", "cpu") else list(dict.fromkeys(int(part) for part in gpu_to_use.split(",")))


def check_gpus(wanted: Sequence[int], names: Sequence[str]) -> None:
    """Refuse an id beyond the GPUs of this machine, given by name.

    Raises:
        ConfigError: names those that are there.
    """
    for index in wanted:
        if index >= len(names):
            there = ", ".join(f"{place} ({name})" for place, name in enumerate(names))
            raise ConfigError(f"gpu_to_use: there is no GPU {index} on this machine; there are: {there}.")
