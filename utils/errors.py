"""Errors that a user can mend: one class per exit code, raised where the value is first understood.

`train_maml_system.main` prints the text of these, without a traceback, and leaves with `exit_code`. Everything else
is a bug and keeps its traceback (exit code 70).
"""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable

from utils.words import guarded_output, say


class UserError(Exception):
    """Base of all errors whose text names what to change. Not raised itself.

    >>> from mamlkit import UserError, load_config
    >>> try:
    ...     load_config(None, {"experiment_name": "mine", "batch_sise": 4})
    ... except UserError as error:
    ...     print(error)
    overrides: unknown key "batch_sise"; did you mean "batch_size"?
    """

    exit_code = 1


class ConfigError(UserError):
    """A key, value or argument that cannot work. Names the file or key, the value, what is allowed and the fix."""

    exit_code = 1


class DataError(UserError):
    """A dataset that is missing, damaged or too small. Lists every problem with its path."""

    exit_code = 2


class NonFiniteError(UserError):
    """A loss or gradient that is not finite. Names the iteration and the episodes."""

    exit_code = 3


class StorageError(UserError):
    """A file that cannot be written or read back: no space, no permission, damaged. Names the path."""

    exit_code = 4


class DamagedCheckpointError(StorageError):
    """A checkpoint whose content is not what was written: another one can be used in its place, unlike one that
    cannot be read now.
    """


class ExperimentInUseError(UserError):
    """Another process holds this experiment's folder. Names host, process and start time."""

    exit_code = 5


def user_error(error: BaseException) -> UserError | None:
    """Return the error that a user can mend which an exception is or stands for; None: it is a bug."""
    if isinstance(error, FileNotFoundError) and error.filename is None and os.stat(".").st_nlink == 0:
        return ConfigError("the current folder has been removed; change to one that is there, and start again")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # names are the user's, wherever they end up
        return ConfigError(
            f"{str(error.filename)[:200]}...: a name of more than 255 bytes or a path of more than 4,095, which no "
            "file can have. Give a shorter one."
        )
    return error if isinstance(error, UserError) else None


def prints_user_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Let the main function of a command print the text of a UserError and return its exit code."""

    @functools.wraps(main)
    def command(*arguments: object, **options: object) -> int:
        with guarded_output():
            try:
                return main(*arguments, **options)
            except (UserError, OSError) as error:
                mendable = user_error(error)
                if mendable is None:
                    raise
                say(mendable, file=sys.stderr)
                return mendable.exit_code

    return command


class PeerLostError(Exception):
    """Another process of the same run is gone.

    Not the user's to mend: the launcher starts the run again from its last save.
    """


class Interrupted(BaseException):
    """A signal asks the process to stop. Not an Exception, so that nothing takes it for an error to recover from."""

    def __init__(self, number: signal.Signals, text: str = "nothing is lost, run the same command to go on"):
        super().__init__(f"{number.name}: {text}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """0 after SIGUSR1, by which schedulers ask to save in time; else 128 + number, as shells have it."""
        return 0 if self.number == signal.SIGUSR1 else 128 + self.number
