"""A network and a dataset of one's own, for `--plugin`; small_network.sh beside this file runs them."""

import numpy as np
from torch import nn

from mamlkit import register_backbone, register_dataset


def build_small_network(config, image_shape, n_way):
    """Build two strided convolutions and a hidden layer: plain torch, which knows nothing of tasks or inner loops."""
    channels, height, width = image_shape
    filters = config.cnn_num_filters  # any key of the config can be read
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, stride=2, padding=1),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 3, stride=2, padding=1),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(config.dropout_rate_value),
        nn.Linear(filters * ((height + 3) // 4) * ((width + 3) // 4), 32),
        nn.ReLU(),
        nn.Linear(32, n_way),  # the last linear layer is the head
    )


def draw_bars(config):
    """Draw classes of noisy bars at a place and an angle; of each split its own."""
    generator = np.random.default_rng(0)
    side = config.image_height

    def images_of(place, is_vertical):
        images = generator.integers(0, 80, (20, side, side), dtype=np.uint8)
        bars = images[:, :, place : place + 2] if is_vertical else images[:, place : place + 2]
        bars += 150
        return images

    kinds = [(place, is_vertical) for place in range(side - 2) for is_vertical in (False, True)]
    dataset = {"train": {}, "val": {}, "test": {}}
    for number, (place, is_vertical) in enumerate(kinds):
        split = ("train", "train", "val", "test")[number // 2 % 4]
        dataset[split][f"{'column' if is_vertical else 'row'}_{place:02}"] = images_of(place, is_vertical)
    return dataset


register_backbone("small_network", build_small_network)
register_dataset("bars", draw_bars)
