"""Errors that know their gRPC status."""

from __future__ import annotations

from collections.abc import Mapping

import grpc


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """A call was refused for a reason that its caller can act on; nothing was changed.

    Parameters: `code` the gRPC status; `reason` an UPPER_SNAKE word from the documented list; `message` one sentence
    for a person; `metadata` figures and names that belong to the reason; `fields` violations by field name;
    `retry_seconds` after which the same call may succeed, where that is known.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.fields = dict(fields or {})
        self.retry_seconds = retry_seconds

    def __repr__(self) -> str:
        return f"Refusal({self.code.name}, {self.reason}, {self.message!r})"


def invalid(**fields: str) -> Refusal:
    """INVALID_ARGUMENT (reason BAD_REQUEST): each keyword names a field (`__`: a dot) and gives the rule it breaks."""
    named = {name.replace("__", "."): rule for name, rule in fields.items()}
    return invalid_fields(named)


def invalid_fields(fields: Mapping[str, str]) -> Refusal:
    """INVALID_ARGUMENT (reason BAD_REQUEST) for field names such as `items[3].segments`."""
    sentence = "; ".join(f"{name}: {rule}" for name, rule in fields.items())
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST", sentence, fields=fields)


def not_found(reason: str, message: str) -> Refusal:
    """NOT_FOUND with the reason that names what is missing."""
    return Refusal(grpc.StatusCode.NOT_FOUND, reason, message)


def failed_precondition(reason: str, message: str, **metadata: object) -> Refusal:
    """FAILED_PRECONDITION: the call is well formed, the state does not allow it."""
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        reason,
        message,
        metadata={name: str(value) for name, value in metadata.items()},
    )


def idempotency_conflict(request_id: str) -> Refusal:
    """ALREADY_EXISTS: the request_id was used before with other content."""
    return Refusal(
        grpc.StatusCode.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        "request_id was used before with other content; use a new one for a new call",
        metadata={"request_id": request_id},
    )


def overloaded(what: str, limit: int) -> Refusal:
    """RESOURCE_EXHAUSTED: a bounded queue is full; call again later."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        f"{what} is full ({limit}); call again later",
        metadata={"limit": str(limit)},
    )


def unavailable(message: str) -> Refusal:
    """UNAVAILABLE: a part that is needed cannot be reached; call again with the same request_id."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", message)


class StartError(Exception):
    """A process cannot start; the text is one line that says what to do."""


class SettingError(StartError):
    """A setting breaks its rule.

    Parameters: `name` as it was given; `rule` what it should have been, never the value.
    """

    def __init__(self, name: str, rule: str) -> None:
        super().__init__(f"setting {name}: {rule}")
        self.name = name
        self.rule = rule
