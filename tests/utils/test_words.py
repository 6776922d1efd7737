"""A line that cannot be printed is lost, the program is not; what is printed can be read and commands no terminal."""

import io
import logging
import os
import pty
import subprocess
import sys

import pytest
from tqdm import tqdm

from experiment_parts.runs.console import Console, EpochProgress
from utils.errors import ConfigError, prints_user_errors
from utils.paths import REPOSITORY_ROOT
from utils.words import guarded_output

HOSTILE = "\x1b]0;owned\x07\x1b[2J \x9b31m \r over \u202e \udcff"
ESCAPED = r"\x1b]0;owned\x07\x1b[2J \x9b31m \r over \u202e \udcff"


def full_disk():
    return open("/dev/full", "w")


def reader_that_left():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def terminal_that_is_gone():
    master, slave = pty.openpty()
    os.close(master)
    return open(slave, "w")


def closed_file():
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


GONE = [full_disk, reader_that_left, terminal_that_is_gone, closed_file, lambda: None]


@pytest.mark.parametrize("gone", GONE)
def test_a_stream_that_is_gone_costs_its_lines_alone(monkeypatch, tmp_path, gone):
    stream = gone()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with Console() as console:
        console.open_run_log(tmp_path / "run.log")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with EpochProgress(1, 2, n_iterations=3, tasks_per_iteration=1) as progress:
            for number in range(3):
                logging.getLogger("a").info("line %d of the run", number)
                print("x" * 10**5, flush=True)  # more than any buffer takes
                progress.advance(1, 0.5, 0.5)
        logging.getLogger("a").error("the end")
    assert sys.stdout is sys.stderr is stream
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [f"line {i} of the run" for i in range(3)] + ["the end"]
    if stream is not None and not stream.closed:
        stream.flush()  # as the interpreter does when it ends
        stream.close()


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_closed_streams_of_a_process_are_not_taken_by_the_next_file(tmp_path, closed):
    """What libraries print into number 1 or 2 would be in a checkpoint."""
    program = (
        "import os, sys; from utils.words import guarded_output\n"
        "with guarded_output():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "    assert file.fileno() > 2\n"
        "    print('out'); print('err', file=sys.stderr); [os.write(number, b'native') for number in (1, 2)]\n"
    )
    command = [sys.executable, "-c", program]
    shell = ["bash", "-c", '"$@" ' + " ".join(f"{n}>&-" for n in closed.split()), "bash", *command]
    done = subprocess.run(shell, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == ""
    assert ("out" in done.stdout, "err" in done.stderr) == ("1" not in closed, "2" not in closed)


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    with Console():
        logging.getLogger("a").info("数据/café")
        print("数据/café")
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u6570\\u636e/caf\xe9\n" * 2


def test_control_characters_of_names_reach_neither_terminal_nor_log(capsys, tmp_path):
    @prints_user_errors
    def fails():
        print(HOSTILE)
        print(f"name: {HOSTILE}", file=sys.stderr)
        raise ConfigError(f"{HOSTILE}: no\nsuch key")

    assert fails() == 1
    printed = capsys.readouterr()
    assert printed.out == ESCAPED + "\n"
    assert printed.err == f"name: {ESCAPED}\n{ESCAPED}: no\nsuch key\n"
    with Console() as console:
        console.open_run_log(tmp_path / "run.log")
        logging.getLogger("a").warning("%s\tand\nmore", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("a").exception("\x1b[A%s", HOSTILE)
    written = (tmp_path / "run.log").read_text()
    for text in (capsys.readouterr().err, written):
        assert f"{ESCAPED}\tand\nmore\n" in text and f"\\x1b[A{ESCAPED}\n" in text and f"ValueError: {ESCAPED}" in text
        assert not {c for c in text if not c.isprintable()} - {"\n", "\t"}


def test_progress_bars_stay_bars_and_lines_are_printed_above_them(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Console(), tqdm(total=2, desc="unpacking \x1b[2J", position=1) as bar:
        bar.update()
        logging.getLogger("a").warning("said above")
    shown = capsys.readouterr().err
    assert "\runpacking \\x1b[2J:  50%" in shown and "\x1b[A" in shown and "\x1b[2J" not in shown
    assert "said above\n" in shown


def test_streams_are_put_back_even_after_an_error():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), guarded_output():
        assert sys.stdout is not before[0]
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before
