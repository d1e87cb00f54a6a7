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
