"""Work that a thread does before it is asked for: the next meta-batches are gathered while one is trained on.

What comes out is what would come out without the thread: a result depends on its number alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from utils.episodes.drawing import EpisodeShape, training_shape
from utils.episodes.source import EpisodeSource

if TYPE_CHECKING:
    from utils.episodes.batches import EpisodeBatch

Result = TypeVar("Result")


class Prefetcher(Generic[Result]):
    """Computes results by number, those of the next numbers in one thread while the caller does something else."""

    def __init__(self, compute: Callable[[int], Result], ahead: int, end: int | None = None):
        """Args:
        compute: number -> result; called in the thread alone. What it raises is raised where its number is asked for.
        ahead: results that are computed or waiting beside the one that is asked for, at least 1.
        end: no number from this one on is computed before it is asked for; None: there is no end.
        """
        self._compute, self._ahead, self._end = compute, ahead, end
        self._under_way: dict[int, Future[Result]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def get(self, number: int) -> Result:
        """Return the result of this number; begin with the next ones.

        Numbers may jump: what is under way is then given up.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetching")
        # After a resume, an iteration that is left out, or a replay what is under way has the wrong numbers.
        if number != next(iter(self._under_way), None):
            self._give_up()
        for wanted in range(number, number + 1 + self._ahead):
            beyond = self._end is not None and wanted >= self._end and wanted != number
            if wanted not in self._under_way and not beyond:
                self._under_way[wanted] = self._thread.submit(self._compute, wanted)
        return self._under_way.pop(number).result()

    def _give_up(self) -> None:
        for future in self._under_way.values():
            future.cancel()
        self._under_way.clear()

    def close(self) -> None:
        """End the thread, after the result that it is at; `get` would start another one."""
        self._give_up()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None


def episodes_in_turn(
    data: EpisodeSource,
    split: str,
    batches: Sequence[Sequence[int]],
    shape: EpisodeShape | None,
    before_each: Callable[[], None],
) -> "Iterator[EpisodeBatch]":
    """Yield the episodes of each batch of numbers, prepared ahead where `TrainingEpisodes` would.

    Args:
        before_each: called before each batch; may raise to stop.
    """
    if not data.meta_batches_ahead:
        for indices in batches:
            before_each()
            yield data.episodes(split, indices, shape)
        return
    prefetcher = Prefetcher(
        lambda place: data.prepare(split, batches[place], shape), data.meta_batches_ahead, len(batches)
    )
    try:
        for place in range(len(batches)):
            before_each()
            yield data.finish(prefetcher.get(place))
    finally:
        prefetcher.close()


class TrainingEpisodes:
    """The meta-batch of each training iteration, a pure function of its number."""

    def __init__(
        self,
        data: EpisodeSource,
        n_tasks: int,
        shapes: Sequence[EpisodeShape] = (),
        train_seed: int = 0,
        part: range | None = None,
    ):
        """Args:
        data: where its `meta_batches_ahead` is more than 0, a thread calls its `prepare` and the caller its `finish`.
        n_tasks: B.
        shapes: of which each meta-batch draws one; none: the shape that the data has of itself.
        part: places in the meta-batch of the tasks that are wanted, 0 to B-1; None: all.
        """
        self._part = range(n_tasks) if part is None else part
        self._data, self._n_tasks, self._shapes, self._train_seed = data, n_tasks, tuple(shapes), train_seed
        self._prefetcher = Prefetcher(self._prepare, data.meta_batches_ahead) if data.meta_batches_ahead else None

    def of_iteration(self, iteration: int) -> "EpisodeBatch":
        """Return the part of the meta-batch of this iteration, counted from 1."""
        if self._prefetcher is None:
            return self._data.episodes(*self._request(iteration, self._part))
        return self._data.finish(self._prefetcher.get(iteration))

    def whole_iteration(self, iteration: int) -> "EpisodeBatch":
        """Return all of its meta-batch."""
        return self._data.episodes(*self._request(iteration, range(self._n_tasks)))

    def _prepare(self, iteration: int) -> Any:
        return self._data.prepare(*self._request(iteration, self._part))

    def _request(self, iteration: int, places: range) -> tuple[str, range, EpisodeShape | None]:
        shape = training_shape(self._shapes, self._train_seed, iteration - 1) if self._shapes else None
        first = (iteration - 1) * self._n_tasks
        return "train", range(first + places.start, first + places.stop), shape

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._prefetcher is not None:
            self._prefetcher.close()
