"""Text: tell kinds of sentences apart by the ids of their words and the mask of their lengths; a small transformer."""

import itertools

import numpy as np
import torch
from torch import nn

from mamlkit import register_backbone, register_dataset

THEMES, WORDS_OF_A_THEME = 16, 12
PADDING, WIDTH = 0, 32


class Transformer(nn.Module):
    """Embeddings of words and places, one layer of attention, the mean over the words that there are."""

    def __init__(self, length, n_way):
        super().__init__()
        self.words = nn.Embedding(1 + THEMES * WORDS_OF_A_THEME, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(length, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, n_way)  # the last linear layer is the head

    def forward(self, ids, mask):
        x = self.layer(self.words(ids) + self.places, src_key_padding_mask=~mask)  # (n, length, WIDTH)
        there = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * there).sum(1) / there.sum(1))


def sentences(config):
    """Build 240 kinds of 20 sentences each: words of one theme, then of another, padded to one length."""
    length = int(config.input_shape[0].split(":")[-1])
    draw = np.random.default_rng(0)
    kinds = draw.permutation(list(itertools.permutations(range(THEMES), 2)))
    dataset = {"train": {}, "val": {}, "test": {}}
    for number, (first, then) in enumerate(kinds.tolist()):
        lengths = draw.integers(length // 2, length + 1, (20, 1))
        mask = np.arange(length) < lengths
        theme = np.where(np.arange(length) < lengths // 2, first, then)
        theme = np.where(draw.random(mask.shape) < 0.2, draw.integers(THEMES, size=mask.shape), theme)
        ids = 1 + theme * WORDS_OF_A_THEME + draw.integers(WORDS_OF_A_THEME, size=mask.shape)
        split = "train" if number < 160 else "val" if number < 200 else "test"
        dataset[split][f"theme_{first}_then_{then}"] = {"ids": np.where(mask, ids, PADDING), "mask": mask}
    return dataset


register_backbone("transformer", lambda config, shapes, n_way: Transformer(*shapes["ids"], n_way))
register_dataset("sentences", sentences)
