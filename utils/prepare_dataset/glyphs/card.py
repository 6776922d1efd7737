"""What is said of a drawn dataset: counts, what was left out, licences and digests, in the log and on its data card."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files.reading import parse_toml, read_text
from utils.prepare_dataset.class_sources import SourceClass
from utils.prepare_dataset.glyphs.benchmark import pixel_lines
from utils.prepare_dataset.glyphs.domains import DOMAINS, OF_FONTS
from utils.prepare_dataset.glyphs.drawing import renderers
from utils.prepare_dataset.glyphs.selection import FEWEST_IMAGES, LeftOut
from utils.prepare_dataset.glyphs.sources import Source
from utils.words import counted, printable

EXPECTED = Path(__file__).with_name("digests.toml")
MOST_LISTED = 200
NOTICE = """
The pictures are drawn from works under these licences: keep to them when you hand pictures on, or hand on the command.
"""


def counts_text(images_per_class: Mapping[str, int]) -> str:
    """Return how many images and classes there are, by split."""
    splits = Counter(name.partition("/")[0] for name in images_per_class)
    text = ", ".join(f"{split} {splits[split]}" for split in ("train", "val", "test"))
    return f"{sum(images_per_class.values())} images in {counted(len(images_per_class), 'class', 'classes')} ({text})"


def expected_digests(folder_name: str) -> dict[str, Any]:
    """Return the digests of a dataset of the benchmark, with the versions that drew it; empty for another one."""
    return parse_toml(read_text(EXPECTED)).get(folder_name, {})


@dataclass(frozen=True)
class Drawing:
    """A domain as it was drawn."""

    folder_name: str
    domain: str
    seed: int
    sources: Sequence[Source]
    names: Sequence[str]
    """Of the sources, for people."""
    classes: Sequence[SourceClass]
    left_out: LeftOut

    @property
    def images_per_class(self) -> dict[str, int]:
        """Folder of each class -> its images."""
        return {c.folder: len(c.files) for c in self.classes}

    def summary(self, measures: Mapping[str, Any]) -> list[str]:
        """Return lines: sources per class, what was left out, nearest neighbour, whether the digest is as published."""
        sizes = sorted(self.images_per_class.values())
        lines = [f"distinct sources per class: {sizes[0]} to {sizes[-1]}, median {sizes[len(sizes) // 2]}"]
        if self.domain == "scripts_affine":
            lines = [f"each class has turned and stretched images of one to {FEWEST_IMAGES - 1} fonts"]
        lines += [f"left out: {count} drawings: {reason}" for reason, count in sorted(self.left_out.counts.items())]
        lines.append(f"left out: {counted(len(self.left_out.sources), 'source')} as copies of another")
        more = ", or beyond the most of a script" if self.domain == "scripts_affine" else ""
        few = counted(self.left_out.classes, "class", "classes")
        lines.append(f"left out: {few} with another number of sources{more}")
        lines += pixel_lines(measures["nearest_neighbour"])
        if expected := expected_digests(self.folder_name):
            by = ", ".join(f"{key} {value}" for key, value in expected["renderers"].items())
            same = expected["files_sha256"] == measures["files_sha256"]
            lines.append(f"digest of all files: {'as published' if same else f'not the published one, drawn by {by}'}")
        return lines

    def card(self, measures: Mapping[str, Any]) -> str:
        """Return the data card, as Markdown."""
        packages = {source.package.name: source.package for source in self.sources if source.package}
        drawn_by = ", ".join(
            f"{name} {version}" for name, version in renderers(svg=self.domain not in OF_FONTS).items()
        )
        pairs = self.left_out.copies.most_common()
        lines = [
            f"# {self.folder_name}", "", f"{DOMAINS[self.domain]}. {counts_text(self.images_per_class)}.", "",
            f"Drawn by {drawn_by}, seed {self.seed}. Digest of all files: `{measures['files_sha256']}`", "",
            "```text", *self.summary(measures), "```", NOTICE,
            "| package | version | licence | sha256 |", "| --- | --- | --- | --- |",
            *(f"| {p.name} | {p.version} | {p.licence} | `{p.sha256}` |" for p in packages.values()),
        ]  # fmt: skip
        if unknown := [source for source in self.sources if source.package is None]:
            lines += ["", "Taken with `--any-version`, licence not known here:", ""]
            lines += [f"- {printable(source.name)} `{source.sha256}`" for source in unknown]
        lines += ["", "## Left out", "", *(f"- {text}" for text in self.left_out.sources)]
        lines += [
            f"- {count} drawings of {self.names[copy]}: copies of {self.names[original]}"
            for (copy, original), count in pairs[:MOST_LISTED]
        ]
        return (
            "\n".join([*lines, *([f"- ... and {len(pairs) - MOST_LISTED} more pairs"] if pairs[MOST_LISTED:] else [])])
            + "\n"
        )
