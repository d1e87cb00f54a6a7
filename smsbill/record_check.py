"""The simulator's own record against the message records, number by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.carrier_simulator import text_hash
from smsbill.client import Client
from smsgateway.mobile import mask_mobile, national_mobile

# What the carrier must have taken exactly once. What failed or was cancelled it must not have at all.
TAKEN_STATES = frozenset(
    {
        pb.MESSAGE_STATE_SENT,
        pb.MESSAGE_STATE_DELIVERED,
        pb.MESSAGE_STATE_UNDELIVERED,
        pb.MESSAGE_STATE_EXPIRED,
    }
)
_PAGE = 1_000
_HTTP_SECONDS = 30.0

# National number, hash of the text, the carrier's message id.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A number for which the two records differ; `segments` is what both would charge for it."""

    mobile: str
    carrier_message_id: str
    in_message_records: int
    in_carrier_record: int
    segments_in_message_records: int
    segments_in_carrier_record: int


async def messages_of(client: Client, brand_ids: Iterable[int], since: float) -> list[Any]:
    """All messages of these brands that were handed to the carrier since a moment; since 0, all there are."""
    found = []
    for brand_id in brand_ids:
        async for page in client.pages(
            client.gateway.ListMessages, pb.ListMessagesRequest(brand_id=brand_id, page_size=_PAGE)
        ):
            found += [each for each in page.messages if each.submitted_at.seconds >= int(since)]
    return found


async def carrier_record(url: str) -> list[dict[str, Any]]:
    """Every message that the simulator took on since it started."""
    entries: list[dict[str, Any]] = []
    timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            after = entries[-1]["n"] if entries else 0
            async with session.get(f"{url}/simulator/record?after={after}&limit={_PAGE}") as answer:
                page = await answer.json()
            entries += page["entries"]
            if not page["more"]:
                return entries


def mismatches(messages: Iterable[Any], entries: Iterable[dict[str, Any]]) -> list[Mismatch]:
    """Where the two records differ, by number, text and the carrier's id."""
    ours, theirs = Counter[Key](), Counter[Key]()
    our_segments, their_segments = Counter[Key](), Counter[Key]()
    for message in messages:
        if message.state in TAKEN_STATES:
            number = national_mobile(message.mobile) or message.mobile
            key = (number, text_hash(message.text), message.carrier_message_id)
            ours[key] += 1
            our_segments[key] += message.segments
    for entry in entries:
        key = (entry["mobile"], entry["text_hash"], entry["msgid"])
        theirs[key] += 1
        their_segments[key] += entry["segments"]
    return [
        Mismatch(mask_mobile(key[0]), key[2], ours[key], theirs[key], our_segments[key], their_segments[key])
        for key in sorted(ours.keys() | theirs.keys())
        if ours[key] != theirs[key] or our_segments[key] != their_segments[key]
    ]
