"""A support set of arrays as files: CLASS.npy, an array (n, ...), or of several parts a folder CLASS of PART.npy."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.episodes.inputs import Inputs
from utils.errors import DataError
from utils.prepare_dataset.forms.array_files import open_npy


def read_arrays(folder: Path, inputs: Inputs) -> tuple[Any, list[str]]:
    """Return the examples of all classes, as `FewShotClassifier.fit` takes them, and the class of each.

    Raises:
        DataError: there are none, or they are not what `input_shape` says.
    """
    arrays, labels = [], []
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix == ".npy" or path.is_dir():
            try:
                arrays.append(inputs.joined(_array_or_parts(path)))
            except ValueError as error:
                raise DataError(f"{path}: {error}") from error
            labels += [path.name.removesuffix(".npy")] * len(arrays[-1])
    if not labels:
        raise DataError(
            f"{folder}: no such folder, or no arrays in it; --support holds for each class a file CLASS.npy, an array "
            f"(n, {', '.join(map(str, inputs.shape))}), or of several parts a folder CLASS of PART.npy"
        )
    by_position, by_name = inputs.arguments(torch.from_numpy(np.concatenate(arrays)))
    return by_name or by_position[0], labels


def _array_or_parts(path: Path) -> Any:
    return {part.stem: open_npy(part) for part in path.glob("*.npy")} if path.is_dir() else open_npy(path)
