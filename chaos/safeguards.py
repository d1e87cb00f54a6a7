"""The safeguards that `python -m chaos.honesty` switches off one at a time, and the damage that each keeps away.

Switching off is a text of a file and what it becomes, as in `scripts.mutations`: the safeguard is gone, all else stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.mutations import Edit, Mutation


@dataclass(frozen=True)
class Conditions:
    """What a run meets: faults that provoke the damage, and a carrier that makes it likely.

    Parameters: `faults` kinds of `chaos.faults`; `messages` sent over `seconds`; `environment` settings beside those of
    every chaos run; `edits` of the harness itself, which hold for the control run too.
    """

    name: str
    faults: tuple[str, ...]
    messages: int = 600
    seconds: float = 12
    # Longer than chaos waits for outcomes that nobody tells: a worker may die right between its mark and its call.
    settle_seconds: float = 130
    environment: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Safeguard:
    """One safeguard. `mutation` switches it off; `where` its code; `promise` what it keeps; `damage` what the verdict
    must name without it, all of that and nothing else.
    """

    mutation: Mutation
    where: str
    promise: str
    damage: frozenset[str]
    conditions: Conditions


# Processes of each kind: a run of few is a short one, and a fault meets the same ones oftener.
FEW = {"SMSBILL_COSTCENTERS": "1", "SMSBILL_GATEWAYS": "1", "SMSBILL_WORKERS": "2"}


def _carrier(name: str, calm: str, always: str) -> Edit:
    """The carrier at its best, changed for a whole run."""
    return Edit("chaos/faults.py", f'"{name}": {calm},', f'"{name}": {always},')


# Faults meet workers alone, and leave those that died the time to start again: dead ones have nothing in hand.
_WORKERS = (
    Edit("chaos/faults.py", 'if child.name != "carrier-simulator"', 'if child.name.startswith("worker")'),
    Edit("chaos/faults.py", "PAUSE_SECONDS = (0.3, 2.5)", "PAUSE_SECONDS = (1.5, 3.0)"),
)
KILLS = Conditions(
    "workers die, carrier slow",
    ("kill",),
    messages=900,
    seconds=18,
    environment={"SMSBILL_WORKERS": "4"},
    edits=(*_WORKERS, _carrier("latency_ms", "30", "1_000")),
)
# Claimed and paid messages wait for a slot.
_FEW_SLOTS = {f"SMSBILL_SLOTS_{each}": "4" for each in ("VERIFICATION", "NOTIFICATION", "MARKETING")}
PAID_WAITING = Conditions(
    "workers die with paid messages that wait",
    ("kill",),
    seconds=18,
    environment={"SMSBILL_WORKERS": "4", **_FEW_SLOTS},
    edits=(*_WORKERS, _carrier("latency_ms", "30", "1_000")),
)
STOPS = Conditions(
    "workers stand still, carrier slow",
    ("stand still",),
    # A lease is shorter than most stops.
    environment={"SMSBILL_LEASE_SECONDS": "1", **_FEW_SLOTS},
    edits=(*_WORKERS, _carrier("latency_ms", "30", "1_500")),
)
REDIS_LOSES = Conditions("Redis loses all, processes die", ("empty Redis", "kill Redis", "kill"), messages=1_200)
ANSWERS_LOST = Conditions(
    "callers lose answers",
    ("lost answers",),
    edits=(
        Edit(
            "chaos/faults.py",
            "        scope = self._draws.choice(SCOPES)\n"
            "        caller, called = self._draws.choice(self._network.ways)\n",
            '        scope, caller, called = "called", "", GATEWAY\n',
        ),
    ),
)
CARRIER_SILENT = Conditions(
    "the carrier takes calls and does not answer",
    ("forged receipts",),
    messages=300,
    edits=(_carrier("timeout_rate", "0", "0.2"),),
)
CARRIER_LOSES = Conditions(
    "the carrier loses calls",
    ("forged receipts",),
    messages=300,
    edits=(_carrier("lost_rate", "0", "0.2"),),
)
REFUSALS = Conditions(
    "workers die, the carrier refuses some",
    ("kill",),
    seconds=18,
    # What is owed is told in larger groups, so that more of it is in memory when a worker dies.
    environment={"SMSBILL_WORKERS": "4", "SMSBILL_OUTBOX_GATHER_SECONDS": "3"},
    edits=(*_WORKERS, _carrier("error_rates", "{}", '{"105": 0.3}')),
)
DATABASE_STOPS = Conditions("PostgreSQL dies", ("stop PostgreSQL at once", "kill PostgreSQL"))

_SENDER = "workers/sender.py"


def _damage(*names: str) -> frozenset[str]:
    return frozenset(names)


SAFEGUARDS = (
    Safeguard(
        Mutation(
            "the submitting mark",
            "A worker that dies in a call leaves a message that looks as if nobody had called.",
            (
                Edit(
                    _SENDER,
                    "        call_id = await self._mark(progress, account)\n",
                    "        call_id = progress.call_id\n",
                ),
                Edit(
                    _SENDER,
                    '        reach("worker.dispatch.answered")\n',
                    "        call_id = await self._mark(progress, account)\n"
                    '        reach("worker.dispatch.answered")\n',
                ),
            ),
        ),
        "`workers/sender.py`, `Sender._submit`: committed before the call; here after it",
        "sent at most once: a message found marked is never sent again",
        _damage("sent twice"),
        KILLS,
    ),
    Safeguard(
        Mutation(
            "the fencing of leases",
            "A worker that stood still for longer than its lease goes on with what others have by now.",
            (
                Edit(
                    "smsgateway/store/sending.py",
                    "  and d.state + 0 = {DispatchState.CLAIMED:d} and d.epoch = asked.epoch\n",
                    "",
                ),
            ),
        ),
        "`smsgateway/store/sending.py`, `_MARK`: only what is claimed under the lease's epoch is marked",
        "sent at most once by stopped and resumed processes",
        _damage("sent twice"),
        STOPS,
    ),
    Safeguard(
        Mutation(
            "the requeue sweeper",
            "What Redis has lost stays queued in the records and is never looked at.",
            (
                Edit(
                    "workers/sweepers.py",
                    "        if not missing:\n            return 0\n",
                    "        if len(missing) >= 0:\n            return 0\n",
                ),
            ),
        ),
        "`workers/sweepers.py`, `Sweepers._push_missing`",
        "Redis loses all its data: queues are rebuilt from the records",
        # Reconciling names the same messages: records without a queue entry.
        _damage("never final", "differences in reconcile"),
        REDIS_LOSES,
    ),
    Safeguard(
        Mutation(
            "the idempotent consumer: one request_id for each payment",
            "A payment whose answer was lost is made once more.",
            (
                Edit(
                    _SENDER,
                    "                request_id=claimed.dispatch_id,\n                order_no=claimed.order_no,\n",
                    "                request_id=self._identifiers.new(claimed.brand_id, time.time_ns() // 1_000_000),\n"
                    "                order_no=claimed.order_no,\n",
                ),
            ),
        ),
        "`workers/sender.py`, `Sender._pay`, and `costcenter.payment_key`: the dispatch's id is the `request_id`",
        "charged exactly if it was sent, however often the cost centre is asked",
        _damage("charged twice or for nothing"),
        PAID_WAITING,
    ),
    Safeguard(
        Mutation(
            "the idempotent inbox of callers",
            "A caller that calls again after a lost answer gets a second message.",
            (
                Edit(
                    "smsgateway/accepting.py",
                    "        name = (single.brand_id, single.request_id)\n",
                    "        new_id = self._identifiers.new(single.brand_id, now_ms())\n"
                    "        single = replace(single, request_id=new_id)\n"
                    "        name = (single.brand_id, single.request_id)\n",
                ),
                Edit(
                    "smsgateway/accepting.py",
                    "from dataclasses import dataclass, field\n",
                    "from dataclasses import dataclass, field, replace\n",
                ),
            ),
        ),
        "`smsgateway/accepting.py`, `SingleAcceptor.send`, and `smsgateway.request_key`",
        "same `request_id`, same reply",
        _damage("recorded twice", "sent twice"),
        ANSWERS_LOST,
    ),
    Safeguard(
        Mutation(
            "the inbox of receipts",
            "A receipt is acknowledged before it is stored, so the carrier does not send it again.",
            (
                Edit(
                    "smsgateway/receipts_intake.py",
                    "        row = await self._grouper.submit(_Taken(self._row(receipt), trace))\n",
                    "        row = self._row(receipt)\n        self._grouper.submit_nowait(_Taken(row, trace))\n",
                ),
            ),
        ),
        "`smsgateway/receipts_intake.py`, `ReceiptIntake.take`, and `smsgateway.receipt_inbox`",
        "no receipt is lost",
        _damage("receipts lost"),
        DATABASE_STOPS,
    ),
    Safeguard(
        Mutation(
            "the outbox",
            "What is owed to the cost centre is known to the process alone that is about to tell it.",
            (
                Edit(
                    "smsgateway/store/outbox.py",
                    "    if not rows:\n        return\n",
                    "    if len(rows) >= 0:\n        return\n",
                ),
            ),
        ),
        "`smsgateway/store/outbox.py`, `insert`, in the transaction that makes it due; `workers/outbox_relay.py`",
        "charged exactly if it was sent: what was not is refunded",
        _damage("refunds missing or doubled"),
        REFUSALS,
    ),
    Safeguard(
        Mutation(
            "unknown is not sent again",
            "A call without an answer counts as not accepted.",
            (
                Edit(
                    _SENDER,
                    "            await self._set_unknown(claimed, call_id, outcome)\n        elif",
                    "            await self._again(progress, call_id, outcome, account)\n"
                    "            return False\n"
                    "        elif",
                ),
            ),
        ),
        "`workers/sender.py`, `Sender._settle`",
        "an unknown outcome is never resent",
        _damage("sent twice"),
        CARRIER_SILENT,
    ),
    Safeguard(
        Mutation(
            "unknown is not taken for failed",
            "A call without an answer is refunded at once.",
            (
                Edit(
                    _SENDER,
                    "            await self._set_unknown(claimed, call_id, outcome)\n        elif",
                    "            await self._fail(_failure(claimed, call_id, outcome), claimed.messages)\n        elif",
                ),
            ),
        ),
        "`workers/sender.py`, `Sender._settle`",
        "an unknown outcome is held until a receipt, a pull or time decides it",
        _damage("sent, not charged"),
        CARRIER_SILENT,
    ),
    Safeguard(
        Mutation(
            "unknown is not taken for sent",
            "A call without an answer is charged at once.",
            (
                Edit(
                    _SENDER,
                    "            await self._set_unknown(claimed, call_id, outcome)\n        elif",
                    "            await self._accept(progress, call_id, outcome)\n        elif",
                ),
            ),
        ),
        "`workers/sender.py`, `Sender._settle`",
        "an unknown outcome is held until a receipt, a pull or time decides it",
        _damage("charged, not sent"),
        CARRIER_LOSES,
    ),
    Safeguard(
        Mutation(
            "the sweeper of calls without an answer",
            "What a dead worker was submitting stays so for ever.",
            (
                Edit(
                    "workers/sweepers.py",
                    '        return await self._swept("overdue", self._overdue)\n',
                    "        return False\n",
                ),
            ),
        ),
        "`workers/sweepers.py`, `Sweepers.overdue`",
        "each accepted message reaches a final state, whichever process dies",
        _damage("never final"),
        KILLS,
    ),
    Safeguard(
        Mutation(
            "the end of unknown outcomes",
            "What nobody decides is held for ever.",
            (
                Edit(
                    "workers/sweepers.py",
                    '        return await self._swept("undecided", self._undecided)\n',
                    "        return False\n",
                ),
            ),
        ),
        "`workers/sweepers.py`, `Sweepers.undecided`",
        "72 h decide what nobody else does",
        _damage("never final"),
        CARRIER_LOSES,
    ),
    Safeguard(
        Mutation(
            "receipts' credentials",
            "Whoever finds the address reports messages as undelivered.",
            (Edit("smsgateway/carriers/chuanglan.py", "        if not all(agreed):\n", "        if not agreed:\n"),),
        ),
        "`smsgateway/carriers/chuanglan.py`, `ChuanglanCarrier._authenticate`",
        "receipts come from the carrier alone",
        _damage("forged receipts taken"),
        CARRIER_SILENT,
    ),
)


def problems(root: Path, safeguards: Iterable[Safeguard] = SAFEGUARDS) -> list[str]:
    """Safeguards that cannot be switched off in a tree, or conditions that cannot be made, and why."""
    found = []
    for safeguard in safeguards:
        conditions = Mutation(safeguard.conditions.name, "", safeguard.conditions.edits)
        found += safeguard.mutation.problems(root) + conditions.problems(root)
    return list(dict.fromkeys(found))
