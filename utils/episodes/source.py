"""What the algorithm reads of episodes, and what training and testing ask of where they come from.

The learner, the builder and the tests of models know these types alone, so that images, waves and tasks that a user
holds in Python go the same way. A source of one's own subclasses `EpisodeSource` and inherits what it need not have.

Letters: B tasks, N way, K shot, Q query images per class, C x H x W pixels; examples that are no images have sides
of their own in the place of these. No torch at run time.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from utils.episodes.drawing import EpisodeShape

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from utils.episodes.batches import EpisodeBatch


class Tasks(Protocol):
    """B tasks as adaptation reads them: of the query images it needs no labels."""

    @property
    def support_images(self) -> "Tensor":
        """float (B, N*K, C, H, W), normalised, on the device."""

    @property
    def support_labels(self) -> "Tensor":
        """int64 (B, N*K), 0..N-1; float (B, K, D) in a regression."""

    @property
    def query_images(self) -> "Tensor":
        """float (B, N*Q, C, H, W)."""

    @property
    def n_way(self) -> int:
        """N; 1 in a regression."""


class Episodes(Tasks, Protocol):
    """B tasks with the right answers, as meta-gradients and evaluation read them: `EpisodeBatch`, or another frozen
    dataclass, whose tensors all begin with the task axis, along which a batch is cut into chunks.
    """

    @property
    def query_labels(self) -> "Tensor":
        """int64 (B, N*Q); float (B, Q, D) in a regression."""

    @property
    def seeds(self) -> "Tensor":
        """int64 (B,) on the device: a number per episode that keys what else is random in it, such as dropout."""


@runtime_checkable
class EpisodeSource(Protocol):
    """Episodes by their numbers: the same number of the same split always gives the same episode."""

    shape: EpisodeShape
    """Of the training episodes, unless another one is asked for."""
    meta_batches_ahead: int = 0
    """How many meta-batches a thread should `prepare` before their time; 0: `episodes` alone is called."""

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        """split -> names of its classes, in the order of their ranks; none where tasks come without names."""

    @property
    def n_training_classes(self) -> int:
        """C, which training episodes name where a run is pre-trained."""
        return len(self.class_names.get("train", ()))

    def shape_of(self, split: str) -> EpisodeShape:
        """Return the shape of a split's episodes, unless another one is asked for."""
        return self.shape

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> "EpisodeBatch":
        """Return the episodes with these numbers, on the device.

        Args:
            split: "train", "val" or "test".
            indices: B episode numbers from 0 on.
            shape: N way, K shot, Q query; None: that of the split.
        """

    def prepare(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> Any:
        """Return what `finish` makes these episodes of, touching no device, so that a thread may do it meanwhile."""
        return split, indices, shape

    def finish(self, prepared: Any) -> "EpisodeBatch":
        """Return `episodes` of what `prepare` has returned."""
        return self.episodes(*prepared)

    def support_sizes(
        self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None
    ) -> "np.ndarray | None":
        """Return how many support images each of these episodes has: int64 (B,); those of one batch have equally many.
        None: all have.
        """
        return None

    def count(self, split: str) -> int | None:
        """Return how many different tasks a split has; None: there is no end of them, or none is known."""

    def example_shape(self) -> tuple[int, ...] | None:
        """Return (C, H, W) of an image, or the sides of another example; None: unknown before the first episode."""

    def identity(self) -> dict[str, Any] | None:
        """Return what the data are known by, wherever they lie, JSON-able; None: a run goes on with them unasked.

        {"content_sha256": of all pixels, "splits": {split: {"classes": n, "images": n, "sha256": of the names of its
        classes and the paths of their images}}}: equal means the same images in the same classes and splits. And
        "keeps_copies": true, where images stay that are in a class more than once. A split that is no classes of images
        says what it is "made_of"; its "sha256" may be None, where it cannot be known again, and so may the
        "content_sha256".
        """
        return None

    def check_content(self) -> None:
        """Wait until the data are known to be what they were prepared as; called before a first result is written.

        Raises:
            DataError: they are not.
        """

    def as_pixels(self, images: "Tensor") -> "Tensor | None":
        """Return images (..., C, H, W) of an episode as uint8 red green blue (or grey), to be shown; None: the source
        has no pictures, so none are shown.
        """
        return None


class DrawnTasks(Protocol):
    """B tasks as numbers on the host, before their images are gathered."""

    @property
    def classes(self) -> "np.ndarray":
        """int64 (B, N), rank of each class among the split's `class_names`; the place is its label."""


class FixedEpisodeSource(EpisodeSource, Protocol):
    """A source whose tasks are the same everywhere, known by what they are made of: models can be tested on it, and
    their results compared.
    """

    def draw(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> DrawnTasks:
        """Return the tasks that `episodes` of these arguments has."""

    def task_list_digest(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> str:
        """Return a sha256 of all that these tasks are made of: equal means the same tasks."""

    def summary(self) -> dict[str, Any]:
        """Return where the data are from and how many they are, JSON-able, for `environment.json`."""
