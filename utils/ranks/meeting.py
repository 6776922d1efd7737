"""Where the launchers of a run meet before each start of its processes: torchrun's meeting, with what that lacks for
several machines.

torchrun counts restarts on each machine alone, never tells its address to a machine that comes in the place of
another, ends with a traceback when nobody comes, orders machines by their names, and does not notice one that falls
silent. Here the starts of a run are counted where its machines meet; each has a store of its own, of which its
processes are told; machines come in the order of `node_rank`, else the one at which they meet comes first; and while
one is silent, the others wait for it to start again together.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from torch.distributed import DistError, PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from utils.ranks.rank import FOLDER, MEETING, POLL_S, RESTARTS, asked_to_stop, forget_beginnings, write_departure

LONGEST_WAIT_S = 600
"""For other machines, where `join_timeout` of `--rdzv_conf` does not say; as in torchrun."""
LONGEST_SILENCE_S = 60
"""Of another machine, where `silence_timeout` does not say."""
LONGEST_CONNECT_S = 60
NOTICE_AFTER_S = 3.0
BEATS_PER_SILENCE = 10
TIME_TO_LEAVE_S = 5.0
STARTS, LEFT, HERE, SILENT_FOR_GOOD = "starts", "left", "here", b"ended"


class MeetingError(Exception):
    """The machines of a run did not come together, or not again."""

    def __init__(self, text: str, *, was_together: bool):
        """`was_together`: the run had begun."""
        super().__init__(text)
        self.was_together = was_together


def register() -> None:
    """Let torchrun know of it, as `--rdzv_backend few_shot`."""
    rendezvous_handler_registry.register(MEETING, _create)


def _create(parameters: RendezvousParameters) -> "Meeting":
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
        "1"  # else a newcomer waits for an address that the others were told before
    )
    wait_s = parameters.config.setdefault("join_timeout", LONGEST_WAIT_S)
    parameters.config.setdefault("read_timeout", min(LONGEST_CONNECT_S, int(wait_s)))
    hosts = parameters.get_as_bool("is_host")
    places = [hosts] if hosts is not None else [True, False] if _is_here(parameters.endpoint) else [False]
    deadline, folder = time.monotonic() + int(wait_s), Path(os.environ[FOLDER])
    while True:
        for is_host in places:
            try:
                parameters.config["is_host"] = is_host
                backend, store = create_backend(parameters)
                return Meeting(
                    create_handler(store, backend, parameters), store, parameters, hosts=places[0], serves=is_host
                )
            except RendezvousError as error:
                reason = str(error.__cause__ or error).strip().splitlines()[0]
        if time.monotonic() > deadline or asked_to_stop(folder) is not None:
            text = (
                f"waited {wait_s} s for {_machines(parameters)} at {parameters.endpoint}, but nothing answers there "
                f"({reason})."
            )
            raise MeetingError(text, was_together=False)
        time.sleep(1.0)


def _is_here(endpoint: str) -> bool:
    """Whether an address is one of this machine's: at no other can it listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(_host(endpoint), 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as own:
            own.bind(address)
    except OSError:
        return False
    return True


def _host(endpoint: str) -> str:
    host, colon, port = endpoint.rpartition(":")
    return (host if colon and port.isdigit() else endpoint).strip("[]")


def _machines(parameters: RendezvousParameters) -> str:
    least, most = parameters.min_nodes, parameters.max_nodes
    return f"{least} machine{'s' if least > 1 else ''}" if least == most else f"{least} to {most} machines"


class Meeting(RendezvousHandler):
    """The part of one machine in the meetings of a run."""

    def __init__(
        self, inner: RendezvousHandler, store: Any, parameters: RendezvousParameters, *, hosts: bool, serves: bool
    ):
        """`inner`: torch's own; `store`: where machines meet; `hosts`: at this one; `serves`: by this process."""
        self._inner, self._parameters = inner, parameters
        self._store = PrefixStore(f"few_shot.{parameters.run_id}", store)
        self._hosts, self._serves, self._order = hosts, serves, parameters.get_as_int("order", 0 if hosts else 1)
        self._folder = Path(os.environ[FOLDER])
        self._silence_s = float(parameters.get("silence_timeout", LONGEST_SILENCE_S))
        self._was_together = False
        self._server: Any = None
        self._own_key, self._other_keys = "", []
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._heard: dict[str, tuple[bytes, int]] = {}
        self._look_at = 0.0

    # --- coming together ----------------------------------------------------------------------------------------------

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the other machines, and agree with them on what the processes of this start need.

        Raises:
            MeetingError: they did not come, or have left.
        """
        forget_beginnings(self._folder)  # there is no process here to which the launcher could pass a signal on
        place = f"{_machines(self._parameters)} at {self._parameters.endpoint}"
        over = threading.Event()
        threading.Thread(
            target=self._while_waiting, args=(over, place), name="watching the launcher", daemon=True
        ).start()
        try:
            n_here = self._store.add(HERE, 1)
            try:
                info = self._inner.next_rendezvous()
            except RendezvousTimeoutError as error:
                n_here = self._store.add(HERE, 0)
                text = (
                    f"waited {self._parameters.get('join_timeout')} s for {place}, but {n_here} of "
                    f"{self._parameters.min_nodes} was there."
                )
                raise self._error(text) from error
            finally:
                self._store.add(HERE, -1)
            return self._agree(info)
        except RendezvousClosedError as error:
            if self._store.check([LEFT]):
                write_departure(self._folder, json.loads(self._store.get(LEFT)))
            raise self._error("another machine of this run has given up.") from error
        except (RendezvousError, DistError) as error:
            raise self._lost_place() from error
        finally:
            over.set()

    def _error(self, text: str) -> MeetingError:
        return MeetingError(text, was_together=self._was_together)

    def _lost_place(self) -> MeetingError:
        return self._error(
            f"nothing answers at {self._parameters.endpoint} any more: the machine there was lost or has left this run."
        )

    def _while_waiting(self, over: threading.Event, place: str) -> None:
        """Say so after a while, and end the waiting of all machines when the launcher was asked to stop."""
        notice_at = time.monotonic() + NOTICE_AFTER_S if self._parameters.max_nodes > 1 else float("inf")
        while not over.wait(POLL_S):
            if time.monotonic() > notice_at:
                notice_at = float("inf")
                print(f"Waiting for {place}, at most {self._parameters.get('join_timeout')} s.", flush=True)
            number = asked_to_stop(self._folder)
            if number is not None:
                with contextlib.suppress(RendezvousError, DistError):  # all have gone by themselves
                    self._store.set(LEFT, json.dumps({"code": None, "signal": number, "text": ""}))
                    backend, store = create_backend(self._parameters)  # its own: the other is in use by another thread
                    create_handler(store, backend, self._parameters).shutdown()
                return

    def _agree(self, info: RendezvousInfo) -> RendezvousInfo:
        """Each machine's place, a store for the processes of this start, and the number of starts before it: on all
        machines the same.
        """
        store, size, own = info.store, info.world_size, [self._order, info.rank]
        store.set(f"order.{info.rank}", json.dumps(own))
        place = sorted(json.loads(store.get(f"order.{rank}")) for rank in range(size)).index(own)
        if place == 0:
            address = self._parameters.local_addr or (
                _host(self._parameters.endpoint) if self._hosts else socket.getfqdn()
            )
            self._server = TCPStore(address, 0, is_master=True, wait_for_workers=False)
            store.set("start", json.dumps([address, self._server.port, self._store.add(STARTS, 1) - 1]))
        address, port, restarts = json.loads(store.get("start"))
        os.environ[RESTARTS] = str(restarts)
        keys = [f"beat.{restarts}.{other}" for other in range(size)]
        self._own_key, self._other_keys, self._heard = keys[place], keys[:place] + keys[place + 1 :], {}
        if size > 1 and self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="telling other machines", daemon=True)
            self._beating.start()
        self._was_together = True
        return RendezvousInfo(store, place, size, RendezvousStoreInfo(address, port))

    # --- while the processes run --------------------------------------------------------------------------------------

    def _beat(self) -> None:
        number = 0
        while not self._ended.wait(self._silence_s / BEATS_PER_SILENCE):
            number += 1
            try:
                self._store.set(self._own_key, str(number))
            except DistError:
                return

    def num_nodes_waiting(self) -> int:
        """Above 0, torchrun starts the processes again as soon as all machines are here. It asks some ten times a
        second.

        Raises:
            MeetingError: the machine at which all meet is lost.
        """
        try:
            return self._inner.num_nodes_waiting() or self._n_silent()
        except (RendezvousError, DistError) as error:
            raise self._lost_place() from error

    def _n_silent(self) -> int:
        now = time.monotonic()
        if now < self._look_at:
            return 0
        self._look_at = now + self._silence_s / BEATS_PER_SILENCE
        silent = 0
        for key in self._other_keys:
            beat = self._store.get(key) if self._store.check([key]) else b""
            before, looks = self._heard.get(key, (None, 0))
            self._heard[key] = (beat, looks + 1 if beat == before else 0)
            # Looks are counted, not seconds: where this machine has slept, it must not take the others for lost.
            if beat != SILENT_FOR_GOOD and self._heard[key][1] > BEATS_PER_SILENCE:
                silent += 1
                print(
                    f"A machine of this run has said nothing for {self._silence_s:.0f} s and is taken for lost.",
                    flush=True,
                )
        return silent

    def shutdown(self) -> bool:
        """This machine needs no meeting any more. The one that serves stays until the others have said the same."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        try:
            closed = self._inner.shutdown()
            if self._own_key:
                self._store.set(self._own_key, SILENT_FOR_GOOD)
            deadline = time.monotonic() + TIME_TO_LEAVE_S
            while (
                self._serves
                and time.monotonic() < deadline
                and not all(self._has_ended(key) for key in self._other_keys)
            ):
                time.sleep(POLL_S)
        except DistError:
            return False
        return closed

    def _has_ended(self, key: str) -> bool:
        return self._store.check([key]) and self._store.get(key) == SILENT_FOR_GOOD

    # --- torch's own --------------------------------------------------------------------------------------------------

    @property
    def use_agent_store(self) -> bool:
        """The processes are told a store that lives as long as this."""
        return True

    def get_backend(self) -> str:
        """Its name."""
        return MEETING

    def is_closed(self) -> bool:
        """Whether a machine has ended the meetings."""
        return self._inner.is_closed()

    def set_closed(self) -> None:
        """End the meetings."""
        self._inner.set_closed()

    def get_run_id(self) -> str:
        """By which the machines of a run know each other."""
        return self._inner.get_run_id()
