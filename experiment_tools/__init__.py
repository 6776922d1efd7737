"""What one does around a run: a module is a command, or what several of them share."""

import atexit
import os
import select
import signal
import sys
from types import TracebackType
from typing import TextIO


def _has_lost_its_reader(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _leave_readers_that_are_gone() -> bool:
    """Send to nowhere what is still to be printed where nobody reads it any more (`| head`); returns whether that is
    so.
    """
    # No SIGPIPE as Unix tools have it: the demo's browser, or a process that a tool reads from, may go away without
    # ending the tool.
    gone = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _has_lost_its_reader(stream)]
    for stream in gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(gone)


def _print_the_rest() -> None:
    """Flush what is printed before Python does, who would complain where the reader goes away."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _leave_readers_that_are_gone()


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a missing package in one line, with what to do; nothing where the reader has gone; else as ever."""
    if issubclass(kind, BrokenPipeError) and _leave_readers_that_are_gone():
        sys.exit(128 + signal.SIGPIPE)
    if issubclass(kind, ModuleNotFoundError):
        from utils.machine.packages import requirements, set_up_command

        package = str(error.name).partition(".")[0]
        if package in {requirement.module for requirement in requirements()}:
            print(f"The package {package} is missing in {sys.executable}. Run: {set_up_command()}", file=sys.stderr)
            return
    sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # a tool is being started, as opposed to imported
    sys.excepthook = _show_error
    atexit.register(_print_the_rest)
