"""A folder shared by generated and hand-written files: the former are known by digest, the rest is left alone."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from utils.errors import ConfigError
from utils.files.atomic_files import write_bytes_atomically
from utils.files.reading import read_object, why_unreadable

MOST_NAMED = 6
MANIFEST_NAME = ".generated.json"


class Outcome(NamedTuple):
    """What happened to a folder, as sorted file names, and lines for the user."""

    written: list[str]
    unchanged: list[str]
    kept: list[str]
    outdated: list[str]
    removed: list[str]
    notes: list[str]

    def report(self, folder: Path) -> str:
        """Return the lines to print."""
        lines = [*self.notes]
        lines += [
            f"{folder.name}/{name}: written or edited by hand, so it stays as it is. To have it generated, delete it "
            "or give it another name (and a config another experiment_name), then run this again"
            for name in self.kept
        ]
        named = f" ({', '.join(self.written)})" if 0 < len(self.written) <= MOST_NAMED else ""
        lines.append(f"{folder.name}: {len(self.written)} written{named}, {len(self.unchanged)} unchanged")
        if self.outdated:
            lines.append("outdated, nothing generates them any more (--prune removes them):")
            lines += [f"  {folder.name}/{name}" for name in self.outdated]
        lines += [f"removed {folder.name}/{name}" for name in self.removed]
        return "\n".join(lines)


def update_folder(
    folder: Path, wanted: Mapping[str, str], *, prune: bool = False, notes: list[str] | None = None
) -> Outcome:
    """Make a folder hold the wanted generated files, without touching a file that a person wrote or edited.

    Which files were generated, and with which content, stands in the folder's `.generated.json` (name -> sha256).

    Args:
        wanted: file name -> text.
        prune: remove files that were generated earlier, are not wanted any more, and are as they were generated.
    Raises:
        ConfigError: the manifest cannot be read.
        StorageError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(folder / MANIFEST_NAME)
    outcome = Outcome([], [], [], [], [], list(notes or []))
    generated: dict[str, str] = {}
    for name, text in sorted(wanted.items()):
        path = folder / name
        present = path.read_bytes() if path.exists() else None
        if present == text.encode():
            outcome.unchanged.append(name)
        elif present is None or _digest(present) == manifest.get(name):
            write_bytes_atomically(path, text.encode())
            outcome.written.append(name)
        else:
            outcome.kept.append(name)
            generated |= {name: manifest[name]} if name in manifest else {}
            continue
        generated[name] = _digest(text.encode())
    for name in sorted(manifest.keys() - wanted.keys()):
        path = folder / name
        if not path.exists() or _digest(path.read_bytes()) != manifest[name]:
            continue  # gone, or edited: from now on a file of the user's own
        if prune:
            path.unlink()
            outcome.removed.append(name)
        else:
            outcome.outdated.append(name)
            generated[name] = manifest[name]
    if generated != manifest:
        text = json.dumps(dict(sorted(generated.items())), indent=1) + "\n"
        write_bytes_atomically(folder / MANIFEST_NAME, text.encode())
    return outcome


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_manifest(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        manifest = read_object(path)
        # Only plain names: an entry like ../x must never lead out of the folder.
        return {name: digest for name, digest in manifest.items() if name == Path(name).name}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: {why_unreadable(error)}. Restore it, or delete it: files that are as they would be generated "
            "are then recognised again, others count as written by hand"
        ) from error
