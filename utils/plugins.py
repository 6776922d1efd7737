"""Plugin files: Python that the user names on the command line (`--plugin FILE.py`), never a config.

A run's config keeps the digest of each file, so that a run does not go on with another file unnoticed.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, UserError
from utils.host_tuning import tune_host
from utils.registry import add_plugin, loaded_plugins, n_registered


def load_plugins(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Execute the files that `--plugin` names, and put their digests in its place.

    Args:
        overrides: what the command line says, by key.
    Returns:
        the overrides without "plugin" and, where there was one, with "plugin_sha256".
    Raises:
        ConfigError: a file cannot be read, fails or registers nothing.
    """
    overrides = dict(overrides)
    paths = overrides.pop("plugin", None)
    if paths is None:
        return overrides
    tune_host()  # a plugin imports torch
    return overrides | {"plugin_sha256": [_load(path) for path in (paths if isinstance(paths, list) else [paths])]}


def _load(given: Any) -> str:
    path = Path(str(given)).expanduser()
    if not isinstance(given, str) or path.suffix != ".py":
        raise ConfigError(f"command line: --plugin is {given}, but must be the path of a Python file, as in --plugin my_network.py")
    try:
        digest = f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        raise ConfigError(f"command line: --plugin {path} cannot be read in {Path.cwd()} ({error.strerror}); give the path of a file") from error
    if digest in loaded_plugins():
        return digest
    before = n_registered()
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and the like look their module up
    with user_code(f"--plugin {path}"):
        spec.loader.exec_module(module)
    if n_registered() == before:
        raise ConfigError(
            f"--plugin {path} registers nothing; it must call register_backbone(name, build) or register_dataset(name, build) "
            "of utils.registry"
        )
    add_plugin(digest, str(path))
    return digest


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn what goes wrong inside a user's own code into an error that names the place.

    Raises:
        ConfigError: any exception inside.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this function
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise ConfigError(f"{what} fails: {type(error).__name__}: {error}{place}") from error
