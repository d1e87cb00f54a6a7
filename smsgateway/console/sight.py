"""Who may see what of numbers and texts."""

from __future__ import annotations

import re
from typing import Final

from infra.authorization import Principal, Role
from smsgateway.mobile import mask_mobile

_DIGIT: Final = re.compile(r"\d")


def sees_numbers(principal: Principal) -> bool:
    """Whether telephone numbers, and digits of texts, are shown whole: to operators and admins."""
    return principal.may(Role.OPERATOR)


def mobile(principal: Principal, number: str) -> str:
    """A number as somebody may see it."""
    return number if sees_numbers(principal) else mask_mobile(number)


def text(principal: Principal, content: str) -> str:
    """A message's text as somebody may see it: without its digits, codes among them, for who may not see numbers."""
    return content if sees_numbers(principal) else _DIGIT.sub("•", content)
