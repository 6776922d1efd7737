"""How the launchers of several machines meet: in which order, how often, who is missing, who falls silent, who ends
it.
"""

import json
import os
import signal
import threading
import time

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry

from tests.tools.ranks import free_port
from utils.ranks import meeting as rank_meeting
from utils.ranks.meeting import MeetingError, register
from utils.ranks.rank import FOLDER, MEETING, RESTARTS, departure


@pytest.fixture
def meetings(tmp_path, monkeypatch):
    """`meetings(n, **options)`: the parts of n machines in one meeting, in the order in which they come."""
    for name in (RESTARTS, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.setenv(name, "")
    register()
    monkeypatch.setattr(rank_meeting, "TIME_TO_LEAVE_S", 0.2)  # here all serve, as one process
    endpoint, made = f"127.0.0.1:{free_port()}", []

    def make(n, *, of=None, orders=None, **options):
        for place in range(n):
            monkeypatch.setenv(FOLDER, str(tmp_path / str(place)))
            (tmp_path / str(place)).mkdir()
            options["order"] = str(orders[place] if orders else place)
            given = RendezvousParameters(MEETING, endpoint, "run", of or n, of or n, "127.0.0.1", **options)
            made.append(rendezvous_handler_registry.create_handler(given))
        return made

    make.endpoint = endpoint
    yield make
    threads = [threading.Thread(target=one.shutdown) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def all_meet(machines):
    """What each is told, or the error that it gets; all at once."""
    told = [None] * len(machines)

    def meet(place):
        try:
            told[place] = machines[place].next_rendezvous()
        except MeetingError as error:
            told[place] = error

    threads = [threading.Thread(target=meet, args=(place,)) for place in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return told


def test_machines_have_the_places_that_they_are_given_and_count_starts_together(meetings):
    machines = meetings(2, orders=[1, 0])
    for number in range(2):
        told = all_meet(machines)
        assert [(one.rank, one.world_size) for one in told] == [(1, 2), (0, 2)]
        assert os.environ[RESTARTS] == str(number)
        address, other = (one.bootstrap_store_info for one in told)
        assert (address.master_addr, address.master_port) == (other.master_addr, other.master_port)


def test_who_freezes_is_waited_for_and_who_has_ended_is_not(meetings):
    machines = meetings(2, silence_timeout="1")
    all_meet(machines)
    for _ in range(30):
        assert [one.num_nodes_waiting() for one in machines] == [0, 0]
        time.sleep(0.05)
    machines[1]._ended.set()  # says nothing any more
    begin = time.monotonic()
    while not machines[0].num_nodes_waiting():
        assert time.monotonic() - begin < 5
        time.sleep(0.02)
    assert time.monotonic() - begin > 0.8
    machines[1].shutdown()
    time.sleep(1.3)
    assert machines[0].num_nodes_waiting() == 0


def test_who_is_missing_is_said(meetings):
    told = all_meet(meetings(2, of=3, join_timeout="2"))
    text = f"waited 2 s for 3 machines at {meetings.endpoint}, but 2 of 3 was there."
    assert text in map(str, told) and not any(error.was_together for error in told)


def test_where_nobody_answers_that_is_said(meetings):
    begin = time.monotonic()
    with pytest.raises(MeetingError, match=r"waited 1 s for 2 machines at 127.0.0.1:\d+, but nothing answers there"):
        meetings(1, of=2, join_timeout="1", is_host="0")
    assert time.monotonic() - begin < 6


def test_who_is_told_to_stop_while_a_machine_is_missing_ends_the_waiting_of_all(meetings, tmp_path):
    machines = meetings(2, of=3)
    (tmp_path / "1" / "stop").write_text(str(int(signal.SIGTERM)))
    assert all(isinstance(error, MeetingError) for error in all_meet(machines))
    assert [departure(tmp_path / str(place))["signal"] for place in range(2)] == [signal.SIGTERM] * 2


def test_a_machine_that_comes_in_the_place_of_another_is_told_the_same(meetings, tmp_path):
    """That of the first, which has not left."""
    first, _ = machines = meetings(2, keep_alive_interval="1", keep_alive_max_attempt="2")
    all_meet(machines)
    lost = machines.pop()
    lost._ended.set()
    lost._inner._stop_heartbeats()
    os.rename(tmp_path / "1", tmp_path / "lost")
    (tmp_path / "0").rename(tmp_path / "of the first")
    meetings(2)
    told = all_meet([first, machines[-1]])
    assert [one.world_size for one in told] == [2, 2]
    assert told[0].bootstrap_store_info.master_port == told[1].bootstrap_store_info.master_port
    assert json.loads(os.environ[RESTARTS]) == 1
