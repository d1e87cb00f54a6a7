"""Counting what numbers get, in PostgreSQL, compared with plain lists."""

from __future__ import annotations

import random

import psycopg

from smsgateway.rules import Limits
from smsgateway.schema import SuppressionKind
from smsgateway.store import rule_checks, suppressions
from smsgateway.store.rule_checks import Ask, Counted
from smsgateway.store.suppressions import Suppression

STEPS = 120
MOBILES = [f"+861380013800{number}" for number in range(3)]
STEPS_AHEAD = (0, 20, 59, 61, 1_800, 3_700, 50_000)


class Oracle:
    """Ages in seconds of what each number got, with its targets."""

    def __init__(self) -> None:
        self.sent: dict[str, list[tuple[float, str]]] = {mobile: [] for mobile in MOBILES}

    def pass_time(self, seconds: float) -> None:
        """All of it grows older."""
        self.sent = {mobile: [(age + seconds, target) for age, target in sent] for mobile, sent in self.sent.items()}

    def grants(self, mobile: str, target: str, limits: Limits) -> bool:
        """Whether one more is within all windows; then it counts. One that counted before counts once."""
        sent = self.sent[mobile]
        reach = max(seconds for _, seconds in limits.windows())
        if any(known == target and age < reach for age, known in sent):
            return True
        if any(sum(age < seconds for age, _ in sent) >= count for count, seconds in limits.windows()):
            return False
        sent.append((0, target))
        return True


async def test_counts_are_those_of_plain_lists(database_url: str) -> None:
    """A hundred random steps: groups with several messages to a number, repeats, limits that change, time that passes,
    and what was forgotten. The moments are moved by hand, so nothing is waited for.
    """
    chosen, oracle = random.Random(7), Oracle()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        for step in range(STEPS):
            seconds = chosen.choice(STEPS_AHEAD)
            oracle.pass_time(seconds)
            await connection.execute(
                "update smsgateway.frequency as f set sent_at = array("
                " select at - make_interval(secs => %s) from unnest(f.sent_at) with ordinality as sent (at, place)"
                " order by place)",
                (seconds,),
            )
            limits = Limits(chosen.randint(0, 2), chosen.randint(0, 3), chosen.randint(1, 5))
            targets = [f"m-{step}-{number}" for number in range(chosen.randint(1, 4))]
            if chosen.random() < 0.2:
                targets = [chosen.choice([known for sent in oracle.sent.values() for _, known in sent] or targets)]
            asked = [(chosen.choice(MOBILES), target) for target in targets]
            asks = [Ask(7, 1, "", mobile, target, False, limits) for mobile, target in asked]
            blocked = await rule_checks.check(connection, asks)
            expected = [oracle.grants(mobile, target, limits) for mobile, target in asked]
            assert [place not in blocked for place in range(len(asks))] == expected, f"step {step}"
            if chosen.random() < 0.3:
                mobile, target = chosen.choice(asked)
                await rule_checks.take_off(connection, [Counted(7, 1, "", mobile, target)] * 2)
                oracle.sent[mobile] = [each for each in oracle.sent[mobile] if each[1] != target]
        await connection.execute("update smsgateway.frequency set expires_at = now() - interval '1 s'")
        assert await rule_checks.delete_expired(connection, limit=2) == 2
        assert await rule_checks.delete_expired(connection, limit=2) == 1


async def test_suppressed_numbers_are_not_counted(database_url: str) -> None:
    """A black list stops everything and tells so before an opt-out; an opt-out stops marketing alone; another brand's
    stops nothing; and the count of a number that is stopped stays as it is.
    """
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await suppressions.add(
            connection,
            [
                Suppression(7, MOBILES[0], SuppressionKind.OPT_OUT, "reply", ""),
                Suppression(0, MOBILES[1], SuppressionKind.BLACK_LIST, "admin", ""),
                Suppression(7, MOBILES[1], SuppressionKind.OPT_OUT, "reply", ""),
                Suppression(8, MOBILES[2], SuppressionKind.BLACK_LIST, "admin", ""),
            ],
        )
        limits = Limits(per_day=1)
        asks = [
            Ask(7, sms_type, "s", mobile, f"m-{sms_type}-{mobile}", True, limits)
            for sms_type in (1, 3)
            for mobile in MOBILES
        ]
        blocked = await rule_checks.check(connection, asks)
        assert {place: each.kind for place, each in blocked.items()} == {
            1: SuppressionKind.BLACK_LIST,
            3: SuppressionKind.OPT_OUT,
            4: SuppressionKind.BLACK_LIST,
        }
        cursor = await connection.execute("select mobile, sms_type from smsgateway.frequency order by 1, 2")
        assert await cursor.fetchall() == [(MOBILES[0], 1), (MOBILES[2], 1), (MOBILES[2], 3)]
        again = await rule_checks.check(connection, [Ask(7, 1, "s", MOBILES[2], "other", True, limits)])
        assert again[0].kind is None
        assert len(again[0].sent_at) == 1
        assert await rule_checks.check(connection, [Ask(7, 1, "s", MOBILES[2], "free", False, Limits())]) == {}
