"""One process of a run that several work on (a rank): what it has from its launcher, and how it stops and leaves. Needs
no torch.

torchrun turns every exit code into 1 and starts again what left on purpose. So a rank that leaves on purpose writes
down its exit code, as `left_<rank>.json` in a private folder of the launcher, and leaves with 0; the others follow
it, and the launcher leaves with that code. Asking the ranks to stop is a file as well: `stop`, which holds the
number of a signal.
"""

import fcntl
import json
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, Interrupted, PeerLostError
from utils.machine.failures import BUG, report_failure
from utils.machine.host import die_with_parent

FOLDER = "FEW_SHOT_RANKS_FOLDER"
"""Environment variable: the launcher's private folder on this machine."""
PARENT = "FEW_SHOT_RANKS_PARENT"
"""Environment variable: the process without which this one must not live on."""
ENDPOINT = "FEW_SHOT_RANKS_ENDPOINT"
"""Environment variable: where the launchers of several machines meet, as `--rdzv_endpoint` has it."""
LOST_CONTACT = 75
"""Exit code of a rank that has lost another one."""
NOT_ALL_CAME, RUN_WAS_ENDED, NO_ANSWER = 76, 77, 78
"""Exit codes of torchrun's process: a machine is missing; another machine has ended the run; the place where they meet
is silent.
"""
POLL_S = 0.1
TIME_TO_FOLLOW_S = 10.0
"""For a rank to leave by itself after another has left on purpose, and for rank 0 to speak first."""
TIME_TO_BE_ASKED_S = 2.0
"""Between torchrun's SIGTERM, by which it ends the rest of a group that has lost a process, and leaving."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """Place of this process among those of the run."""

    index: int
    size: int
    local_index: int
    """Among those on this machine."""
    local_size: int
    folder: Path | None
    """None: started by torchrun itself, without this project's launcher."""

    @property
    def place_on_machine(self) -> tuple[int, int]:
        """Index among the processes on this machine, and their number."""
        return self.local_index, self.local_size

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes."""
        return self.index == 0

    @property
    def on_several_machines(self) -> bool:
        """Whether not all ranks see this one's folder."""
        return self.size != self.local_size

    def asked_to_stop(self) -> int | None:
        """Return the number of the signal by which the launcher was asked to stop."""
        try:
            return int((self.folder / "stop").read_text()) if self.folder else None
        except (OSError, ValueError):
            return None

    def has_left(self) -> bool:
        """Return whether a rank has left on purpose."""
        return self.folder is not None and departure(self.folder) is not None

    def write_departure(self, entry: Mapping[str, Any], *, elsewhere: bool = False) -> None:
        """Write down that this machine's ranks leave on purpose, and with which exit code.

        Args:
            elsewhere: another machine says so. Such an entry gives way to one of this machine's ranks, which may be
                written at the same time: whoever notifies the other machines hears of itself, too.
        """
        if self.folder is not None:
            path = self.folder / f"left_{self.index + self.size * elsewhere}.json"
            temporary = path.with_suffix(".partial")
            temporary.write_text(json.dumps({**entry, "elsewhere": elsewhere}))
            temporary.rename(path)

    def leave(self, error: BaseException | None, notify_others: Callable[[str], None] | None = None) -> int:
        """Report the end of this process, write it down, and return the exit code for torchrun.

        Rank 0 speaks for all; another one speaks where rank 0 has not for a while. A process that has only lost
        contact with another one, or whose machine failed, has not left on purpose: torchrun starts the group again.

        Args:
            error: None where the run is finished.
            notify_others: called with what is written down, before this process ends: for ranks on other machines.
        """
        if error is None and self.local_index:
            return 0
        is_fault = _is_fault(error)
        if (is_fault or not self.is_main) and self._follows(TIME_TO_BE_ASKED_S if is_fault else TIME_TO_FOLLOW_S):
            return 0
        if is_fault:
            level = logging.WARNING if isinstance(error, PeerLostError) else logging.ERROR
            log.log(level, "rank %d of %d: %s", self.index, self.size, str(error).strip().splitlines()[0])
            return LOST_CONTACT if isinstance(error, PeerLostError) else BUG
        code = 0 if error is None else report_failure(error)
        if self.folder is None:
            return code
        entry = {
            "code": code,
            "signal": error.number if isinstance(error, Interrupted) else None,
            "text": str(error or ""),
        }
        if notify_others is not None:
            notify_others(json.dumps(entry))
        self.write_departure(entry)
        return 0

    def _follows(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not self.has_left():
            if self.folder is None or time.monotonic() > deadline:
                return False
            time.sleep(POLL_S / 4)
        return True


def _is_fault(error: BaseException | None) -> bool:
    """Return whether starting again may help: contact was lost, or a device failed."""
    return isinstance(error, PeerLostError) or type(error).__name__ == "AcceleratorError"


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Return what torchrun and the launcher have written for this process; None: it is alone.

    Raises:
        ConfigError: half of it is there.
    """
    if "TORCHELASTIC_RUN_ID" not in environment or "RANK" not in environment:
        return None
    try:
        numbers = [int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"environment: RANK is set as torchrun does it, but another of its variables is not right: {error}"
        ) from error
    folder = environment.get(FOLDER)
    return Rank(*numbers, Path(folder) if folder else None)


def check_task_count(n_tasks: int, n_ranks: int) -> None:
    """Refuse a meta-batch in which a rank would have no task.

    Raises:
        ConfigError: fewer tasks than ranks.
    """
    if n_tasks < n_ranks:
        raise ConfigError(
            f"batch_size times samples_per_iter is {n_tasks}, but {n_ranks} processes share these tasks, each at "
            "least one. "
            "Raise batch_size or use fewer GPUs."
        )


def departure(folder: Path) -> dict[str, Any] | None:
    """Return what the ranks here have written down about leaving on purpose; of several the lowest rank's, and what is
    from elsewhere last.
    """
    found = {int(path.stem.removeprefix("left_")): path for path in folder.glob("left_*.json")}
    return json.loads(found[min(found)].read_text()) if found else None


def begin_rank() -> bool:
    """Make this process one of its group: it dies with its parent, and a thread checks whether it is to stop.

    Ends the process where the group has left already. Call it before slow imports. Returns false where the launcher
    has started none.
    """
    rank = this_rank()
    if rank is None or rank.folder is None:
        return False
    parent = int(os.environ[PARENT])
    die_with_parent(parent)
    if rank.has_left():
        os._exit(0)
    _hold(rank.folder / f"began_{rank.index}")
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(rank, parent, reading), name="watching the launcher", daemon=True).start()
    return True


def _hold(path: Path) -> None:
    """Lock a file until this process ends, however it ends: the system lets it go."""
    fcntl.lockf(os.open(path, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)


def is_running(folder: Path) -> bool:
    """Return whether a rank of the launcher of this folder runs: a dead one that was not waited for does not."""
    for path in folder.glob("began_*"):
        try:
            with open(path, "rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


waits_for_others = threading.Event()
"""Set while this process has nothing to save and may never come further: it follows at once."""


def _watch(rank: Rank, parent: int, signals: int) -> None:
    """Signal this process when the launcher asks to stop; end it when it does not follow the others or has lost its
    parent.
    """
    ask_again_at = 0.0
    left_at = killed_at = float("inf")
    while True:
        if select.select([signals], [], [], POLL_S)[0] and signal.SIGTERM in os.read(signals, 4096):
            killed_at = min(killed_at, time.monotonic())
        number, now = rank.asked_to_stop(), time.monotonic()
        if number is not None and now > ask_again_at:  # again: while the program starts it does not listen
            ask_again_at = now + 1.0
            os.kill(os.getpid(), number)
        if rank.has_left():
            left_at = min(left_at, now)
        if now - left_at > TIME_TO_FOLLOW_S or (left_at < now and waits_for_others.is_set()):
            os._exit(0)
        if os.getppid() != parent or (number is None and now - killed_at > TIME_TO_BE_ASKED_S):
            os._exit(1)
