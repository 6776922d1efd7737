"""Files of JSON, TOML and text: what is right comes back, whatever is wrong is one line and takes no time."""

import json
import os
import threading

import pytest

from utils.files.reading import (
    DEEPEST_NESTING,
    parse_json,
    parse_toml,
    read_json,
    read_object,
    read_text,
    why_unreadable,
)

CONTENT = {"a": [1, -2.5, None, True, "ü\n", {"b": []}], "file of no text: \udcff": "😀"}


def nested(depth, inner=0):
    return inner if depth == 0 else [nested(depth - 1, inner)]


@pytest.mark.parametrize("front", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_json_writes_comes_back(tmp_path, front, ascii_only):
    path = tmp_path / "a.json"
    content = CONTENT if ascii_only else {"a": CONTENT["a"]}
    path.write_bytes(front + json.dumps(content, ensure_ascii=ascii_only).encode())
    assert read_json(path) == read_object(path) == parse_json(read_text(path)) == content


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not valid JSON (Expecting property name"),
        (b"", "not valid JSON (Expecting value"),
        (b"[" * 10**6, "nested more than 100 deep"),
        (b'{"a":' * 10**5, "nested more than 100 deep"),
        (json.dumps(nested(DEEPEST_NESTING + 1)).encode(), "nested more than 100 deep"),
        (b'{"a": 1, "b": {"seed": 1, "seed": 2, "seed": 3}}', 'key "seed" is given 3 times'),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', r'key "\x1b[2J" is given 2 times'),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\uDE00\\ud83d": 1}', "half a character"),
        (b"caf\xe9", "not UTF-8 text"),
        (b"[" + b"1" * 5000 + b"]", "Exceeds the limit"),
        (b"[1e999]", "not valid JSON (the number 1e999)"),
        (b'{"a": NaN}', "not valid JSON (the number NaN)"),
        (b"-Infinity", "not valid JSON (the number -Infinity)"),
    ],
)
def test_what_is_no_json_of_ours_is_one_short_line(tmp_path, data, reason):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError) as refused:
        read_json(path)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_lists_may_be_as_deep_as_the_limit_says():
    content = nested(DEEPEST_NESTING)
    assert parse_json(json.dumps(content)) == content


def test_an_object_is_asked_for_and_another_kind_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a JSON object, but a list"):
        read_object(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = [", "not valid TOML"),
        ("a = 1\na = 2", "not valid TOML"),
        ('a = "\\ud800"', "not valid TOML"),
        ("a = " + "[" * 10**5, "nested more than 100 deep"),
        ("a = " + "{ a = " * 10**4, "nested more than 100 deep"),
        (".".join("a" * 3000) + " = 1", "nested more than 100 deep"),
        ("a = 2026-01-01", "a date or time"),
    ],
)
def test_what_is_no_toml_of_ours_is_one_short_line(text, reason):
    with pytest.raises(ValueError) as refused:
        parse_toml(text)
    assert reason in str(refused.value) and len(str(refused.value)) < 300


def test_toml_comes_back():
    assert parse_toml('[a]\nb = [1, 2.5, true, "x"]') == {"a": {"b": [1, 2.5, True, "x"]}}


def test_what_is_no_file_or_too_large_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_text("[1, 2, 3]")
    monkeypatch.setattr("utils.files.reading.MOST_BYTES", 5)
    for name, reason in {
        "pipe": "no regular file", "folder": "Is a directory", "large": "larger than 5 B", "x": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(OSError) as refused:
            read_json(tmp_path / name)
        assert f"cannot be read ({reason}" in why_unreadable(refused.value)
    with pytest.raises(OSError, match="no regular file"):
        read_text("/dev/zero", may_be_pipe=True)


def test_a_pipe_is_read_where_it_may_be_one(monkeypatch):
    def read(text):
        reader, writer = os.pipe()
        thread = threading.Thread(target=lambda: (os.write(writer, text), os.close(writer)))
        thread.start()
        try:
            return read_text(f"/dev/fd/{reader}", may_be_pipe=True)
        finally:
            thread.join()
            os.close(reader)

    assert read(b'{"a": 1}') == '{"a": 1}'
    monkeypatch.setattr("utils.files.reading.MOST_WRITTEN_BYTES", 5)
    with pytest.raises(OSError, match="larger than 5 B"):
        read(b"123456")
