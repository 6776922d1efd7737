"""Time series: tell movements apart, made up from a seed, by three axes of an accelerometer; a 1-D convolution."""

import numpy as np
from torch import nn

from mamlkit import register_backbone, register_dataset


def convolution_in_time(config, input_shape, n_way):
    """Build three blocks of 1-D convolution, and the mean over time: plain torch."""
    channels, _ = input_shape
    filters = config.cnn_num_filters

    def block(n):
        return [nn.Conv1d(n, filters, 5, padding=2), nn.BatchNorm1d(filters), nn.ReLU(), nn.MaxPool1d(2)]

    return nn.Sequential(
        *block(channels),
        *block(filters),
        *block(filters),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(filters, n_way),
    )


def movements(config):
    """Build 80 movements of 20 recordings each, (3, length): three swings, begun anywhere, faster or slower."""
    axes, length = config.input_shape
    dataset = {"train": {}, "val": {}, "test": {}}
    for number in range(80):
        draw = np.random.default_rng(number)
        strengths, shifts = draw.standard_normal((axes, 3, 1)), draw.uniform(0, 2 * np.pi, (axes, 3, 1))
        cycles = draw.uniform(2, 16, (3, 1))
        time = np.arange(length) / length * draw.uniform(0.9, 1.1, (20, 1, 1, 1)) + draw.uniform(0, 1, (20, 1, 1, 1))
        waves = (strengths * np.sin(2 * np.pi * cycles * time + shifts)).sum(2)  # (20, axes, length)
        split = "train" if number < 50 else "val" if number < 65 else "test"
        noise = 1.5 * draw.standard_normal(waves.shape)
        dataset[split][f"movement_{number}"] = (waves + noise).astype(np.float32)
    return dataset


register_backbone("convolution_in_time", convolution_in_time)
register_dataset("movements", movements)
