"""Whether two run folders hold the same: the measure of "resumed equals never interrupted". Needs no torch.

Every file counts, so leftovers are differences too. Left out is what must differ: times, memory, run.log and
environment.json (one entry per start), the report (it shows all of these), and the content of the lock.
"""

import csv
import hashlib
import re
from pathlib import Path
from typing import Any

from experiment_parts.runs.checkpoints import read_checkpoint
from utils.files.reading import parse_json, read_json

OF_TIME_OR_DRAWN = re.compile(r"time|per_s|peak_memory|^(metrics_jsonl_bytes|run_id)$")
CONTENT_DIFFERS = (".lock", "logs/run.log", "environment.json", "visual_outputs/report.html")
"""Files whose presence alone is compared."""


def run_folder_content(folder: Path) -> dict[str, Any]:
    """Return file name relative to the folder -> comparable content, times left out.

    Raises:
        StorageError: a checkpoint does not verify.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): _content(path, folder) for path in files}


def differences(first: Path, second: Path) -> list[str]:
    """Return one line per file that is in one folder only or differs in more than times; empty when all is equal."""
    ours, other = run_folder_content(first), run_folder_content(second)
    lines = [f"{name}: only in {first}" for name in ours.keys() - other.keys()]
    lines += [f"{name}: only in {second}" for name in other.keys() - ours.keys()]
    lines += [f"{name}: differs" for name in ours.keys() & other.keys() if ours[name] != other[name]]
    return sorted(lines)


def without_times(content: Any) -> Any:
    """Return JSON content without the keys that hold times, speeds, memory, lengths of text that holds times, or the
    number that a run draws for itself.
    """
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if not OF_TIME_OR_DRAWN.search(key)}
    return [without_times(entry) for entry in content] if isinstance(content, list) else content


def _content(path: Path, folder: Path) -> Any:
    if path.relative_to(folder).as_posix() in CONTENT_DIFFERS:
        return "is there"
    if path.suffix == ".json":
        return without_times(read_json(path))
    if path.suffix == ".jsonl":
        return [without_times(parse_json(line)) for line in path.read_bytes().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [without_times(row) for row in csv.DictReader(file)]
    if path.suffix == ".safetensors":
        checkpoint = read_checkpoint(path)
        data, header_end = checkpoint.data, 8 + int.from_bytes(checkpoint.data[:8], "little")
        tensors = {name: entry for name, entry in parse_json(data[8:header_end]).items() if name != "__metadata__"}
        return without_times(checkpoint.state), tensors, hashlib.sha256(data[header_end:]).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()
