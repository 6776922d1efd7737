"""Reading back the offline files of Weights & Biases: what really arrived there before a process was killed.

A `.wandb` file is a LevelDB log of `Record` messages after seven bytes of heading: blocks of 32 KiB, in them parts
of records, each with checksum (4 bytes), length (2) and kind (1). A process that was killed may have left the last
record incomplete.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADING_BYTES, PART_HEADER_BYTES, BLOCK_BYTES = 7, 7, 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def offline_files(folder: Path, run_id: str) -> list[Path]:
    """The files of one W&B run, oldest first; `folder` is the one that W&B was given."""
    return sorted(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))


def last_step(paths: list[Path]) -> int:
    """The highest step of a history row; 0 without any."""
    steps = (row.get("_step", 0) for path in paths for row in history_rows(path))
    return max(steps, default=0)


def history_rows(path: Path) -> Iterator[dict[str, Any]]:
    """What was logged, row by row; nested names are joined by slashes."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def records(path: Path) -> Iterator[Any]:
    """All whole records of a file, as W&B's `Record` messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    place, parts = HEADING_BYTES, b""
    while place + PART_HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < PART_HEADER_BYTES:  # too little for another part: filled up with zeros
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part = data[place + PART_HEADER_BYTES : place + PART_HEADER_BYTES + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(part) < length:
            return
        place += PART_HEADER_BYTES + length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
