"""Foreign names reach a terminal, a log and a CSV file as text alone: whatever they hold, it moves no cursor, colours
nothing and is no formula.
"""

import ast
import csv
import io
import logging
import random

import pytest

from experiment_parts.runs.console import Console
from utils.errors import DataError, prints_user_errors
from utils.files.tables import as_csv
from utils.paths import REPOSITORY_ROOT
from utils.words import printable, printable_text, say

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
        assert all(letter.isprintable() or letter == "\n" for letter in printable_text(text))


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
    found = {
        f"{path.relative_to(REPOSITORY_ROOT).as_posix()}"
        for path in HOUSE
        for name, node in calls(path)
        if name in direct and ast.unparse(node) not in ("print(__doc__)", "print(help_text(), flush=True)")
    }
    assert found == OTHER_PRINTING.keys(), "use utils.words.say, which escapes names"
    logging_without = {
        ast.unparse(node)
        for path in HOUSE
        for name, node in calls(path)
        if name.endswith("setFormatter") and "PrintableFormatter" not in ast.unparse(node)
    }
    assert logging_without == set()


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_a_name_in_a_csv_file_is_no_formula(begin):
    rows = [["file", "value"], [f"{begin}cmd|'/C calc'!A0", -1.5], ["-0.25", "+3e-4"], ["plain -name", None]]
    read = list(csv.reader(io.StringIO(as_csv(rows))))
    assert read[1] == [f"'{printable(begin)}cmd|'/C calc'!A0", "-1.5"]
    assert read[2:] == [["-0.25", "+3e-4"], ["plain -name", ""]], "numbers and other names stay"
