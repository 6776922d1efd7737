"""Train and test a run, or go on with it: `python train_maml_system.py --name_of_args_json_file CONFIG.json
[--key value ...]`.

Reads the config, opens the run folder, wires data, learner, builder and observers, and runs. Everything that can be
found wrong without torch is found before the seconds of its import.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.machine.packages import missing_to_train, set_up_command
from utils.paths import PACKAGE, REPOSITORY_ROOT, __version__, child_process, experiments_root

if missing := missing_to_train():
    advice = f"Run once: bash {REPOSITORY_ROOT}/install.sh; then start with the Python that bash "
    advice += f"{REPOSITORY_ROOT}/install.sh --print-python names, in most cases {REPOSITORY_ROOT}/.venv/bin/python"
    advice = f"Run: {set_up_command()}" if PACKAGE else advice
    sys.exit(f"The package {missing[0]} is missing in {sys.executable}. {advice}")

from utils.machine import stop_signals
from utils.ranks import rank as ranks

if __name__ == "__main__":  # before the imports below, that of pydantic among them, which take a second or two
    stop_signals.guard_process(alone=not ranks.begin_rank())

from experiment_parts.evaluation.task_sets import build_other_task_sets, build_task_sets, protocols_of
from experiment_parts.evaluation.test_results import stored_result
from experiment_parts.runs.beginning import check_beginning
from experiment_parts.runs.console import Console
from experiment_parts.runs.dry_run import dry_run
from experiment_parts.runs.opening import add_start, open_run_folder
from experiment_parts.runs.run_folder import RunFolder
from experiment_parts.runs.same_data import has_started_with_copies
from utils.config import ExperimentConfig, load_config
from utils.config.command_line import options_of, read_command_line
from utils.config.help import USAGE, help_text
from utils.config.messages import COMMAND_LINE
from utils.errors import ConfigError, Interrupted, UserError, prints_user_errors
from utils.machine.failures import report_failure
from utils.machine.host import tune_host
from utils.ranks.command import notify_other_machines, remember_opened, was_opened
from utils.ranks.launch import plan_launch, run_ranks, split_arguments
from utils.registry import fault_of_plugin
from utils.registry.choices import fact
from utils.words import say

log = logging.getLogger(__name__)
NOT_TESTED = (
    "Trained and not tested, as test_after_training is false. To test it: the same command with "
    "--test_after_training true"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment, as the scripts do; call it from Python with the arguments that a script would be given.

        >>> from mamlkit import train
        >>> train(["quickstart", "--total_epochs", "2"])  # doctest: +SKIP
        0
        >>> train(["quickstart", "--total_epochs", "none"])  # what is wrong is printed
        1

    Args:
        arguments: for example ["--name_of_args_json_file", "experiment_config/quickstart.json", "--total_epochs",
            "2"]; None: those of the command line.
    Returns:
        the exit code: 0 finished or paused, otherwise see `utils.errors`. What went wrong is printed, not raised.
    Raises:
        ConfigError: the arguments are one text, not a list of words.
    """
    if isinstance(arguments, str):
        raise ConfigError(f'train({arguments!r}): arguments are a list of words, such as ["quickstart"]')
    arguments = [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if {"-h", "--help"}.intersection(arguments):
        return _help([argument for argument in arguments if argument not in ("-h", "--help")])
    if "--version" in arguments:
        print(__version__)
        return 0
    rank = ranks.this_rank()
    quiet, asked_to_stop = (
        (False, None) if rank is None else (not rank.is_main, rank.asked_to_stop if rank.folder else None)
    )
    with Console(quiet=quiet) as console, stop_signals.StopSignals(asked_to_stop) as stop:
        code, failure = 0, None
        try:
            try:
                code = run(arguments, console, stop, rank)
            finally:
                stop.defer_from_now_on()
        except (Exception, Interrupted) as error:  # noqa: BLE001 -- the last resort, which shows the traceback
            failure = fault_of_plugin(error) or error
            if isinstance(error, Interrupted) and (rank is None or rank.folder is None):
                stop_signals.leave_note(error)
        if rank is not None:
            return rank.leave(failure, notify_other_machines if rank.on_several_machines else None)
        return code if failure is None else report_failure(failure)


@prints_user_errors
def _help(arguments: list[str]) -> int:
    """Print usage and every key, those of plugins among them."""
    if "--plugin" in arguments:
        read_command_line(split_arguments(arguments)[1])
    say(help_text())
    return 0


def run(arguments: list[str], console: Console, stop: stop_signals.StopSignals, rank: ranks.Rank | None) -> int:
    """Train and test the experiment of these arguments, or show the result of one that is finished; returns the exit
    code.

    Several GPUs: this process starts others for it and stays with them.

    Raises:
        ConfigError: no config, or one that cannot work. Other UserError of `utils.errors`: bad data, no space, ...
        Interrupted: a signal came; everything is saved.
    """
    launch_options, arguments = split_arguments(options_of(arguments))
    json_path, overrides = read_command_line(arguments)
    if json_path is None and "experiment_name" not in overrides:
        raise ConfigError(
            f"command line: --name_of_args_json_file is missing, the path of a config\n{USAGE}\n--help lists the keys"
        )
    config = load_config(json_path, overrides, place=COMMAND_LINE)
    launch = plan_launch(config.gpu_to_use, launch_options) if rank is None else None
    if launch is not None:
        if json_path is not None and not json_path.is_file():
            raise ConfigError(f"{json_path}: can be read once, but each process of a run reads it; give a file")
        _check_ranks(config, launch.n_ranks)
        if launch.on_one_machine and not config.dry_run:
            RunFolder(experiments_root() / config.experiment_name).check_not_in_use(within_s=2.0)
        return run_ranks(child_process("train"), arguments, launch, config.experiment_name, stop)
    if config.dry_run:
        with dry_run(config) as (limited, folder):
            run_experiment(limited, folder, console, stop, rank=rank)
        return 0
    source = config.experiment_of_file if "experiment_name" in overrides else None
    run_experiment(config, experiments_root(), console, stop, source, rank)
    return 0


def run_experiment(
    config: ExperimentConfig, folder: Path, console: Console, stop: stop_signals.StopSignals,
    source_experiment: str | None = None, rank: ranks.Rank | None = None,
) -> None:  # fmt: skip
    """Open the run folder of a config below `folder` and run what is left to do in it; of several ranks the first
    does so.
    """
    if rank is not None:
        _check_ranks(config, rank.size)
        if not rank.is_main:
            _train_and_test(config, RunFolder(folder / config.experiment_name), stop, rank)
            return
    start = config.continue_from_epoch
    acts_once = start == "from_scratch" or (start != "latest" and source_experiment is None)
    if acts_once and was_opened(rank):
        # Renaming the folder again would lose what the first start has trained, and it may have newer epochs than the
        # one named.
        config = config.model_copy(update={"continue_from_epoch": "latest"})
    run_folder = open_run_folder(
        folder, config.experiment_name, config.to_json_dict(),
        continue_from_epoch=config.continue_from_epoch, only_testing=config.evaluate_on_test_set_only,
        keeps_config=bool(config.replay_iteration),
        source_experiment=source_experiment, allowed_changes=config.allow_config_change,
    )  # fmt: skip
    try:
        if acts_once:
            remember_opened(rank)
        if run_folder.is_held:  # else it is another user's, or its disk is read only, and it can only be shown
            console.open_run_log(run_folder.logs / "run.log")
        for note in config.notes:
            log.info("note: %s", note)
        if _shows_its_result(config, run_folder):
            return
        if not (run_folder.is_held or config.replay_iteration):
            run_folder.create()  # says why what is left to do cannot be done
        if config.initial_weights and (config.replay_iteration or not run_folder.has_checkpoints()):
            check_beginning(config)
        _train_and_test(config, run_folder, stop, rank)
    except (UserError, Interrupted):
        run_folder.remove_failed_start()
        raise
    finally:
        run_folder.unlock()


def _shows_its_result(config: ExperimentConfig, run_folder: RunFolder) -> bool:
    """Show the result of a finished run again; returns whether there is one and nothing else was asked for."""
    result = stored_result(
        run_folder,
        config.total_epochs,
        protocols_of(config),
        config.number_of_ensemble_models,
        with_curve=config.test_curve,
        with_baselines=config.test_baselines,
        patience=config.early_stopping_patience,
    )
    if result is None or config.evaluate_on_test_set_only or config.replay_iteration:
        return False
    from experiment_tools.parts.terminal_texts import next_command

    report = run_folder.visual_outputs / "report.html"
    report_line = f"Report: {report}\n" if report.exists() else ""
    log.info("%s\n%s%s", result, report_line, next_command(run_folder.path))
    return True


def _check_ranks(config: ExperimentConfig, n_ranks: int) -> None:
    """Refuse what so many processes cannot share.

    Raises:
        ConfigError: there are not as many tasks for each, or what a task contributes depends on the others.
    """
    ranks.check_task_count(config.tasks_per_meta_batch, n_ranks)
    if n_ranks > 1 and not fact("outer_loss", config.outer_loss, "is_mean", False):
        raise ConfigError(
            f'"outer_loss" {config.outer_loss} looks at all tasks of a meta-batch together, which {n_ranks} processes '
            'share; train on one GPU, or set "outer_loss" to "mean"'
        )
    if n_ranks > 1 and config.sharpness_radius:
        raise ConfigError(
            f'"sharpness_radius" {config.sharpness_radius} moves along the gradient of a whole meta-batch, which '
            f'{n_ranks} processes share; train on one GPU, or set "sharpness_radius" to 0'
        )


def _train_and_test(
    config: ExperimentConfig, run_folder: RunFolder, stop: stop_signals.StopSignals, rank: ranks.Rank | None
) -> None:
    tune_host()
    with stop.at_once():  # an exception that comes up in torch's imports, some of them late, can abort the process
        import torch

        from data import build_data, build_other_data
        from experiment_builder import build_experiment
        from experiment_parts.trackers import build_trackers
        from experiment_tools.parts.settings import given_files
        from experiment_tools.parts.terminal_texts import next_command, start_banner
        from experiment_tools.report.observer import build_report_observer
        from few_shot_learning_system import build_learner
        from utils.machine.devices import choose_device, describe_device, make_deterministic
        from utils.machine.environment import describe_environment
        from utils.ranks.group import join_group
        from utils.ranks.same_start import check_same_data, check_same_folder, check_same_program

        if config.deterministic:
            make_deterministic()
        device = choose_device(config.gpu_to_use, rank and rank.place_on_machine)
        group = join_group(rank, device)
        others = "" if group.is_alone else f", the first of {group.size} processes that share the tasks"
        log.info("%s: %s%s", config.experiment_name, describe_device(device), others)
        check_same_program(group, config.to_json_dict())
        if rank is not None and rank.on_several_machines and not config.dry_run:
            check_same_folder(group, run_folder.path, run_folder.newest_save)
        # PyTorch's own start differs between processes, and checkpoints hold its state.
        torch.manual_seed(config.initialisation_seed)
    dtype = getattr(torch, config.parameter_format)
    keep_copies = group.of_main(lambda: has_started_with_copies(run_folder))
    with group.in_turn():  # one unpacks and decodes what all of a machine use
        if group.local_index:  # and has rebuilt it, where that was asked for
            config = config.model_copy(update={"reset_stored_filepaths": False})
        if config.tested_elsewhere:
            task_sets = build_other_task_sets(config, build_other_data(config, device, dtype, keep_copies=keep_copies))
            data = task_sets[0].data  # nothing is trained on it
            summary = {tasks.protocol["dataset"]: tasks.data.summary() for tasks in task_sets}
        else:
            data = build_data(config, device, dtype, keep_copies=keep_copies)
            task_sets, summary = build_task_sets(config, data), data.summary()
    check_same_data(group, summary)
    with stop.at_once():
        # A run that resumes needs no file of initial weights any more; a rank takes all of its state from the first.
        resumes = (run_folder.has_checkpoints() and not config.replay_iteration) or not group.is_main
        begins = config.model_copy(update={"initial_weights": ""}) if resumes else config
        learner = build_learner(begins, device)
        observers = []
        if group.is_main:
            if run_folder.is_held:
                environment = describe_environment(device, summary) | {"processes": group.size, **given_files(begins)}
                add_start(run_folder.path / "environment.json", environment)
            observers = [*build_report_observer(config), *build_trackers(config)]
            log.info(start_banner(config, learner.description()))
        experiment = build_experiment(config, learner, data, observers, run_folder, device, stop, task_sets, group)
    experiment.run()
    if group.is_main and run_folder.logs.joinpath("test_summary.json").exists() and not config.dry_run:
        log.info(next_command(run_folder.path))
    elif experiment.is_trained and not config.test_after_training:
        log.info(NOT_TESTED)


if __name__ == "__main__":
    stop_signals.end_process(main())
