"""SIGINT, SIGTERM and SIGUSR1 as requests to stop: save first, then leave with the promised exit code.

While the process starts, imports and shuts down there is nothing to save: a signal ends it there and then. While its
data are unpacked, drawn and decoded, a signal is raised, so that half-made files are removed. While it trains,
validates or tests, the handler only takes a note, which is read between iterations and between batches of
evaluation tasks.

One process of several (`utils.ranks.rank`) stops only where its launcher has asked for it, and not while it imports:
the others wait for it.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from utils.errors import Interrupted

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_NOTE = "RUN_STOPPED_FILE"
"""Environment variable: a file to say in that a signal has stopped the run, for schedulers to which SIGUSR1's exit
code 0 says nothing.
"""
_settled_code: list[int] = []
"""The exit code, once the process has nothing left to do but to end."""


def guard_process(*, alone: bool = True) -> None:
    """Give these signals their exit codes from here to the last instruction of the process. Call it before slow
    imports.

    What was blocked by the launcher, so that nothing comes while the interpreter starts, is let in now. What the
    process was started to ignore stays ignored.

    Args:
        alone: false for one of several: what comes before `StopSignals` listens is left out.
    """
    _handle_all(_leave_at_once if alone else lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    atexit.register(_skip_the_rest)  # what is registered first runs last


def end_process(code: int) -> None:
    """Leave with this exit code; a signal on the way (a logger that uploads, threads that end) only makes it
    quicker.
    """
    _settled_code.append(code)
    _handle_all(lambda *_: os._exit(code))
    sys.exit(code)


def _skip_the_rest() -> None:
    """Leave after threads have ended and exit callbacks have run.

    The interpreter would only free memory, object by object, for most of a second with torch; and without its
    handlers, so that a signal would make a killed run out of a finished one.
    """
    if _settled_code:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_settled_code[0])


def _handle_all(handler: object) -> None:
    for number in HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)  # type: ignore[arg-type]


def _leave_at_once(number: int, _frame: object = None) -> None:
    error = Interrupted(signal.Signals(number))
    leave_note(error)
    with contextlib.suppress(OSError):
        os.write(2, f"{error}\n".encode())
    os._exit(error.exit_code)


def leave_note(text: object) -> None:
    """Write what stopped the run, e.g. "SIGUSR1: saved at iteration 12, ...", where a scheduler has asked for it."""
    if path := os.environ.get(STOP_NOTE):
        with contextlib.suppress(OSError):
            Path(path).write_text(f"{text}\n")


class StopSignals:
    """A context manager that handles the signals and puts the old handlers back.

    A second SIGINT (Ctrl-C) leaves at once, whatever is under way: files are safe at any moment. What the process was
    started to ignore (SIGINT below `nohup` or in a background job) stays ignored.
    """

    def __init__(self, asked_to_stop: Callable[[], int | None] | None = None) -> None:
        """`asked_to_stop`: in one process of several, the signal with which the launcher was stopped; others are
        left out.
        """
        self.received: signal.Signals | None = None
        self._asked_to_stop = asked_to_stop
        self._answer = self._raise
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _handle(self, number: int, _frame: object) -> None:
        if self._asked_to_stop is not None:
            asked = self._asked_to_stop()
            if asked is None or self.received is not None:
                return
            number = asked
        if self.received is not None:
            if number == signal.SIGINT:
                with contextlib.suppress(OSError):
                    os.write(2, b"\nStopped at once.\n")
                os._exit(Interrupted(signal.SIGINT).exit_code)
            return
        self.received = signal.Signals(number)
        self._answer(number)

    def _raise(self, number: int) -> None:
        raise Interrupted(signal.Signals(number))

    def deferred(self) -> AbstractContextManager[None]:
        """Inside, a signal is only noted; `check` is where it ends the run."""
        return self._answering(lambda _: None)

    def at_once(self) -> AbstractContextManager[None]:
        """Inside, a signal ends the process there and then: for foreign code in which an exception must not come up."""
        return self._answering(_leave_at_once if self._asked_to_stop is None else lambda _: None)

    @contextlib.contextmanager
    def _answering(self, answer: object) -> Iterator[None]:
        before, self._answer = self._answer, answer
        try:
            yield
        finally:
            self._answer = before

    def defer_from_now_on(self) -> None:
        """Only note signals from now on: the outcome is settled, and is reported undisturbed."""
        self._answer = lambda _: None

    def check(self) -> None:
        """Raise Interrupted when a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)
