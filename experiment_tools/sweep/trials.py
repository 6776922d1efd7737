"""The trials of a sweep: what was tried, how it went, which point comes next, and which trial is hopeless."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiment_tools.sweep.file import Choice, Range, Sweep, trial_config
from utils.errors import ConfigError, StorageError
from utils.files.atomic_files import write_bytes_atomically
from utils.files.reading import parse_toml, read_object, read_text, why_unreadable
from utils.files.tables import write_json
from utils.machine.packages import extras_command

LEAST_RIVALS = 3
"""Trials that must have come as far before one is pruned against them."""


@dataclass
class Trial:
    """One point and what came of it."""

    number: int
    point: dict[str, Any]
    state: str = "waiting"
    """waiting, running, complete, pruned or failed."""
    accuracies: dict[int, float] = field(default_factory=dict)
    """Epoch -> validation accuracy."""
    note: str = ""

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"trial_{self.number:03}"

    @property
    def is_done(self) -> bool:
        return self.state in ("complete", "pruned")

    @property
    def value(self) -> float | None:
        """The best validation accuracy."""
        return max(self.accuracies.values(), default=None)

    def best_until(self, epoch: int) -> float | None:
        """Return the best validation accuracy up to this epoch; None where the trial did not come so far."""
        if max(self.accuracies, default=0) < epoch:
            return None
        return max(accuracy for number, accuracy in self.accuracies.items() if number <= epoch)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the best validation accuracy; of equals the first. Failed ones do not count."""
    scored = [trial for trial in trials if trial.value is not None and trial.is_done]
    return max(scored, key=lambda trial: (trial.value, -trial.number), default=None)


def is_hopeless(trial: Trial, trials: Sequence[Trial], after_epochs: int) -> bool:
    """Return whether the median rule (Golovin et al. 2017) stops a trial: its best accuracy so far is below the median
    of the others' at the same epoch.

    Args:
        after_epochs: epochs that every trial has; 0: nothing is pruned.
    """
    epoch = max(trial.accuracies, default=0)
    if not after_epochs or epoch < after_epochs:
        return False
    rivals = [
        value
        for other in trials
        if other.is_done and other is not trial and (value := other.best_until(epoch)) is not None
    ]
    return len(rivals) >= LEAST_RIVALS and trial.best_until(epoch) < statistics.median(rivals)


def next_point(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the point of the next trial.

    Raises:
        ConfigError: tpe without Optuna.
    """
    if sweep.method != "tpe":
        return sweep.points(len(trials) + 1)[-1]
    return _suggested(sweep, trials)


def _suggested(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """Ask Optuna's tree-structured Parzen estimator, given everything so far; its study lives in trials.json alone."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f'method "tpe" needs Optuna: {extras_command("sweep")}; or use the method "random"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(parameter) for name, parameter in sweep.parameters.items()}
    sampler = optuna.samplers.TPESampler(
        seed=sweep.seed + len(trials), n_startup_trials=max(3, min(10, sweep.trials // 4)), constant_liar=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    states = {"complete": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    for trial in trials:
        if trial.state == "failed" or (trial.state == "complete" and trial.value is None):
            continue
        point = {
            name: json.dumps(trial.point[name]) if isinstance(parameter, Choice) else trial.point[name]
            for name, parameter in sweep.parameters.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=point,
                distributions=distributions,
                value=trial.value if trial.state == "complete" else None,
                state=states.get(trial.state, optuna.trial.TrialState.RUNNING),
                intermediate_values=dict(trial.accuracies),
            )
        )
    suggested = study.ask(fixed_distributions=distributions).params
    return {
        name: json.loads(suggested[name]) if isinstance(parameter, Choice) else suggested[name]
        for name, parameter in sweep.parameters.items()
    }


def _distribution(parameter: Choice | Range) -> Any:
    from optuna import distributions

    if isinstance(parameter, Choice):
        return distributions.CategoricalDistribution([json.dumps(value) for value in parameter.values])
    kind = distributions.IntDistribution if parameter.is_whole else distributions.FloatDistribution
    return kind(parameter.low, parameter.high, log=parameter.log)


# --- on the disk ------------------------------------------------------------------------------------------------------


def load_trials(folder: Path, sweep: Sweep) -> list[Trial]:
    """Load the trials so far; those that were under way or failed will be run again. Keep a copy of the sweep file.

    Raises:
        ConfigError: the sweep has started with another file; only `trials` may change. Or with another template.
        StorageError: trials.json is damaged.
    """
    copy = folder / "sweep.toml"
    try:
        is_other = copy.exists() and _without_count(read_text(copy)) != _without_count(sweep.text)
    except (OSError, ValueError) as error:
        raise StorageError(f"{copy}: {why_unreadable(error)}. Move {folder} away to begin the sweep anew.") from error
    if is_other:
        raise ConfigError(
            f"{copy}: the sweep {sweep.name} has started with another sweep file than this. Restore it (only trials "
            "may change), "
            "or give the changed file another name, which begins another sweep."
        )
    write_bytes_atomically(copy, sweep.text.encode())
    path = folder / "trials.json"
    if not path.exists():
        return []
    try:
        trials = [
            Trial(**entry | {"accuracies": {int(epoch): value for epoch, value in entry["accuracies"].items()}})
            for entry in read_object(path)["trials"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: damaged ({error}). Move {folder} away to begin the sweep anew.") from error
    for trial in trials:
        if trial.is_done:
            _check_template(folder, sweep, trial)
        else:
            trial.state, trial.note = "waiting", ""
    return trials


def config_path(folder: Path, trial: Trial) -> Path:
    """Return the file of a trial's config."""
    return folder / "configs" / f"{trial.name}.json"


def _check_template(folder: Path, sweep: Sweep, trial: Trial) -> None:
    """Refuse a sweep whose trials to come would differ from one that is done in more than the parameters."""
    now = trial_config(sweep, trial.name, trial.point)
    try:
        before = read_object(config_path(folder, trial))
    except (OSError, ValueError):  # not there any more
        return
    if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        raise ConfigError(
            f"{config_path(folder, trial)}: the template has changed since this trial ({', '.join(changed)}), so that "
            "later ones would not compare with it. Restore the template, or give the sweep file another name, which "
            "begins another sweep."
        )


def save_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Write trials.json, the only thing that a sweep goes on from beside the run folders."""
    write_json(folder / "trials.json", {"trials": [asdict(trial) for trial in trials]})


def _without_count(text: str) -> dict[str, Any]:
    return {key: value for key, value in parse_toml(text).items() if key != "trials"}
