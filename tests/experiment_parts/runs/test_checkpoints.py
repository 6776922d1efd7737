import json
import os
import random
import re

import pytest
import torch

from experiment_parts.runs import checkpoints
from experiment_parts.runs.checkpoints import (
    checkpoint_bytes,
    epoch_path,
    list_epochs,
    load_checkpoint,
    read_checkpoint_state,
    save_checkpoint,
    set_aside,
)
from utils.errors import DamagedCheckpointError, NonFiniteError, StorageError
from utils.files.atomic_files import remove_temporary_files, write_bytes_atomically

STATE = {"epoch": 3, "iteration": 1500, "rows": [{"loss": 0.1 + 0.2, "empty": None}], "name": 'a "quoted" name é'}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "network.weight": torch.randn(4, 3, 3, generator=generator),
        "optimizer.step": torch.tensor(7.0),
        "double": torch.randn(5, generator=generator, dtype=torch.float64),
        "whole": torch.arange(6).reshape(2, 3).T,  # not contiguous
        "rng.cpu": torch.arange(16, dtype=torch.uint8),
        "empty": torch.zeros(0),
    }


@pytest.fixture
def path(tmp_path, tensors):
    save_checkpoint(tmp_path / "train_model_3.safetensors", tensors, STATE)
    return tmp_path / "train_model_3.safetensors"


def test_what_was_saved_comes_back_bit_for_bit(path, tensors):
    loaded, state = load_checkpoint(path)
    assert state == STATE
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert read_checkpoint_state(path) == STATE


def test_views_of_one_storage_are_saved_as_they_look(tmp_path):
    rows = torch.arange(6.0).reshape(3, 2)
    save_checkpoint(tmp_path / "c", {"all": rows, "second": rows[1]}, {})
    assert load_checkpoint(tmp_path / "c")[0]["second"].tolist() == [2.0, 3.0]


def test_equal_states_give_equal_files(tensors):
    backwards = dict(reversed(tensors.items()))
    assert checkpoint_bytes(tensors, STATE) == checkpoint_bytes(backwards, STATE)


def test_any_safetensors_reader_can_open_it(path, tensors):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(tensors)
        assert list(file.metadata()) == ["checkpoint"]
        assert json.loads(file.metadata()["checkpoint"])["format_version"] == 1


def test_every_flipped_bit_of_300_is_found(path):
    data = path.read_bytes()
    generator = random.Random(0)
    header_end = 8 + int.from_bytes(data[:8], "little")
    positions = [
        *range(8),
        *(generator.randrange(header_end) for _ in range(142)),
        *(generator.randrange(len(data)) for _ in range(150)),
    ]
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"train_model_3\.safetensors: "):
            load_checkpoint(path)


def test_every_truncation_is_found(path):
    data = path.read_bytes()
    for length in {*range(0, len(data), 7), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(StorageError):
            read_checkpoint_state(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(StorageError, match="do not fit its digest"):
        read_checkpoint_state(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0" + b"{}" * 8])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(StorageError):
        load_checkpoint(tmp_path / "x")


def test_a_foreign_safetensors_file_is_not_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(StorageError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "x")


def with_header(path, change):
    """A checkpoint whose header was changed by somebody who knows how digests are made."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = re.sub(rb"[0-9a-f]{64}", checkpoints.NO_DIGEST.encode(), change(data[8 : 8 + length]))
    path.write_bytes(checkpoints._with_digest(len(header).to_bytes(8, "little") + header + data[8 + length :]))


DIGEST = b'"digest": "' + checkpoints.DIGEST_MARKER + checkpoints.NO_DIGEST.encode() + b'\\""'


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"[" * 50_000 + DIGEST, "nested more than 100 deep"),
        (b'{"__metadata__": {"checkpoint": "' + b"[" * 50_000 + b'", ' + DIGEST + b"}}", "nested more than 100 deep"),
        (b'{"__metadata__": {}, "__metadata__": {' + DIGEST + b"}}", "is given 2 times"),
        (b'{"__metadata__": {"checkpoint": "{}", ' + DIGEST + b"}}", "KeyError('format_version')"),
        (b"{" + DIGEST + b"}", "KeyError('__metadata__')"),
        (b"[{" + DIGEST + b"}]", "TypeError"),
    ],
    ids=range(6),
)
def test_a_header_that_nobody_would_write_is_refused_whatever_its_digest(path, header, reason):
    with_header(path, lambda _: header)
    with pytest.raises(DamagedCheckpointError) as refused:
        read_checkpoint_state(path)
    assert "not a checkpoint of this project" in str(refused.value) and reason in str(refused.value)


@pytest.mark.parametrize(
    "entry",
    [
        b'"dtype":"F32","shape":[-1]', b'"dtype":"F32","shape":[0,4611686018427387904]', b'"dtype":"F32","shape":"1"',
        b'"dtype":"F8_E8M0","shape":[24]', b'"dtype":"X","shape":[6]',
    ],
)  # fmt: skip
def test_tensors_of_odd_shapes_and_kinds_are_damaged(tmp_path, entry):
    path = tmp_path / "x"
    save_checkpoint(path, {"w": torch.zeros(6)}, STATE)
    with_header(path, lambda header: header.replace(b'"dtype":"F32","shape":[6]', entry))
    with pytest.raises(DamagedCheckpointError, match="not a usable checkpoint"):
        load_checkpoint(path)


def test_a_file_of_torch_save_is_called_so(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pth")
    with pytest.raises(StorageError, match=r"model\.pth: a file of torch\.save, which may run code and is not read"):
        load_checkpoint(tmp_path / "model.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"nothing\.safetensors: cannot be read"):
        load_checkpoint(tmp_path / "nothing.safetensors")


def test_a_newer_format_is_named(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr("experiment_parts.runs.checkpoints.FORMAT_VERSION", 2)
    save_checkpoint(tmp_path / "x", tensors, STATE)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="format version 2; this release reads version 1"):
        load_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_non_finite_is_saved(path, tensors, bad):
    before = path.read_bytes()
    with pytest.raises(NonFiniteError, match=r'"network\.weight" holds values that are not finite'):
        save_checkpoint(path, tensors | {"network.weight": torch.tensor([1.0, bad])}, STATE)
    with pytest.raises(NonFiniteError, match="state holds a number that is not finite"):
        save_checkpoint(path, tensors, {"loss": bad})
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, tensors, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match=r"No space left on device\); \d+ MiB free"):
        save_checkpoint(path, tensors, {"epoch": 4})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory"):
        write_bytes_atomically(tmp_path / "not" / "there", b"")


def test_only_own_temporary_files_are_removed(tmp_path):
    for name in (".model.partial", "mine.partial", ".hidden"):
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "mine.partial"]


def test_epochs_are_listed_by_number(tmp_path):
    for name in (
        "train_model_10.safetensors",
        "train_model_9.safetensors",
        "train_model_x.safetensors",
        "train_model_8.safetensors.corrupt",
    ):
        (tmp_path / name).touch()
    assert list(list_epochs(tmp_path)) == [9, 10]
    assert list_epochs(tmp_path)[9] == epoch_path(tmp_path, 9)


def test_damaged_files_never_displace_each_other(tmp_path):
    for expected in ("m.corrupt", "m.corrupt2", "m.corrupt3"):
        (tmp_path / "m").write_text(expected)
        assert set_aside(tmp_path / "m").name == expected
    assert (tmp_path / "m.corrupt").read_text() == "m.corrupt"
