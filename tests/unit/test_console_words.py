"""The console speaks both languages whole, and knows which one a browser asks for."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from smsgateway.console import app
from smsgateway.console.audit import Action, Outcome
from smsgateway.console.words import CHINESE, WORDS, preferred

# t("…") of the templates; what they say may hold either quote, so the other one delimits it.
_SAID = re.compile(r"""\bt\(\s*(?:"([^"]*)"|'([^']*)')""")


def _texts() -> set[str]:
    templates = files("smsgateway.console").joinpath("templates")
    found = {
        double or single
        for template in templates.iterdir()
        for double, single in _SAID.findall(template.read_text("utf-8"))
    }
    navigation = {item.text for module in app.PAGES for item in getattr(module, "NAVIGATION", ())}
    return found | navigation | set(Action) | {outcome.name.lower() for outcome in Outcome}


def test_every_text_has_its_chinese() -> None:
    """What a template says in English is in the Chinese words, with the same figures and names in it."""
    texts = _texts()
    assert len(texts) > 50
    assert {text for text in texts if text not in CHINESE} == set()
    for text in texts:
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", CHINESE[text])), text


def test_a_text_is_filled_in() -> None:
    """Figures stand where each language wants them."""
    assert WORDS["en"]("{count} left", count=5) == "5 left"
    assert WORDS["zh"]("{count} left", count=5) == "剩余 5"
    assert WORDS["zh"]("{no} word of ours") == "{no} word of ours"


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("de-DE,de;q=0.9,zh;q=0.3", "zh"),
        ("fr", "en"),
        ("zh;q=0, en;q=0", "en"),
        ("zh;q=two, *;q=0.5", "en"),
        ("," * 100_000, "en"),
        ("ZH", "zh"),
    ],
)
def test_the_language_of_a_browser(header: str, language: str) -> None:
    """The best of ours that it names; English for what cannot be read."""
    assert preferred(header) == language
