"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = Sequence[object]

_NAME_WIDTH = 20
# Columns that are copied from: they are not broken over lines either.
WHOLE = ("where", "message", "token", "expires")


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON values: numbers as numbers, enums as short lower-case words, moments as ISO 8601 or null."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields if _is_told(message, field)}


def word(descriptor: Any, number: int) -> str:
    """An enum's value as a short lower-case word: SMS_TYPE_MARKETING is `marketing`."""
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in descriptor.name).strip("_").upper()
    return str(value.name).removeprefix(f"{prefix}_").lower()


def moment(value: Timestamp) -> str:
    """A moment in this machine's time, to the second; empty when it is not set."""
    if not value.seconds:
        return ""
    return value.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def table(title: str, columns: Sequence[str], rows: Iterable[Row]) -> Table:
    """A table; columns of numbers (named with a leading `#`) are set to the right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        is_number = column.startswith("#")
        # A number that is cut or broken is a wrong one; texts give way.
        made.add_column(
            column.removeprefix("#"),
            justify="right" if is_number else "left",
            min_width=len(column) - 1 if is_number else None,
            max_width=_NAME_WIDTH if column == "name" else None,
            no_wrap=is_number or column in WHOLE or column == "name",
            overflow="ellipsis" if column == "name" else "fold",
        )
    for row in rows:
        made.add_row(*(_text(cell) for cell in row))
    return made


def show(as_json: bool, value: object, title: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Print a value as JSON, or as a table."""
    if as_json:
        print_json(value)
    else:
        console().print(table(title, columns, rows))


def pairs(as_json: bool, value: Mapping[str, object], title: str = "") -> None:
    """Print a few named values as JSON, or one a line."""
    if as_json:
        print_json(value)
        return
    made = Table(title=title or None, title_justify="left", show_header=False, box=None, pad_edge=False)
    made.add_column(style="bold")
    made.add_column()
    for name, cell in value.items():
        made.add_row(name.replace("_", " "), _text(cell))
    console().print(made)


def write_table(made: Table, file: IO[str]) -> None:
    """Write a table to a file; as wide as the terminal only where standard output is one."""
    width = console().width
    Console(file=file, width=width, markup=False, highlight=False, emoji=False).print(made)


def console(*, stderr: bool = False) -> Console:
    """A console that leaves texts of others alone: no markup, no highlighting, and no cut lines in a pipe."""
    found = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    # Without a terminal nothing says how wide a line may be; a program that reads tables wants them whole.
    return found if found.is_terminal else Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=200)


def _text(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, list):
        return ", ".join(_text(each) for each in cell)
    return "" if cell is None else str(cell)


def _is_told(message: Message, field: Any) -> bool:
    """Alternatives and optional fields that are not set are left out; everything else is told."""
    if field.containing_oneof is not None:
        return message.HasField(field.name)
    return True


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(field, each) for each in value]
    if field.type == FieldDescriptor.TYPE_MESSAGE and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        at: datetime = value.ToDatetime(tzinfo=UTC)
        return at.isoformat().replace("+00:00", "Z")
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return plain(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return word(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex()
    return value
