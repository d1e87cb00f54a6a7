"""Recipients from a CSV file: read row by row, with every bad row named by its line.

The file is UTF-8 (with or without a byte order mark) or GBK, comma, semicolon or tab separated. Its first line names
the columns; a file with one column of numbers needs no such line.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smsbill.failure import CommandError
from smsgateway.mobile import InvalidMobile, mask_mobile, normalize_mobile

# What people call the column, in the order in which it is looked for.
COLUMNS = (
    "mobile", "phone", "msisdn", "number", "tel", "telephone", "手机号", "手机号码", "手机", "电话号码", "电话", "号码",
)  # fmt: skip
ENCODINGS = ("auto", "utf-8", "gbk")
_DELIMITERS = ",;\t"
_BLOCK_BYTES = 1 << 20
_SHOWN_NAMES = 10


@dataclass(frozen=True, slots=True)
class Recipient:
    """A row with a number that can be sent to; `raw` is the number as it stands there."""

    line: int
    mobile: str
    cells: tuple[str, ...]
    raw: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is left out, with its number masked; `raw` is the number as it stands there."""

    line: int
    mobile: str
    reason: str
    raw: str = field(default="", compare=False, repr=False)


class RecipientFile:
    """A CSV file of recipients.

    Parameters: `column` the name of the column with the numbers, empty: the first of `COLUMNS` that the file has;
    `encoding` one of `ENCODINGS`. Raises `CommandError` when the file cannot be read as such.
    """

    def __init__(self, path: Path, *, column: str = "", encoding: str = "auto") -> None:
        self._path = path
        self._column = column.strip().casefold()
        with self._errors():
            self.size = path.stat().st_size
            if not self.size:
                raise CommandError(f"{path} is empty; give a CSV file with a column `mobile`")
            self.encoding = self._detect(encoding)
        self.columns: list[str] = []
        """Names of the columns, once the first row was read."""
        self._raw: io.BufferedReader | None = None

    @property
    def position(self) -> int:
        """Bytes read so far, out of `size`."""
        return self._raw.tell() if self._raw is not None and not self._raw.closed else self.size

    def check(self) -> None:
        """Read the file to its end without judging rows. Raises `CommandError` where it stops being a CSV file, and
        when its first line names no numbers.
        """
        with self._errors(), self._reader() as reader:
            line, named = 1, False
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    raise self._no_csv(line, error) from None
                if row is None:
                    return
                if not named and any(cells := [cell.strip() for cell in row]):
                    self.columns = self._header(cells, line)[0]
                    named = True
                line = reader.line_num + 1  # type: ignore[attr-defined] # csv's reader has it

    def fingerprint(self) -> str:
        """What tells this content from another: its SHA-256 in hexadecimal digits."""
        with self._errors(), self._path.open("rb") as raw:
            return hashlib.file_digest(raw, "sha256").hexdigest()

    def rows(self) -> Iterator[Recipient | BadRow]:
        """Every row that is not blank. Raises `CommandError` where the file stops being a CSV file."""
        with self._errors(), self._reader() as reader:
            yield from self._parse(reader)

    @contextmanager
    def _reader(self) -> Iterator[Iterator[list[str]]]:
        with self._path.open("rb") as raw, io.TextIOWrapper(raw, encoding=self.encoding, newline="") as text:
            self._raw = raw
            first = text.readline()
            text.seek(0)
            # The delimiter of the first line is that of the file.
            delimiter = max(_DELIMITERS, key=first.count)
            yield csv.reader(text, delimiter=delimiter, strict=True)

    def _no_csv(self, line: int, error: csv.Error) -> CommandError:
        return CommandError(f"{self._path} line {line}: is not CSV ({error}); nothing was sent, correct the line")

    def _parse(self, reader: Iterator[list[str]]) -> Iterator[Recipient | BadRow]:
        names: list[str] | None = None
        place, line = 0, 1
        while True:
            start = line
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise self._no_csv(start, error) from None
            if row is None:
                return
            line = reader.line_num + 1  # type: ignore[attr-defined] # csv's reader has it
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if names is None:
                names, place, is_data = self._header(cells, start)
                self.columns = names
                if not is_data:
                    continue
            yield self._judge(cells, place, names, start)

    def _header(self, cells: list[str], line: int) -> tuple[list[str], int, bool]:
        """Names of the columns, the place of the numbers, and whether the line is a row of data already."""
        folded = [cell.casefold() for cell in cells]
        for name in (self._column,) if self._column else COLUMNS:
            if name in folded:
                return cells, folded.index(name), False
        if not self._column and len(cells) == 1 and _is_number(cells[0]):
            return ["mobile"], 0, True
        wanted = f"column {self._column!r}" if self._column else "column `mobile`"
        # A first line of numbers is a file without names; numbers are not shown.
        shown = ", ".join(mask_mobile(cell) if cell[-1:].isdigit() else cell for cell in cells[:_SHOWN_NAMES])
        raise CommandError(
            f"{self._path} line {line}: has no {wanted}, only: {shown}; "
            "name the columns in the first line, and the one with the numbers with --column"
        )

    def _judge(self, cells: list[str], place: int, names: list[str], line: int) -> Recipient | BadRow:
        if len(cells) != len(names):
            shown = mask_mobile(cells[place]) if place < len(cells) else ""
            raw = cells[place] if place < len(cells) else ""
            return BadRow(line, shown, f"has {len(cells)} cells, the first line {len(names)}", raw)
        mobile = cells[place]
        try:
            return Recipient(line, normalize_mobile(mobile), tuple(cells), mobile)
        except InvalidMobile as error:
            return BadRow(line, mask_mobile(mobile), error.rule, mobile)

    def _detect(self, encoding: str) -> str:
        with self._path.open("rb") as file:
            start = file.read(4)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise CommandError(f"{self._path} is UTF-16; save it as “CSV UTF-8” and send it again")
        if start.startswith(codecs.BOM_UTF8):
            candidates = ["utf-8-sig"]
        else:
            # GB 18030 holds all of GBK; what is both is ASCII.
            candidates = {"auto": ["utf-8", "gb18030"], "utf-8": ["utf-8"], "gbk": ["gb18030"]}[encoding]
        lines = [self._undecodable_line(candidate) for candidate in candidates]
        for candidate, line in zip(candidates, lines, strict=True):
            if line is None:
                return candidate
        tried = "neither UTF-8 nor GBK" if len(candidates) > 1 else f"not {encoding if encoding != 'auto' else 'UTF-8'}"
        raise CommandError(f"{self._path} line {lines[0]}: is {tried}; save the file as “CSV UTF-8” and send it again")

    def _undecodable_line(self, encoding: str) -> int | None:
        """The first line that is not of this encoding, or None."""
        decoder = codecs.getincrementaldecoder(encoding)()
        line = 1
        with self._path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    return line + error.object[: error.start].count(b"\n")
                line += block.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return line
        return None

    def _errors(self) -> _FileErrors:
        return _FileErrors(self._path)


class _FileErrors:
    """Turns what the operating system refuses into one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise CommandError(f"cannot read {self._path}: {error.strerror}; give a CSV file") from None


def _is_number(text: str) -> bool:
    try:
        normalize_mobile(text)
    except InvalidMobile:
        return False
    return True
