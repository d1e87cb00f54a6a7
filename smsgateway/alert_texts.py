"""What people read of an alert: what happened, the figures, since when, what to do next. No I/O.

English and Chinese. Neither numbers of people nor texts of messages are ever among the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from smsgateway.alerts import HOUSE, AlertKind, Figures

LANGUAGES: Final = ("en", "zh")
_MAIL_LINE_MAX = 150


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told of an alert: that it opened, or (`over_at`) that it is over.

    `withdrawn`: nobody knows whether it got better, for it is not watched any more.
    """

    brand_id: int
    kind: AlertKind
    subject: str
    since: datetime
    figures: Figures
    over_at: datetime | None = None
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A line and what follows it."""

    title: str
    body: str


_TITLES: Final[Mapping[str, Mapping[AlertKind, str]]] = {
    "en": {
        AlertKind.LOW_BALANCE: "balance is low",
        AlertKind.EXPIRING: "segments are about to expire",
        AlertKind.FAILURES: "many messages fail",
        AlertKind.CARRIER_DOWN: "carrier is down",
        AlertKind.CARRIER_LOW: "carrier account is nearly empty",
        AlertKind.QUEUE_AGE: "messages wait too long",
        AlertKind.PARKED: "work waits for an operator",
    },
    "zh": {
        AlertKind.LOW_BALANCE: "余额不足",
        AlertKind.EXPIRING: "套餐包即将到期",
        AlertKind.FAILURES: "短信失败率过高",
        AlertKind.CARRIER_DOWN: "通道不可用",
        AlertKind.CARRIER_LOW: "通道账户余额不足",
        AlertKind.QUEUE_AGE: "短信排队过久",
        AlertKind.PARKED: "有任务等待人工处理",
    },
}
_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        "brand": "Brand {brand}",
        "house": "SMS engine",
        "since": "Since {since}.",
        "over": "{title}: over",
        "was": "It was so from {since} to {over}.",
        "withdrawn": "This is not watched any more: the rule, the brand or the account is gone or was switched off.",
        "several": "{count} alerts",
    },
    "zh": {
        "brand": "品牌 {brand}",
        "house": "短信引擎",
        "since": "开始时间：{since}。",
        "over": "{title}：已恢复",
        "was": "持续时间：{since} 至 {over}。",
        "withdrawn": "此项已不再监控：规则、品牌或账户已停用或删除。",
        "several": "{count} 条告警",
    },
}
_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {},
    "zh": {"verification": "验证码", "notification": "通知", "marketing": "营销"},
}


def tell(notice: Notice, *, language: str, zone: ZoneInfo) -> Text:
    """The text of a notice. `language` is one of `LANGUAGES`; moments are those of `zone`."""
    words = _WORDS[language]
    who = words["house"] if notice.brand_id == HOUSE else words["brand"].format(brand=notice.brand_id)
    title = f"{who}: {_TITLES[language][notice.kind]}" if language == "en" else (
        f"{who}：{_TITLES[language][notice.kind]}"
    )  # fmt: skip
    since = _moment(notice.since, zone)
    if notice.over_at is not None:
        title = words["over"].format(title=title)
        lines = [words["was"].format(since=since, over=_moment(notice.over_at, zone))]
        lines += [words["withdrawn"]] if notice.withdrawn else [_state(notice, language, zone)]
        return Text(title, "\n".join(line for line in lines if line))
    state, advice = _state(notice, language, zone), _ADVICE[language][notice.kind]
    return Text(title, "\n".join([state, words["since"].format(since=since), advice.format(brand=notice.brand_id)]))


def mail(texts: Sequence[Text], *, language: str) -> Text:
    """One letter of several notices, at least one."""
    if len(texts) == 1:
        return Text(f"[smsbill] {texts[0].title}", f"{texts[0].title}\n\n{texts[0].body}\n")
    title = _WORDS[language]["several"].format(count=len(texts))
    body = "\n\n".join(f"{text.title[:_MAIL_LINE_MAX]}\n{text.body}" for text in texts)
    return Text(f"[smsbill] {title}", f"{body}\n")


def _moment(moment: datetime, zone: ZoneInfo) -> str:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %z")


def _state(notice: Notice, language: str, zone: ZoneInfo) -> str:
    return _STATES[language][notice.kind](notice, dict(notice.figures), zone)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


_State = Callable[[Notice, dict[str, Any], ZoneInfo], str]


def _low_en(_: Notice, figures: dict[str, Any], __: ZoneInfo) -> str:
    left = figures.get("days_left")
    lasts = "" if left is None else f", which last {left} days at the rate of the last 7 days"
    limits = [f"{_number(figures['limit_segments'])} segments"] if figures.get("limit_segments") else []
    limits += [f"{figures['limit_days']} days"] if figures.get("limit_days") else []
    return f"{_number(figures.get('available'))} segments are available{lasts}. The alert is at {' or '.join(limits)}."


def _low_zh(_: Notice, figures: dict[str, Any], __: ZoneInfo) -> str:
    left = figures.get("days_left")
    lasts = "" if left is None else f"，按近 7 天用量还可用 {left} 天"
    limits = [f"{_number(figures['limit_segments'])} 条"] if figures.get("limit_segments") else []
    limits += [f"{figures['limit_days']} 天"] if figures.get("limit_days") else []
    return f"可用 {_number(figures.get('available'))} 条{lasts}。告警线：{' 或 '.join(limits)}。"


def _ends(notice: Notice, zone: ZoneInfo) -> datetime:
    return datetime.fromisoformat(notice.subject).astimezone(zone)


def _expiring_en(notice: Notice, figures: dict[str, Any], zone: ZoneInfo) -> str:
    at = _moment(_ends(notice, zone), zone)
    if notice.over_at is not None:
        gone = notice.over_at >= _ends(notice, zone)
        return f"The package ended at {at}." if gone else f"Nothing much is left of what ends at {at}."
    return f"{_number(figures.get('segments'))} segments are available of a package that ends at {at}."


def _expiring_zh(notice: Notice, figures: dict[str, Any], zone: ZoneInfo) -> str:
    at = _moment(_ends(notice, zone), zone)
    if notice.over_at is not None:
        gone = notice.over_at >= _ends(notice, zone)
        return f"套餐包已于 {at} 到期。" if gone else f"将于 {at} 到期的套餐包已基本用完。"
    return f"套餐包将于 {at} 到期，其中还有 {_number(figures.get('segments'))} 条可用。"


def _failures_en(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    return (
        f"{figures.get('percent')} % of the {notice.subject} messages that became final in the last "
        f"{figures.get('minutes')} minutes failed: {_number(figures.get('failed'))} of "
        f"{_number(figures.get('final'))}. The alert is at {figures.get('limit_percent')} %."
    )


def _failures_zh(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    return (
        f"最近 {figures.get('minutes')} 分钟内有最终结果的{_TYPES['zh'].get(notice.subject, notice.subject)}短信共 "
        f"{_number(figures.get('final'))} 条，失败 {_number(figures.get('failed'))} 条（{figures.get('percent')}%）。"
        f"告警线：{figures.get('limit_percent')}%。"
    )


def _down_en(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    if notice.over_at is not None:
        return f"Every worker calls account {notice.subject} again."
    return f"Account {notice.subject} {figures.get('state')} at {figures.get('workers')} workers."


_STATES_ZH = {"rests": "调用失败、暂停中", "is stopped": "被通道方停用", "is tried": "恢复试探中"}


def _down_zh(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    if notice.over_at is not None:
        return f"所有 worker 均已恢复调用账户 {notice.subject}。"
    states = "、".join(_STATES_ZH.get(each, each) for each in str(figures.get("state")).split(", "))
    return f"账户 {notice.subject} {states}，涉及 {figures.get('workers')} 个 worker。"


def _empty_en(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    limit = _number(figures.get("limit_segments"))
    return f"Account {notice.subject} has {_number(figures.get('balance'))} segments left. The alert is at {limit}."


def _empty_zh(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    limit = _number(figures.get("limit_segments"))
    return f"账户 {notice.subject} 剩余 {_number(figures.get('balance'))} 条。告警线：{limit} 条。"


def _age_en(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    return (
        f"The oldest {notice.subject} message has waited for {_number(figures.get('oldest_seconds'))} seconds. "
        f"The alert is at {figures.get('limit_minutes')} minutes."
    )


def _age_zh(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    of_type = _TYPES["zh"].get(notice.subject, notice.subject)
    return (
        f"最早的{of_type}短信已等待 {_number(figures.get('oldest_seconds'))} 秒。"
        f"告警线：{figures.get('limit_minutes')} 分钟。"
    )


def _parked_en(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    return f"Parked of kind {notice.subject}: {_number(figures.get('count'))} (counted up to 10,000)."


def _parked_zh(notice: Notice, figures: dict[str, Any], _: ZoneInfo) -> str:
    return f"{notice.subject} 类待处理任务：{_number(figures.get('count'))} 个（最多计到 10,000）。"


_STATES: Final[Mapping[str, Mapping[AlertKind, _State]]] = {
    "en": {
        AlertKind.LOW_BALANCE: _low_en,
        AlertKind.EXPIRING: _expiring_en,
        AlertKind.FAILURES: _failures_en,
        AlertKind.CARRIER_DOWN: _down_en,
        AlertKind.CARRIER_LOW: _empty_en,
        AlertKind.QUEUE_AGE: _age_en,
        AlertKind.PARKED: _parked_en,
    },
    "zh": {
        AlertKind.LOW_BALANCE: _low_zh,
        AlertKind.EXPIRING: _expiring_zh,
        AlertKind.FAILURES: _failures_zh,
        AlertKind.CARRIER_DOWN: _down_zh,
        AlertKind.CARRIER_LOW: _empty_zh,
        AlertKind.QUEUE_AGE: _age_zh,
        AlertKind.PARKED: _parked_zh,
    },
}
_ADVICE: Final[Mapping[str, Mapping[AlertKind, str]]] = {
    "en": {
        AlertKind.LOW_BALANCE: "Next: sell the brand a package (`smsbill buy --brand {brand}`), or tell it to buy one.",
        AlertKind.EXPIRING: "Next: tell the brand to use them, or grant what is lost "
        "(`smsbill packages --brand {brand}`).",
        AlertKind.FAILURES: "Next: look at the result codes of its messages and at the carrier accounts "
        "(`smsbill carrier list`).",
        AlertKind.CARRIER_DOWN: "Next: ask the carrier; `smsbill route put` leads messages to another account.",
        AlertKind.CARRIER_LOW: "Next: buy more at the carrier before messages fail.",
        AlertKind.QUEUE_AGE: "Next: see that workers run and the carrier works "
        "(`smsbill doctor`, `smsbill carrier list`).",
        AlertKind.PARKED: "Next: `smsbill parked list` tells why; `parked retry` or `parked drop` ends it.",
    },
    "zh": {
        AlertKind.LOW_BALANCE: "处理：为该品牌购买套餐包（`smsbill buy --brand {brand}`），或通知品牌充值。",
        AlertKind.EXPIRING: "处理：提醒品牌尽快使用，或酌情补发（`smsbill packages --brand {brand}`）。",
        AlertKind.FAILURES: "处理：查看失败短信的结果码和通道账户（`smsbill carrier list`）。",
        AlertKind.CARRIER_DOWN: "处理：联系通道方；可用 `smsbill route` 临时改走其他账户。",
        AlertKind.CARRIER_LOW: "处理：尽快向通道方充值，避免发送失败。",
        AlertKind.QUEUE_AGE: "处理：确认 worker 与通道正常（`smsbill doctor`、`smsbill carrier list`）。",
        AlertKind.PARKED: "处理：`smsbill parked list` 查看原因，再 `parked retry` 或 `parked drop`。",
    },
}
