"""A carrier's own record of what it took, as it exports it: one row for each message."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from smsbill.failure import CommandError
from smsgateway.mobile import InvalidMobile, normalize_mobile

# Names that a column may have; `uid` is what we told the carrier, our call id.
_COLUMNS = {
    "uid": ("uid",),
    "msgid": ("msgid", "msg_id"),
    "mobile": ("mobile", "phone"),
    "segments": ("segments", "length"),
}
_NEEDED = ("uid", "mobile")


@dataclass(frozen=True, slots=True)
class Row:
    """A message that the carrier took. `call_id` is empty where the carrier was told none; `mobile` is E.164."""

    call_id: str
    carrier_id: str
    mobile: str
    segments: int


def read(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header, or of a JSON list of objects (or an object with the list `entries`, as
    the simulator's record has it), with uid, mobile and, if told, msgid and segments (else 1).

    Raises `CommandError` that names the file and the row.
    """
    try:
        if path.suffix.lower() == ".json":
            document = orjson.loads(path.read_bytes())
            entries = document["entries"] if isinstance(document, dict) else document
            rows: Iterator[tuple[int, Mapping[str, Any]]] = enumerate(entries, 1)
            yield from (_row(path, number, row) for number, row in rows)
            return
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield _row(path, reader.line_num, row)
    except (
        OSError,
        UnicodeDecodeError,
        csv.Error,
        orjson.JSONDecodeError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:
        raise CommandError(f"cannot read the carrier's record {path} ({error}); give CSV or JSON") from None


def _row(path: Path, number: int, row: Mapping[str, Any]) -> Row:
    values: dict[str, str] = {}
    for column, names in _COLUMNS.items():
        present = [name for name in names if name in row]
        if not present and column in _NEEDED:
            raise CommandError(f"{path} row {number}: has no {column}; the record needs uid and mobile")
        values[column] = str((row[present[0]] if present else None) or "").strip()
    try:
        segments = int(values["segments"] or 1)
        if segments < 1:
            raise ValueError
        return Row(values["uid"], values["msgid"], normalize_mobile(values["mobile"]), segments)
    except InvalidMobile as error:
        raise CommandError(f"{path} row {number}: {error}; correct the row") from None
    except ValueError:
        raise CommandError(f"{path} row {number}: segments is no positive number; correct the row") from None
