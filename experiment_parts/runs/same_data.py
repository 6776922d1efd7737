"""Whether a run that has started still has the images and classes that it was started with.

A checkpoint keeps, beside the config, what its training episodes are drawn from: a digest of the decoded images, and of
each split the names of its classes and a digest of the files in them. Needs no torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.config.changes import DATA
from utils.errors import DataError
from utils.words import some_of

if TYPE_CHECKING:
    from experiment_parts.runs.run_folder import RunFolder
    from utils.episodes.source import EpisodeSource

IMAGES = "classes of images"
"""What a split is made of that does not say it."""


def data_of(source: "EpisodeSource") -> dict[str, Any] | None:
    """Return what a checkpoint keeps of a data source, JSON-able; None: the source does not say what it is made of.

    Of a list of tasks that is its length and its first ones; of an iterator that it is one.
    """
    identity = source.identity()
    if identity is None:
        return None
    names = source.class_names
    splits = {split: facts | {"names": list(names.get(split, ()))} for split, facts in identity["splits"].items()}
    return {**identity, "splits": splits}


def has_started_with_copies(run_folder: "RunFolder") -> bool:
    """Return whether the run draws from images that are in a class more than once: new runs leave copies out, but one
    that has started goes on with the images that it has, as those of releases that kept no record of them.
    """
    newest = run_folder.newest_good_checkpoint()
    return newest is not None and (newest[1].get("data") or {"keeps_copies": True}).get("keeps_copies", False)


def data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for everything in which two `data_of` differ; [] where they are the same data."""
    lines = []
    for split in sorted({*before["splits"], *now["splits"]}):
        old, new = before["splits"].get(split), now["splits"].get(split)
        if old is None or new is None:
            lines.append(
                f"{split}: {'not there' if old is None else 'there'} before, {'there' if old is None else 'gone'} now"
            )
        elif (was := old.get("made_of", IMAGES)) != (made_of := new.get("made_of", IMAGES)):
            lines.append(f"{split}: {was} before, {made_of} now")
        elif made_of != IMAGES:
            if old["sha256"] != new["sha256"]:
                lines.append(f"{split}: other tasks, {old['tasks']} before, {new['tasks']} now")
        elif old["names"] != new["names"]:
            gone, added = (sorted({*one["names"]} - {*other["names"]}) for one, other in ((old, new), (new, old)))
            named = "".join(f"; {word}: {some_of(names)}" for word, names in (("gone", gone), ("new", added)) if names)
            lines.append(f"{split}: {len(old['names'])} classes before, {len(new['names'])} now{named}")
        elif old["sha256"] != new["sha256"]:
            lines.append(f"{split}: other image files in the same classes, {old['images']} before, {new['images']} now")
    digests = before["content_sha256"], now["content_sha256"]
    if None not in digests and digests[0] != digests[1]:
        lines.append("the images themselves: content {:.12} before, {:.12} now".format(*digests))
    return lines


def unknown_splits(now: Mapping[str, Any]) -> list[str]:
    """Return the splits of a `data_of` that cannot be known again: of tasks that come once, or are drawn anew."""
    return [split for split, facts in now["splits"].items() if facts["sha256"] is None]


def refuse_other_data(experiment: str, changes: list[str]) -> DataError:
    """Return the error about a run that would go on with other data than it was started with."""
    listed = "".join(f"\n  {line}" for line in changes)
    return DataError(
        f'experiment "{experiment}" has started with other data, which a started run cannot change:{listed}\n'
        "To go on with the run, put the dataset back as it was. Else give the run on these data its own "
        "--experiment_name, or start over with --continue_from_epoch from_scratch (the old folder is renamed, not "
        "deleted). To test the trained models on these data: --evaluate_on_test_set_only true --tag NAME. To go on all "
        f"the same, with results that are of no one dataset: --allow_config_change {DATA}."
    )
