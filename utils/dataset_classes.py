"""From the data keys of a config to packed images, classes and splits, with one list of everything that is wrong.

Needs no torch.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import config as configuration
from utils.episodes import EpisodeShape
from utils.image_decoding import PixelFormat
from utils.image_folders import ImageClass, find_shortages, group_into_classes, report_problems, split_into_sets
from utils.packed_images import PackedImages, load_or_pack
from utils.prepare_dataset import find_or_make_dataset
from utils.prepare_dataset.dataset_folders import preparation_facts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetClasses:
    """A dataset as it is on disk: its images, and which of them belong to which class of which split."""

    name: str
    folder: Path
    packed: PackedImages
    sets: Mapping[str, Sequence[ImageClass]]
    """split -> its classes."""

    @property
    def source(self) -> dict[str, Any]:
        """JSON-able facts about where the images are from."""
        return {
            "dataset_name": self.name,
            "dataset_folder": str(self.folder),
            "packed_file": str(self.packed.data_file),
            "content_sha256": self.packed.content_sha256,
            "prepared": preparation_facts(self.folder),
        }


def find_classes(config: Any, shapes: Mapping[str, Sequence[EpisodeShape]]) -> DatasetClasses:
    """Find, unpack or make the dataset of a config, pack its images and check that episodes can be drawn from it.

    Args:
        config: `utils.config.ExperimentConfig`.
        shapes: split -> shapes of the episodes that are to be drawn from it.
    Raises:
        ConfigError: keys that cannot work together.
        DataError: dataset missing, or one list of all its problems.
        StorageError: no space or no permission for the packed file.
    """
    folder = configuration.dataset_root() / (config.dataset_path or config.dataset_name)
    find_or_make_dataset(config.dataset_name, folder, configuration.dataset_root())
    packed, folders, problems = load_or_pack(
        folder,
        PixelFormat(config.image_height, config.image_width, config.image_channels, config.resize_filter),
        num_workers=config.num_dataprovider_workers,
        rebuild=config.reset_stored_filepaths,
        skip_bad=config.on_bad_image == "skip",
    )
    classes, label_problems = group_into_classes(
        folders, folder, config.indexes_of_folders_indicating_class, config.sets_are_pre_split, config.labels_as_int
    )
    sets = split_into_sets(
        classes, config.train_val_test_split, 0 if config.class_split_seed is None else config.class_split_seed
    )
    _warn_of_shared_classes(sets)
    problems += label_problems + find_shortages(sets, folder, shapes, config.sets_are_pre_split)
    if problems:
        raise report_problems(folder, problems)
    return DatasetClasses(config.dataset_name, folder, packed, sets)


def _warn_of_shared_classes(sets: Mapping[str, Sequence[ImageClass]]) -> None:
    """Log class names that are in two splits: few-shot accuracy is meant for classes never seen in training."""
    for one, other in itertools.combinations(sets, 2):
        shared = sorted({c.name for c in sets[one]} & {c.name for c in sets[other]})
        if shared:
            logger.warning("%d class names are in %s and in %s, such as %s", len(shared), one, other, shared[0])
