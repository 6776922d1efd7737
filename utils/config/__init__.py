"""The keys of a config: what they mean, what goes together, and reading, checking and resolving them."""

from utils.config.reading import OLD_KEYS, check_config, config_file, current_name, load_config, meaning
from utils.config.schema import ExperimentConfig
from utils.paths import experiments_root  # the notebooks of before import it from here

__all__ = [
    "OLD_KEYS",
    "ExperimentConfig",
    "check_config",
    "config_file",
    "current_name",
    "experiments_root",
    "load_config",
    "meaning",
]
