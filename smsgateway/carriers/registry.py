"""Which carrier the gateway and the workers speak to: a name that installed packages put in a list.

`SMSBILL_CARRIER` names an entry point of the group ``smsbill.carriers``. Ours stand in pyproject.toml; another package
adds its own in the same way, and nothing here changes. docs/carriers.md walks through writing one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from infra.errors import StartError
from smsgateway.carriers.base import Carrier, CarrierReceipt, CarrierReply, MalformedReceipt

if TYPE_CHECKING:
    from smsgateway.settings import Settings

ENTRY_POINTS: Final = "smsbill.carriers"
"""The group of entry points; each names a class derived from `CarrierKind` that is made without parameters."""


@dataclass(frozen=True, slots=True)
class PushedRequest:
    """A request to the callback, read to its end.

    Attributes:
        method: GET or POST.
        query: what stands behind the question mark, as it came.
        headers: names in lower case and values, as they came.
        body: at most `SMSBILL_CALLBACK_BYTES_MAX` bytes; empty with GET.
    """

    method: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str:
        """The first value of a header, given in lower case; empty when there is none."""
        wanted = name.encode("latin-1", "replace")
        return next((value.decode("latin-1") for found, value in self.headers if found == wanted), "")

    def fields(self, fields_max: int) -> dict[str, str]:
        """The fields of the query and of a form in the body, percent-decoded; the form's win, and the last of a name.

        Raises `MalformedReceipt` when one of both has more than `fields_max`.
        """
        params: dict[str, str] = {}
        for part in (self.query, self.body):
            if not part:
                continue
            try:
                params.update(
                    parse_qsl(part.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=fields_max)
                )
            except ValueError:
                raise MalformedReceipt("query", f"must have at most {fields_max} fields") from None
        return params


@dataclass(frozen=True, slots=True)
class Answer:
    """What a carrier hears about a push: an HTTP status, a body and its type."""

    status: int
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Callback:
    """How a carrier pushes receipts to ``/callbacks/<name of the kind>/report``, or replies to ``…/reply``.

    Attributes:
        read: the receipts (or replies) of a request, in its order, and why others in it could not be read; a push
            without any is fine. Raises `ReceiptNotAuthentic`, judged before anything else, and `MalformedReceipt` where
            nothing at all can be read; then the push is refused, as one is whose receipts are all malformed.
        stored: says that all receipts are ours now; given only once they are in the database.
        again: asks for the same push again: not all could be stored.
        methods: GET, POST or both; others are answered with 405.
        refused: for a push that will never be taken (malformed, forbidden or too large). None: 400, 403 or 413 with a
            JSON object that names the field and its rule.
    """

    read: Callable[[PushedRequest], Sequence[CarrierReceipt | CarrierReply | MalformedReceipt]]
    stored: Answer
    again: Answer
    methods: frozenset[str] = frozenset({"GET", "POST"})
    refused: Answer | None = None


class CarrierKind(ABC):
    """One way to speak to carriers. Its name is that of its entry point, in lower case, and stands in
    ``/callbacks/<name>/report`` and in metrics; settings of its own are a class derived from
    `infra.settings.EnvironmentSettings` with the prefix ``SMSBILL_<NAME>_``.
    """

    @abstractmethod
    def describe(self, settings: Settings) -> str | None:
        """What is set up, in a phrase without secrets for operators; None when there is no account.

        Raises `StartError` with the setting and the rule that it breaks, as `open` and `callback` do.
        """

    @abstractmethod
    def open(self, settings: Settings, *, connections_max: int) -> Carrier | None:
        """The account as workers use it, for `connections_max` calls at a time; None when none is set up.

        Nothing is connected yet: a carrier that is away keeps no worker from starting. Our name of the account is
        `settings.carrier_account`.
        """

    def chunk_messages(self, settings: Settings) -> int:
        """Messages of a batch that go into one call, so into one chunk. What is larger all the same workers halve."""
        return settings.batch_chunk_messages

    def personalised_messages(self, settings: Settings) -> int:
        """Messages of a batch with variables that go into one call, so into one chunk; 1: the carrier has no call for
        them, and each goes by itself. What is larger than the account takes workers divide.
        """
        return 1

    def callback(self, settings: Settings) -> Callback | None:
        """How receipts are pushed; None when they are not, or when no account is set up: who would prove who pushes?"""
        return None

    def reply_callback(self, settings: Settings) -> Callback | None:
        """How replies are pushed; None when they are not, or when no account is set up."""
        return None


def carrier_kind(name: str) -> CarrierKind:
    """The kind of carrier of a name.

    Raises:
        StartError: there is none, two packages claim it, or its module does not load.
    """
    installed = entry_points(group=ENTRY_POINTS)
    found = {entry.value: entry for entry in installed if entry.name == name}
    if not found:
        known = ", ".join(sorted({entry.name for entry in installed})) or "none, so install this package again"
        raise StartError(f"setting SMSBILL_CARRIER: no carrier {name!r} is installed; known are: {known}")
    if len(found) > 1:
        raise StartError(
            f"setting SMSBILL_CARRIER: {' and '.join(sorted(found))} both claim the name {name!r}; remove one package"
        )
    return _made(next(iter(found.values())))


def _made(entry: EntryPoint) -> CarrierKind:
    try:
        kind = entry.load()()
    except Exception as error:
        raise StartError(
            f"setting SMSBILL_CARRIER: {entry.value} does not load: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(kind, CarrierKind):
        raise StartError(f"setting SMSBILL_CARRIER: {entry.value} is no class derived from CarrierKind")
    return kind
