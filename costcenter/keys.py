"""The idempotency keys of a group of operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from costcenter.operations import Operation, Pay

Key = tuple[int, int, str]  # brand_id, operation, request_id
PaymentKey = tuple[int, str]  # brand_id, request_id
Kept = tuple[bytes, bytes]  # fingerprint, reply


@dataclass(slots=True)
class GroupKeys:
    """The keys that a group asks for, those of them that exist, and those that it makes.

    Payments have keys of their own kind, which hold for ever.
    """

    asked: list[Key] = field(default_factory=list)
    payments_asked: list[PaymentKey] = field(default_factory=list)
    known: dict[Key, Kept] = field(default_factory=dict)
    payments_known: dict[PaymentKey, Kept] = field(default_factory=dict)
    made: list[tuple[int, int, str, bytes, bytes, datetime]] = field(default_factory=list)
    payments_made: list[tuple[int, str, bytes, bytes]] = field(default_factory=list)

    def ask(self, operation: Operation) -> None:
        """Note the key of an operation, if it has one."""
        if isinstance(operation, Pay):
            self.payments_asked.append((operation.brand_id, operation.request_id))
        elif operation.code:
            self.asked.append((operation.brand_id, operation.code, operation.request_id))

    def find(self, operation: Operation) -> Kept | None:
        """Fingerprint and reply of the operation's key, or None when it is new."""
        if isinstance(operation, Pay):
            return self.payments_known.get((operation.brand_id, operation.request_id))
        return self.known.get((operation.brand_id, operation.code, operation.request_id))

    def make(self, operation: Operation, reply: bytes, now: datetime) -> None:
        """Note a key that the group makes, for the database and for the operations that follow."""
        brand_id, request_id, fingerprint = operation.brand_id, operation.request_id, operation.fingerprint
        if isinstance(operation, Pay):
            self.payments_known[brand_id, request_id] = (fingerprint, reply)
            self.payments_made.append((brand_id, request_id, fingerprint, reply))
        else:
            self.known[brand_id, operation.code, request_id] = (fingerprint, reply)
            self.made.append((brand_id, operation.code, request_id, fingerprint, reply, now))
