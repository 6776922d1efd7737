"""From packages of fonts or icons to a dataset folder with its data card."""

import argparse
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import ConfigError, DataError, prints_user_errors
from utils.files.atomic_files import write_bytes_atomically
from utils.files.atomic_folders import is_filled
from utils.images.folders import scan
from utils.images.packed import available_cores
from utils.paths import command, dataset_root, expanded
from utils.prepare_dataset.catalogue import check_name
from utils.prepare_dataset.class_sources import SourceClass, check_classes, safe_name
from utils.prepare_dataset.dataset_folders import verify_dataset, write_dataset
from utils.prepare_dataset.glyphs.benchmark import TestImages, by_pixels
from utils.prepare_dataset.glyphs.card import Drawing, counts_text, expected_digests
from utils.prepare_dataset.glyphs.domains import (
    DOMAINS,
    FOLDER,
    OF_FONTS,
    SOURCES_OF,
    TOGETHER,
    Candidate,
    Proposal,
    emoji_classes,
    folder_of,
    icon_classes,
    letter_classes,
    script_classes,
)
from utils.prepare_dataset.glyphs.drawing import Key, affine_changes, opened, picture, renderers
from utils.prepare_dataset.glyphs.selection import FEWEST_IMAGES, MOST_IMAGES, LeftOut, draw_all, select
from utils.prepare_dataset.glyphs.sources import Source, find_sources
from utils.prepare_dataset.workspace import Workspace
from utils.words import counted, log_to_terminal, printable, say

logger = logging.getLogger(__name__)

CARD = "README.md"
LONGEST_NAME = 60
"""Letters of a source's name that its images' names have: in any script they fit into the 255 bytes of a file's."""
MOST_AFFINE = 20
"""Letters of a script in `scripts_affine`: with all, a hundred of each, it would be several times `scripts`."""


@dataclass(frozen=True)
class GlyphRequest:
    """What to draw."""

    domain: str
    dataset_root: Path
    locations: Sequence[str] = ()
    """Packages, fonts, folders; none: installed fonts."""
    any_version: bool = False
    name: str | None = None
    seed: int = 0

    @property
    def folder_name(self) -> str:
        """What was drawn from other sources, or with another seed, never goes under the name of the benchmark."""
        seed = f"_seed{self.seed}" if self.seed else ""
        name = self.name or f"{folder_of(self.domain)}{seed}{'_any_version' if self.any_version else ''}"
        check_name(name)
        if expected_digests(name) and (name != folder_of(self.domain) or self.seed or self.any_version):
            raise ConfigError(f"--name {name}: is of the benchmark, for its own sources and seed 0. Give another name.")
        return name


@prints_user_errors
def main(arguments: list[str]) -> int:
    """Draw one domain; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{command('prepare_dataset')} glyphs",
        description="Draw a few-shot dataset from fonts or icon sets. A killed run is gone on with; a second verifies.",
        epilog="domains:\n" + "\n".join(f"  {name}: {text}" for name, text in DOMAINS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--domain", required=True, choices=tuple(DOMAINS), type=lambda text: text.removeprefix(FOLDER))
    parser.add_argument(
        "--from", dest="locations", nargs="+", action="extend", default=[], metavar="PATH",
        help="packages (.deb, .tgz, .whl, .zip), fonts, or folders of these; default: the installed fonts",
    )  # fmt: skip
    parser.add_argument("--any-version", action="store_true", help="draw what is there, whether known here or not")
    parser.add_argument("--to", "--dataset_dir", dest="to", type=expanded, default=dataset_root())
    parser.add_argument("--name", help="name of the dataset folder (default: glyphs_<domain>)")
    parser.add_argument("--seed", type=int, default=0, help="of small changes, and of splits that are drawn")
    options = parser.parse_args(arguments)
    log_to_terminal()
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed {options.seed}: must be 0 to {2**32 - 1}.")
    request = GlyphRequest(
        options.domain, options.to, options.locations, options.any_version, options.name, options.seed
    )
    try:
        say(prepare_glyphs(request))
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it was")
        return 130
    return 0


def prepare_glyphs(request: GlyphRequest) -> str:
    """Draw a domain's dataset, or verify the one that is there; returns a line that says what it holds.

    Raises:
        ConfigError: no renderer for icons.
        DataError: sources that are missing, unknown, damaged or not free.
        StorageError: no space or no permission.
    """
    destination = request.dataset_root / request.folder_name
    workspace = Workspace(request.dataset_root)
    if is_filled(destination):
        return _verified(destination, request, workspace)
    sources, faces = _opened(request, workspace)
    proposals = _propose(request, sources, faces)
    names = [printable(f"{s.package.name} {s.name}" if s.package else s.name) for s in sources]
    drawn = draw_all([source.path for source in sources], proposals, available_cores())
    kept, left_out = select(proposals, drawn, names)
    classes = _classes(request, proposals, kept, sources, left_out)
    if not classes and request.domain != "scripts_affine":
        sides = " of print, and by as many of handwriting" if request.domain in TOGETHER else ""
        raise DataError(
            f"{request.domain}: nothing is drawn by {FEWEST_IMAGES} of {counted(len(sources), 'source')}{sides}, each "
            "in a way of its own. Give more with --from."
        )
    check_classes(request.dataset_root, classes)
    drawing = Drawing(request.folder_name, request.domain, request.seed, sources, names, classes, left_out)
    facts = {
        "dataset": "glyphs", "form": f"{request.domain} of {counted(len(sources), 'source')}", "seed": request.seed,
        "domain": request.domain, "renderers": renderers(svg=request.domain not in OF_FONTS),
        "sources": [source.sha256 for source in sources],
    }  # fmt: skip

    def describe(folder: Path) -> dict[str, Any]:
        measures = _measure(folder)
        write_bytes_atomically(folder / CARD, drawing.card(measures).encode())
        for line in drawing.summary(measures):
            logger.info(line)
        return measures

    write_dataset(destination, classes, facts, then=describe)
    workspace.clean()
    return f"{printable(destination)}: prepared, {counts_text(drawing.images_per_class)}"


def _verified(destination: Path, request: GlyphRequest, workspace: Workspace) -> str:
    """Say what a dataset holds that is there: the one that is asked for, from the same files where others could be."""
    record = verify_dataset(destination)
    if record is None:
        raise DataError(
            f"{printable(destination)}: is there, and was not prepared here. Give another name with --name."
        )
    asked: dict[str, Any] = {"domain": request.domain, "seed": request.seed}
    if request.any_version and request.locations:
        asked["sources"] = [source.sha256 for source in _opened(request, workspace)[0]]
        workspace.clean()
    if other := [key for key, value in asked.items() if record.get(key) != value]:
        raise ConfigError(
            f"{printable(destination)}: is there and verified, but its {' and '.join(other)} are not those that are "
            "asked for. Nothing was drawn: give another name with --name, or move that folder away."
        )
    return f"{printable(destination)}: is there and verified, {counts_text(record['images_per_class'])}"


def _opened(request: GlyphRequest, workspace: Workspace) -> tuple[list[Source], list[Any]]:
    """Return the sources that can be read and may be drawn, and each of them opened."""
    domains = SOURCES_OF.get(request.domain, (request.domain,))
    found = find_sources(
        request.locations, domains, workspace.folder_for(folder_of(request.domain)), any_version=request.any_version
    )
    sources, faces = [], []
    for source in found:
        if (source.path.suffix == ".json") == (request.domain in OF_FONTS):
            continue
        try:
            face = opened(source.path)
        except DataError as error:
            logger.warning("left out: %s: %s", printable(source.name), error)
            continue
        if source.package is None and not face.may_be_drawn:
            logger.warning("left out: %s: its OS/2 fsType does not let it be embedded", printable(source.name))
            continue
        sources.append(source)
        faces.append(face)
    if not sources:
        raise DataError(f"{request.domain}: none of {counted(len(found), 'source')} can be drawn.")
    return sources, faces


def _propose(request: GlyphRequest, sources: Sequence[Source], faces: Sequence[Any]) -> list[Proposal]:
    digests = [source.sha256 for source in sources]
    sides = [
        next((d for d in TOGETHER if source.package and d in source.package.domains), request.domain)
        for source in sources
    ]
    proposers: dict[str, Callable[[], list[Proposal]]] = {
        "icons": lambda: icon_classes(faces, request.seed),
        "emoji": lambda: emoji_classes(faces, [source.characters for source in sources], request.seed),
    } | dict.fromkeys(TOGETHER, lambda: letter_classes(faces, digests, sides, request.seed))
    if request.domain not in proposers:
        return script_classes(faces, digests)
    return [one for one in proposers[request.domain]() if len(one.candidates) >= FEWEST_IMAGES]  # the rest is not drawn


def _classes(
    request: GlyphRequest, proposals: Sequence[Proposal], kept: dict[str, list[Candidate]], sources: Sequence[Source],
    left_out: LeftOut,
) -> list[SourceClass]:  # fmt: skip
    """Return the classes with images enough; those of `scripts_affine` are the ones that have too few of their own."""
    enough = {name for name, candidates in kept.items() if len(candidates) >= FEWEST_IMAGES}
    if request.domain == "scripts_affine":
        enough = few_of_each_script(kept)
    elif request.domain in TOGETHER:
        names = set.intersection(*({n.partition("/")[2] for n in enough if n.startswith(side)} for side in TOGETHER))
        enough = {f"{request.domain}/{name}" for name in names}
    left_out.classes = sum(bool(candidates) for candidates in kept.values()) - len(enough)
    classes = []
    for proposal in proposals:
        if proposal.name in enough:
            name, shown = proposal.name.rpartition("/")[2], kept[proposal.name]
            if request.domain == "scripts_affine":
                shown = [shown[place % len(shown)] for place in range(MOST_IMAGES)]
            stems = [safe_name(Path(sources[c.source].name).stem)[:LONGEST_NAME] for c in shown]
            files = [f"{i:02}_{stem}.png" for i, stem in enumerate(stems)]
            changes = affine_changes(request.seed, [f"{name}/{file}" for file in files])
            read = _reader(
                [(sources[c.source].path, c.key) for c in shown], changes if request.domain in OF_FONTS else None
            )
            classes.append(SourceClass(proposal.split, name, files, read, is_drawn=True))
    return classes


def few_of_each_script(kept: dict[str, list[Candidate]]) -> set[str]:
    """Return letters that fewer than FEWEST_IMAGES fonts draw: those that most draw, MOST_AFFINE of a script."""
    few = [name for name, candidates in kept.items() if 0 < len(candidates) < FEWEST_IMAGES]
    few.sort(key=lambda name: (-len(kept[name]), hashlib.sha256(name.encode()).digest()))
    of_script: dict[str, list[str]] = defaultdict(list)
    for name in few:
        of_script[name.partition("_")[0]].append(name)
    return {name for names in of_script.values() for name in names[:MOST_AFFINE]}


def _reader(shown: Sequence[tuple[Path, Key]], changes: np.ndarray | None) -> Callable[[int], np.ndarray]:
    def read(place: int) -> np.ndarray:
        path, key = shown[place]
        return picture(opened(path).ink(key), None if changes is None else changes[place])

    return read


def _measure(folder: Path) -> dict[str, Any]:
    """Digest of all files, and accuracy of nearest neighbour on the fixed tasks, each with its interval."""
    digest = hashlib.sha256()
    for image_folder in scan(folder)[0]:
        for path in map(image_folder.path_of, image_folder.files):
            digest.update(f"{path}\t{hashlib.sha256((folder / path).read_bytes()).hexdigest()}\n".encode())
    return {"files_sha256": digest.hexdigest(), "nearest_neighbour": by_pixels(folder, TestImages.of_folder(folder))}
