"""What the state in a checkpoint of a run is made of. A run folder may come from elsewhere, and a digest that is right
says no more than that a file is as somebody wrote it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, InstanceOf, field_validator

Name = InstanceOf[str]
"""A text, also one that is no UTF-8, as names of folders may be."""
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Row(BaseModel):
    """An epoch in the tables; of its other columns nothing is asked."""

    epoch: Count
    val_accuracy_mean: float | None
    val_tasks: Count | None = None


class Config(BaseModel):
    """Of which any other key may be of another release."""

    experiment_name: Name


class ClassesOfImages(BaseModel):
    """A split as `utils.episodes.source.EpisodeSource.identity` has it, and the names of its classes."""

    names: list[Name]
    images: Count
    sha256: Name


class Tasks(BaseModel):
    """A split that is made of tasks."""

    names: list[Name]
    made_of: Name
    tasks: Count | None
    sha256: Name | None


class Data(BaseModel):
    """What the training episodes are drawn from."""

    content_sha256: Name | None
    splits: dict[Name, Tasks | ClassesOfImages]
    keeps_copies: bool = False


class UnderWay(BaseModel):
    """The part of an epoch that is done, as `experiment_parts.records.epoch_metrics.EpochMetrics` has it."""

    first_iteration: Count
    sums: dict[Name, list[dict[Literal["count", "mean", "squares"], float]]]
    interval: list[dict[Literal["metrics", "applied"], bool | dict[Name, list[float | None]]]]
    time_s: float
    data_time_s: float

    @field_validator("sums")
    @classmethod
    def _of_the_loss_too(cls, sums: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in ("loss", "accuracy") if sums and not sums.get(name)]
        empty = [name for name in ("gradient_norm",) if name in sums and not sums[name]]
        if missing or empty:
            raise ValueError(f"no values of {', '.join(missing + empty)}")
        return sums


class RunState(BaseModel):
    """All that is needed to go on; releases before lacked the last three."""

    epoch: Count
    iteration: Count
    metrics_jsonl_bytes: Count
    rows: list[Row]
    curves: list[dict[Name, Any]]
    config: Config
    automatic_choices: dict[Literal["task_chunk_size"], Annotated[Count, Field(gt=0)]]
    annealing_epochs: Count
    under_way: UnderWay | None = None
    data: Data | None = None
    data_changes: list[Name] = []
