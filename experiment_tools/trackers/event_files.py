"""TensorBoard's event files: cut them back to a training step, so that a resumed run goes on where its checkpoint
stands.

An event file is a row of records: length (uint64), checksum (uint32), data, checksum (uint32), all little endian;
the data are an `Event` message. A process that was killed may have left the last record incomplete.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from utils.files.atomic_files import write_bytes_atomically

HEADER_BYTES, FOOTER_BYTES = 12, 4


def cut_to_step(folder: Path, last_step: int, markers: Collection[str]) -> dict[str, set[int]]:
    """Drop all events after a step, and incomplete records, from the event files of a folder.

    Args:
        markers: names of scalars.
    Returns:
        marker -> steps at which it is kept.
    Raises:
        StorageError: a file cannot be rewritten; it stays as it was.
    """
    steps: dict[str, set[int]] = {marker: set() for marker in markers}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        kept = bytearray()
        for event, record in _records(data):
            if event.step > last_step:
                continue
            kept += record
            for value in event.summary.value:
                if value.tag in steps:
                    steps[value.tag].add(event.step)
        if bytes(kept) != data:
            write_bytes_atomically(path, bytes(kept))
    return steps


def _records(data: bytes) -> Iterator[tuple[Any, bytes]]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    start = 0
    while start + HEADER_BYTES <= len(data):
        length = int.from_bytes(data[start : start + 8], "little")
        end = start + HEADER_BYTES + length + FOOTER_BYTES
        if end > len(data):
            return
        try:
            event = Event.FromString(data[start + HEADER_BYTES : end - FOOTER_BYTES])
        except DecodeError:
            return
        yield event, data[start:end]
        start = end
