"""What the console says, in English and Chinese.

Pages write English: `t("Sign in")`, with figures and names as `t("{count} brands", count=7)`. Each module here holds
the Chinese of one part of the console as `CHINESE`; a test holds every text of the templates against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from smsgateway.console.words import doors, reading

LANGUAGES: Mapping[str, str] = {"en": "English", "zh": "中文"}
DEFAULT = "en"
CHINESE: Mapping[str, str] = {**doors.CHINESE, **reading.CHINESE}

_RANGE = re.compile(r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q=([01](?:\.\d{0,3})?)\s*)?")
_HEADER_MAX = 500


class Words:
    """The texts in one language; called with an English one."""

    def __init__(self, language: str) -> None:
        self.language = language

    @cached_property
    def html_language(self) -> str:
        """What `<html lang>` says."""
        return "zh-CN" if self.language == "zh" else "en"

    def __call__(self, text: str, **values: object) -> str:
        told = CHINESE.get(text, text) if self.language == "zh" else text
        return told.format(**values) if values else told


WORDS: Mapping[str, Words] = {language: Words(language) for language in LANGUAGES}


def preferred(accept_language: str) -> str:
    """The language that a browser asks for (RFC 9110, 12.5.4), as far as we have it."""
    best, best_quality = DEFAULT, 0.0
    for part in accept_language[:_HEADER_MAX].split(","):
        match = _RANGE.fullmatch(part)
        if match is None or match[1].lower() not in LANGUAGES:
            continue
        quality = float(match[2] or 1)
        if quality > best_quality:
            best, best_quality = match[1].lower(), quality
    return best
