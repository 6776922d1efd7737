"""Checkpoints: one safetensors file each, verified by a digest, never a pickle.

A file holds tensors and, under one metadata key, JSON of {format_version, sha256, state}. The digest covers all
bytes of the file, its own 64 characters taken as zeros, so any changed bit is found. (Several metadata keys would
come out in a random order: equal states could give unequal files.)
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import DamagedCheckpointError, NonFiniteError, StorageError
from utils.files.atomic_files import free_path, read_regular, write_bytes_atomically
from utils.files.reading import parse_json
from utils.paths import command

if TYPE_CHECKING:
    from torch import Tensor, device

FORMAT_VERSION = 1
METADATA_KEY = "checkpoint"
NO_DIGEST = "0" * 64
DIGEST_MARKER = b'\\"sha256\\": \\"'  # JSON inside a JSON string: quotes are escaped
LARGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
EPOCH_FILE_NAME = re.compile(r"train_model_([0-9]+)\.safetensors")


def save_checkpoint(path: Path, tensors: "dict[str, Tensor]", state: dict[str, Any]) -> None:
    """Write tensors and a JSON state to one verified file, atomically.

    Raises:
        NonFiniteError: a tensor or a float of the state is not finite; nothing is written.
        StorageError: no space or no permission; the file that was there stays.
    """
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f'{path}: not saved, because "{name}" holds values that are not finite.')
    write_bytes_atomically(path, checkpoint_bytes(tensors, state))


def checkpoint_bytes(tensors: "dict[str, Tensor]", state: dict[str, Any]) -> bytes:
    """Return the bytes of a checkpoint file, digest filled in; the same input gives the same bytes.

    Raises:
        NonFiniteError: a float of the state is not finite.
    """
    from safetensors.torch import save

    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return _with_digest(save(copies, metadata={METADATA_KEY: _metadata_text(state)}))


def with_state(checkpoint: "Checkpoint", state: dict[str, Any]) -> bytes:
    """Return the bytes of a checkpoint with the same tensors and another state. Needs no torch."""
    length = int.from_bytes(checkpoint.data[:8], "little")
    header = parse_json(checkpoint.data[8 : 8 + length])
    header["__metadata__"][METADATA_KEY] = _metadata_text(state)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment; offsets of tensors count from the end of the header
    return _with_digest(len(text).to_bytes(8, "little") + text + checkpoint.data[8 + length :])


def _metadata_text(state: dict[str, Any]) -> str:
    try:
        return json.dumps({"format_version": FORMAT_VERSION, "sha256": NO_DIGEST, "state": state}, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"A checkpoint's state holds a number that is not finite ({error}).") from error


def _with_digest(data: bytes) -> bytes:
    position = data.index(DIGEST_MARKER) + len(DIGEST_MARKER)
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:position] + digest + data[position + len(digest) :]


def load_checkpoint(path: Path, device: "device | str" = "cpu") -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Return tensors (on `device`) and state of a checkpoint, after verifying every byte.

    Raises:
        DamagedCheckpointError: damaged, or not a checkpoint of this project; says which.
        StorageError: it cannot be read, or is of another release; the file itself may be good.
    """
    checkpoint = read_checkpoint(path)
    return {name: tensor.to(device) for name, tensor in checkpoint.tensors().items()}, checkpoint.state


def read_checkpoint_state(path: Path) -> dict[str, Any]:
    """Return the verified JSON state of a checkpoint alone. Needs no torch.

    Raises:
        StorageError: as `load_checkpoint`.
    """
    return read_checkpoint(path).state


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that was read and verified once. Needs torch only for its tensors."""

    path: Path
    state: dict[str, Any]
    data: bytes

    def tensors(self) -> "dict[str, Tensor]":
        """Return name -> tensor on the CPU, each of its own shape.

        Raises:
            DamagedCheckpointError: not a usable safetensors file.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.data)
        except (SafetensorError, KeyError, ValueError) as error:  # KeyError: of a number format that torch lacks
            raise DamagedCheckpointError(f"{self.path}: not a usable checkpoint ({error}).") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint once and verify every byte. Needs no torch.

    Raises:
        StorageError: as `load_checkpoint`.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror or error}). Make it readable and run again, or move the file "
            "away to go on without it."
        ) from error
    header_length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 0 < header_length <= min(len(data) - 8, LARGEST_HEADER_BYTES):
        if data[:2] in (b"PK", b"\x80\x02"):
            raise DamagedCheckpointError(
                f"{path}: a file of torch.save, which may run code and is not read. A checkpoint of the original is "
                f"converted by: {command('convert_checkpoint')} --help"
            )
        raise DamagedCheckpointError(f"{path}: damaged, {len(data)} bytes are not a whole safetensors file.")
    position = data.find(DIGEST_MARKER, 8, 8 + header_length) + len(DIGEST_MARKER)
    if position < len(DIGEST_MARKER):
        raise DamagedCheckpointError(f"{path}: no digest found; damaged, or not a checkpoint of this project.")
    end = position + len(NO_DIGEST)
    digest = hashlib.sha256(data[:position])
    digest.update(NO_DIGEST.encode())
    digest.update(memoryview(data)[end:])
    if data[position:end] != digest.hexdigest().encode():
        raise DamagedCheckpointError(f"{path}: damaged, its bytes do not fit its digest.")
    try:
        content = parse_json(parse_json(data[8 : 8 + header_length])["__metadata__"][METADATA_KEY])
        version, state = content["format_version"], {**content["state"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path}: not a checkpoint of this project ({error!r}).") from error
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path}: format version {version}; this release reads version {FORMAT_VERSION}. Use the release that "
            "wrote it, or move the file away."
        )
    return Checkpoint(path, state, data)


def epoch_path(folder: Path, epoch: int) -> Path:
    """Return where the checkpoint of an epoch (counted from 1) lies."""
    return folder / f"train_model_{epoch}.safetensors"


def unfinished_path(folder: Path) -> Path:
    """Return where the checkpoint inside an epoch lies, until the epoch's own file is written."""
    return folder / "unfinished.safetensors"


def epoch_of(path: Path) -> int | None:
    """Return the epoch (from 1) that the name of a checkpoint file says; None for the one inside an epoch."""
    match = EPOCH_FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_epochs(folder: Path) -> dict[int, Path]:
    """Return epoch -> checkpoint file for all epoch files in a folder, oldest first; nothing is opened."""
    epochs = ((epoch_of(path), path) for path in folder.glob("train_model_*.safetensors"))
    return dict(sorted((epoch, path) for epoch, path in epochs if epoch is not None))


def set_aside(path: Path, suffix: str = ".corrupt") -> Path:
    """Rename a checkpoint that is not used to `<name><suffix>` (numbered when taken) and return the new path."""
    target = free_path(path.with_name(path.name + suffix), separator="")
    try:
        path.rename(target)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be used, and cannot be renamed either ({error.strerror}). Move it away."
        ) from error
    return target
