"""The sinusoid problem: regress a wave from a few of its points. Waves and points are drawn, there is nothing to
download.

    y = amplitude * sin(x - phase),   amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5], all uniform

Source: Finn et al. 2017, section 5.1.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.config import ExperimentConfig
from utils.episodes.batches import EpisodeBatch
from utils.episodes.drawing import SPLITS, EpisodeShape
from utils.episodes.randomness import random_words, uniform
from utils.episodes.source import FixedEpisodeSource
from utils.known_datasets import SINUSOID
from utils.machine.devices import copy_to

_WAVES, _SUPPORT, _QUERY, _SEEDS = range(4)
"""Purposes of an episode's draws: more support points never change the wave, nor the query points."""

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, np.pi), (-5.0, 5.0)


@dataclass(frozen=True)
class Waves:
    """B tasks as numbers, float64."""

    amplitudes: np.ndarray
    """(B, 1)."""
    phases: np.ndarray
    """(B, 1)."""
    support: np.ndarray
    """(B, K), places of the support points."""
    query: np.ndarray
    """(B, Q), places of the query points."""
    seeds: np.ndarray
    """int64 (B,), not negative."""

    @property
    def classes(self) -> np.ndarray:
        """int64 (B, 1), rank of each task's class among the names of `SinusoidData.class_names`."""
        return np.zeros((len(self.seeds), 1), dtype=np.int64)

    def heights(self, x: np.ndarray) -> np.ndarray:
        """Return y at x, both (B, n)."""
        return self.amplitudes * np.sin(x - self.phases)


def draw_waves(
    seed: int, split: str, indices: Sequence[int], n_shot: int, n_query: int, n_tasks: int | None = None
) -> Waves:
    """Draw the tasks with these numbers: a pure function of (seed, split, index).

    Args:
        split: "train", "val" or "test"; each has a stream of its own.
        n_shot, n_query: K, Q points.
        n_tasks: size of a pool of fixed tasks: episode i is task i mod n_tasks, with a seed of its own. None: no pool.
    """
    tasks = np.asarray(indices, dtype=np.int64) % n_tasks if n_tasks else indices

    def between(bounds: tuple[float, float], numbers: np.ndarray) -> np.ndarray:
        return bounds[0] + (bounds[1] - bounds[0]) * numbers

    wave = uniform(random_words(seed, split, tasks, _WAVES, 2))
    return Waves(
        between(AMPLITUDES, wave[:, :1]),
        between(PHASES, wave[:, 1:]),
        between(INPUTS, uniform(random_words(seed, split, tasks, _SUPPORT, n_shot))),
        between(INPUTS, uniform(random_words(seed, split, tasks, _QUERY, n_query))),
        (random_words(seed, split, indices, _SEEDS, 1)[:, 0] >> np.uint64(1)).astype(np.int64),
    )


class SinusoidData(FixedEpisodeSource):
    """Episodes of the sinusoid problem. A point is an image of one pixel, x."""

    def __init__(
        self, *, shape: EpisodeShape, seeds: dict[str, int], n_train_tasks: int | None = None,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        """Args:
        shape: 1 way, K support points, Q query points.
        seeds: split -> seed of its episodes.
        n_train_tasks: size of the pool of fixed training tasks; None: ever new ones.
        """
        self.shape, self.n_train_tasks = shape, n_train_tasks
        self.device, self.dtype = torch.device(device), dtype
        self._seeds = dict(seeds)

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> the one name that there is: every wave is a task of its own."""
        return {split: ["wave"] for split in SPLITS}

    def example_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return 1, 1, 1

    def summary(self) -> dict[str, Any]:
        """Return what the tasks are made of, JSON-able."""
        return {
            "dataset_name": SINUSOID,
            "amplitudes": AMPLITUDES,
            "phases": PHASES,
            "inputs": INPUTS,
            "image_shape": [1, 1, 1],
        }

    def draw(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> Waves:
        """Draw the waves and points of these episodes."""
        shape = shape or self.shape
        n_tasks = self.n_train_tasks if split == "train" else None
        return draw_waves(self._seeds[split], split, indices, shape.n_shot, shape.n_query, n_tasks)

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """Return the episodes with these numbers, on the device.

        Args:
            split: "train", "val" or "test".
            indices: B episode numbers from 0 on.
            shape: K and Q points; None: the config's.
        """
        shape, waves = shape or self.shape, self.draw(split, indices, shape)
        numbers = np.concatenate(
            [waves.support, waves.heights(waves.support), waves.query, waves.heights(waves.query)], axis=1
        )
        here = copy_to(self.device, torch.from_numpy(numbers)).to(self.dtype)
        sizes = [shape.n_shot, shape.n_shot, shape.n_query, shape.n_query]
        support_x, support_y, query_x, query_y = (part.unsqueeze(-1) for part in here.split(sizes, dim=1))  # (B, n, 1)
        return EpisodeBatch(
            support_images=support_x[..., None, None],
            support_labels=support_y,
            query_images=query_x[..., None, None],
            query_labels=query_y,
            seeds=copy_to(self.device, torch.from_numpy(waves.seeds)),
            n_way=1,
            n_shot=shape.n_shot,
            n_query=shape.n_query,
            split=split,
            indices=tuple(int(index) for index in indices),
            class_ids=waves.classes,
        )

    def task_list_digest(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> str:
        """Return the sha256 of waves and places of these episodes: equal means the same tasks."""
        waves = self.draw(split, indices, shape)
        numbers = np.concatenate([waves.amplitudes, waves.phases, waves.support, waves.query], axis=1)
        return hashlib.sha256(f"{split} {shape or self.shape}\n".encode() + numbers.astype("<f8").tobytes()).hexdigest()


def build_sinusoid_data(config: ExperimentConfig, device: torch.device | str, dtype: torch.dtype) -> SinusoidData:
    """Unpack a config."""
    return SinusoidData(
        shape=config.validation_shape,
        seeds={"train": config.train_seed, "val": config.val_seed, "test": config.val_seed},
        n_train_tasks=config.number_of_train_tasks,
        device=device,
        dtype=dtype,
    )
