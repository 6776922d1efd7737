"""Several processes for one run, by torchrun: one per GPU, on one machine or on several.

The launcher stays their parent. It keeps the run's exit codes, which torchrun would turn into 1, passes SIGINT,
SIGTERM and SIGUSR1 on, and when it is killed they die with it. torch is not imported here: what can be found wrong
is found at once.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, Interrupted
from utils.machine.devices import check_gpus, gpu_ids
from utils.machine.stop_signals import HANDLED, StopSignals, leave_note
from utils.paths import REPOSITORY_ROOT
from utils.ranks.rank import FOLDER, GIVEN_UP, MEETING, PARENT, departure

WHOLE_NUMBERS = ("nproc_per_node", "max_restarts", "node_rank", "master_port")
OPTIONS = (
    *WHOLE_NUMBERS,
    "nnodes",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "rdzv_conf",
    "master_addr",
    "local_addr",
)
"""Of torchrun, that may stand before a `--`."""
USAGE = "as in: bash experiment_scripts/NAME.sh 0 1 --nnodes 2 --rdzv_endpoint HOST:29500 -- --total_epochs 10"
DEFAULT_RESTARTS = 3
DEFAULT_PORT = "29500"
"""Of `master_addr`, as in torchrun."""
SECONDS = ("join_timeout", "silence_timeout")
"""Of `rdzv_conf`: how long to wait for other machines, and to hear nothing from one."""
TIME_TO_TELL_S = 10.0
"""For other machines to learn that this one stops while it waits for them."""
LOOPBACK = "127.0.0.1"
POLL_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What torchrun is asked for."""

    n_here: int
    """Ranks on this machine."""
    options: Mapping[str, str]
    """By name, as the user gave them."""

    @property
    def on_one_machine(self) -> bool:
        """Whether there is no other machine."""
        return self.options.get("nnodes", "1") in ("1", "1:1")

    @property
    def n_ranks(self) -> int:
        """On all machines; the fewest where their number may change."""
        return self.n_here * int(self.options.get("nnodes", "1").split(":")[0])

    def torchrun_arguments(self, run_id: str) -> list[str]:
        """All of torchrun's options. `run_id`: by which the machines of a run know each other."""
        if self.on_one_machine:  # a port that is free, and nothing that another machine could see
            options = {
                "nnodes": "1",
                "rdzv_endpoint": f"{LOOPBACK}:0",
                "local_addr": LOOPBACK,
                "rdzv_id": uuid.uuid4().hex,
            }
        else:
            options = {"rdzv_id": run_id}
        options |= {
            "max_restarts": str(DEFAULT_RESTARTS),
            **self.options,
            "nproc_per_node": str(self.n_here),
            "rdzv_backend": MEETING,
        }
        conf = [options.pop("rdzv_conf")] if "rdzv_conf" in options else []
        if node_rank := options.pop("node_rank", ""):
            conf.append(f"order={node_rank}")
        host, port = options.pop("master_addr", ""), options.pop("master_port", DEFAULT_PORT)
        if host and "rdzv_endpoint" not in options:  # torchrun's older way to name the same place, at node_rank 0
            options["rdzv_endpoint"] = f"{host}:{port}"
            conf += [f"is_host={int(node_rank == '0')}"] if node_rank else []
        options |= {"rdzv_conf": ",".join(conf)} if conf else {}
        return [f"--{name}={value}" for name, value in options.items()]


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split what stands before a `--`, options of torchrun, from the config's keys.

    Raises:
        ConfigError: an unknown option, or one without its value; an option of torchrun where keys stand.
    """
    given = list(arguments)
    own, rest = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else ([], given)
    options: dict[str, str] = {}
    words = iter(own)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in OPTIONS:
            known = ", ".join(f"--{option}" for option in OPTIONS)
            raise ConfigError(
                f'command line: "{word}" before the -- is no option of the launcher; there are: {known}, {USAGE}'
            )
        value = value if equals else next(words, "")
        if not value or value.startswith("--") or (name in WHOLE_NUMBERS and not value.isdigit()):
            what = "a whole number" if name in WHOLE_NUMBERS else "a value"
            raise ConfigError(f'command line: --{name} before the -- is "{value}", but must be: {what}')
        options[name] = value
    misplaced = [
        word
        for word in rest
        if word.removeprefix("--").partition("=")[0].replace("-", "_") in OPTIONS and word.startswith("--")
    ]
    if misplaced:
        raise ConfigError(f"command line: {misplaced[0]} is an option of the launcher and stands before a --, {USAGE}")
    _check_machines(options)
    return options, rest


def _check_machines(options: Mapping[str, str]) -> None:
    parts = options.get("nnodes", "1").split(":")
    if len(parts) > 2 or not all(part.isdigit() and int(part) for part in parts) or int(parts[0]) > int(parts[-1]):
        raise ConfigError(
            f'command line: --nnodes is "{options["nnodes"]}", but must be: a number of machines, or LEAST:MOST'
        )
    if options.get("rdzv_backend", "c10d") != "c10d":
        raise ConfigError(
            f'command line: --rdzv_backend is "{options["rdzv_backend"]}", but must be: c10d; leave it out'
        )
    for name, equals, value in (part.partition("=") for part in options.get("rdzv_conf", "x=1").split(",")):
        if not name or not equals or (name in SECONDS and not (value.isdigit() and int(value))):
            raise ConfigError(
                f'command line: --rdzv_conf is "{options["rdzv_conf"]}", but must be: KEY=VALUE,KEY=VALUE, as in '
                "join_timeout=600,silence_timeout=60; "
                "both are whole seconds, at least 1"
            )
    if options.get("nproc_per_node") == "0":
        raise ConfigError("command line: --nproc_per_node is 0, but must be: at least 1")
    if int(parts[-1]) > 1 and not {"rdzv_endpoint", "master_addr"}.intersection(options):
        raise ConfigError(
            "command line: --nnodes needs a place where the machines meet: --rdzv_endpoint HOST:PORT, the same on "
            f"all of them, {USAGE}"
        )


def plan_launch(gpu_to_use: str, options: Mapping[str, str]) -> Launch | None:
    """How many processes the GPUs and options ask for; None: this process does it alone, without torchrun.

    Raises:
        ConfigError: a GPU that is not there; another number of processes than of GPUs.
    """
    ids = gpu_ids(gpu_to_use)
    n_here = int(options.get("nproc_per_node", 1))
    if "nproc_per_node" in options:
        if ids and len(ids) != n_here:
            raise ConfigError(
                f"command line: --nproc_per_node is {n_here}, but gpu_to_use names {len(ids)} GPUs; leave one of them "
                "out"
            )
    elif len(ids) > 1 or gpu_to_use == "all":
        names = _gpu_names()
        if names:  # else it is the CPU, which is told where it is chosen
            check_gpus(ids, names)
            n_here = len(ids or names)
    return Launch(n_here, dict(options)) if options or n_here > 1 else None


def _gpu_names() -> list[str]:
    """What torch calls the GPUs of this machine; asked in a process of its own, as torch stays loaded for good."""
    text = (
        "import torch\nfor i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0): "
        "print(torch.cuda.get_device_name(i))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def run_ranks(program: Path, arguments: Sequence[str], launch: Launch, run_id: str, stop: StopSignals) -> int:
    """Start the program on all ranks of this machine and stay with them to their end; returns the exit code of the run.

    Args:
        arguments: of each.
        run_id: see `Launch.torchrun_arguments`.
        stop: whose signals are passed on.
    Raises:
        Interrupted: a signal came before there was a rank to pass it on to.
    """
    with stop.deferred(), tempfile.TemporaryDirectory(prefix="few_shot_ranks_") as name:
        folder = Path(name)
        agent = _start_agent([*launch.torchrun_arguments(run_id), str(program), *arguments], launch, folder)
        try:
            told_at = None
            while agent.poll() is None:
                if stop.received is not None and told_at is None:
                    if launch.on_one_machine and not list(folder.glob("began_*")):
                        stop.check()
                    (folder / "stop.partial").write_text(str(int(stop.received)))
                    (folder / "stop.partial").rename(folder / "stop")
                    told_at = time.monotonic()
                if (
                    told_at is not None
                    and time.monotonic() > told_at + TIME_TO_TELL_S
                    and not list(folder.glob("began_*"))
                ):
                    stop.check()
                time.sleep(POLL_S)
        finally:
            agent.kill()
            agent.wait()
        left = departure(folder)
        reason = (folder / GIVEN_UP).read_text() if (folder / GIVEN_UP).exists() else None
    if left is None:
        code = agent.returncode if agent.returncode >= 0 else 128 - agent.returncode
        if code:
            stop.check()
            log.error(_given_up(code, reason, launch))
        return code
    if left["code"] is None:  # a launcher was asked to stop while there was no process
        raise Interrupted(signal.Signals(left["signal"]))
    if left["signal"] is not None:
        leave_note(left["text"])
    elif left["code"] and left.get("elsewhere"):
        log.error("A process on another machine of this run: %s", left["text"])
    return left["code"]


def _start_agent(arguments: Sequence[str], launch: Launch, folder: Path) -> subprocess.Popen:
    environment: dict[str, Any] = {**os.environ, FOLDER: str(folder), PARENT: str(os.getpid())}
    if launch.n_here > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.n_here)))
    if launch.on_one_machine and sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, str(REPOSITORY_ROOT / "utils" / "ranks" / "agent.py"), *arguments]
    # A session of its own, so that a terminal's Ctrl-C comes once, from here; and to the end it hears no other signal
    # either.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _given_up(code: int, reason: str | None, launch: Launch) -> str:
    if reason is not None and code == ConfigError.exit_code:
        return (
            f"{reason[0].upper()}{reason[1:]}\nStart the same command on all machines within this time, with the same "
            "--nnodes, --rdzv_endpoint and "
            "experiment_name. --rdzv_conf join_timeout=SECONDS waits longer."
        )
    if reason is not None:
        return f"{reason[0].upper()}{reason[1:]} Run the same command on all machines to go on from the last save."
    how = (
        f"A process of this run was killed by {signal.Signals(code - 128).name}"
        if code > 128
        else f"torchrun gave up (exit code {code})"
    )
    return (
        f"{how}, and was started again as often as --max_restarts says "
        f"({launch.options.get('max_restarts', DEFAULT_RESTARTS)}). "
        "What is above says more. Run the same command to go on from the last save."
    )
