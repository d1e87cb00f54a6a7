"""Deliberately broken ledgers. Each must fail the comparison with the oracle, else that compares too little.

A mutation is one mistake that somebody could make, as texts of files and what they become. A text that is not there
exactly once is an error: the mistake has to be made anew in the code as it is now.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """One place of a file."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """A broken ledger. `breaks`: what its users would notice."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]

    def problems(self, root: Path) -> list[str]:
        """Why it cannot be applied to a tree, or leaves there what is no Python; empty when it can."""
        return self._broken(root)[1]

    def apply(self, root: Path) -> None:
        """Break a tree. Raises `ValueError` when it does not have the texts, or would be no Python."""
        broken, problems = self._broken(root)
        if problems:
            raise ValueError("; ".join(problems))
        for file, text in broken.items():
            (root / file).write_text(text)

    def _broken(self, root: Path) -> tuple[dict[str, str], list[str]]:
        """The texts of a tree's files after all edits, and why they are not what they should be."""
        found = []
        broken: dict[str, str] = {}
        for edit in self.edits:
            text = broken.get(edit.file) or (root / edit.file).read_text()
            count = text.count(edit.old)
            if count != 1:
                found.append(f"{self.name}: {edit.file} has {count} times: {edit.old.strip().splitlines()[0]}")
            broken[edit.file] = text.replace(edit.old, edit.new)
        for file, text in broken.items():
            try:
                ast.parse(text)
            except SyntaxError as error:
                found.append(f"{self.name}: {file}, line {error.lineno}: {error.msg}")
        return broken, found


def _book(*edits: tuple[str, str]) -> tuple[Edit, ...]:
    return tuple(Edit("costcenter/book.py", old, new) for old, new in edits)


MUTATIONS = (
    Mutation(
        "oldest package first",
        "Packages burn down by age, so those that end sooner expire unused.",
        (
            Edit(
                "costcenter/model.py",
                "return (self.expires_at or NEVER, self.package_id)",
                "return (NEVER, self.package_id)",
            ),
        ),
    ),
    Mutation(
        "youngest of equals first",
        "Of packages that end together the youngest pays first.",
        (
            Edit(
                "costcenter/model.py",
                "return (self.expires_at or NEVER, self.package_id)",
                "return (self.expires_at or NEVER, -self.package_id)",
            ),
        ),
    ),
    Mutation(
        "type limits ignored",
        "A package for notifications pays marketing.",
        (
            Edit(
                "costcenter/model.py",
                "return not self.sms_types or sms_type in self.sms_types",
                "return bool(sms_type)",
            ),
        ),
    ),
    Mutation(
        "package spendable at its end",
        "Off by one: at the very moment of its end a package can still be frozen.",
        (
            Edit(
                "costcenter/model.py",
                "return self.expires_at is not None and self.expires_at <= at",
                "return self.expires_at is not None and self.expires_at < at",
            ),
            *_book(
                (
                    "if package.expires_at is not None and package.expires_at <= until and package.remaining",
                    "if package.expires_at is not None and package.expires_at < until and package.remaining",
                )
            ),
        ),
    ),
    Mutation(
        "expired credit spendable until swept",
        "Operations do not book first what is due, so a package outlives its end.",
        _book(
            (
                "if brand.next_due_at is not None and brand.next_due_at <= self.time_of(brand)",
                "if brand.next_due_at is not None and brand.next_due_at + timedelta(days=1) <= self.time_of(brand)",
            ),
            (
                "if taken and package.pays(operation.sms_type) and not package.is_expired(now):",
                "if taken and package.pays(operation.sms_type):",
            ),
        ),
    ),
    Mutation(
        "expiry ignores freezes",
        "At a package's end what a freeze holds of it is lost too.",
        _book(
            (
                '                    self._expire(brand, due, due.available, moment, EntryKind.EXPIRE, "")',
                '                    self._expire(brand, due, due.remaining, moment, EntryKind.EXPIRE, "")\n'
                "                    brand.frozen -= due.held\n"
                "                    due.held = 0",
            ),
        ),
    ),
    Mutation(
        "due in the wrong order",
        "Packages' ends are booked before freezes' that came earlier, so the history says what never was.",
        _book(
            (
                "events.sort(key=lambda event: event[:3])",
                "events.sort(key=lambda event: (event[1], event[0], event[2]))",
            ),
        ),
    ),
    Mutation(
        "refunded, but not due again",
        "What comes back to a package before its end does not expire at it.",
        _book(
            (
                "                _becomes_due(brand, package.expires_at)\n                targets.append(package_id)\n",
                "                targets.append(package_id)\n",
            ),
        ),
    ),
    Mutation(
        "freeze payable at its end",
        "Off by one: at the very moment of its end a freeze can still be paid.",
        _book(
            (
                "        freeze = self._freeze_of(brand, operation.order_no)\n"
                "        if freeze.expires_at <= now:\n"
                "            raise _freeze_expired(freeze)\n"
                "        if operation.segments > freeze.open:\n",
                "        freeze = self._freeze_of(brand, operation.order_no)\n"
                "        if freeze.expires_at < now:\n"
                "            raise _freeze_expired(freeze)\n"
                "        if operation.segments > freeze.open:\n",
            ),
            (
                "for freeze in freezes if freeze.expires_at <= until]",
                "for freeze in freezes if freeze.expires_at < until]",
            ),
        ),
    ),
    Mutation(
        "payments start over",
        "Each payment of a freeze takes from the first line again.",
        _book(
            (
                "lines = cut(freeze.lines, freeze.paid, operation.segments)",
                "lines = cut(freeze.lines, 0, operation.segments)",
            ),
        ),
    ),
    Mutation(
        "release first line first",
        "A release takes from the front, where payments do.",
        _book(
            (
                "            lines = cut_back(freeze.lines, freeze.open_end, segments)\n            freeze.released",
                "            lines = cut(freeze.lines, freeze.paid, segments)\n            freeze.released",
            ),
        ),
    ),
    Mutation(
        "release what was asked for",
        "A release that asks for more than is open, because a payment came first, cannot be applied.",
        _book(
            (
                "segments = min(release.segments or freeze.open, freeze.open)",
                "segments = release.segments or freeze.open",
            ),
        ),
    ),
    Mutation(
        "extended without limit",
        "A freeze that is extended again and again holds segments for ever.",
        _book(
            (
                "if end > freeze.created_at + self.terms.time_to_live_max:",
                "if end > now + self.terms.time_to_live_max:",
            ),
        ),
    ),
    Mutation(
        "extending shortens",
        "An extension by less than what is left moves the end back.",
        _book(("freeze.expires_at = max(freeze.expires_at, end)", "freeze.expires_at = end")),
    ),
    Mutation(
        "batch of one brand deducted once",
        "The items of one batch decide on the state before the batch.",
        _book(
            (
                "            package.held += segments\n            self._touch(package)\n        brand.frozen",
                "            before = self.__dict__.setdefault('_before', {})\n"
                "            package.held = before.setdefault(package_id, package.held) + segments\n"
                "            self._touch(package)\n        brand.frozen",
            ),
        ),
    ),
    Mutation(
        "refund twice",
        "A message that two statuses name is refunded by both.",
        (
            *_book(
                (
                    "            if (payment.payment_no, message_id) not in self._refunds\n",
                    "",
                ),
                (
                    "refund = Refund(brand.brand_id, payment.payment_no, message_id, segments,",
                    "message_id += '.' * ((payment.payment_no, message_id) in self._refunds)\n"
                    "        refund = Refund(brand.brand_id, payment.payment_no, message_id, segments,",
                ),
            ),
        ),
    ),
    Mutation(
        "refund in forward line order",
        "Refunds go to the packages that end soonest.",
        _book(
            (
                "lines = cut_back(payment.lines, payment.segments - payment.refunded, segments)",
                "lines = cut(payment.lines, payment.refunded, segments)",
            ),
        ),
    ),
    Mutation(
        "late refund to another package",
        "What comes back after its package's end goes to one that lives, and so gets its types and its end.",
        _book(
            (
                "            package = packages[package_id]\n            if not package.is_expired(now):\n",
                "            package = packages[package_id]\n"
                "            if package.is_expired(now):\n"
                "                queue = self._queues[brand.brand_id]\n"
                "                package = ([other for other in queue if not other.is_expired(now)] or [package])[-1]\n"
                "                package_id = package.package_id\n"
                "            if not package.is_expired(now):\n",
            ),
        ),
    ),
    Mutation(
        "refund at the end of the grace",
        "Off by one: at the very moment when refunds end one is still granted.",
        _book(
            (
                "if origin.source == PackageSource.REFUND or end <= now:",
                "if origin.source == PackageSource.REFUND or end < now:",
            ),
        ),
    ),
    Mutation(
        "refunds of refunds prolong",
        "Whoever lets messages fail on purpose keeps segments for ever.",
        _book(("if origin.source == PackageSource.REFUND or end <= now:", "if end <= now:")),
    ),
    Mutation(
        "pending receipts refund",
        "A message that is still on its way is refunded.",
        _book(
            (
                "_FINAL_FAILURES = (ReceiptState.UNDELIVERED, ReceiptState.EXPIRED)",
                "_FINAL_FAILURES = (ReceiptState.UNDELIVERED, ReceiptState.EXPIRED, ReceiptState.PENDING)",
            ),
        ),
    ),
    Mutation(
        "delivered and refunded all the same",
        "A failure that is reported after the delivery refunds the message.",
        _book(
            (
                "and (before is None or before.state == ReceiptState.PENDING)",
                "and (before is None or before.state != operation.state)",
            ),
        ),
    ),
    Mutation(
        "house's loss charged",
        "A delivery after a refund takes the refund back.",
        _book(
            (
                "        if before is None or _supersedes(operation.state, before.state):\n",
                "        if before is None or _supersedes(operation.state, before.state):\n"
                "            if refund is not None and operation.state == ReceiptState.DELIVERED:\n"
                "                payment.refunded -= refund.segments\n"
                "                self.changes.payments[payment.payment_no] = payment\n",
            ),
        ),
    ),
    Mutation(
        "house's loss forgotten",
        "What was refunded although it was delivered is nowhere on record.",
        _book(
            (
                "house_loss=refund.segments if refund and operation.state == ReceiptState.DELIVERED else 0",
                "house_loss=0",
            ),
        ),
    ),
    Mutation(
        "claw back over available",
        "An operator takes back what a freeze holds.",
        _book(
            (
                "if segments > package.available or not segments:",
                "if segments > package.remaining or not segments:",
            ),
            (
                "        adjustment_no = self._number(brand)\n        package.granted -= segments\n",
                "        adjustment_no = self._number(brand)\n"
                "        brand.frozen -= max(0, segments - package.available)\n"
                "        package.held -= max(0, segments - package.available)\n"
                "        package.granted -= segments\n",
            ),
        ),
    ),
    Mutation(
        "package of use returned",
        "A package is returned whole although part of it was paid away.",
        _book(
            (
                "if package.held or package.paid > package.refunded:",
                "if package.held:",
            ),
        ),
    ),
    Mutation(
        "suspended brand freezes",
        "Suspending a brand does not stop it.",
        _book(("    if brand.status == BrandStatus.SUSPENDED:\n", "    if brand.status > BrandStatus.CLOSED:\n")),
    ),
    Mutation(
        "order credited at every callback",
        "A paid callback that comes twice credits two packages.",
        _book(
            (
                "        if order.status == OrderStatus.PAID:\n            if order.payment_reference",
                "        if order.status > OrderStatus.PAID:\n            if order.payment_reference",
            ),
        ),
    ),
    Mutation(
        "cancelled order refused",
        "Money that comes after 15 minutes is taken and nothing is credited.",
        _book(
            (
                "        if order.status == OrderStatus.PAID:\n            if order.payment_reference",
                "        if order.status == OrderStatus.CANCELLED:\n"
                '            raise not_found("PACKAGE_ORDER_NOT_FOUND", "the order was cancelled")\n'
                "        if order.status == OrderStatus.PAID:\n            if order.payment_reference",
            ),
        ),
    ),
    Mutation(
        "months of thirty days",
        "A month that is bought ends by counting days, not by the calendar.",
        _book(
            (
                "    if months is not None:\n        index",
                "    if months is not None:\n"
                "        local += timedelta(days=30 * months)\n"
                "        months = 0\n"
                "        index",
            ),
        ),
    ),
    Mutation(
        "idempotency by key alone",
        "A request_id that is used again for something else gets the first call's reply.",
        (
            Edit(
                "costcenter/validation.py",
                "return blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()",
                "return blake2b(b'', digest_size=16).digest()",
            ),
        ),
    ),
    Mutation(
        "clean-up forgets payments",
        "A message that is paid again after a month is charged twice.",
        (
            Edit(
                "costcenter/jobs_service.py",
                "            deleted = await store.delete_old_keys("
                "connection, offset, self._settings.idempotency_key_days, limit)\n",
                "            deleted = await store.delete_old_keys("
                "connection, offset, self._settings.idempotency_key_days, limit)\n"
                "            await connection.execute(\n"
                '                "delete from costcenter.payment_key k using costcenter.payment y"\n'
                '                " where y.brand_id = k.brand_id and y.request_id = k.request_id"\n'
                "                \" and y.created_at <= clock_timestamp() - interval '30 days'\"\n"
                "            )\n",
            ),
        ),
    ),
    Mutation(
        "keys kept a moment too long",
        "Off by one: a key of exactly 30 days is not cleaned up.",
        (
            Edit(
                "costcenter/store.py",
                "where created_at <= clock_timestamp() + make_interval(secs => %s) - make_interval(days => %s)",
                "where created_at < clock_timestamp() + make_interval(secs => %s) - make_interval(days => %s)",
            ),
        ),
    ),
    Mutation(
        "reads as of the last sweep",
        "What is due shows in the balance when it is swept.",
        (
            Edit(
                "costcenter/queries.py",
                "        if brand.next_due_at is None or brand.next_due_at > moment:\n            return\n",
                "        if brand.next_due_at is None or brand.next_due_at < moment:\n            return\n",
            ),
        ),
    ),
    Mutation(
        "memory of a lane trusted blindly",
        "A process goes on with what it remembers of a brand that another has changed.",
        (
            Edit(
                "costcenter/lane.py",
                "if self._kept.version in {version - 1, NOTHING_KEPT}:",
                "if version > self._kept.version:",
            ),
        ),
    ),
    Mutation(
        "history a record late",
        "A balance as of the moment of a record leaves the record out.",
        (
            Edit(
                "costcenter/store.py",
                "where h.brand_id = %s and h.at <= m.at order by",
                "where h.brand_id = %s and h.at < m.at order by",
            ),
        ),
    ),
)


def problems(root: Path, mutations: Iterable[Mutation] = MUTATIONS) -> list[str]:
    """Mutations that cannot be applied to a tree, and why."""
    return [problem for mutation in mutations for problem in mutation.problems(root)]
