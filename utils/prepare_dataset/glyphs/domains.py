"""From opened fonts and icon sets to the classes of a domain: which keys are one class, of which split.

A domain proposes candidates; `selection` then looks at how they are drawn and leaves out what is no sample of its own.
"""

import hashlib
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.episodes.randomness import random_words, sample_without_replacement
from utils.errors import DataError
from utils.files.reading import parse_toml, read_object, read_text
from utils.prepare_dataset.class_sources import safe_name, split_by_seed
from utils.prepare_dataset.glyphs.drawing import FontFace, IconSet, Key
from utils.words import printable

DOMAINS = {
    "scripts": "characters of the world's scripts, each image from another font; scripts are split by region",
    "scripts_affine": "characters that fewer than four fonts draw: twenty turned and stretched images of these few",
    "print": "letters and digits in printed fonts; classes and split are those of handwriting",
    "handwriting": "letters and digits in fonts that imitate hands",
    "icons": "things as icon sets draw them, each image from another set; test concepts from sets of their own",
    "emoji": "emoji in colour, each image from another vendor",
}
FOLDER = "glyphs_"
"""Begins the name of a domain's dataset folder. Commands take a domain by either name."""
OF_FONTS = ("scripts", "scripts_affine", "print", "handwriting")
TOGETHER = ("print", "handwriting")
"""Classes are what both have."""
SOURCES_OF = {"scripts_affine": ("scripts",), "print": TOGETHER, "handwriting": TOGETHER}
"""Domain -> the domains whose packages it is drawn from, if these are not its own."""
MOST_CHARACTERS = 100
"""Of a script; those that most fonts have."""
FRACTIONS = (0.6, 0.15)
"""Of classes that are split by seed, for train and val."""
_SPLITS, _SETS = 1, 2
"""Purposes of the random words of splits; 0 is that of CUB."""
TRAIN_SETS = 0.6
"""Of the icon sets; the others draw the test concepts."""

TABLES = parse_toml(read_text(Path(__file__).with_suffix(".toml")))
"""Which scripts are val and test, and what icons' names mean."""
WORDS = {
    key: frozenset(text.split()) for table in TABLES.values() for key, text in table.items() if isinstance(text, str)
}


@dataclass(frozen=True)
class Candidate:
    """One drawing that may become an image of its class."""

    source: int
    """Place in the list of sources."""
    key: Key


@dataclass(frozen=True)
class Proposal:
    """One class before anything is drawn."""

    name: str
    split: str
    candidates: tuple[Candidate, ...]
    """The ones to prefer first."""


def folder_of(domain: str) -> str:
    """Return the dataset folder of a domain: `glyphs_print` of `print`, any other name as it is."""
    return f"{FOLDER}{domain}" if domain in DOMAINS else domain


def script_classes(faces: Sequence[FontFace], digests: Sequence[str]) -> list[Proposal]:
    """Propose the letters of all scripts, at most `MOST_CHARACTERS` of each."""
    from fontTools.unicodedata import script  # a table of 200 kB that nothing else needs

    fonts_of = Counter(itertools.chain.from_iterable(face.keys for face in faces))
    letters: dict[str, list[int]] = defaultdict(list)
    for code in fonts_of:
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo"):
            letters[script(chr(code))].append(code)
    order = _preferred(faces, digests)
    having: dict[int, list[int]] = defaultdict(list)
    for place in order:
        for code in faces[place].keys:
            having[code].append(place)
    proposals = []
    for name, codes in sorted(letters.items()):
        split = next((split for split in ("val", "test") if name in WORDS[split]), "train")
        if name in ("Zyyy", "Zinh", "Zzzz"):
            continue
        codes.sort(key=lambda code: (-fonts_of[code], hashlib.sha256(str(code).encode()).digest()))
        for code in sorted(codes[:MOST_CHARACTERS]):
            proposals.append(
                Proposal(f"{name}_{code:04X}", split, tuple(Candidate(place, code) for place in having[code]))
            )
    return proposals


def _preferred(faces: Sequence[FontFace], digests: Sequence[str]) -> list[int]:
    """Places of fonts: one of each family first, in an order that no name decides."""
    seen: Counter[str] = Counter()
    ranks = []
    for place, face in enumerate(faces):
        ranks.append((seen[face.family], digests[place], place))
        seen[face.family] += 1
    return [place for *_, place in sorted(ranks)]


def letter_classes(
    faces: Sequence[FontFace], digests: Sequence[str], sides: Sequence[str], seed: int
) -> list[Proposal]:
    """Propose letters and digits, once for print and once for handwriting: `<side>/<class>`.

    A letter, its capital and both with accents are of one split.
    """
    codes = {code for face in faces for code in face.keys if _is_letter(chr(code))}
    bases = {code: unicodedata.normalize("NFD", chr(code))[0].casefold() for code in sorted(codes)}
    splits = split_by_seed(sorted(set(bases.values())), seed, FRACTIONS, _SPLITS)
    proposals = []
    order = _preferred(faces, digests)
    for side in TOGETHER:
        for code, base in bases.items():
            found = tuple(
                Candidate(place, code) for place in order if sides[place] == side and code in faces[place].keys
            )
            proposals.append(Proposal(f"{side}/{code:04X}", splits[base], found))
    return proposals


def _is_letter(character: str) -> bool:
    from fontTools.unicodedata import script

    if unicodedata.category(character) in ("Lu", "Ll"):
        return script(character) in ("Latn", "Grek", "Cyrl") and unicodedata.normalize("NFKC", character) == character
    return character in "0123456789"


def concept(name: str) -> str:
    """Return what an icon shows, by its name: without words of style, and one word for one thing."""
    words = name.split("-")
    while len(words) > 1 and words[-1] in WORDS["styles"]:
        words.pop()
    while len(words) > 1 and words[0] in WORDS["styles"]:
        words.pop(0)
    joined = "-".join(words)
    return TABLES["icons"]["same_thing"].get(joined, joined)


def icon_classes(sets: Sequence[IconSet], seed: int) -> list[Proposal]:
    """Propose what several icon sets draw; train and val concepts from some sets, test concepts from the others."""
    named = split_by_seed_in_two(sorted(one.family for one in sets), seed)
    best: dict[str, dict[int, str]] = defaultdict(dict)
    for place, one in enumerate(sets):
        for name in sorted(one.keys, key=lambda name: (len(name), name)):
            meant = concept(name)
            words = set(meant.split("-"))
            if len(meant) > 2 and not words & WORDS["brands"] and not meant[0].isdigit():
                best[meant].setdefault(place, name)
    splits = split_by_seed(sorted(best), seed, FRACTIONS, _SPLITS)
    proposals = []
    for meant, names in sorted(best.items()):
        side = splits[meant] == "test"
        found = tuple(Candidate(place, name) for place, name in names.items() if named[sets[place].family] == side)
        proposals.append(Proposal(safe_name(meant), splits[meant], found))
    return proposals


def split_by_seed_in_two(names: Sequence[str], seed: int) -> dict[str, bool]:
    """Name of an icon set -> whether it draws test concepts."""
    words = random_words(seed, "prepared_splits", [0], _SETS, len(names))
    order = sample_without_replacement(words, np.array([len(names)]))[0]
    return {names[place]: rank >= round(TRAIN_SETS * len(names)) for rank, place in enumerate(order)}


def emoji_classes(sets: Sequence[IconSet], characters: Sequence[Path | None], seed: int) -> list[Proposal]:
    """Propose the emoji of one code point that several vendors draw; a set without chars.json is matched by names.

    Skin tones and sequences are left out: they are one drawing in other colours, or with another on top.
    """
    own = [{} if path is None else _single_emoji(path) for path in characters]
    names: dict[str, str] = {}
    for code, name in itertools.chain.from_iterable(table.items() for table in own):
        names.setdefault(_squashed(name), code)
        names.setdefault(_squashed(unicodedata.name(chr(int(code, 16)), name)), code)
    found: dict[str, list[Candidate]] = defaultdict(list)
    for place, one in enumerate(sets):
        table = own[place] or {
            code: name for name in sorted(one.keys, reverse=True) if (code := names.get(_squashed(name)))
        }
        for code, name in table.items():
            if name in one.keys:
                found[code].append(Candidate(place, name))
    splits = split_by_seed(sorted(found), seed, FRACTIONS, _SPLITS)
    return [
        Proposal(f"{code}_{_shown(code)}", splits[code], tuple(candidates))
        for code, candidates in sorted(found.items())
    ]


def _single_emoji(path: Path) -> dict[str, str]:
    try:
        table = read_object(path)
    except ValueError as error:
        raise DataError(
            f"{printable(path)}: no table of an icon set's characters ({printable(error)[:200]})."
        ) from error
    return {
        code: name
        for code, name in sorted(table.items())
        if re.fullmatch("[0-9a-f]{4,5}", code) and not "1f3fb" <= code <= "1f3ff" and isinstance(name, str)
    }


def _shown(code: str) -> str:
    return safe_name(unicodedata.name(chr(int(code, 16)), "emoji").lower().replace(" ", "_"))


def _squashed(name: str) -> str:
    return re.sub("[^a-z]", "", re.sub(r"-\d+$", "", name.lower()))
