"""Whom the console believes about a request's origin and address, and what forms may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.requests import Request

from infra.errors import Refusal
from smsgateway.console.console import local_path
from smsgateway.console.forms import Form
from smsgateway.console.visitors import from_own_page, visitor

_PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def _request(headers: Mapping[str, str], client: str = "10.0.0.1", scheme: str = "http") -> Request:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": encoded,
            "client": (client, 1),
            "scheme": scheme,
            "query_string": b"",
            "server": ("127.0.0.1", 80),
        }
    )


@pytest.mark.parametrize(
    ("client", "forwarded", "proxies", "group"),
    [
        ("192.0.2.1", "", [], "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", [], "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", _PROXIES, "192.0.2.1"),
        ("10.0.0.1", "198.51.100.1", _PROXIES, "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1, 10.0.0.2", _PROXIES, "198.51.100.1"),
        ("10.0.0.1", "", _PROXIES, "0.0.0.0"),
        ("10.0.0.1", "rubbish", _PROXIES, "0.0.0.0"),
        ("::ffff:10.0.0.1", "2001:db8:1:2:3::4", _PROXIES, "2001:db8:1:2::/64"),
        ("2001:db8::1", "", _PROXIES, "2001:db8::/64"),
        ("", "", [], "0.0.0.0"),
    ],
)
def test_the_address(client: str, forwarded: str, proxies: Sequence[Any], group: str) -> None:
    """That of the last hop that is no proxy of ours; headers of anybody else count for nothing."""
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    assert visitor(_request(headers, client), proxies, "").group == group


@pytest.mark.parametrize(
    ("client", "scheme", "forwarded", "url", "secure"),
    [
        ("192.0.2.1", "http", "https", "", False),
        ("10.0.0.1", "http", "https", "", True),
        ("10.0.0.1", "http", "", "", False),
        ("192.0.2.1", "https", "", "", True),
        ("192.0.2.1", "http", "", "https://sms.example.com", True),
        ("10.0.0.1", "http", "https", "http://sms.example.com", False),
    ],
)
def test_tls(client: str, scheme: str, forwarded: str, url: str, secure: bool) -> None:
    """As the setting says, else as a trusted proxy says, else as it is."""
    headers = {"x-forwarded-proto": forwarded} if forwarded else {}
    assert visitor(_request(headers, client, scheme), _PROXIES, url).secure is secure


@pytest.mark.parametrize(
    ("headers", "url", "own"),
    [
        ({"host": "sms:8080"}, "", True),
        ({"host": "sms:8080", "origin": "http://sms:8080"}, "", True),
        ({"host": "sms:8080", "origin": "https://sms:8080"}, "", True),
        ({"host": "sms:8080", "origin": "http://evil.example"}, "", False),
        ({"host": "sms:8080", "origin": "null"}, "", False),
        ({"host": "sms:8080", "origin": ""}, "", False),
        ({"host": "sms:8080", "sec-fetch-site": "cross-site"}, "", False),
        ({"host": "sms:8080", "sec-fetch-site": "same-site", "origin": "http://sms:8080"}, "", False),
        ({"host": "inside:8080", "origin": "https://sms.example.com"}, "https://sms.example.com", True),
        ({"host": "sms.example.com", "origin": "http://sms.example.com"}, "https://sms.example.com", False),
    ],
)
def test_forms_of_other_sites(headers: dict[str, str], url: str, own: bool) -> None:
    """A form that another site sends is known as such by what the browser says of it."""
    assert from_own_page(_request(headers), url) is own


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/brands/1?x=2", "/brands/1?x=2"),
        ("", "/"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\nlocation: x", "/"),
        ("/" + "a" * 5_000, "/"),
    ],
)
def test_nobody_is_led_elsewhere(text: str, path: str) -> None:
    """After the sign-in one goes on within the console only."""
    assert local_path(text) == path


def test_every_field_that_breaks_its_rule_is_named() -> None:
    """All of them at once, by their names."""
    form = Form(
        [
            ("reason", "  "),
            ("number", "1e9"),
            ("most", "11"),
            ("price", "-1"),
            ("currency", "yuan"),
            ("kind", "x"),
            ("some", "a"),
            ("some", "z"),
            ("day", "2027-02-30"),
            ("past", "2001-01-01"),
            ("request_id", "a b"),
            ("fine", "1,000"),
        ]
    )
    form.reason()
    form.number("number", 1)
    form.number("most", 1, 10)
    form.number("none", 1)
    form.price("price")
    form.currency("currency")
    form.choice("kind", {"a": 1})
    form.choices("some", {"a": 1})
    form.day("day", "Asia/Shanghai")
    form.day("past", "Asia/Shanghai")
    form.identifier("request_id")
    assert form.number("fine", 1) == 1_000
    with pytest.raises(Refusal) as caught:
        form.check()
    assert set(caught.value.fields) == {
        "reason", "number", "most", "none", "price", "currency", "kind", "some", "day", "past", "request_id"
    }  # fmt: skip
