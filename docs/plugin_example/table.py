"""A table: tell species apart, made up from a seed, by twelve measurements of single plants."""

import numpy as np

from mamlkit import register_dataset


def species(config):
    """Build 100 species of 40 plants each; a row is one plant, a column one measurement, of mean 0 and deviation 1."""
    draw = np.random.default_rng(0)
    n_columns = config.input_shape[0]
    # A plant's measurements follow from four traits of its species, times its size, in which plants of a species differ
    # more than species do: rows that are near each other need not be of one species.
    traits, loadings = draw.standard_normal((100, 1, 4)), draw.standard_normal((4, n_columns)) / 2
    grows = 1 + 0.3 * draw.standard_normal(n_columns)
    size, noise = draw.standard_normal((100, 40, 1)), draw.standard_normal((100, 40, n_columns))
    logarithms = np.tanh(traits @ loadings) + size * grows + 0.15 * noise
    rows = ((np.exp(logarithms / 2) - 1.2) / 0.8).astype(np.float32)
    splits = {"train": range(60), "val": range(60, 80), "test": range(80, 100)}
    return {split: {f"species_{rank}": rows[rank] for rank in ranks} for split, ranks in splits.items()}


register_dataset("species", species)
