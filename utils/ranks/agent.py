"""torchrun for the ranks of one machine, as `utils.ranks.launch` starts it; its arguments are torchrun's.

Signals pass it by: the launcher notifies the ranks itself. It dies with the launcher, and the ranks die with it. Where
torchrun gives up, the exit code is that of a shell for the rank that failed first (128 + the number of the signal that
killed it), or one of those below, which say that machines did not come together.
"""

import os
import sys

from utils.machine.host import die_with_parent
from utils.ranks.rank import NO_ANSWER, NOT_ALL_CAME, PARENT, RUN_WAS_ENDED

CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"


def main(arguments: list[str]) -> int:
    """Run until all ranks have ended or torchrun gives up; returns the exit code."""
    die_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    # Else torchrun keeps one store over all restarts: with the addresses of processes that are gone in it, and at an
    # address of which a machine that comes in the place of another one never learns.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    level_of_ranks = os.environ.get(CPP_LEVEL, "WARNING")  # torch's default
    os.environ[CPP_LEVEL] = "FATAL"  # read at the import, here alone: what it would log, the launcher says in a line
    from torch.distributed import DistError
    from torch.distributed.elastic import rendezvous
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ[CPP_LEVEL] = level_of_ranks
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except rendezvous.RendezvousTimeoutError:
        return NOT_ALL_CAME
    except rendezvous.RendezvousClosedError:
        return RUN_WAS_ENDED
    except (rendezvous.RendezvousError, DistError):
        return NO_ANSWER
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
