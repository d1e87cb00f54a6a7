"""What ends a command: one line that says what happened and what to do next."""

from __future__ import annotations

# What a caller can do about a reason.
ADVICE = {
    "UNAUTHENTICATED": "set SMSBILL_TOKEN to a token that holds (`smsbill token create` makes one)",
    "ROLE_NOT_ALLOWED": "use a token with that role (`smsbill token create --role …`)",
    "BRAND_NOT_ALLOWED": "use a token that holds for it (`smsbill token create --brands …`)",
    "BRAND_NOT_FOUND": "list the brands with `smsbill brand list`, or create one with `smsbill brand put`",
    "BRAND_SUSPENDED": "an admin can lift that with `smsbill brand put --brand … --status active`",
    "BRAND_CLOSED": "a closed brand stays closed; use another brand",
    "OFFER_NOT_FOUND": "list the offers with `smsbill offer list`, or create one with `smsbill offer put`",
    "OFFER_INACTIVE": "choose another of `smsbill offer list`",
    "AMOUNT_MISMATCH": "pay the order's price in its currency",
    "INSUFFICIENT_BALANCE": "buy a package with `smsbill buy --brand … --segments …`",
    "IDEMPOTENCY_CONFLICT": "use another --request-id",
    "MESSAGE_NOT_FOUND": "list the messages with `smsbill messages --brand …`",
    "BATCH_NOT_FOUND": "list the messages with `smsbill messages --brand …`",
    "CAMPAIGN_NOT_FOUND": "list the campaigns with `smsbill campaign list --brand …`",
    "CAMPAIGN_CANCELLED": "a cancelled campaign stays cancelled; use another --campaign",
    "NO_VALID_RECIPIENT": "correct the numbers and send again",
    "TOO_MANY_RECIPIENTS": "split the file and send several batches",
    "ACCOUNT_IN_USE": "remove or change its rules first (`smsbill route list`)",
    "ACCOUNT_NOT_FOUND": "list the accounts with `smsbill carrier list`",
    "BLACK_LISTED": "an admin can lift that with `smsbill suppress remove`",
    "FREEZE_EXPIRED": "freeze again, under another request_id",
    "FREEZE_INSUFFICIENT": "pay no more than is open in the freeze",
    "FREEZE_NOT_FOUND": "check the order_no and its brand",
    "FREEZE_SETTLED": "freeze again, under another request_id",
    "FREQUENCY_LIMITED": "send later; `smsbill rules get --brand …` tells the limits",
    "KIND_FIXED": "remove the account and put it anew, or use another name",
    "LISTING_TOO_LONG": "ask for less at once: one brand, a shorter time, fewer rows",
    "LIMIT_NOT_FOUND": "list the limits with `smsbill route limit list`",
    "MESSAGE_OF_BATCH": "cancel its batch with `smsbill cancel --batch …`",
    "OPTED_OUT": "the recipient wants no marketing; send without this number (`smsbill suppress list`)",
    "PACKAGE_EXPIRED": "choose a package that has not ended (`smsbill packages --brand …`)",
    "PACKAGE_IN_USE": "wait until what freezes hold of it is settled, then try again",
    "PACKAGE_NOT_FOUND": "list the packages with `smsbill packages --brand …`",
    "PACKAGE_ORDER_NOT_FOUND": "check the order's number and its brand",
    "PAYMENT_NOT_FOUND": "check the payment_no and its brand",
    "REFUND_EXCEEDS_PAYMENT": "give back no more than was paid and is not given back",
    "RULE_NOT_FOUND": "list the rules with `smsbill route list`",
    "SENSITIVE_WORD": "word the text otherwise",
    "SIGNATURE_NOT_ALLOWED": "use one of `smsbill signature list --brand …`, or have it approved",
    "SIGNATURE_REQUIRED": "begin the text with 【signature】, or use --signature",
    "STREAM_TOO_SLOW": "send the recipients faster, or as several batches",
    "SUFFIX_REQUIRED": "end the text as the message says; `smsbill rules get --brand …` tells the rule",
    "TEMPLATE_MISMATCH": "word the text as one of `smsbill template list --brand …`",
    "TEMPLATE_NOT_APPROVED": "have it approved with `smsbill template put --brand … --approval approved`",
    "TEMPLATE_NOT_FOUND": "list the templates with `smsbill template list --brand …`",
    "TOO_MANY_SIGNATURES": "remove one with `smsbill signature remove`",
    "TOO_MANY_TEMPLATES": "remove one with `smsbill template remove`",
    "TIME_TO_LIVE_TOO_LONG": "ask for a shorter time",
    "VARIABLE_INVALID": "correct the value and send again",
    "VARIABLE_MISSING": "give a value for each variable of the text",
    "VARIABLE_UNKNOWN": "give values only for variables of the text",
    "WEBHOOK_NOT_FOUND": "list the webhooks with `smsbill webhook list --brand …`",
    "TOO_MANY_WEBHOOKS": "remove one with `smsbill webhook remove`, or raise SMSBILL_WEBHOOKS_MAX",
    "ALERT_RULE_NOT_FOUND": "list the rules with `smsbill alert list`",
    "MAIL_NOT_SET_UP": "set SMSBILL_SMTP_* for the gateway and the workers, or leave --mail out",
    "TOKEN_NOT_FOUND": "list the tokens with `smsbill token list`",
    "BAD_REQUEST": "correct it and call again",
    "OVERLOADED": "call again in a moment",
    "RESOURCE_EXHAUSTED": "call again in a moment",
    "UNAVAILABLE": "see what is missing with `smsbill doctor`, then call again",
    "DEADLINE_EXCEEDED": "see what is slow with `smsbill doctor`, then call again with the same --request-id",
    "INTERNAL": "the service's log has the details (`smsbill doctor` tells where)",
    "UNIMPLEMENTED": "the service is of another release; bring both to the same",
}


class CommandError(Exception):
    """A command cannot do what it was asked; the text is one line that says what to do."""


def described(error: BaseException) -> str | None:
    """The line for an error that has one, or None for one that nobody expected."""
    # Imported here: a command that works needs none of them.
    import grpc.aio  # noqa: PLC0415

    from infra.data_folder import EmbeddedError  # noqa: PLC0415
    from infra.errors import Refusal, StartError  # noqa: PLC0415
    from infra.grpc_status import from_error  # noqa: PLC0415

    while isinstance(error, BaseExceptionGroup):
        # Of several that failed together the first tells enough.
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AioRpcError):
        error = from_error(error)
    if isinstance(error, Refusal):
        advice = ADVICE.get(error.reason) or ADVICE.get(error.code.name)
        return f"{error.reason}: {error}" + (f" – {advice}" if advice else "")
    if isinstance(error, CommandError | StartError | EmbeddedError):
        return str(error)
    return None
