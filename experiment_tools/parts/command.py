"""How a tool speaks and ends: its messages go where a run's go, and what it raises becomes an exit code."""

import functools
from collections.abc import Callable, Sequence

from experiment_parts.runs.console import Console
from utils.machine.failures import report_failure


def on_console(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Let the main function of a tool log to the terminal; whatever it raises is reported as a run reports it."""

    @functools.wraps(main)
    def command(arguments: Sequence[str] | None = None) -> int:
        with Console():
            try:
                return main(arguments)
            except Exception as error:  # noqa: BLE001 -- the last resort, which shows the traceback
                return report_failure(error)

    return command
