"""From what people hold in Python (folders, arrays, datasets of pairs, tasks) to the episodes that training asks for.

    a path                              a folder of class folders, or of train, val and test; packed as for the scripts
    (images, labels)                    two arrays or tensors
    a dataset                           len(dataset), dataset[i] -> (image, label), as torchvision's
    tasks                               each (support_images, support_labels, query_images, query_labels), or as another
                                        project has them (`task_forms`): a list, an iterator, a loader, or a dataset
                                        whose items are tasks
    an `EpisodeSource`                  `data.FewShotData` or one of your own, used as it is

Letters: B tasks, N way, K shot, Q query, C x H x W pixels.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import FewShotData, ImageClasses, build_data, build_drawing, build_preprocessing
from few_shot_classifier.arrays import (
    InputError,
    by_part,
    class_labels,
    image_arrays,
    is_pair,
    resized,
)
from few_shot_classifier.given_tasks import SHARE_FOR_VALIDATION, TaskEpisodes, first_item, keep_tasks, tasks_of
from few_shot_classifier.task_forms import tasks_in
from utils.config import ExperimentConfig, check_config
from utils.data_sources.dataset_classes import pixel_format_of
from utils.data_sources.image_memory import place_images
from utils.episodes.batches import EpisodeBatch
from utils.episodes.drawing import EpisodeShape
from utils.episodes.inputs import Inputs
from utils.episodes.source import EpisodeSource
from utils.images.arrays import ArrayImages
from utils.paths import expanded

log = logging.getLogger(__name__)


def is_folder(dataset: Any) -> bool:
    """Return whether a dataset is given as a path."""
    return isinstance(dataset, (str, Path))


def first_image_shape(
    dataset: Any, image_shape: Sequence[int] | None, inputs: Inputs | None = None
) -> tuple[int, ...] | None:
    """Return (C, H, W) of a dataset's first image; None where only its config has it: a folder, or an iterator."""
    if inputs is not None:
        return inputs.shape
    if isinstance(dataset, EpisodeSource):
        return dataset.example_shape()
    if is_folder(dataset):
        return None
    if is_pair(dataset):
        first = dataset[0][:1]
    else:
        item = first_item(dataset)
        if item is None:
            return None
        tasks = tasks_in(item, 0)
        first = _one_image(item[0]) if tasks is None else tasks[0][2 if len(tasks[0][0]) == 0 else 0]
    return tuple(image_arrays(first, image_shape=image_shape).pixels.shape[1:])


def _one_image(image: Any) -> Any:
    """Return a batch of one: a tensor stays a tensor, so that its channels are where tensors have them."""
    return by_part(image, lambda part: part[None] if isinstance(part, Tensor) else np.asanyarray(part)[None])


@dataclass(frozen=True)
class LabelledImages:
    """Images of a size, and for each class the ranks of its own."""

    pixels: np.ndarray
    """uint8 (n, C, H, W); other examples (n, ...) as they are."""
    classes: Mapping[str, Sequence[int]]


def labelled_images(dataset: Any, config: ExperimentConfig, image_shape: Sequence[int] | None = None) -> LabelledImages:
    """Read all of a pair of arrays, or of a dataset of pairs, at the size that a config says.

    Raises:
        InputError: something is no image, or no label.
    """

    def read(images: Any, what: str) -> np.ndarray:
        pixels = image_arrays(
            images, channels=config.image_channels, image_shape=image_shape, inputs=config.inputs
        ).pixels
        if config.inputs is not None:
            return pixels
        return _as_bytes(resized(pixels, pixel_format_of(config), what))

    if is_pair(dataset):
        pixels, labels = read(dataset[0], "images"), dataset[1]
    else:
        items = [dataset[rank] for rank in range(len(dataset))]
        labels = [label for _, label in items]
        pixels = np.concatenate([read(_one_image(image), "images of the dataset") for image, _ in items])
    labels = class_labels(labels, len(pixels))
    classes, ranks = np.unique(labels, return_inverse=True)
    return LabelledImages(
        pixels, {str(name): np.flatnonzero(ranks == rank).tolist() for rank, name in enumerate(classes)}
    )


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(
            f"images are numbers from {pixels.min():g} to {pixels.max():g}; give uint8 from 0 to 255 or floats from 0 "
            "to 1, not "
            'normalised yet: the parameter "normalisation" does that'
        )
    return (pixels * 255).round().astype(np.uint8)


def training_data(
    dataset: Any, val: Any, config: ExperimentConfig, device: torch.device, image_shape: Sequence[int] | None = None
) -> EpisodeSource:
    """Return the episodes of a meta-training, "train" and "val".

    Without `val`, classes (or tasks) of the dataset are kept for validation; a folder is split as its config says.

    Raises:
        InputError: it is nothing that episodes can be drawn from.
        DataError: a folder's problems.
    """
    if isinstance(dataset, EpisodeSource):
        return dataset if val is None else SplitData({"train": dataset, "val": val})
    if is_folder(dataset):
        if val is not None:
            raise InputError(
                "a folder is split into train, val and test by itself (train_val_test_split, sets_are_pre_split); "
                "give val=None"
            )
        return build_data(_with_folder(config, dataset), device, getattr(torch, config.parameter_format))
    n_shot = config.validation_shape.n_shot
    tasks = tasks_of(dataset, n_shot, come_again=val is not None)
    kept = None if val is None else tasks_of(val, n_shot)
    if val is not None and (tasks is None) != (kept is None):
        raise InputError("dataset and val are of two kinds, tasks and images; give two of one kind, or val=None")
    if tasks is not None:
        train, kept = (tasks, kept) if kept is not None else keep_tasks(tasks, config.num_evaluation_tasks)
        return TaskEpisodes({"train": train, "val": kept}, config, device)
    images = labelled_images(dataset, config, image_shape)
    if val is not None:
        kept_images = labelled_images(val, config, image_shape)
        return SplitData(
            {
                "train": _few_shot_data({"train": images}, config, device),
                "val": _few_shot_data({"val": kept_images}, config, device),
            }
        )
    names = list(images.classes)
    kept_names = _classes_for_validation(names, config)
    splits = {
        "train": LabelledImages(
            images.pixels,
            {name: images.classes[name] for name in names if name not in kept_names or len(kept_names) == len(names)},
        ),
        "val": LabelledImages(images.pixels, {name: images.classes[name] for name in kept_names}),
    }
    return _few_shot_data(splits, config, device)


def _classes_for_validation(names: Sequence[str], config: ExperimentConfig) -> list[str]:
    n_way = config.validation_shape.n_way
    most = max(shape.n_way for shape in config.training_shapes)
    if len(names) < n_way + most:
        log.info(
            "%d classes are too few to keep %d for validation: it has the classes of training, and says nothing of "
            "new ones.",
            len(names),
            n_way,
        )
        return list(names)
    n_kept = min(max(n_way, round(SHARE_FOR_VALIDATION * len(names))), len(names) - most)
    seed = 0 if config.class_split_seed is None else config.class_split_seed
    return [names[rank] for rank in sorted(np.random.default_rng(seed).permutation(len(names))[:n_kept])]


def evaluation_data(
    dataset: Any, config: ExperimentConfig, device: torch.device, image_shape: Sequence[int] | None = None
) -> EpisodeSource:
    """Return the episodes of a measurement, "test": a folder's test split, or all of anything else."""
    if isinstance(dataset, EpisodeSource):
        return dataset
    if is_folder(dataset):
        return build_data(_with_folder(config, dataset), device, getattr(torch, config.parameter_format))
    tasks = tasks_of(dataset, config.test_shapes[0].n_shot)
    if tasks is not None:
        return TaskEpisodes({"test": tasks}, config, device)
    return _few_shot_data({"test": labelled_images(dataset, config, image_shape)}, config, device)


def _with_folder(config: ExperimentConfig, folder: str | Path) -> ExperimentConfig:
    path = expanded(folder).resolve()
    name = "".join(c if c.isalnum() or c in "_+=,.- " else "_" for c in path.name)
    return check_config(config.to_json_dict() | {"dataset_name": name, "dataset_path": str(path)}, "FewShotClassifier")


def _few_shot_data(splits: Mapping[str, LabelledImages], config: ExperimentConfig, device: torch.device) -> FewShotData:
    shapes = {"train": config.training_shapes, "val": (config.validation_shape,), "test": config.test_shapes}
    for split, images in splits.items():
        _check_sizes(split, images, shapes[split], config.training_shapes)
    examples, ahead = next(iter(splits.values())).pixels, 0  # the splits share them
    arrays = ArrayImages(examples, ())
    if config.inputs is None:
        pixels = torch.from_numpy(np.array(examples)).to(device)
    else:
        pixels, ahead = place_images(arrays, config.load_into_memory, device)
    classes = {split: images.classes for split, images in splits.items()}
    return FewShotData(
        ImageClasses(pixels, classes, source={"content_sha256": arrays.content_sha256}, meta_batches_ahead=ahead),
        build_drawing(config),
        build_preprocessing(config, device, getattr(torch, config.parameter_format)),
    )


def _check_sizes(
    split: str, images: LabelledImages, shapes: Sequence[EpisodeShape], of_training: Sequence[EpisodeShape]
) -> None:
    n_way, n_images = max(shape.n_way for shape in shapes), max(shape.n_images for shape in shapes)
    if len(images.classes) < n_way:
        own = "" if n_way in {shape.n_way for shape in of_training} else f"{split}_"
        raise InputError(
            f"{split}: {len(images.classes)} classes, but a task needs {n_way}; lower {own}num_classes_per_set or give "
            "more classes"
        )
    small = [f'"{name}" has {len(ranks)}' for name, ranks in images.classes.items() if len(ranks) < n_images]
    if small:
        own = "test_" if split == "test" and not set(shapes) <= set(of_training) else ""
        raise InputError(
            f"{split}: {len(small)} classes have fewer than the {n_images} images that {own}num_samples_per_class + "
            f"{own}num_target_samples need: {', '.join(small[:5])}; lower {own}num_target_samples or leave them out"
        )


class SplitData(EpisodeSource):
    """Each split from a source of its own."""

    def __init__(self, sources: Mapping[str, EpisodeSource]) -> None:
        self.sources = dict(sources)
        self.shape = next(iter(sources.values())).shape

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> names of its classes."""
        return {split: source.class_names[split] for split, source in self.sources.items()}

    def shape_of(self, split: str) -> EpisodeShape:
        """Return the shape of a split's episodes, unless another one is asked for."""
        return self.sources[split].shape_of(split)

    def check_content(self) -> None:
        """Wait for the check of each source's data."""
        for source in self.sources.values():
            source.check_content()

    def identity(self) -> dict[str, Any] | None:
        """Return what each source says of its split; None where one does not say."""
        found = {split: source.identity() for split, source in self.sources.items()}
        if None in found.values():
            return None
        digests = [identity["content_sha256"] for identity in found.values()]
        whole = None if None in digests else hashlib.sha256("".join(digests).encode()).hexdigest()
        return {"content_sha256": whole, "splits": {split: found[split]["splits"][split] for split in found}}

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """Return the episodes with these numbers."""
        return self.sources[split].episodes(split, indices, shape)

    def as_pixels(self, images: Tensor) -> Tensor:
        """Return normalised images (..., C, H, W) of an episode as uint8, to be shown."""
        return self.sources["val"].as_pixels(images)
