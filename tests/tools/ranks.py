"""Several processes of a run on this machine: forks of this one, so that nobody waits for imports, on the loopback
interface.
"""

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from utils.ranks.group import RankGroup, join_group
from utils.ranks.rank import Rank, this_rank

LIMIT_S = 300
"""For a start under torchrun on a busy machine; a few seconds on a quiet one."""


def free_port() -> int:
    """A port of the loopback interface that nobody uses."""
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


def environment_of(index: int, size: int, port: int, folder: Path | None = None) -> dict[str, str]:
    """What torchrun tells a rank."""
    numbers = {"RANK": index, "WORLD_SIZE": size, "LOCAL_RANK": index, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        **({"FEW_SHOT_RANKS_FOLDER": str(folder)} if folder else {}),
    }


def in_ranks(
    size: int,
    work: Callable[[RankGroup, Rank], object],
    folder: Path | None = None,
    *,
    joined: bool = True,
    limit_s: float = 60.0,
):
    """Call `work(group, rank)` in `size` processes and wait for all; a rank that raises fails the test with its
    traceback.

    Args:
        folder: the launcher's.
        joined: false: `work(None, rank)` makes the group itself.
    Returns:
        the exit codes: what `work` returned where that is a number, else 0.
    """
    port, children = free_port(), []
    for index in range(size):
        child = os.fork()
        if child == 0:
            code = 99
            with (
                contextlib.suppress(BaseException),
                mock.patch.dict(os.environ, environment_of(index, size, port, folder)),
            ):
                torch.set_num_threads(1)
                try:
                    rank = this_rank()
                    result = work(join_group(rank, torch.device("cpu")) if joined else None, rank)
                    code = result if isinstance(result, int) else 0
                except BaseException:
                    traceback.print_exc()
                    raise
            os._exit(code)
        children.append(child)
    return _exit_codes(children, time.monotonic() + limit_s)


def _exit_codes(children: list[int], deadline: float) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                codes |= {child: os.waitstatus_to_exitcode(status)} if done else {}
        if time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
            raise TimeoutError(f"exit codes so far: {codes}")
        time.sleep(0.01)
    return [codes[child] for child in children]


def wait_until(condition, process=None):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def stat_of(process_id):
    """State, parent, ... of a process."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()


def children_of(process_id):
    """(process id, rank) of the ranks below the launcher."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and int(stat_of(entry)[1]) == process_id:
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                rank = next((int(word[5:]) for word in environment if word.startswith(b"RANK=")), None)
                found |= {rank: int(entry)} if rank is not None else children_of(int(entry))
        except OSError:
            continue
    return found
