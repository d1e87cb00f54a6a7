"""A file that is sent as a campaign: cut into parts of a bounded size, each a batch, and a journal of those accepted.

Where the parts end depends on the file and the rows in a part alone, and each part's request_id on the campaign and
the part's number. So whoever begins again, after a kill at any line or with a lost journal, sends the same batches
under the same ids, and none is accepted twice. The journal spares them, and says which part holds which rows.

The journal stands beside the file: one JSON object a line, the first with what the campaign was begun with, then one
for each part accepted. A line that a kill has cut off is not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from smsbill.failure import CommandError
from smsbill.recipients import BadRow, Recipient, RecipientFile
from smsbill.seen_numbers import SeenNumbers
from smsgateway.mobile import mask_mobile

BATCH_ROWS = 20_000
"""Rows of a part: some 5 MB in each process that holds it, and what an interruption repeats."""
CAMPAIGN_CHARACTERS_MAX = 48
DUPLICATE = "DUPLICATE_NUMBER"
_VERSION = 1


@dataclass(slots=True)
class Part:
    """Some consecutive rows: what is sent of them, and what is left out."""

    number: int
    rows: int
    recipients: list[Recipient]
    bad: list[BadRow]
    position: int
    """Bytes of the file read up to its end."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What else a message or batch may be sent with; the fields of `smsgateway.v1.SendSmsRequest`.

    `send_at` in seconds since 1970, `valid_seconds` from then on; 0: now, for ever.
    """

    signature: str = ""
    template_id: str = ""
    template_values: tuple[tuple[str, str], ...] = ()
    send_at: int = 0
    valid_seconds: int = 0

    def given(self) -> dict[str, Any]:
        """Those that are given, as they stand in a journal."""
        return {name: getattr(self, name) for name in self.__slots__ if getattr(self, name)}

    def fields(self) -> dict[str, Any]:
        """Those that are given, as fields of a request."""
        fields = self.given()
        if self.template_values:
            fields["template_values"] = dict(self.template_values)
        if self.send_at:
            fields["send_at"] = Timestamp(seconds=self.send_at)
        if seconds := fields.pop("valid_seconds", 0):
            fields["valid_for"] = Duration(seconds=seconds)
        return fields


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Begun:
    """What a campaign was begun with. The same again goes on; anything else is another campaign."""

    campaign_id: str
    brand_id: int
    sms_type: int
    text: str
    variables: tuple[str, ...]
    column: str
    encoding: str
    batch_rows: int
    file_sha256: str
    terms: Terms = NO_TERMS

    def line(self) -> dict[str, Any]:
        """The journal's first line. Terms that are not given leave no trace: names of campaigns are made of it."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "terms"}
        return {"version": _VERSION, **fields, "variables": list(self.variables), **self.terms.given()}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self:
        """What a journal's first line says. Raises TypeError, ValueError and KeyError for what is none."""
        fields = dict(line)
        if fields.pop("version") != _VERSION:
            raise ValueError("version")
        given = {name: fields.pop(name) for name in Terms.__slots__ if name in fields}
        given["template_values"] = tuple((name, value) for name, value in given.get("template_values", ()))
        return cls(**{**fields, "variables": tuple(fields["variables"])}, terms=Terms(**given))


@dataclass(slots=True)
class SentPart:
    """A part that was accepted, or had nobody to send to (`batch_id` is empty then).

    `bad` what the service left out: by reason the places among the recipients of the part.
    """

    part: int
    rows: int
    batch_id: str
    accepted: int
    segments: int
    bad_rows: int
    bad: dict[str, list[int]] = field(default_factory=dict)


def parts(file: RecipientFile, rows: int) -> Iterator[Part]:
    """The parts of a file, numbers that came before left out in each."""
    seen = SeenNumbers()
    part = Part(0, 0, [], [], 0)
    for row in file.rows():
        if isinstance(row, BadRow):
            part.bad.append(row)
        elif seen.add(row.mobile):
            part.recipients.append(row)
        else:
            part.bad.append(BadRow(row.line, mask_mobile(row.mobile), DUPLICATE, row.raw))
        part.rows += 1
        if part.rows == rows:
            part.position = file.position
            yield part
            part = Part(part.number + 1, 0, [], [], 0)
    if part.rows:
        part.position = file.size
        yield part


def request_id_of(campaign_id: str, part: int) -> str:
    """The request_id of a part's batch; at most 64 characters."""
    return f"{campaign_id}/{part:06d}"


def campaign_name(path: Path, begun: Mapping[str, object]) -> str:
    """The name of a campaign that was given none: the same file with the same text is the same campaign."""
    digest = hashlib.sha256(orjson.dumps(begun, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
    stem = "".join(character if character.isprintable() else "_" for character in path.stem)
    return f"{stem[: CAMPAIGN_CHARACTERS_MAX - 13]}-{digest}"


def journal_path(path: Path, campaign_id: str) -> Path:
    """Where the journal of a file's campaign stands."""
    name = re.sub(r"[^\w.-]", "_", campaign_id)
    if name != campaign_id:
        # Two names must not share a journal.
        name = f"{name}-{hashlib.sha256(campaign_id.encode()).hexdigest()[:8]}"
    return path.with_name(f"{path.name}.{name}.campaign")


class Journal:
    """The journal of a campaign, open for as long as it is used; nobody else may send the campaign meanwhile.

    Raises `CommandError` when it belongs to another file or text, or another command has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[int, SentPart] = {}
        self.begun: Begun | None = None
        self._file: BinaryIO | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """A journal to look at. Raises `CommandError` when there is none."""
        journal = cls(path)
        try:
            journal._load(path.read_bytes())
        except OSError as error:
            raise CommandError(
                f"cannot read the journal {path}: {error.strerror}; give the file that was sent, its journal beside it"
            ) from None
        if journal.begun is None:
            raise CommandError(f"the journal {path} is empty: nothing was sent")
        return journal

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise CommandError(
                f"cannot write the journal {self.path}: {error.strerror}; the file's folder must be writable"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            # A line that was cut off goes, so that the next is not glued to it.
            self._file.truncate(self._load(self._file.read()))
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise CommandError(f"another command sends this campaign (it holds {self.path}); wait for it") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def begin(self, begun: Begun) -> None:
        """Begin a campaign, or go on with it. Raises `CommandError` when it was begun with something else."""
        known = self.begun
        if known is None:
            self.begun = begun
            self._append(begun.line())
            return
        if known.file_sha256 != begun.file_sha256:
            raise CommandError(
                f"the file has changed since campaign {known.campaign_id} was begun with it; bring back the file as it "
                f"was, or send this one as another campaign (--campaign). The journal is {self.path}"
            )
        for name in ("brand_id", "sms_type", "text", "variables", "column", "encoding", "batch_rows", "terms"):
            if getattr(known, name) != getattr(begun, name):
                other = "other terms" if name == "terms" else f"another {name.replace('_', ' ')}"
                raise CommandError(
                    f"campaign {known.campaign_id} was begun with {other}; give the same, or another --campaign. The "
                    f"journal is {self.path}"
                )

    def note(self, sent: SentPart) -> None:
        """Keep an accepted part; once this returns it is on the disk."""
        self.parts[sent.part] = sent
        self._append({name: getattr(sent, name) for name in sent.__slots__})

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(orjson.dumps(line) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load(self, content: bytes) -> int:
        """Read whole lines; where they end."""
        whole = content.rfind(b"\n") + 1
        try:
            for place, line in enumerate(content[:whole].splitlines()):
                fields = orjson.loads(line)
                if place == 0:
                    self.begun = Begun.of(fields)
                else:
                    sent = SentPart(**fields)
                    self.parts[sent.part] = sent
        except (ValueError, TypeError, KeyError):
            raise CommandError(
                f"{self.path} is no journal of this release; move it away: what was accepted is not accepted again"
            ) from None
        return whole
