"""torchrun for the ranks of one machine, as `utils.ranks.launch` starts it; its arguments are torchrun's.

Signals pass it by: the launcher tells the ranks itself. It dies with the launcher, and the ranks die with it. Where
torchrun gives up, the exit code is that of a shell for the rank that failed first: 128 + the number of the signal
that killed it; that of a killed one, too, where a rank of another machine was lost. A reason that only this process
knows is in a file, `given_up`.
"""

import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from utils.machine.host import die_with_parent  # noqa: E402
from utils.ranks.rank import FOLDER, GIVEN_UP, LOST_CONTACT, PARENT  # noqa: E402

KILLED = 128 + signal.SIGKILL
CANNOT_START = 1


def main(arguments: list[str]) -> int:
    """Run until all ranks have ended or torchrun gives up; returns the exit code."""
    die_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    from utils.ranks.meeting import MeetingError, register

    register()
    given_up = Path(os.environ[FOLDER]) / GIVEN_UP
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code != LOST_CONTACT:
            return 128 - code if code < 0 else code
        given_up.write_text("a process of this run on another machine was lost.")
        return KILLED
    except MeetingError as error:
        given_up.write_text(str(error))
        return KILLED if error.was_together else CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
