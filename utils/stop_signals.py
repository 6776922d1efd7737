"""SIGINT, SIGTERM and SIGUSR1 as requests to stop: save first, then leave.

While a run is set up there is nothing to save, so a signal ends it there and then. While it trains, validates or tests,
the handler only takes a note, which is looked at between iterations and between batches of evaluation tasks.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from utils.errors import Interrupted

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """A context manager that handles the signals and puts the old handlers back.

    A second SIGINT (Ctrl-C) leaves at once, whatever is under way: files are safe at any moment. What the process was
    started to ignore (SIGINT below `nohup` or in a background job) stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_deferred = False
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
        if self.received is not None:
            if number == signal.SIGINT:
                os.write(2, b"\nStopped at once.\n")
                os._exit(Interrupted(signal.SIGINT).exit_code)
            return
        self.received = signal.Signals(number)
        if not self._is_deferred:
            raise Interrupted(self.received)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted; `check` is where it ends the run."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)
