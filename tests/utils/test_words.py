"""Foreign names reach a terminal, a log and a CSV file as text alone: whatever they hold, it moves no cursor, colours
nothing and is no formula. A line that cannot be printed is lost, the program is not.
"""

import ast
import csv
import io
import logging
import os
import pty
import random
import subprocess
import sys

import pytest
from tqdm import tqdm

from experiment_parts.runs.console import Console, EpochProgress
from utils.errors import ConfigError, DataError, prints_user_errors
from utils.files.tables import as_csv
from utils.paths import REPOSITORY_ROOT
from utils.words import guarded_output, printable, printable_text, say

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202eb\udc80"
SHOWN = "a\\x1b[2J\\x1b]0;owned\\x07\\r\\x9b31m\\u202eb\\udc80"
HOUSE = [
    path
    for path in REPOSITORY_ROOT.glob("**/*.py")
    if not {"tests", "benchmarks", "docs", ".venv"}.intersection(path.relative_to(REPOSITORY_ROOT).parts)
]
OTHER_PRINTING = {
    "utils/words.py": "is what the others call",
    "utils/images/decoding.py": "JSON, for the process that asked",
    "utils/images/packed.py": "jobs, for the processes that decode",
    "script_generation_tools/write_config_table.py": "a path of this project",
    "experiment_tools/__init__.py": "a package of the requirements, before anything else is imported",
}


def test_a_name_is_one_printable_line_and_an_ordinary_one_is_itself():
    assert printable(EVIL) == SHOWN
    assert printable("élan vital/日本 5-way ± 1 %") == "élan vital/日本 5-way ± 1 %"
    assert printable("one\ntwo") == "one\\ntwo"
    assert printable_text(f"{EVIL}\ntwo") == f"{SHOWN}\ntwo"


def test_no_text_at_all_reaches_a_terminal_with_a_control_character():
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(
            chr(generator.choice((generator.randrange(256), generator.randrange(0x3000)))) for _ in range(40)
        )
        assert all(letter.isprintable() or letter in "\n\t" for letter in printable_text(text))


def test_what_is_said_and_logged_is_printable_and_the_run_s_log_too(tmp_path, capsys):
    evil, shown = EVIL.removesuffix("\udc80"), SHOWN.removesuffix("\\udc80")  # pytest cannot hand an undecodable one on
    with Console() as console:
        console.open_run_log(tmp_path / "run.log")
        logging.getLogger("test").info("packed %s", evil)
        try:
            raise ValueError(evil)
        except ValueError as error:
            logging.getLogger("test").error("note: %s", evil, exc_info=error)
    say(evil)

    @prints_user_errors
    def refuses():
        raise DataError(f"{evil}: no such folder")

    assert refuses() == 2
    written, log = capsys.readouterr(), (tmp_path / "run.log").read_text()
    for text, times in ((written.out, 2), (written.err, 3), (log, 3)):
        assert text.count(shown) == times
        assert "\x1b" not in text and "\x9b" not in text and "\r" not in text


def calls(path):
    """The calls of a file as (dotted name, node)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_in_the_house_writes_to_a_terminal_by_another_way():
    direct = ("print", "sys.stdout.write", "sys.stderr.write", "logging.StreamHandler", "logging.basicConfig")
    made = [
        (path, name, node)
        for path in HOUSE
        for name, node in calls(path)
        if name in direct or name.endswith("setFormatter")
    ]
    found = {
        f"{path.relative_to(REPOSITORY_ROOT).as_posix()}"
        for path, name, node in made
        if name in direct and ast.unparse(node) not in ("print(__doc__)", "print(help_text())", "print(__version__)")
    }
    assert found == OTHER_PRINTING.keys(), "use utils.words.say, which escapes names"
    logging_without = {
        ast.unparse(node)
        for _, name, node in made
        if name.endswith("setFormatter") and "PrintableFormatter" not in ast.unparse(node)
    }
    assert logging_without == set()


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_a_name_in_a_csv_file_is_no_formula(begin):
    rows = [["file", "value"], [f"{begin}cmd|'/C calc'!A0", -1.5], ["-0.25", "+3e-4"], ["plain -name", None]]
    read = list(csv.reader(io.StringIO(as_csv(rows))))
    assert read[1] == [f"'{printable(begin)}cmd|'/C calc'!A0", "-1.5"]
    assert read[2:] == [["-0.25", "+3e-4"], ["plain -name", ""]], "numbers and other names stay"


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
