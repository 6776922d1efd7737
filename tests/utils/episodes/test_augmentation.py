"""Augmentation: each operation is torchvision's function with the same parameters, and every image has its own."""

from typing import get_args

import numpy as np
import pytest
import torch

from data import Drawing, FewShotData, ImageClasses, Preprocessing
from experiment_parts.runs.checkpoints import epoch_path, load_checkpoint
from tests.test_data import numbered_data
from tests.tools.runs import run_tiny
from utils.config import check_config
from utils.config.value_types import AugmentationName
from utils.episodes.augmentation import (
    AUGMENTATIONS,
    JITTER,
    Augmentation,
    ColorJitter,
    Enlarge,
    Flip,
    PadAndCrop,
    RandomResizedCrop,
)
from utils.episodes.drawing import EpisodeShape
from utils.episodes.randomness import random_words

ALL = ("random_resized_crop", "pad_and_crop", "color_jitter", "flip", "enlarge")


def photographs(count, channels=3, height=21, width=17):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draw(operation, count, seed=0):
    return operation.parameters(random_words(seed, "train", range(count), 9, operation.n_words))


def applied(operation, images):
    parameters = draw(operation, len(images))
    return operation.apply(images, torch.from_numpy(parameters.astype(np.float32))), parameters


@pytest.fixture(scope="module")
def functional():
    return pytest.importorskip("torchvision.transforms.v2.functional")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_random_resized_crop_is_torchvisions(functional, channels):
    images = photographs(200, channels)
    changed, parameters = applied(RandomResizedCrop(21, 17), images)
    for image, result, (top, left, height, width) in zip(images, changed, parameters.tolist(), strict=True):
        expected = functional.resized_crop(image, top, left, height, width, [21, 17], antialias=True)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_crops_have_the_promised_areas_ratios_and_places():
    parameters = draw(RandomResizedCrop(84, 84), 20_000)
    top, left, height, width = parameters.T
    area, ratio = height * width / 84**2, width / height
    assert area.min() > 0.075 and area.max() <= 1 and abs(area.mean() - 0.5) < 0.05
    assert 0.72 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.38
    assert (top >= 0).all() and (top + height <= 84).all() and (left >= 0).all() and (left + width <= 84).all()
    assert {0, 1}.issubset(set((84 - height - top).tolist())) and {0, 1}.issubset(set((84 - width - left).tolist()))


def test_an_image_that_no_drawn_shape_fits_gives_its_middle():
    """Of 1 x 100 pixels every shape of 8 % or more is too high, so the ratio is bounded as torchvision does it."""
    parameters = draw(RandomResizedCrop(1, 100), 50)
    assert (parameters == [0, 49, 1, 1]).all()


def test_pad_and_crop_is_torchvisions(functional):
    images = photographs(60, height=84, width=42)
    changed, parameters = applied(PadAndCrop(84, 42), images)
    for image, result, (top, left) in zip(images, changed, parameters.tolist(), strict=True):
        padded = functional.pad(image, [4, 8])
        assert torch.equal(result, functional.crop(padded, top, left, 84, 42))
    many = draw(PadAndCrop(84, 42), 5000)
    assert set(many[:, 0].tolist()) == set(range(17)) and set(many[:, 1].tolist()) == set(range(9))


def test_every_second_image_is_flipped(functional):
    images = photographs(2000, height=3, width=4)
    changed, parameters = applied(Flip(), images)
    assert abs(parameters.mean() - 0.5) < 0.05
    for image, result, (flipped,) in zip(images, changed, parameters.tolist(), strict=True):
        assert torch.equal(result, functional.horizontal_flip(image) if flipped else image)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_is_torchvisions_in_every_order(functional, channels):
    images = photographs(100, channels)
    changed, parameters = applied(ColorJitter(), images)
    steps = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    for image, result, row in zip(images, changed, parameters.astype(np.float32).tolist(), strict=True):
        for kind, factor in zip(row[:3], row[3:], strict=True):
            image = steps[int(kind)](image, factor)
        torch.testing.assert_close(result, image, rtol=0, atol=1e-6)  # its grey has four digits
    orders, factors = parameters[:, :3], draw(ColorJitter(), 3000)[:, 3:]
    assert len({tuple(order) for order in orders.tolist()}) == 6
    assert 1 - JITTER <= factors.min() < 0.61 and 1.39 < factors.max() <= 1 + JITTER


def test_enlarging_is_torchvisions_resize_and_centre_crop(functional):
    images = photographs(5, height=84, width=42)
    changed, _ = applied(Enlarge(84, 42), images)
    expected = functional.center_crop(functional.resize(images, [96, 48], antialias=True), [84, 42])
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-12)


def test_the_names_are_those_of_the_schema_and_of_fmu2():
    assert set(AUGMENTATIONS) == set(get_args(AugmentationName))
    assert {"resize", "crop", "color", "flip", "enlarge"} <= set(AUGMENTATIONS)
    config = check_config(
        {"experiment_name": "x", "support_augmentation": "resize", "query_augmentation": None}, "test"
    )
    assert config.support_augmentation == ("resize",) and config.query_augmentation == ()
    parts = [type(operation) for operation in Augmentation(["color"], 8, 8).operations]
    assert parts == [PadAndCrop, ColorJitter, Flip]


@pytest.mark.parametrize("roles", [["support"], ["query"], ["support", "query"]])
def test_training_images_alone_are_changed_and_only_where_asked(roles):
    data = numbered_data(channels=3, side=8, augmentation=dict.fromkeys(roles, ("color_jitter", "pad_and_crop")))
    plain = numbered_data(channels=3, side=8)
    for split in ("train", "val", "test"):
        batch, expected = data.episodes(split, [0, 1]), plain.episodes(split, [0, 1])
        for role in ("support", "query"):
            same = torch.equal(getattr(batch, f"{role}_images"), getattr(expected, f"{role}_images"))
            assert same == (split != "train" or role not in roles)
        assert np.array_equal(batch.class_ids, expected.class_ids) and torch.equal(batch.seeds, expected.seeds)


def test_an_episode_is_changed_the_same_way_alone_or_in_a_batch_and_otherwise_than_others():
    """The same image, in the same place of another task of a pool, is changed otherwise."""
    data = numbered_data(channels=3, side=8, augmentation={"support": ALL, "query": ALL}, n_train_tasks=1)
    batch, alone = data.episodes("train", [3, 8]), data.episodes("train", [8])
    assert torch.equal(batch.support_images[1], alone.support_images[0])
    assert torch.equal(batch.query_images[1], alone.query_images[0])
    assert not torch.equal(batch.query_images[0], batch.query_images[1])


def test_red_is_red_to_the_augmentation_of_channels_that_are_reversed():
    images, classes = (
        (photographs(12, 3, 8, 8) * 255).to(torch.uint8),
        {f"c{c}": range(4 * c, 4 * c + 4) for c in range(3)},
    )
    batches = [
        FewShotData(
            ImageClasses(images, {"train": classes}), Drawing(EpisodeShape(3, 1, 3), {"train": 0}),
            Preprocessing(reverse_channels=reverse, augmentation={"support": ["color_jitter"]}),
        ).episodes("train", [0, 1])
        for reverse in (False, True)
    ]  # fmt: skip
    assert torch.equal(batches[0].support_images.flip(2), batches[1].support_images)
    assert torch.equal(batches[0].query_images.flip(2), batches[1].query_images)


def test_one_operation_sees_the_whole_meta_batch_at_once(monkeypatch):
    calls = []
    original = Flip.apply
    monkeypatch.setattr(
        Flip, "apply", lambda self, images, rows: calls.append(len(images)) or original(self, images, rows)
    )
    numbered_data(augmentation={"support": ["flip"], "query": ["flip"]}).episodes("train", range(4))
    assert calls == [4 * 3 * 2, 4 * 3 * 3]


def test_a_run_with_augmentation_learns_other_weights(tmp_path):
    weights = []
    for changes in ({}, {"query_augmentation": ["flip"]}):
        folder = run_tiny(
            tmp_path, experiment_name=f"run{len(weights)}", total_epochs=1, total_iter_per_epoch=2, **changes
        )
        weights.append(load_checkpoint(epoch_path(folder / "saved_models", 1))[0])
    assert any(
        not torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if name.startswith("network.")
    )
