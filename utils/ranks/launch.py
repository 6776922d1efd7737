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

from utils.errors import ConfigError
from utils.machine.devices import check_gpus, gpu_ids
from utils.machine.stop_signals import HANDLED, StopSignals, leave_note
from utils.paths import child_process
from utils.ranks.rank import (
    ENDPOINT,
    FOLDER,
    LOST_CONTACT,
    NO_ANSWER,
    NOT_ALL_CAME,
    PARENT,
    RUN_WAS_ENDED,
    departure,
    is_running,
)  # fmt: skip
from utils.words import is_whole_number

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
DEFAULT_JOIN_TIMEOUT_S = 600
"""Of `rdzv_conf`, how long to wait for other machines, as in torchrun."""
NOTICE_AFTER_S = 20.0
"""Without a process on this machine, before it is said that others are waited for."""
TIME_TO_BEGIN_S = 10.0
"""For a process on this machine, so that a signal can be passed on to it."""
TIME_TO_END_S = 360.0
"""For torchrun, beside its own time limits: it gives other machines 300 s to end."""
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

    @property
    def endpoint(self) -> str:
        """Where the machines meet; `master_addr` is torchrun's older way to name it. One alone takes a port that is
        free, and nothing that another could see.
        """
        host, port = self.options.get("master_addr"), self.options.get("master_port", DEFAULT_PORT)
        return self.options.get("rdzv_endpoint", f"{LOOPBACK}:0" if self.on_one_machine else f"{host}:{port}")

    @property
    def machines(self) -> str:
        """How many meet, and where."""
        return f"{self.options.get('nnodes', '1').replace(':', ' to ')} machines at {self.endpoint}"

    @property
    def join_timeout_s(self) -> int:
        """How long the machines wait for each other."""
        return int(_settings(self.options).get("join_timeout", DEFAULT_JOIN_TIMEOUT_S))

    def torchrun_arguments(self, run_id: str) -> list[str]:
        """Return all of torchrun's options. `run_id`: by which the machines of a run know each other."""
        given = dict(self.options)
        host, node_rank, _ = (given.pop(name, "") for name in ("master_addr", "node_rank", "master_port"))
        options = {"nnodes": "1", "max_restarts": str(DEFAULT_RESTARTS), "rdzv_backend": "c10d", "rdzv_id": run_id}
        settings = _settings(given)
        if self.on_one_machine:
            options |= {"local_addr": LOOPBACK, "rdzv_id": uuid.uuid4().hex}
        else:  # torchrun gives up after a minute where the machine at which all meet is not there yet
            settings = {"read_timeout": str(self.join_timeout_s)} | settings
            if host and node_rank and "rdzv_endpoint" not in given:  # by definition that of node rank 0
                settings = {"is_host": str(int(node_rank == "0"))} | settings
        options |= given | {"rdzv_endpoint": self.endpoint, "nproc_per_node": str(self.n_here)}
        options |= {"rdzv_conf": ",".join(map("=".join, settings.items()))} if settings else {}
        return [f"--{name}={value}" for name, value in options.items()]


def _settings(options: Mapping[str, str]) -> dict[str, str]:
    """Return `rdzv_conf`, key by key."""
    return dict(part.split("=", 1) for part in options.get("rdzv_conf", "").split(",") if part)


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
        if not value or value.startswith("--") or (name in WHOLE_NUMBERS and not is_whole_number(value)):
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
    if (
        len(parts) > 2
        or not all(is_whole_number(part) and int(part) for part in parts)
        or int(parts[0]) > int(parts[-1])
    ):
        raise ConfigError(
            f'command line: --nnodes is "{options["nnodes"]}", but must be: a number of machines, or LEAST:MOST'
        )
    if options.get("rdzv_backend", "c10d") != "c10d":
        raise ConfigError(
            f'command line: --rdzv_backend is "{options["rdzv_backend"]}", but must be: c10d; leave it out'
        )
    for name, equals, value in (part.partition("=") for part in options.get("rdzv_conf", "x=1").split(",")):
        if name == "silence_timeout":
            raise ConfigError(
                "command line: --rdzv_conf silence_timeout is no more; leave it out. A machine that says nothing is "
                "taken for lost when the others have waited 30 minutes for it"
            )
        if not name or not equals or (name == "join_timeout" and not (is_whole_number(value) and int(value))):
            raise ConfigError(
                f'command line: --rdzv_conf is "{options["rdzv_conf"]}", but must be: KEY=VALUE,KEY=VALUE, as in '
                "join_timeout=600, which is in whole seconds, at least 1"
            )
    if options.get("nproc_per_node") == "0":
        raise ConfigError("command line: --nproc_per_node is 0, but must be: at least 1")
    if int(parts[-1]) > 1 and not {"rdzv_endpoint", "master_addr"}.intersection(options):
        raise ConfigError(
            "command line: --nnodes needs a place where the machines meet: --rdzv_endpoint HOST:PORT, the same on "
            f"all of them, {USAGE}"
        )


def plan_launch(gpu_to_use: str, options: Mapping[str, str]) -> Launch | None:
    """Return how many processes the GPUs and options ask for; None: this process does it alone, without torchrun.

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
        if names:  # else it is the CPU, which is reported where it is chosen
            check_gpus(ids, names)
            n_here = len(ids or names)
    return Launch(n_here, dict(options)) if options or n_here > 1 else None


def _gpu_names() -> list[str]:
    """Return what torch calls the GPUs here; asked in a process of its own, as torch stays loaded for good."""
    text = (
        "import torch\nfor i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0): "
        "print(torch.cuda.get_device_name(i))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def run_ranks(program: Sequence[str], arguments: Sequence[str], launch: Launch, run_id: str, stop: StopSignals) -> int:
    """Start the program on all ranks of this machine and stay with them to their end; returns the exit code of the run.

    Args:
        program: the words that start it, a Python first.
        arguments: of each.
        run_id: see `Launch.torchrun_arguments`.
        stop: whose signals are passed on.
    Raises:
        Interrupted: a signal came before there was a rank to pass it on to.
    """
    if "node_rank" in launch.options:
        log.info(
            "note: --node_rank does not order the machines: process 0, which writes, is on the one whose address "
            "sorts first."
        )
    words = ["--no_python", program[0], "-u", *program[1:], *arguments]  # -u as torchrun has it for scripts
    with stop.deferred(), tempfile.TemporaryDirectory(prefix="few_shot_ranks_") as name:
        folder = Path(name)
        agent = _start_agent([*launch.torchrun_arguments(run_id), *words], launch, folder)
        try:
            code = _stay(agent, launch, folder, stop)
        finally:
            agent.kill()
            agent.wait()
        left, began = departure(folder), any(folder.glob("began_*"))
    if left is None:
        if code:
            stop.check()
            code, text = _given_up(code, began, launch)
            log.error(text)
        return code
    if left["signal"] is not None:
        leave_note(left["text"])
    elif left["code"] and left["elsewhere"]:
        log.error("A process on another machine of this run: %s", left["text"])
    return left["code"]


def _stay(agent: subprocess.Popen, launch: Launch, folder: Path, stop: StopSignals) -> int:
    """Pass a signal on to the ranks of this machine, until torchrun has ended; returns its exit code.

    Raises:
        Interrupted: a signal came, and there is no rank to pass it on to.
    """
    told_at, alone_since, was_said = None, time.monotonic(), False
    while agent.poll() is None:
        time.sleep(POLL_S)
        now, runs = time.monotonic(), is_running(folder)
        if stop.received is not None:
            if told_at is None:
                (folder / "stop.partial").write_text(str(int(stop.received)))
                (folder / "stop.partial").rename(folder / "stop")
                told_at = now
            # Other machines have no launcher that would see the signal: a process here notifies them.
            patience_s = 0 if launch.on_one_machine else TIME_TO_BEGIN_S
            if not runs and now - told_at >= patience_s and departure(folder) is None:
                stop.check()
        if runs or launch.on_one_machine:
            alone_since, was_said = now, False
        elif now - alone_since > NOTICE_AFTER_S and not was_said:
            log.info("Waiting for %s, at most %d s.", launch.machines, launch.join_timeout_s)
            was_said = True
        elif now - alone_since > launch.join_timeout_s + TIME_TO_END_S:
            return NO_ANSWER  # torchrun hangs, as it does where the machine at which all meet is frozen
    return agent.returncode if agent.returncode >= 0 else 128 - agent.returncode


def _start_agent(arguments: Sequence[str], launch: Launch, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, FOLDER: str(folder), PARENT: str(os.getpid()), ENDPOINT: launch.endpoint}
    if launch.n_here > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.n_here)))
    if launch.on_one_machine and sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not launch.on_one_machine:  # torch dumps its C++ stack for each connection that a machine closes as it leaves
        environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", "LOGLEVEL": "ERROR"} | environment
    command = [*child_process("torchrun"), *arguments]
    # A session of its own, so that a terminal's Ctrl-C comes once, from here; and to the end it hears no other signal
    # either.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _given_up(code: int, began: bool, launch: Launch) -> tuple[int, str]:
    """Exit code and text for the end of torchrun's process by itself. `began`: there were ranks on this machine."""
    reasons = {
        LOST_CONTACT: "A process of this run on another machine was lost.",
        NOT_ALL_CAME: f"Waited {launch.join_timeout_s} s for {launch.machines}, but not all came.",
        RUN_WAS_ENDED: "Another machine has ended this run.",
        NO_ANSWER: f"Nothing answers at {launch.endpoint}, where the machines of this run meet.",
    }
    if code in reasons and began:
        return (
            128 + signal.SIGKILL,
            f"{reasons[code]} Run the same command on all machines to go on from the last save.",
        )
    if code in reasons:
        return ConfigError.exit_code, (
            f"{reasons[code]}\nStart the same command on all machines within {launch.join_timeout_s} s, with the same "
            "--nnodes, --rdzv_endpoint and experiment_name. --rdzv_conf join_timeout=SECONDS waits longer."
        )
    how = (
        f"A process of this run was killed by {signal.Signals(code - 128).name}"
        if code > 128
        else f"torchrun gave up (exit code {code})"
    )
    return code, (
        f"{how}, and was started again as often as --max_restarts says "
        f"({launch.options.get('max_restarts', DEFAULT_RESTARTS)}). "
        "What is above says more. Run the same command to go on from the last save."
    )
