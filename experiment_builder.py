"""The order of events of an experiment: train, validate, save, resume, pause, test the best models.

Knows no algorithm and no dataset: it is given a learner, a data source and observers as objects.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from experiment_parts.evaluation import model_selection
from experiment_parts.evaluation.model_tests import ModelTests
from experiment_parts.evaluation.split_evaluation import SplitEvaluation, evaluate_centroids, evaluate_tasks
from experiment_parts.evaluation.task_sets import TaskSet, build_task_sets
from experiment_parts.learner import Learner
from experiment_parts.records import epoch_records, non_finite
from experiment_parts.records.diagnostics import Diagnostics, build_diagnostics
from experiment_parts.records.epoch_metrics import EpochMetrics
from experiment_parts.records.observers import Observer, Observers
from experiment_parts.records.run_records import RunRecords
from experiment_parts.runs.checkpoints import load_checkpoint
from experiment_parts.runs.console import EpochProgress
from experiment_parts.runs.random_state import random_state_tensors, restore_random_state, without_random_state
from experiment_parts.runs.run_folder import IS_BRANCH, RUN_ID, RunFolder
from experiment_parts.runs.same_data import data_changes, data_of, refuse_other_data, unknown_splits
from experiment_parts.settings import ExperimentSettings
from utils.config import ExperimentConfig
from utils.config.changes import DATA
from utils.episodes.batches import EpisodeBatch
from utils.episodes.prefetching import TrainingEpisodes
from utils.episodes.source import EpisodeSource
from utils.errors import ConfigError, Interrupted, NonFiniteError
from utils.files.tables import write_json
from utils.machine.stop_signals import StopSignals
from utils.metrics import score_of
from utils.ranks.group import ALONE, RankGroup
from utils.ranks.run_flags import RunFlags
from utils.words import counted

if TYPE_CHECKING:
    from meta_learning.meta_gradients import MetaGradients

log = logging.getLogger(__name__)


class ExperimentBuilder:
    """Runs an experiment in its folder, from wherever the folder's newest good checkpoint stands."""

    def __init__(
        self,
        learner: Learner,
        data: EpisodeSource,
        observers: Sequence[Observer],
        run_folder: RunFolder,
        settings: ExperimentSettings,
        task_sets: Sequence[TaskSet],
        config: Mapping[str, Any],
        device: torch.device | str = "cpu",
        stop: StopSignals | None = None,
        diagnostics: Diagnostics | None = None,
        group: RankGroup = ALONE,
    ):
        """Args:
        task_sets: what the models are tested on; none: a run ends with its training.
        config: the resolved config as a dict, stored in every checkpoint.
        stop: asked between iterations and between batches of evaluation tasks.
        diagnostics: what inspects the learner between epochs, for the report; None: nothing does.
        group: the processes that share the tasks; all of them hold the same state, and rank 0 reads, writes and
        notifies `observers`.
        """
        self.learner, self.data, self.observers = learner, data, Observers(observers)
        self.run_folder, self.settings = run_folder, settings
        self.task_sets, self.config, self.device = list(task_sets), dict(config), torch.device(device)
        self.score = score_of(settings.is_regression)
        self.rows: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self.iteration = 0
        self.stop, self.diagnostics = stop or StopSignals(), diagnostics
        self.group, self.records = group, RunRecords(run_folder, writes=group.is_main)
        self.data_record = data_of(data) if group.is_main and not settings.tested_elsewhere else None
        self._data_changes: list[str] = []  # since the run began
        self._flags = RunFlags(self.stop, group, settings.checkpoint_every_s, self.device)
        self._under_way: EpochMetrics | None = None  # of the epoch that is being trained
        if settings.pretraining_epochs and not (settings.tested_elsewhere or settings.evaluate_on_test_set_only):
            learner.begin_pretraining(data.n_training_classes, settings.train_seed)
        n_tasks = settings.tasks_per_meta_batch
        self._training_source = TrainingEpisodes(
            data, n_tasks, settings.training_shapes, settings.train_seed, group.part(n_tasks)
        )

    @property
    def epochs_done(self) -> int:
        return len(self.rows)

    @property
    def stopped_early(self) -> str | None:
        """Why training ended before its last epoch."""
        return epoch_records.early_stop(self.rows, self.settings.total_epochs, self.settings.early_stopping_patience)

    @property
    def is_trained(self) -> bool:
        return self.epochs_done >= self.settings.total_epochs or self.stopped_early is not None

    def run(self) -> None:
        """Train what is left, or pause on the way; then test. Only test where that is asked for.

        Raises:
            NonFiniteError: a training loss or gradient is not finite; the checkpoints before it are good.
            StorageError: nothing can be written, or no checkpoint is usable.
            Interrupted: a signal asked to stop; everything up to then is saved.
        """
        with self.stop.deferred(), closing(self._training_source):
            try:
                self._run()
            finally:
                self.observers.on_end()
            # Rank 0 still writes; the store at which the machines meet may be on one that has nothing left to do.
            self.group.wait_for_all()

    def _run(self) -> None:
        settings = self.settings
        if settings.replay_iteration:
            self.replay(settings.replay_iteration)
            return
        self._resume()
        self.observers.on_start(self.run_folder.path, dict(self.config), list(self.rows))
        if settings.evaluate_on_test_set_only:
            self.test()
            return
        try:
            first_epoch = self.epochs_done
            while not self.is_trained:
                self.train_epoch()
                done_here = self.epochs_done - first_epoch
                # After the last epoch there is nothing to pause before but the test, for which the reference needs a
                # second start.
                if done_here == settings.total_epochs_before_pause and not self.is_trained:
                    log.info(
                        "Paused after %s, at epoch %d of %d. Run the same command to go on.",
                        counted(done_here, "epoch"), self.epochs_done, settings.total_epochs,
                    )  # fmt: skip
                    return
        finally:
            self.records.close()
        if self.stopped_early:
            log.info(self.stopped_early)
        if self.task_sets:
            self.test()

    # --- training -----------------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Train one epoch, validate, save, and bring the files in logs/ up to date, in this order."""
        settings, epoch = self.settings, self.epochs_done
        schedule = {
            "meta_learning_rate": float(self.learner.meta_learning_rate(epoch)),
            "multi_step_loss_weights": [float(weight) for weight in self.learner.multi_step_loss_weights(epoch)],
        }
        under_way = self._under_way = self._under_way or EpochMetrics(self.iteration)
        is_last, pretrains = epoch + 1 == settings.total_epochs, epoch < settings.pretraining_epochs
        with EpochProgress(
            epoch + 1, settings.total_epochs, settings.total_iter_per_epoch, settings.tasks_per_meta_batch,
            done=self.iteration - under_way.first_iteration, score=self.score,
        ) as progress:  # fmt: skip
            self._train_iterations(under_way, epoch, schedule, progress)
            train_time_s, start = under_way.time_s, time.perf_counter()
            val, centroids = self._validation(epoch, under_way, progress)
        train = under_way.sums.result()
        row = epoch_records.epoch_row(
            epoch=epoch + 1,
            train=train,
            val=val,
            train_time_s=train_time_s,
            data_time_s=under_way.data_time_s,
            val_time_s=time.perf_counter() - start,
            tasks_trained=self._tasks_since(under_way.first_iteration),
            **schedule,
        )
        row |= centroids
        if val and row["val_accuracy_mean"] is None:
            log.warning("epoch %d: the validation gave numbers that are not finite.", epoch + 1)
        inspects = self.diagnostics is not None and self.group.is_main and not pretrains
        inspected = self.diagnostics.inspect(self.learner, self.data, epoch, is_last=is_last) if inspects else {}
        entry = epoch_records.curves_entry(
            row,
            iteration=self.iteration,
            train=train,
            val=val,
            multi_step_loss_weights=schedule["multi_step_loss_weights"],
            snapshot=self.learner.snapshot() | self.learner.memory_per_task() | inspected,
            score=self.score,
        )
        self.data.check_content()  # a large file's pixels are read in the background; nothing is saved of wrong ones
        self.rows.append(row)
        self.curves.append(entry)
        self._under_way = None
        # The checkpoint before the tables: a start makes these anew from it (`_resume`), so a kill in between loses
        # nothing.
        self.records.save_epoch(self.epochs_done, *self._state())
        self._saved()
        self.records.write_epochs(self.rows, self.curves, settings.max_models_to_save)
        log.info(epoch_records.epoch_text(row, settings.total_epochs, self.score, inspected.get("peak_memory_mib")))
        self.observers.on_epoch(dict(row), dict(entry))

    def _train_iterations(
        self, under_way: EpochMetrics, epoch: int, schedule: Mapping[str, Any], progress: EpochProgress
    ) -> None:
        """Train what is left of an epoch (from 0), and save where it is time to."""
        last_iteration = under_way.first_iteration + self.settings.total_iter_per_epoch
        while self.iteration < last_iteration:
            self._save_if_due(under_way)
            iteration, gradients = self.iteration + 1, {}
            if iteration in self.settings.skip_iterations:
                log.info("iteration %d is left out (skip_iterations).", iteration)
            else:
                meta_gradients = self._meta_gradients(iteration, epoch)
                gradients = meta_gradients.gradients
                # Nothing here waits for the device: metrics, and whether the update was applied, stay there until they
                # are read.
                under_way.add(iteration, meta_gradients.metrics, self.learner.meta_update(meta_gradients, epoch))
            self.iteration = iteration
            if iteration % self.settings.log_every_iterations == 0 or iteration == last_iteration:
                self._end_interval(under_way, epoch, schedule, progress, gradients)
        # What came with the last iteration counts before the validation, which may take long, begins.
        self._save_if_due(under_way)

    def _end_interval(
        self,
        under_way: EpochMetrics,
        epoch: int,
        schedule: Mapping[str, Any],
        progress: EpochProgress,
        gradients: Mapping[str, Tensor],
    ) -> None:
        """Read and report the metrics of the iterations since the last time.

        Here, and where it is saved, the host waits for the device.
        """
        self._check_for_non_finite(under_way)
        interval = under_way.interval()
        if not interval:  # all of it was left out
            return
        record = epoch_records.iteration_record(
            iteration=self.iteration,
            epoch=epoch + 1,
            interval=interval,
            tasks_per_s=self._tasks_since(under_way.first_iteration) / under_way.time_s,
            **schedule,
        )
        self.records.add_line(record)
        under_way.end_interval()
        self.observers.on_iteration_metrics(record)
        if gradients:  # none where the last iteration was left out
            self.observers.on_gradients(self.iteration, gradients)
        progress.advance(len(interval), record["loss"], record["accuracy"])
        if self.settings.checkpoint_every_s == 0:
            self._save_unfinished(under_way)

    def _tasks_since(self, iteration: int) -> int:
        """Count the tasks that were trained on since then."""
        left_out = sum(iteration < number <= self.iteration for number in {*self.settings.skip_iterations})
        return (self.iteration - iteration - left_out) * self.settings.tasks_per_meta_batch

    def _validation(
        self, epoch: int, under_way: EpochMetrics, progress: EpochProgress
    ) -> tuple[Mapping[str, Any] | None, epoch_records.Row]:
        """Return the metrics of the validation that an epoch (from 0) ends with, None without one, and the columns of
        one by class centroids.

        Raises:
            Interrupted: a signal has come; the epoch's training is saved.
        """
        settings = self.settings
        # The last epoch in any case: the test ranks models by their validation and could not choose it otherwise.
        if (epoch + 1) % settings.validate_every_epochs and epoch + 1 != settings.total_epochs:
            return None, {}
        progress.phase(f"validation on {counted(settings.num_evaluation_tasks, 'task')}")
        try:
            if epoch < settings.pretraining_epochs < settings.total_epochs:
                return None, epoch_records.centroid_columns(self.validate_centroids())
            return self.validate().metrics, {}
        except Interrupted:
            self._stop_now(under_way)

    def validate(self) -> SplitEvaluation:
        """Evaluate the learner as it is on the fixed validation tasks.

        Raises:
            Interrupted: a signal has come.
        """
        return evaluate_tasks(
            self.learner, self.data, "val", n_tasks=self.settings.num_evaluation_tasks,
            tasks_per_batch=self.settings.tasks_per_meta_batch, before_each_batch=self._flags.check, group=self.group,
        )  # fmt: skip

    def validate_centroids(self) -> list[float]:
        """Return the accuracy of class centroids on each validation task, while the body is only pre-trained."""
        return evaluate_centroids(
            self.learner, self.data, "val", n_tasks=self.settings.num_evaluation_tasks,
            tasks_per_batch=self.settings.tasks_per_meta_batch, before_each_batch=self._flags.check, group=self.group,
        )  # fmt: skip

    def _meta_gradients(self, iteration: int, epoch: int) -> "MetaGradients":
        """Compute those of the whole meta-batch of an iteration (from 1), each rank its part. Flags ride along."""
        own = self.learner.meta_gradients(self.training_episodes(iteration), epoch)
        of_all, flags = self.group.mean(own, self.settings.tasks_per_meta_batch, self._flags.to_ride())
        self._flags.learn(flags)
        return of_all

    def training_episodes(self, iteration: int) -> EpisodeBatch:
        """Return this rank's part of the meta-batch of an iteration, counted from 1; count the time that it takes."""
        start = time.perf_counter()
        episodes = self._training_source.of_iteration(iteration)
        if self._under_way is not None:
            self._under_way.data_time_s += time.perf_counter() - start
        return episodes

    # --- numbers that are not finite ----------------------------------------------------------------------------------

    def _check_for_non_finite(self, under_way: EpochMetrics) -> None:
        """Stop where an update was not applied: save the state before it, and report it.

        Raises:
            NonFiniteError: the learner has applied nothing from that iteration on.
        """
        refused = under_way.refused()
        if refused is not None:
            self._stop_before(*refused, under_way)

    def _stop_before(self, iteration: int, metrics: Mapping[str, Sequence[float]], under_way: EpochMetrics) -> NoReturn:
        epoch, n_tasks = self.epochs_done, self.settings.tasks_per_meta_batch
        # Metrics are read some iterations late, but the learner has refused every update since (`UpdateGuard`): its
        # state is that of the iteration before.
        self.iteration = iteration - 1
        if self.iteration > under_way.first_iteration:
            self.records.save_unfinished(*self._state({"under_way": under_way.state()}))
            self._saved()
        path = non_finite.report_path(self.run_folder.logs, iteration)
        command = non_finite.replay_command(self.run_folder.path, iteration)
        if self.group.is_main:
            write_json(path, {"replay": command, **self._iteration_report(iteration, epoch)})
        self.group.wait_for_all()
        saved, places = f"; saved at iteration {self.iteration}", f"\nReport: {path}\nReplay: {command}"
        if self.settings.dry_run:
            saved = places = ""
        left_out = sorted({*self.settings.skip_iterations, iteration})
        raise NonFiniteError(
            f"iteration {iteration} (epoch {epoch + 1}): {non_finite.reason(metrics)}; training tasks "
            f"{(iteration - 1) * n_tasks} to {iteration * n_tasks - 1}. Its update was not applied{saved}. "
            f"A rerun would come to it again: lower init_inner_loop_learning_rate or meta_learning_rate, set "
            f"gradient_clamp, or leave this iteration out: --skip_iterations {' '.join(map(str, left_out))}{places}"
        )

    def _iteration_report(self, iteration: int, epoch: int) -> dict[str, Any]:
        return non_finite.iteration_report(
            self.learner, self._training_source.whole_iteration(iteration), iteration, epoch
        )

    def replay(self, iteration: int) -> dict[str, Any]:
        """Compute a training iteration (counted from 1) again, show everything about it, and change no file.

        Starts from the newest checkpoint before it and trains the iterations in between in memory.

        Raises:
            ConfigError: it is beyond the last epoch.
        """
        settings = self.settings
        if iteration > settings.total_epochs * settings.total_iter_per_epoch:
            last = settings.total_epochs * settings.total_iter_per_epoch
            raise ConfigError(f"replay_iteration {iteration}: the run ends with iteration {last}.")
        checkpoint = self.run_folder.newest_good_checkpoint(before_iteration=iteration) if self.group.is_main else None
        if checkpoint is not None:
            self._load(checkpoint[0])
        elif self.group.is_main:
            self._take_given_weights()
        self._stand_where_main_stands()
        log.info("Replaying iteration %d from iteration %d.", iteration, self.iteration)
        for number in range(self.iteration + 1, iteration):
            self._flags.check()
            epoch = (number - 1) // settings.total_iter_per_epoch
            if number not in settings.skip_iterations:
                self.learner.meta_update(self._meta_gradients(number, epoch), epoch)
        epoch = (iteration - 1) // settings.total_iter_per_epoch
        report = self._iteration_report(iteration, epoch)
        log.info(json.dumps(report, indent=2))
        return report

    # --- saving and resuming ------------------------------------------------------------------------------------------

    def _save_if_due(self, under_way: EpochMetrics) -> None:
        """Save inside the epoch when the time has come, or when a signal has: then that ends the run.

        Raises:
            Interrupted: naming the iteration from which the run will go on.
        """
        number, is_time_to_save = self._flags.take()
        if number is not None:
            self._stop_now(under_way)
        if is_time_to_save and self.iteration > under_way.first_iteration:
            self._save_unfinished(under_way)

    def _stop_now(self, under_way: EpochMetrics) -> NoReturn:
        if self.iteration > under_way.first_iteration:
            self._save_unfinished(under_way)
        assert self.stop.received is not None
        raise Interrupted(self.stop.received, f"saved at iteration {self.iteration}, run the same command to go on")

    def _save_unfinished(self, under_way: EpochMetrics) -> None:
        self._check_for_non_finite(under_way)
        self.data.check_content()
        self.records.save_unfinished(*self._state({"under_way": under_way.state()}))
        self._saved()

    def _saved(self) -> None:
        self._flags.saved()
        self.observers.on_save(self.iteration)

    def _state(self, more: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds: tensors and JSON-able state."""
        state = {
            "epoch": self.epochs_done,
            "iteration": self.iteration,
            "rows": self.rows,
            "curves": self.curves,
            "metrics_jsonl_bytes": self.records.commit(),
            "automatic_choices": dict(self.learner.automatic_choices),
            "annealing_epochs": self.learner.annealing_epochs,
            "config": self.config,
            RUN_ID: self.run_folder.run_id,
            "data": self.data_record,
            "data_changes": self._data_changes,
            **(more or {}),
        }
        return self.learner.state_tensors() | random_state_tensors(self.device), state

    def _resume(self) -> None:
        """Stand where the newest good checkpoint stands, and make the files in logs/ agree with it."""
        only_testing = self.settings.evaluate_on_test_set_only
        metrics_jsonl_bytes = self._find_start() if self.group.is_main else 0
        if not only_testing:
            self.records.open(metrics_jsonl_bytes)
        self._stand_where_main_stands()
        if self.rows and not only_testing:
            self.records.write_epochs(self.rows, self.curves, self.settings.max_models_to_save)

    def _find_start(self) -> int:
        """Load the checkpoint, or given weights, to go on from; return the bytes of metrics.jsonl that belong to it."""
        newest = self.run_folder.newest_good_checkpoint()
        only_testing = self.settings.evaluate_on_test_set_only
        metrics_jsonl_bytes = 0
        if newest is not None:
            path, _ = newest
            metrics_jsonl_bytes = self._load(path)["metrics_jsonl_bytes"]
            if self._under_way is None and not only_testing:
                self.records.remove_unfinished()  # older than the epoch's own file
            if self.settings.load_checkpoint and not only_testing:
                log.info("load_checkpoint %s: without effect, this run has started.", self.settings.load_checkpoint)
            if not self.is_trained and not only_testing:
                where = f"at iteration {self.iteration}, in" if self._under_way else "after"
                epoch = self.epochs_done + 1 if self._under_way else self.epochs_done
                log.info("Resuming %s epoch %d (%s).", where, epoch, path.name)
        elif not only_testing:
            self._take_given_weights()
        return metrics_jsonl_bytes

    def _take_given_weights(self) -> None:
        """Begin a run with the weights that load_checkpoint names, if it does."""
        if self.settings.load_checkpoint:
            path = model_selection.chosen_checkpoint(self.run_folder.saved_models, self.settings.load_checkpoint)
            tensors, _ = load_checkpoint(path)
            self.learner.load_state_tensors(without_random_state(tensors), optimizer=False)
            log.info("Starting from the weights of %s.", path)

    def _stand_where_main_stands(self) -> None:
        """Let the other ranks take over everything from rank 0, which alone reads files."""
        if self.group.is_alone:
            return
        more = {"under_way": self._under_way.state()} if self._under_way else {}
        tensors, state = self.group.state_of_main(lambda: self._state(more))
        if not self.group.is_main:
            self._stand_at(tensors, state)

    def _load(self, path: Path) -> dict[str, Any]:
        """Stand where a checkpoint of this run stands; returns its state."""
        tensors, state = self.run_folder.load(path)
        self._check_data(state)
        self._stand_at(tensors, state)
        return state

    def _check_data(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on with other images or classes than a checkpoint was trained on: what was tested would have
        been trained on before, and validations would no longer be of the same tasks.

        Raises:
            DataError: naming what differs and how to go on.
        """
        before, now = state.get("data"), self.data_record
        if self.settings.tested_elsewhere or before is now is None:
            return
        if before is None:
            if not self.settings.evaluate_on_test_set_only:
                log.info("This checkpoint is of a release that kept no record of the data; the next one has it.")
            return
        changes = ["a source that says what it is made of before, one that does not now"]
        if now is not None:
            changes = data_changes(before, now)
            if unknown := unknown_splits(now):
                log.warning(
                    "%s: tasks that come from an iterator, or are drawn anew whenever they are read, cannot be known "
                    "again; whether the run goes on with those that it was started with is not checked.",
                    " and ".join(unknown),
                )
        # Once it was gone on with other data, every later result says so.
        self._data_changes = list(dict.fromkeys([*state.get("data_changes", ()), *changes]))
        if not changes:
            return
        if self.settings.evaluate_on_test_set_only or state.get(IS_BRANCH) or DATA in self.settings.allow_config_change:
            log.warning("Other data than this run was started with: %s", "; ".join(changes))
            return
        raise refuse_other_data(self.run_folder.path.name, changes)

    def _stand_at(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.learner.reuse_choices(state["automatic_choices"])
        self.learner.load_state_tensors(without_random_state(tensors))
        restore_random_state(tensors, self.device)
        self.rows, self.curves, self.iteration = state["rows"], state["curves"], state["iteration"]
        self._keep_schedule(state["annealing_epochs"])
        self._under_way = EpochMetrics(self.iteration, state["under_way"]) if "under_way" in state else None

    def _keep_schedule(self, stored_epochs: int) -> None:
        now = self.learner.annealing_epochs
        if now == stored_epochs or 0 in (now, stored_epochs):  # 0: a schedule without a period
            return
        # Over another number of epochs than before the rate would jump in the middle of the run.
        if self.settings.restart_schedule:
            over = counted(now, "epoch")
            log.info("restart_schedule: the meta learning rate is annealed over %s, not %d.", over, stored_epochs)
            return
        self.learner.anneal_over(stored_epochs)
        log.info(
            "The meta learning rate is annealed over %s, as when the run began; over %d with --restart_schedule true.",
            counted(stored_epochs, "epoch"),
            now,
        )

    # --- the final test -----------------------------------------------------------------------------------------------

    def test(self) -> dict[str, Any]:
        """Test the ensemble of the best models and each of them on the fixed test tasks, and write the results.

        Returns the content of test_summary.json; nothing on a rank that does not write.
        """
        tests = ModelTests(self.learner, self.task_sets, self.run_folder, self.settings, self.group, self._flags.check)
        summary = tests.run(self.rows, self.stopped_early, self._data_changes)
        self.observers.on_test(summary)
        return summary


def build_experiment(
    config: ExperimentConfig, learner: Learner, data: EpisodeSource, observers: Sequence[Observer],
    run_folder: RunFolder, device: torch.device | str = "cpu", stop: StopSignals | None = None,
    task_sets: Sequence[TaskSet] | None = None, group: RankGroup = ALONE,
) -> ExperimentBuilder:  # fmt: skip
    """Unpack the config; `run_folder` comes from `experiment_parts.runs.opening.open_run_folder`; task_sets None:
    the test tasks of `data`, which is then a `FixedEpisodeSource`.
    """
    task_sets = build_task_sets(config, data) if task_sets is None else task_sets
    settings = ExperimentSettings(**{name: getattr(config, name) for name in ExperimentSettings.__dataclass_fields__})
    return ExperimentBuilder(
        learner,
        data,
        observers,
        run_folder,
        settings,
        task_sets,
        config.to_json_dict(),
        device,
        stop,
        build_diagnostics(config, run_folder.logs),
        group,
    )
