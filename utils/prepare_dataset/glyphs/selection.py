"""Which drawings become images: none that is missing, a copy, or stands for two classes; counted and listed."""

import contextlib
import multiprocessing
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tqdm

from utils.prepare_dataset.glyphs.domains import Candidate, Proposal
from utils.prepare_dataset.glyphs.drawing import Key, are_copies, thumbnails

FEWEST_IMAGES, MOST_IMAGES = 4, 20
MOST_DRAWN = 60
"""Candidates of a class that are looked at."""
COPIED_PART, FEWEST_SHARED = 0.7, 5
"""A source is left out if so much of what it shares with one before it, and at least so many drawings, are copies."""


@dataclass
class LeftOut:
    """What was left out, for the data card."""

    counts: Counter[str] = field(default_factory=Counter)
    """Reason -> drawings."""
    sources: list[str] = field(default_factory=list)
    """`a: a copy of b`."""
    copies: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(source, the one it copies) -> drawings."""
    classes: int = 0
    """With fewer images than `FEWEST_IMAGES`."""


def draw_all(paths: Sequence[Path], proposals: Sequence[Proposal], workers: int) -> list[dict[Key, np.ndarray]]:
    """Return for each source key -> thumbnail, uint8 (28, 28), drawn by several processes."""
    wanted: dict[int, dict[Key, None]] = defaultdict(dict)
    for proposal in proposals:
        for candidate in proposal.candidates[:MOST_DRAWN]:
            wanted[candidate.source][candidate.key] = None
    drawn: list[dict[Key, np.ndarray]] = [{} for _ in paths]
    places = sorted(wanted)
    keys = [list(wanted[place]) for place in places]
    with (
        tqdm.tqdm(desc="looking at glyphs", total=sum(map(len, keys)), unit="glyph", disable=None) as bar,
        _mapping(workers) as mapping,
    ):
        answers = mapping(thumbnails, [paths[place] for place in places], keys)
        for place, of_source, images in zip(places, keys, answers, strict=True):
            drawn[place] = dict(zip(of_source, images, strict=True))
            bar.update(len(of_source))
    return drawn


@contextlib.contextmanager
def _mapping(workers: int) -> Iterator[Callable]:
    """Give `map`, over processes where there are several."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        yield pool.map


def _end_with_parent() -> None:
    """End with the process that started this one: a worker of a killed process would wait for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def select(
    proposals: Sequence[Proposal], drawn: Sequence[dict[Key, np.ndarray]], names: Sequence[str]
) -> tuple[dict[str, list[Candidate]], LeftOut]:
    """Return class -> the drawings that are each a sample of its own, however few, and what was left out.

    Args:
        drawn: of each source, as `draw_all` gives it.
        names: of the sources.
    """
    left_out = LeftOut()
    usable = _without_look_alikes(proposals, drawn, left_out)
    near, shared = np.zeros((2, len(names), len(names)), np.int64)
    copies = {}
    for name, candidates in usable.items():
        if candidates:
            copies[name] = are_copies(np.stack([drawn[c.source][c.key] for c in candidates]))
            pairs = np.ix_(*2 * [[c.source for c in candidates]])  # a source is in a class once
            near[pairs] += copies[name]
            shared[pairs] += 1
    copied: set[int] = set()
    for first, second in np.argwhere(np.triu(near >= np.maximum(FEWEST_SHARED, COPIED_PART * shared), 1)).tolist():
        if not {first, second} & copied:
            copied.add(second)
            numbers = f"{near[first, second]} of {shared[first, second]} drawings"
            left_out.sources.append(f"{names[second]}: {numbers} are those of {names[first]}")
    kept = {}
    for name, candidates in usable.items():
        chosen: list[int] = []
        for place, candidate in enumerate(candidates):
            if candidate.source in copied:
                left_out.counts["of a source that copies another"] += 1
            elif same := [other for other in chosen if copies[name][place, other]]:
                left_out.counts["a copy of another image of its class"] += 1
                left_out.copies[candidate.source, candidates[same[0]].source] += 1
            elif len(chosen) < MOST_IMAGES:
                chosen.append(place)
            else:
                left_out.counts[f"beyond {MOST_IMAGES} images of a class"] += 1
        kept[name] = [candidates[place] for place in chosen]
    return kept, left_out


def _without_look_alikes(
    proposals: Sequence[Proposal], drawn: Sequence[dict[Key, np.ndarray]], left_out: LeftOut
) -> dict[str, list[Candidate]]:
    """Class -> candidates of which something is drawn that no class before it has from the same source, which for
    icons and emoji is all sets together: one bar is minus in one set and subtract in another.
    """
    usable: dict[str, list[Candidate]] = {}
    taken: dict[tuple[int | None, bytes], str] = {}
    for proposal in proposals:
        usable[proposal.name] = []
        for candidate in proposal.candidates[:MOST_DRAWN]:
            image = drawn[candidate.source][candidate.key]
            source = None if isinstance(candidate.key, str) else candidate.source
            if not image.any():
                left_out.counts["missing: nothing, or the sign for it, is drawn"] += 1
            elif taken.setdefault((source, image.tobytes()), proposal.name) != proposal.name:
                left_out.counts["the same as a class before it"] += 1
            else:
                usable[proposal.name].append(candidate)
    return usable
