"""The closed list of crash points (`infra.crash_points`), and the setting that arms one.

A name says whose code it is and on which way: `gateway.`, `costcenter.` or `worker.`. A worker's sweeper takes the
gateway's steps too when it finishes what a gateway left. docs/crash-points.md is made from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from infra import crash_points
from infra.errors import StartError

log = structlog.get_logger(__name__)

_SETTING = re.compile(r"(?P<name>[a-z._]+)(?::(?P<arrival>[1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """What has happened when a process is killed at a point, and what has not yet."""

    done: str
    not_yet: str


POINTS: Mapping[str, CrashPoint] = {
    # A single message on its way into its queue.
    "gateway.single.recording": CrashPoint("the call was taken in", "the message is recorded as being accepted"),
    "gateway.single.judged": CrashPoint(
        "messages are written and judged by suppressions and frequencies", "that is committed"
    ),
    "gateway.single.recorded": CrashPoint("the message is recorded as being accepted", "its segments are frozen"),
    "gateway.single.frozen": CrashPoint("the cost centre has answered to the freeze", "the answer is recorded"),
    "gateway.single.queued": CrashPoint("the message is recorded as queued, with its reply", "it is pushed to Redis"),
    "gateway.single.forgotten": CrashPoint("the record of a refused message is deleted", "its caller is answered"),
    "gateway.single.cancelling": CrashPoint("a cancelled message and what is owed are written", "that is committed"),
    "gateway.single.pushed": CrashPoint("the message is in its queue in Redis", "its caller is answered"),
    "gateway.entry.noting": CrashPoint("dispatches are in their queues, callers are answered", "it is noted where"),
    # A batch.
    "gateway.batch.recording": CrashPoint("the batch was read whole", "it is recorded as being accepted"),
    "gateway.batch.judged": CrashPoint(
        "a batch's numbers are judged by suppressions and frequencies, and counted", "that is committed"
    ),
    "gateway.batch.recorded": CrashPoint("the batch is recorded as being accepted", "its segments are frozen"),
    "gateway.batch.frozen": CrashPoint("the cost centre has answered to the freeze", "messages and chunks are stored"),
    "gateway.batch.storing": CrashPoint("messages and chunks are written", "their transaction is committed"),
    "gateway.batch.queued": CrashPoint("messages and chunks are committed as queued", "chunks are pushed to Redis"),
    "gateway.batch.pushed": CrashPoint("the chunks are in their queue in Redis", "the caller is answered"),
    "gateway.batch.forgetting": CrashPoint("the cost centre has refused the batch", "its record is deleted"),
    "gateway.batch.cancelling": CrashPoint("cancelled messages and what is owed are written", "that is committed"),
    "gateway.batch.cancelled": CrashPoint("the cancellation is committed", "the caller is answered"),
    "gateway.batch.pausing": CrashPoint("a batch and its dispatches are marked as paused", "that is committed"),
    "gateway.batch.paused": CrashPoint("the pause of a batch is committed", "the caller is answered"),
    "gateway.batch.resuming": CrashPoint("a paused batch is queued again", "that is committed"),
    "gateway.batch.resumed": CrashPoint("a paused batch is committed as queued again", "it is pushed to Redis"),
    "gateway.batch.doubt_settled": CrashPoint(
        "it is recorded whether paused chunks were paid for", "their batch is cancelled"
    ),
    "gateway.campaign.marked": CrashPoint("a campaign is recorded as paused, or not", "its batches are"),
    # Receipts that a carrier pushes.
    "gateway.receipt.storing": CrashPoint("the carrier has pushed a receipt", "it is in the inbox"),
    "gateway.receipt.stored": CrashPoint(
        "the receipt is in the inbox", "the carrier is answered, and it is pushed to a stream in Redis"
    ),
    "gateway.receipt.pushed": CrashPoint("the receipt is in a stream in Redis", "the gateway hears that it is"),
    # What people sent back.
    "gateway.reply.storing": CrashPoint("a carrier has given a reply", "it is stored"),
    "gateway.reply.committing": CrashPoint("a reply, its opt-out and its events are written", "that is committed"),
    "gateway.reply.stored": CrashPoint("a reply is stored", "the carrier hears that it is ours"),
    # An operator's wish.
    "gateway.parked.retrying": CrashPoint("an operator wants parked work tried again", "that is recorded"),
    "gateway.parked.retried": CrashPoint("parked work is recorded as to be tried again", "the operator is answered"),
    "gateway.parked.dropping": CrashPoint("it is settled whether parked work was paid for", "it is dropped"),
    "gateway.parked.dropped": CrashPoint("parked work is dropped and owed back", "the operator is answered"),
    # The ledger.
    "costcenter.group.committing": CrashPoint("a group is decided, its records are sent", "they are committed"),
    "costcenter.group.committed": CrashPoint("a group is committed", "its callers are answered"),
    "costcenter.due.committing": CrashPoint("ended packages are booked in one set", "that is committed"),
    "costcenter.due.committed": CrashPoint("ended packages are booked in one set", "the worker that asked is told"),
    "costcenter.release.found": CrashPoint("releases that are due are read", "they are applied"),
    "costcenter.release.applied": CrashPoint("the releases are applied", "the worker that asked is told"),
    "costcenter.cleanup.cancelled": CrashPoint("orders that nobody paid are cancelled", "old keys are deleted"),
    "costcenter.cleanup.deleted": CrashPoint("old idempotency keys are deleted", "the worker that asked is told"),
    # A message or a chunk on its way to the carrier.
    "worker.dispatch.read": CrashPoint("an entry is read from its queue", "its dispatch is claimed"),
    "worker.dispatch.claimed": CrashPoint("the dispatch is claimed", "it is paid for"),
    "worker.dispatch.over": CrashPoint("a dispatch is found past its validity", "that it failed is recorded"),
    "worker.dispatch.paid": CrashPoint("the cost centre has answered to the payment", "the dispatch is marked"),
    "worker.dispatch.marked": CrashPoint("the dispatch is marked as being submitted", "the carrier is called"),
    "worker.dispatch.answered": CrashPoint("the carrier has answered", "what became of the call is recorded"),
    "worker.dispatch.settled": CrashPoint("what the carrier took is recorded, the status owed", "Redis is told"),
    "worker.dispatch.failed": CrashPoint("what the carrier refused is recorded, the refund owed", "Redis is told"),
    "worker.dispatch.acknowledged": CrashPoint("the entry is acknowledged in Redis", "anything else"),
    "worker.dispatch.taken_back": CrashPoint("what was refused for now is claimed again", "it is submitted again"),
    "worker.dispatch.put_back": CrashPoint("what has to wait is recorded as queued later", "Redis is told"),
    "worker.dispatch.unknown": CrashPoint("the outcome of a call is recorded as unknown", "Redis is told"),
    "worker.dispatch.parts": CrashPoint("the parts that the carrier took are recorded", "the whole's outcome is"),
    "worker.dispatch.halved": CrashPoint("a chunk is replaced by its two halves", "the halves are claimed"),
    "worker.dispatch.split": CrashPoint("a chunk is replaced by parts for a call each", "the parts are claimed"),
    "worker.dispatch.refrozen": CrashPoint("the cost centre has frozen once more", "the new freeze is recorded"),
    "worker.dispatch.reordered": CrashPoint("the new freeze is recorded", "it is paid from"),
    # What is owed to the cost centre.
    "worker.outbox.calling": CrashPoint("what is owed is taken from the outbox", "the cost centre is called"),
    "worker.outbox.called": CrashPoint("the cost centre has answered", "what was owed is removed from the outbox"),
    "worker.outbox.removed": CrashPoint("what was owed is removed from the outbox", "anything else"),
    # Receipts on their way to their messages.
    "worker.receipt.read": CrashPoint("receipts are read from a stream", "they are settled"),
    "worker.receipt.decided": CrashPoint("a receipt has decided what became of a call", "it is reported"),
    "worker.receipt.parts": CrashPoint("parts of messages are recorded as delivered", "it is reported"),
    "worker.receipt.reported": CrashPoint("the cost centre was told of receipts", "their messages are final"),
    "worker.receipt.settled": CrashPoint("messages are final, the inbox is rid of the receipts", "Redis is told"),
    "worker.receipt.acknowledged": CrashPoint("the receipts are acknowledged in Redis", "anything else"),
    "worker.receipt.put_off": CrashPoint("a receipt that fits nothing yet is put off in the inbox", "Redis is told"),
    # Receipts that a worker pulls. The carrier forgets what it gives: killed before it is stored, it is never had.
    "worker.pull.turned": CrashPoint("it is this worker's turn to pull an account", "the carrier is asked"),
    "worker.pull.answered": CrashPoint("the carrier has given receipts and forgotten them", "they are in the inbox"),
    "worker.pull.stored": CrashPoint("pulled receipts are in the inbox", "the worker knows that they are"),
    "worker.pull.emptied": CrashPoint("it is recorded that the carrier has no more", "anything else"),
    # What brands are told.
    "worker.webhook.calling": CrashPoint("events that wait are read", "their receiver is called"),
    "worker.webhook.called": CrashPoint("the receiver has answered", "the events are removed, or the webhook rests"),
    "worker.webhook.removed": CrashPoint("events that the receiver has are removed", "anything else"),
    # Releases.
    "worker.release.applied": CrashPoint("the cost centre has applied releases", "the worker has noticed"),
    # Sweepers.
    "worker.sweep.freed": CrashPoint("claims of a dead worker are freed", "they are queued again"),
    "worker.sweep.taken": CrashPoint("what Redis lacks is taken to be queued again", "it is pushed to Redis"),
    "worker.sweep.pushed": CrashPoint("it is in its queue in Redis again", "it is noted where"),
    "worker.sweep.overdue": CrashPoint("calls without an answer are recorded as unknown", "anything else"),
    "worker.sweep.undecided": CrashPoint("unknown outcomes are failed, their refunds owed", "the refunds are made"),
    "worker.sweep.expired": CrashPoint("messages without a receipt are expired, that is owed", "it is reported"),
    "worker.sweep.receipts": CrashPoint("receipts that are due again are taken from the inbox", "they are pushed"),
    "worker.sweep.batches": CrashPoint("the freezes of abandoned batches are known", "the batches are undone"),
    "worker.sweep.undone": CrashPoint("abandoned batches are undone, their freezes owed back", "they are released"),
}  # fmt: skip


def arm(setting: str) -> None:
    """Arm the point of the setting `SMSBILL_CRASH_POINT`: `name`, or `name:3` for the third arrival; empty: none.

    Raises `StartError` when there is no such point, so that a test with a typing error does not pass for want of a
    crash.
    """
    if not setting:
        crash_points.arm("")
        return
    match = _SETTING.fullmatch(setting)
    if match is None or match["name"] not in POINTS:
        raise StartError(
            f"setting SMSBILL_CRASH_POINT: there is no crash point {setting!r}; set a name of docs/crash-points.md,"
            " with :<n> for the n-th arrival, or nothing outside of tests"
        )
    log.warning("this process will be killed at a crash point", crash_point=setting)
    crash_points.arm(match["name"], int(match["arrival"] or 1))
