"""Translation and validation of what callers ask for, without servers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pydantic
import pytest
from gateway_harness import BRAND, batch_parts, numbers, single

from infra.errors import Refusal, not_found
from infra.identifiers import IdentifierSource
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway import asking
from smsgateway.batch_accepting import Batch, BatchPlaces
from smsgateway.settings import Settings

SETTINGS = Settings(_env_file=None)


async def streamed(parts: Iterable[sms_gateway_pb2.SendBatchSmsRequest]) -> AsyncIterator[Any]:
    """The parts as a stream."""
    for part in parts:
        yield part


async def read(mobiles: Sequence[str], settings: Settings = SETTINGS, part: int = 1_000, **changes: Any) -> Batch:
    """Read a batch of these numbers."""
    header, *rest = batch_parts(mobiles, part=part, **changes)
    return await asking.BatchReader(header.header, settings, lambda _: None).read(streamed(rest))


def test_single_is_normalised_and_counted() -> None:
    """The number becomes E.164 and the text is counted by the rule of its number."""
    asked = asking.single(single(mobile=" 138-0013 8000 ", text="a" * 71), SETTINGS)
    assert (asked.mobile, asked.segments) == ("+8613800138000", 2)
    assert asking.single(single(mobile="+14155550100", text="a" * 71), SETTINGS).segments == 1


def test_fingerprints_tell_contents_apart() -> None:
    """Spellings of one number have one fingerprint; any other difference makes another."""
    same = {
        asking.single(single(mobile=mobile), SETTINGS).fingerprint() for mobile in ("13800138000", "+8613800138000")
    }
    assert len(same) == 1
    others: list[dict[str, Any]] = [{}, {"text": "x"}, {"sms_type": 2}, {"mobile": "13800138001"}]
    assert len({asking.single(single(**changes), SETTINGS).fingerprint() for changes in others}) == 4


async def test_batch_fingerprint_ignores_how_the_stream_is_cut() -> None:
    """The same recipients in other parts are the same batch; others, or another order, are not."""
    mobiles = [*numbers(50), "bad", "", "1,2"]
    assert {(await read(mobiles, part=part)).fingerprint for part in (1, 7, 100)} == {(await read(mobiles)).fingerprint}
    different = [mobiles, mobiles[::-1], mobiles[:-1], [*mobiles[:-1], "1", "2"], [*mobiles[:-2], "1,2", ""]]
    assert len({(await read(other)).fingerprint for other in different}) == len(different)


async def test_batch_keeps_the_order_and_drops_the_bad() -> None:
    """The good numbers stay in order, none twice; places of the bad count over all parts."""
    randomness = random.Random(1)
    good = numbers(500)
    mixed = [value for mobile in good for value in ([mobile, "x", mobile] if randomness.random() < 0.3 else [mobile])]
    batch = await read(mixed, part=13)
    assert list(batch.mobiles) == [f"+86{mobile}" for mobile in good]
    assert batch.bad_count == len(mixed) - len(good) == len(batch.bad)
    for item in batch.bad:
        assert item.reason == ("INVALID_NUMBER" if mixed[item.index] == "x" else "DUPLICATE_NUMBER")


async def test_list_of_the_bad_is_bounded() -> None:
    """Only so many are listed as the setting says, all are counted."""
    settings = SETTINGS.model_copy(update={"batch_bad_listed_max": 3})
    batch = await read([*numbers(1), *["x"] * 10], settings)
    assert (len(batch.bad), batch.bad_count) == (3, 10)


async def test_reading_stops_at_the_bound() -> None:
    """One recipient too many ends the reading; what follows is not asked for."""
    settings = SETTINGS.model_copy(update={"batch_recipients_max": 10})

    async def endless() -> AsyncIterator[Any]:
        for start in range(3):
            assert start < 2, "read beyond the bound"
            recipients = sms_gateway_pb2.BatchRecipients(mobiles=numbers(8, start * 8))
            yield sms_gateway_pb2.SendBatchSmsRequest(recipients=recipients)

    header = batch_parts([])[0].header
    with pytest.raises(Refusal) as caught:
        await asking.BatchReader(header, settings, lambda _: None).read(endless())
    assert caught.value.reason == "TOO_MANY_RECIPIENTS"


async def test_batch_segments_are_counted_by_rule() -> None:
    """Each number's by its own rule."""
    batch = await read([*numbers(2), "+14155550100"], text="a" * 160)
    assert batch.segments == [3, 3, 1]


def test_identified_brand() -> None:
    """An identifier gives its brand; anything else is what is missing."""
    missing = not_found("X", "x")
    assert asking.identified_brand(IdentifierSource().new(BRAND, 1), missing) == BRAND
    for identifier in ("", "x", IdentifierSource().new(0, 1), "I" * 32):
        with pytest.raises(Refusal) as caught:
            asking.identified_brand(identifier, missing)
        assert caught.value is missing


@pytest.mark.parametrize("request_id", ["a", "x" * 64, "订单-1", "\\\"'{}", " "])
def test_request_ids_that_are_allowed(request_id: str) -> None:
    """Printable characters of any script, 1 to 64."""
    assert asking.single(single(request_id=request_id), SETTINGS).request_id == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a\tb", "a\x7f", "a\u200b", "\u2028"])
def test_request_ids_that_are_refused(request_id: str) -> None:
    """Empty, overlong and unprintable ones."""
    with pytest.raises(Refusal) as caught:
        asking.single(single(request_id=request_id), SETTINGS)
    assert set(caught.value.fields) == {"request_id"}


def test_places_are_bounded() -> None:
    """Batches and their recipients are counted in and out, whatever ends them."""
    places = BatchPlaces(SETTINGS.model_copy(update={"batches_max": 2, "batch_recipients_in_hand_max": 10}))
    with places.place() as first, places.place() as second:
        first.hold(6)
        second.hold(4)
        for refused in (lambda: second.hold(1), places.place().__enter__):
            with pytest.raises(Refusal) as caught:
                refused()
            assert caught.value.reason == "OVERLOADED"
    with contextlib.suppress(ValueError), places.place() as third:
        third.hold(10)
        raise ValueError
    with places.place() as fourth:
        fourth.hold(10)


def test_settings_that_contradict_each_other() -> None:
    """A process that could never take its largest batch does not start."""
    with pytest.raises(pydantic.ValidationError, match="at least batch_recipients_max"):
        Settings(_env_file=None, batch_recipients_max=100, batch_recipients_in_hand_max=99)
