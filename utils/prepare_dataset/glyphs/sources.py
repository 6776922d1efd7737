"""The packages that glyphs are drawn from, known by version, licence and digests, and how their files are found.

`packages.csv` has a row per package of Debian or npm, `files.csv` one per font and icon set in them, so that a file is
known wherever it lies: in its package, in a folder, among the fonts of the machine.
"""

import csv
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import DataError
from utils.files.archives import PACKAGE_EXTENSIONS, read_members
from utils.files.atomic_files import storage_errors
from utils.files.reading import parse_json
from utils.paths import expanded
from utils.words import counted, first_lines, printable

logger = logging.getLogger(__name__)

FONT_FILE = re.compile(r"\.(ttf|otf|woff)$", re.IGNORECASE)
ICON_FILE = re.compile(r"(^|/)(icons|chars|info)\.json$")
_READ = re.compile(f"{FONT_FILE.pattern}|{ICON_FILE.pattern}", re.IGNORECASE)
INSTALLED = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
FREE = re.compile(r"MIT|ISC|0BSD|Unlicense|CC0-1\.0|CC-BY(-SA)?-[\d.]+|(Apache|OFL|LGPL|GPL|MPL|BSD)-[\w.\-]+")
"""SPDX names of licences under which a set that is not known here may be drawn: none of CC-BY-NC and CC-BY-ND."""
MOST_LISTED = 5


@dataclass(frozen=True)
class Package:
    """A package whose files are known."""

    name: str
    version: str
    registry: str
    """debian or npm."""
    licence: str
    bytes: int
    sha256: str
    domains: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """As the registry's own client takes it."""
        return f"{self.name}{'=' if self.registry == 'debian' else '@'}{self.version}"


@dataclass(frozen=True)
class Source:
    """A font, or an icon set."""

    name: str
    """Of the font's file; of the icon set."""
    package: Package | None
    """None: not known here."""
    sha256: str
    path: Path
    """Where the font, or icons.json, lies now."""
    characters: Path | None = None
    """Of an icon set: chars.json."""


@dataclass(frozen=True)
class _Found:
    origin: str
    name: str
    content: bytes
    path: Path | None
    """None: it is in a package."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]


def known_packages() -> dict[str, Package]:
    """Return name -> package."""
    rows = _table("packages.csv")
    return {
        row["name"]: Package(**row | {"bytes": int(row["bytes"]), "domains": tuple(row["domains"].split())})
        for row in rows
    }


def _table(name: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_sources(locations: Sequence[str], domains: Sequence[str], folder: Path, *, any_version: bool) -> list[Source]:
    """Return the fonts or icon sets of some domains, sorted by package and name.

    Args:
        locations: packages, fonts, or folders of these; none: the fonts that are installed on the machine.
        folder: of ours, where files go that are in packages.
        any_version: take what is there, known or not. Else what is not known is left out, with a line.
    Raises:
        DataError: known files that are missing, damaged packages, no free licence.
    """
    packages, files = known_packages(), {row["sha256"]: row for row in _table("files.csv")}
    uses = {name for name, package in packages.items() if set(domains) & set(package.domains)}
    groups: dict[str, list[_Found]] = defaultdict(list)
    for found in _read(locations or INSTALLED):
        # Fonts stand for themselves; the files of an icon set belong together.
        groups[f"{found.origin}/{found.name}" if FONT_FILE.search(found.name) else found.origin].append(found)
    sources: dict[str, Source] = {}
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for origin, group in groups.items():
        main = next((one for one in group if one.name != "chars.json" and one.name != "info.json"), None)
        if main is None:
            continue
        if all(one.digest in files for one in group if one.name != "info.json"):
            seen |= {one.digest for one in group}
            package = packages[files[main.digest]["package"]]  # two sets may have the same chars.json
            if package.name in uses:
                sources.setdefault(main.digest, _placed(group, main, package, folder))
        elif any_version and not (reason := _forbidden(group)):
            sources.setdefault(main.digest, _placed(group, main, None, folder))
        elif locations:
            refused[printable(origin)] = reason if any_version else _unknown(main, files.values(), packages)
    needed = {row["package"] for digest, row in files.items() if row["package"] in uses and digest not in seen}
    missing = [] if any_version else [packages[name] for name in sorted(needed)]
    _judge(locations, domains, refused, missing, any_version=any_version)
    if not sources:
        raise DataError(
            f"no source of glyphs for {' and '.join(domains)} in {', '.join(map(printable, locations or INSTALLED))}."
        )
    return sorted(
        sources.values(), key=lambda source: (source.package.name if source.package else "", source.name, source.sha256)
    )


def _judge(
    locations: Sequence[str], domains: Sequence[str], refused: Mapping[str, str], missing: Sequence[Package],
    *, any_version: bool,
) -> None:  # fmt: skip
    """Refuse what was given where it is not enough or not free; what is only not known is left out with a line.

    Args:
        refused: where a source lies -> why.
    """
    count = counted(len(refused), "source")
    lines = first_lines([f"{origin}: {reason}" for origin, reason in refused.items()], MOST_LISTED)
    if refused and any_version:
        raise DataError(f"{count} of glyphs refused:{lines}")
    absent = [printable(location) for location in locations if not expanded(location).exists()]
    wrong = [f"{', '.join(absent)}: not found. --from takes packages, fonts and folders of these."] if absent else []
    if missing:
        wrong.append(_how_to_get(domains, missing))
        wrong += [f"{count} among what was given not known here, left out once these are there:{lines}"] * bool(refused)
    if wrong:
        raise DataError("\n".join(wrong))
    if refused:
        origins = first_lines(list(refused), MOST_LISTED)
        logger.warning("left out: %s not known here; the known ones make all that is asked for:%s", count, origins)


def _read(locations: Iterable[str]) -> Iterator[_Found]:
    for location in locations:
        path = expanded(location)
        paths = (
            [path]
            if not path.is_dir()
            else sorted(Path(folder, file) for folder, _, files in os.walk(path, followlinks=False) for file in files)
        )
        for one in paths:
            if not one.is_file():
                continue
            try:
                if one.name.lower().endswith(PACKAGE_EXTENSIONS):
                    for name, content in read_members(one, _READ):
                        folder, _, file = f"{one}/{name}".rpartition("/")  # several sets may be in one archive
                        yield _Found(folder, file, content, None)
                elif _READ.search(one.name):
                    yield _Found(str(one.parent), one.name, one.read_bytes(), one)
            except OSError as error:
                raise DataError(f"{printable(one)}: cannot be read ({error.strerror}).") from error


def _placed(group: Sequence[_Found], main: _Found, package: Package | None, folder: Path) -> Source:
    paths = {}
    for one in reversed(group):  # of two members of one name the first counts
        paths[one.name] = one.path or folder / f"{one.digest}{Path(one.name).suffix}"
        if one.path is None:
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                paths[one.name].write_bytes(one.content)
    return Source(_name(main), package, main.digest, paths[main.name], paths.get("chars.json"))


def _name(main: _Found) -> str:
    if FONT_FILE.search(main.name):
        return main.name
    try:
        return str(parse_json(main.content)["prefix"])
    except (ValueError, KeyError, TypeError):  # damaged: it says so when it is opened
        return Path(main.origin).name


def _forbidden(group: Sequence[_Found]) -> str:
    """Why a set that is not known here may not be drawn: no free licence is stated in it. Fonts say so when opened."""
    if FONT_FILE.search(group[0].name):
        return ""
    try:
        info = next((parse_json(one.content) for one in group if one.name == "info.json"), {})
        licence = str(info.get("license", {}).get("spdx"))
    except (ValueError, AttributeError):
        licence = "unreadable"
    return (
        ""
        if FREE.fullmatch(licence)
        else f"an icon set whose info.json states no free licence (it says {printable(licence)})"
    )


def _unknown(found: _Found, known: Iterable[dict[str, str]], packages: dict[str, Package]) -> str:
    same = [packages[row["package"]].pinned for row in known if row["file"] == found.name]
    if FONT_FILE.search(found.name) and same:
        return f"another version than that of {same[0]} (sha256 {found.digest}...)"
    return f"sha256 {found.digest}... is in no package that is known here"


def _how_to_get(domains: Sequence[str], missing: Sequence[Package]) -> str:
    debian, npm = ([p.pinned for p in missing if p.registry == registry] for registry in ("debian", "npm"))
    size = sum(package.bytes for package in missing) / 1e6
    what = f"{' and '.join(domains)}: {counted(len(missing), 'package')} ({size:.0f} MB)"
    lines = [f"{what} not found among what was given. Fetch them into a folder:"]
    lines += [f"  apt-get download {' '.join(debian)}"] if debian else []
    lines += [f"  npm pack {' '.join(npm)}"] if npm else []
    return "\n".join([*lines, "and give it with --from, or draw what is there with --any-version."])
