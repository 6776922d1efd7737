"""What a run was made with: versions, device, commit. No host name, user or path of the machine goes into it."""

import platform
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import torch

from utils.machine.packages import installed_version, requirements
from utils.paths import PACKAGE, REPOSITORY_ROOT, __version__

DATA_FACTS = ("dataset_name", "content_sha256", "image_shape", "splits", "prepared")


def describe_environment(device: torch.device, data_summary: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of environment.json: time of the start, versions, device, threads, commit of the code, data."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "mamlkit": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {package.name: installed_version(package.name) for package in requirements()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "data": {name: data_summary[name] for name in DATA_FACTS if name in data_summary},
    }


def _git(*arguments: str) -> str | None:
    if PACKAGE:  # a repository around site-packages is somebody else's
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
