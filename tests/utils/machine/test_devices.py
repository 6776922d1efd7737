import logging
import os

import pytest
import torch

from utils.errors import ConfigError
from utils.machine.devices import choose_device, copy_to, gpu_ids, make_deterministic
from utils.ranks.rank import Rank


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(n)`: a machine with n GPUs."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")

    return pretend


def test_auto_is_the_first_gpu_else_the_cpu_without_a_word(gpus, caplog):
    caplog.set_level(logging.INFO)
    gpus(2)
    assert choose_device("auto") == torch.device("cuda", 0)
    gpus(0)
    assert choose_device("auto") == torch.device("cpu")
    assert caplog.messages == []


def test_an_id_chooses_its_gpu(gpus):
    gpus(2)
    assert choose_device("1") == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")


def test_without_cuda_an_id_is_one_notice_and_the_cpu(gpus, caplog):
    caplog.set_level(logging.INFO)
    gpus(0)
    assert choose_device("3") == torch.device("cpu")
    assert caplog.messages == ["gpu_to_use 3: this machine has no CUDA device; running on the CPU."]


def test_an_id_that_is_not_there_names_those_that_are(gpus):
    gpus(2)
    with pytest.raises(
        ConfigError, match=r"there is no GPU 5 on this machine; there are: 0 \(Card 0\), 1 \(Card 1\)\."
    ):
        choose_device("5")


def test_without_cuda_several_ids_are_the_same_notice(gpus, caplog):
    caplog.set_level(logging.INFO)
    gpus(0)
    assert choose_device("0,1") == torch.device("cpu")
    assert caplog.messages == ["gpu_to_use 0,1: this machine has no CUDA device; running on the CPU."]


def test_one_process_alone_takes_no_more_than_one_gpu(gpus):
    gpus(2)
    with pytest.raises(ConfigError, match='gpu_to_use: "0,1" names several GPUs'):
        choose_device("0,1")
    with pytest.raises(ConfigError, match='"all" means 2 GPUs here'):
        choose_device("all")
    gpus(1)
    assert choose_device("all") == torch.device("cuda", 0)
    assert gpu_ids("1,1,0") == [1, 0] and gpu_ids("auto") == []


def test_each_process_of_a_run_takes_the_next_gpu(gpus):
    gpus(3)
    ranks = [Rank(index + 4, 8, index, 2, None) for index in range(2)]
    assert [choose_device("2,0", rank.place_on_machine).index for rank in ranks] == [2, 0]
    assert [choose_device(value, rank.place_on_machine).index for value in ("auto", "all") for rank in ranks] == [
        0,
        1,
        0,
        1,
    ]
    with pytest.raises(ConfigError, match=r'"2" names fewer GPUs than there are processes on this machine \(2\)'):
        choose_device("2", ranks[1].place_on_machine)
    gpus(1)
    with pytest.raises(ConfigError, match="there is no GPU 1 on this machine"):
        choose_device("auto", ranks[1].place_on_machine)


def test_deterministic_asks_torch_and_cublas_for_it(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_goes_to_a_gpu_is_pinned_first_and_nobody_waits():
    class Host:
        def pin_memory(self):
            return Pinned()

    class Pinned:
        def to(self, device, non_blocking=False):
            return device, non_blocking

    gpu = torch.device("cuda", 1)
    assert copy_to(gpu, Host()) == (gpu, True)
    host = torch.arange(3)
    assert copy_to(torch.device("cpu"), host) is host
