"""Aim: the demo's content: planned to size, never in conflict with the services' rules, errors in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from infra.errors import StartError
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill import showcase
from smsbill.commands.options import SmsType
from smsbill.showcase import Run, is_final


@pytest.mark.parametrize("messages", [1, 60, 360])
def test_the_plan_has_about_the_size_asked_for(messages: int) -> None:
    """Aim: all types, single and batch, each text short enough, no number twice in a batch, placeholders filled in."""
    folder, demo = showcase.load(None)
    orders = showcase.plan(folder, demo, messages)
    planned = sum(len(order.texts) for order in orders)
    assert abs(planned - messages) <= len(orders)
    assert {order.sms_type for order in orders} == set(SmsType)
    assert {order.is_batch for order in orders} == {True, False}
    for order in orders:
        assert all(0 < len(text.text) <= 536 and "{" not in text.text for text in order.texts)
        if order.is_batch:
            assert len({text.text for text in order.texts}) == 1
            assert max(Counter(text.mobile for text in order.texts).values()) == 1
    numbers = {text.mobile for order in orders for text in order.texts}
    assert all(number.startswith("+861990") for number in numbers), "made-up numbers only"


def test_long_and_short_texts_in_both_languages() -> None:
    """Aim: the demo shows messages of one segment and of several, Chinese and English."""
    folder, demo = showcase.load(None)
    orders = showcase.plan(folder, demo, 60)
    sizes = {order.segments // len(order.texts) for order in orders}
    assert min(sizes) == 1
    assert max(sizes) >= 2
    texts = [text.text for order in orders for text in order.texts]
    assert any(text.isascii() for text in texts)
    assert any("您" in text for text in texts)


def test_the_plan_fits_what_is_bought_first() -> None:
    """Aim: the usual size needs no top-up at the first start."""
    folder, demo = showcase.load(None)
    granted = {offer.offer_id: offer.segments for offer in demo.offer}
    for brand in demo.brand:
        needed = sum(order.segments for order in showcase.plan(folder, demo, 360) if order.brand_id == brand.brand_id)
        assert needed <= sum(granted[offer_id] for offer_id in brand.buys)


def test_a_broken_demo_file_names_the_place(tmp_path: Path) -> None:
    """Aim: a folder of the user's with a mistake in it is told in one line."""
    with pytest.raises(StartError, match="SMSBILL_EXAMPLES_DIR"):
        showcase.load(tmp_path)
    (tmp_path / "demo.toml").write_text("brand = [")
    with pytest.raises(StartError, match="is not TOML"):
        showcase.load(tmp_path)
    (tmp_path / "demo.toml").write_text('brand = []\nsending = []\n[[offer]]\noffer_id = "x"\n')
    with pytest.raises(StartError, match=r"offer\.0\.name"):
        showcase.load(tmp_path)


def test_when_a_run_is_final() -> None:
    """Aim: not before every accepted message is there and final; a message that nobody lists is not final."""
    run = Run(accepted=Counter({1: 2}))
    delivered, sent, unknown = (
        pb.MESSAGE_STATE_DELIVERED,
        pb.MESSAGE_STATE_SENT,
        pb.MESSAGE_STATE_UNKNOWN,
    )
    assert is_final({1: Counter({delivered: 2})}, run)
    assert is_final({1: Counter({delivered: 1, pb.MESSAGE_STATE_FAILED: 1})}, run)
    assert not is_final({1: Counter({delivered: 1})}, run)
    assert not is_final({1: Counter({delivered: 1, sent: 1})}, run)
    assert not is_final({1: Counter({delivered: 1, unknown: 1})}, run)
