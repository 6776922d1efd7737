"""What the processes of one command have in common, over all of its starts and machines.

Ranks come and go, torchrun counts restarts on each machine by itself, and rank 0 may sit on any of them. So what a
command has to remember lies in the launcher's folder where there is one machine; else in the store at which the
launchers meet, which is there before any rank and as long as the launcher of the machine that serves it. Needs no torch
on one machine.
"""

import contextlib
import json
import os
from datetime import timedelta
from typing import Any

from utils.errors import PeerLostError
from utils.ranks.rank import ENDPOINT, Rank

LEFT, OPENED = "left", "opened"
"""How ranks have left on purpose; that the run folder was opened."""
LONGEST_CONNECT = timedelta(seconds=30)


def was_opened(rank: Rank | None) -> bool:
    """Return whether an earlier start of this command has opened the run folder, or one before SLURM's requeue: this
    one must not begin anew.

    Raises:
        PeerLostError: the place where the machines meet does not answer.
    """
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return True
    if rank is None or rank.folder is None:
        return False
    return _ask_meeting_place("check", [OPENED]) if rank.on_several_machines else (rank.folder / OPENED).exists()


def remember_opened(rank: Rank | None) -> None:
    """Let `was_opened` be true for the starts to come, on whichever machine. Raises as it does."""
    if rank is None or rank.folder is None:
        return
    if rank.on_several_machines:
        _ask_meeting_place("set", OPENED, "")
    else:
        (rank.folder / OPENED).touch()


def notify_other_machines(text: str) -> None:
    """Let the ranks of other machines know that this one leaves on purpose."""
    with contextlib.suppress(PeerLostError):  # the machine at which all meet has gone, too
        _ask_meeting_place("set", LEFT, text)


def follow_other_machines(rank: Rank) -> None:
    """Wait until a rank of any machine has left on purpose, and write that down for those of this one."""
    with contextlib.suppress(PeerLostError):  # the machine at which all meet is lost: torchrun ends this process
        _ask_meeting_place("wait", [LEFT], timedelta(days=365))
        rank.write_departure(json.loads(_ask_meeting_place("get", LEFT)), elsewhere=True)


def _ask_meeting_place(question: str, *arguments: Any) -> Any:
    from torch.distributed import PrefixStore, TCPStore
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import DEFAULT_PORT
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

    host, port = parse_rendezvous_endpoint(os.environ[ENDPOINT], default_port=DEFAULT_PORT)
    try:
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=LONGEST_CONNECT)
        return getattr(PrefixStore(f"few_shot.{os.environ['TORCHELASTIC_RUN_ID']}", store), question)(*arguments)
    except RuntimeError as error:
        raise PeerLostError(
            f"nothing answers at {os.environ[ENDPOINT]}, where the machines of this run meet"
        ) from error
