"""Reading back what trackers leave on the disk: TensorBoard's event files, and the offline files of Weights &
Biases.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HEADING_BYTES, PART_HEADER_BYTES, BLOCK_BYTES = 7, 7, 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) in the order of the files, with nothing sorted or left out."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=_by_numbers):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Return the parts of a name, numbers as such: the tenth writer of a second comes after the ninth."""
    return [(int(part) if part.isdigit() else -1, part) for part in path.name.split(".")]


def tensorboard_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) as TensorBoard shows them."""
    shown = _as_shown(folder)
    return {tag: [(point.step, point.value) for point in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def tensorboard_tags(folder: Path) -> dict[str, list[str]]:
    """What TensorBoard itself finds: kind ("scalars", "histograms", "images", ...) -> names."""
    return _as_shown(folder).Tags()


def _as_shown(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()  # 0: every point


def wandb_history(run_folder: Path) -> list[dict[str, Any]]:
    """What was logged, row by row, in all offline files of a run, oldest file first."""
    records = [record for path in _wandb_files(run_folder) for record in _records(path)]
    return [_by_name(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]


def wandb_summary(run_folder: Path) -> dict[str, Any]:
    """What W&B shows beside the name of the run."""
    records = [record for path in _wandb_files(run_folder) for record in _records(path)]
    return _by_name(
        item for record in records if record.WhichOneof("record_type") == "summary" for item in record.summary.update
    )


def wandb_run_ids(run_folder: Path) -> list[str]:
    """The run id in each offline file."""
    return [
        next(record.run.run_id for record in _records(path) if record.WhichOneof("record_type") == "run")
        for path in _wandb_files(run_folder)
    ]


def _wandb_files(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("logs/wandb/offline-run-*/run-*.wandb"))


def _by_name(items: Iterable[Any]) -> dict[str, Any]:
    """Nested names are joined by slashes."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Any]:
    """All whole records of a `.wandb` file, as W&B's `Record` messages.

    It is a LevelDB log after seven bytes of heading: blocks of 32 KiB, in them parts of records, each with checksum
    (4 bytes), length (2) and kind (1). A process that was killed may have left the last record incomplete.
    """
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
