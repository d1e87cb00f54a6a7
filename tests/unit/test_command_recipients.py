"""Aim: a CSV file of recipients is read as people write it, and what is wrong with it is told by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from smsbill.failure import CommandError
from smsbill.recipients import BadRow, Recipient, RecipientFile

GOOD = "+8619900090001"
OTHER = "+8619900090002"


def read(path: Path, content: bytes | str, **options: str) -> list[Recipient | BadRow]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(RecipientFile(path, **options).rows())


def good(rows: list[Recipient | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.mobile) for row in rows if isinstance(row, Recipient)]


def bad(rows: list[Recipient | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


@pytest.mark.parametrize(
    "content",
    [
        "mobile,name\n19900090001,王伟\n19900090002,李娜\n",
        "\ufeffmobile,name\r\n19900090001,王伟\r\n19900090002,李娜\r\n",
        "name;Phone\n王伟;199 0009 0001\n李娜;+86-199-0009-0002",
        "手机号\t姓名\n19900090001\t王伟\n\n8619900090002\t李娜\n",
        "mobile,name\n19900090001,王伟\n19900090002,李娜\n".encode("gbk"),
        '"mobile","name"\n"19900090001","王 ""W"" 伟"\n"19900090002","李,娜"\n',
    ],
)
def test_spellings_of_one_file(path: Path, content: bytes | str) -> None:
    """Aim: encodings, byte order mark, delimiters, line ends, quotes and names of the column make no difference."""
    assert [mobile for _, mobile in good(read(path, content))] == [GOOD, OTHER]


def test_a_bare_list_of_numbers(path: Path) -> None:
    """Aim: one column of numbers needs no line of names, and its first number is not lost."""
    assert good(read(path, "19900090001\n19900090002\n")) == [(1, GOOD), (2, OTHER)]


def test_lines_are_those_of_the_file(path: Path) -> None:
    """Aim: blank lines and cells that span lines are counted, so that an editor shows the row named."""
    rows = read(path, 'mobile,note\n\n19900090001,"two\nlines"\n123,x\n19900090002,y\n')
    assert good(rows) == [(3, GOOD), (6, OTHER)]
    assert [line for line, _ in bad(rows)] == [5]


def test_bad_rows_are_named_and_masked(path: Path) -> None:
    """Aim: each bad row has its line and rule; its number is never shown whole."""
    rows = read(path, "name,mobile\nA,1990009000\nB\nC,19900090001,x\nD,\nE,1.99E+10\n")
    assert [line for line, _ in bad(rows)] == [2, 3, 4, 5, 6]
    shown = [row.mobile for row in rows if isinstance(row, BadRow)]
    assert shown[0] == "19******00"
    assert shown[2] == "199****0001"
    reasons = dict(bad(rows))
    assert reasons[3] == "has 1 cells, the first line 2"
    assert reasons[5] == "empty"


def test_the_column_may_be_named(path: Path) -> None:
    """Aim: --column chooses among several, whatever its case."""
    content = "mobile,backup\n19900090001,19900090002\n"
    assert good(read(path, content, column="Backup")) == [(2, OTHER)]
    with pytest.raises(CommandError, match="line 1: has no column 'home', only: mobile, backup"):
        read(path, content, column="home")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"name,city\nA,B\n", "line 1: has no column `mobile`, only: name, city"),
        (b"19900090001,A\n", r"has no column `mobile`, only: 199\*\*\*\*0001, A"),
        (b'mobile,name\n19900090001,A\n19900090002,"B\nno end\n', "line 3: is not CSV"),
        (b'mobile,name\n19900090001,"A"b\n', "line 2: is not CSV"),
        (b"mobile\n19900090001\n\xff\xfe\x00\n", "line 3: is neither UTF-8 nor GBK"),
        ("mobile\n1".encode("utf-16"), "is UTF-16"),
        (b"\xef\xbb\xbfmobile\n\xff\n", "line 2: is not UTF-8"),
    ],
)
def test_what_is_no_csv_file_ends_with_one_line(path: Path, content: bytes, said: str) -> None:
    """Aim: a file that cannot be trusted is refused whole, with its line and what to do."""
    with pytest.raises(CommandError, match=said) as raised:
        read(path, content)
    assert "\n" not in str(raised.value)
    assert "19900090001" not in str(raised.value)


def test_an_encoding_may_be_required(path: Path) -> None:
    """Aim: --encoding utf-8 refuses what auto would take for GBK."""
    content = "mobile,name\n19900090001,王伟\n".encode("gbk")
    with pytest.raises(CommandError, match="line 2: is not utf-8"):
        read(path, content, encoding="utf-8")
    assert good(read(path, content, encoding="gbk")) == [(2, GOOD)]


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """Aim: a missing file and a folder are told in one line."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(CommandError, match=r"cannot read|is empty"):
            list(RecipientFile(path).rows())


def test_it_is_read_as_a_stream(path: Path) -> None:
    """Aim: progress follows the bytes read, and a large file is not held in memory."""
    path.write_text("mobile\n" + "19900090001\n" * 50_000)
    file = RecipientFile(path)
    rows = file.rows()
    next(rows)
    first = file.position
    assert 0 < first < file.size / 4
    assert sum(1 for _ in rows) == 49_999
    assert file.position == file.size
