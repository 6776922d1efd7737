"""The end of a run: its best models, or chosen ones, on the fixed test tasks."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from experiment_parts.evaluation import model_selection
from experiment_parts.evaluation import test_results as final_test
from experiment_parts.evaluation.baselines import tasks_of_baselines
from experiment_parts.evaluation.split_evaluation import BaselineTasks, SplitEvaluation
from experiment_parts.evaluation.task_sets import (
    BaselinesOf,
    TaskSet,
    collect_results,
    curve_rows,
    evaluate_task_sets,
    protocols,
)
from experiment_parts.learner import Learner
from experiment_parts.runs.checkpoints import checkpoint_bytes, list_epochs
from experiment_parts.runs.random_state import without_random_state
from experiment_parts.runs.run_folder import RunFolder
from experiment_parts.settings import ExperimentSettings
from utils.files.atomic_files import write_bytes_atomically
from utils.files.tables import write_csv, write_json
from utils.ranks.group import RankGroup
from utils.words import counted

log = logging.getLogger(__name__)


class ModelTests:
    """Tests models of a run and writes the results. Rank 0 reads the models and writes; all ranks share the tasks."""

    def __init__(
        self,
        learner: Learner,
        task_sets: Sequence[TaskSet],
        run_folder: RunFolder,
        settings: ExperimentSettings,
        group: RankGroup,
        check: Callable[[], None],
    ):
        """`check` may raise to stop; it is called between batches."""
        self._learner, self._task_sets, self._run_folder, self._settings = (
            learner,
            list(task_sets),
            run_folder,
            settings,
        )
        self._group, self._check = group, check
        self._chosen = bool(settings.load_checkpoint) and settings.evaluate_on_test_set_only
        self._suffix = final_test.result_suffix(
            settings.tag, settings.load_checkpoint if self._chosen else "", settings.tested_elsewhere
        )

    def run(
        self, rows: Sequence[Mapping[str, Any]], stopped_early: str | None, data_changes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Test the ensemble of the models and each of them, and write the results.

        Args:
            rows: of the epochs that were trained.
            stopped_early: why no more were.
            data_changes: what differs from the data of the training, a line each, which the results then say.
        Returns:
            the content of test_summary.json; nothing on a rank that does not write.
        """
        logs, kinds = self._run_folder.logs, self._settings.test_batch_norm_statistics
        to_test = self._models(rows) if self._group.is_main else []
        if self._settings.evaluate_on_test_set_only and self._group.is_main:
            known = [model for model, _ in to_test]
            final_test.refuse_to_replace(
                logs / f"test_summary{self._suffix}.json", protocols(self._task_sets, kinds), known, len(rows)
            )
        models, evaluations = [], []
        self._n_models = self._group.of_main(lambda: len(to_test))
        for model, tensors in self._group.items_of_main(to_test):
            n_tasks = sum(tasks.n_tasks for tasks in self._task_sets)
            log.info("Testing %s on %s", model["file"], counted(n_tasks, "task"))
            with_baselines = self._settings.test_baselines and not models
            models.append(model)
            evaluations.append(self._test(tensors, self._baselines_of if with_baselines else None))
        done = {model["epoch"]: evaluation for model, evaluation in zip(models, evaluations, strict=True)}
        summary = (
            self._write_results(rows, stopped_early, data_changes, models, evaluations) if self._group.is_main else {}
        )
        if self._settings.test_curve:
            self._test_curve(rows, done)
        if self._group.is_main:
            log.info(final_test.result_text(summary, None if self._settings.dry_run else self._run_folder.path))
        return summary

    def _models(self, rows: Sequence[Mapping[str, Any]]) -> list[model_selection.Model]:
        if self._chosen:
            wanted = self._settings.load_checkpoint
            return model_selection.load_chosen(model_selection.chosen_checkpoint(self._run_folder.saved_models, wanted))
        return model_selection.load_best(self._run_folder, rows, self._settings.number_of_ensemble_models)

    def _test(self, tensors: dict[str, Tensor], beside: BaselinesOf | None = None) -> list[SplitEvaluation]:
        self._learner.load_state_tensors(without_random_state(tensors), optimizer=False)
        kinds, n_tasks = self._settings.test_batch_norm_statistics, self._settings.tasks_per_meta_batch
        return evaluate_task_sets(self._learner, self._task_sets, kinds, n_tasks, self._check, self._group, beside)

    def _baselines_of(self, protocol: Mapping[str, Any]) -> BaselineTasks:
        counts = tasks_of_baselines(self._learner, protocol, self._n_models, is_regression=self._settings.is_regression)
        return BaselineTasks(*counts)

    def _write_results(
        self,
        rows: Sequence[Any],
        stopped_early: str | None,
        data_changes: Sequence[str],
        models: list[dict[str, Any]],
        evaluations: list[list[SplitEvaluation]],
    ) -> dict[str, Any]:
        for tasks in self._task_sets:
            tasks.data.check_content()
        results, arrays = collect_results(
            self._task_sets, self._settings.test_batch_norm_statistics, models, evaluations,
            are_logits=self._settings.loss == "cross_entropy",
        )  # fmt: skip
        digest = (self._task_sets[0].data.summary() or {}).get(final_test.TESTED_ON)
        summary = results[0] | {
            "results": results,
            "selection": "load_checkpoint" if self._chosen else final_test.BEST_MODELS,
            "epochs_trained": len(rows),
            "stopped_early": stopped_early,
            "suffix": self._suffix,
            **({final_test.ALL_TASKS: whole} if (whole := final_test.over_all_tasks(results)) else {}),
            **({final_test.TESTED_ON: digest} if digest else {}),
            **({final_test.OTHER_DATA: list(data_changes)} if data_changes else {}),
        }
        logs, suffix = self._run_folder.logs, self._suffix
        state = {name: summary[name] for name in ("protocol", "task_list_digest", "selection", "epochs_trained")}
        state["class_names"] = {tasks.protocol["dataset"]: tasks.class_names for tasks in self._task_sets}
        predictions = checkpoint_bytes(arrays, state | {"models": models})
        write_bytes_atomically(logs / f"test_predictions{suffix}.safetensors", predictions)
        write_csv(logs / f"test_summary{suffix}.csv", final_test.summary_rows(summary))
        write_json(logs / f"test_summary{suffix}.json", summary)
        return summary

    def _test_curve(self, rows: Sequence[Mapping[str, Any]], done: dict[int, list[SplitEvaluation]]) -> None:
        for known, tensors in self._group.items_of_main(self._other_epochs(set(done))):
            done[known["epoch"]] = self._test(tensors)
        if not self._group.is_main:
            return
        accuracy = {row["epoch"]: row["val_accuracy_mean"] for row in rows}
        kinds = self._settings.test_batch_norm_statistics
        lines = [
            line
            for epoch in sorted(done)
            for line in curve_rows(self._task_sets, kinds, epoch, accuracy.get(epoch), done[epoch])
        ]
        write_csv(self._run_folder.logs / f"test_curve{self._suffix}.csv", lines)

    def _other_epochs(self, done: set[int]) -> Iterator[model_selection.Model]:
        for epoch, path in list_epochs(self._run_folder.saved_models).items():
            tensors = None if epoch in done else self._run_folder.load_usable(path)
            if tensors is not None:
                yield {"epoch": epoch}, tensors
