"""`smsbill follow`: how far a batch is, until all its messages are final."""

# ruff: noqa: PLC0415

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsbill.commands.options import AsJson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smsbill.client import Client

# Breaks in a row without a word in between before it is given up; a gateway that restarts takes some seconds.
_BREAKS_MAX = 10
_BREAK_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command(rich_help_panel="Messages")(follow)


def follow(
    batch: Annotated[str, typer.Argument(help="Id of the batch.", show_default=False)],
    with_messages: Annotated[
        bool, typer.Option("--messages", help="Print each message's end as it comes, numbers masked.")
    ] = False,
    wait: Annotated[float, typer.Option(min=1, max=1_000_000, help="Give up after so many seconds.")] = 86_400,
    as_json: AsJson = False,
) -> None:
    """Follow a batch until all its messages are final; --json prints a document for each change."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from smsbill import client
    from smsbill.sending import FINAL_STATES
    from smsbill.tables import console, pairs, plain, print_json

    screen = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[states]}"))
    told: set[str] = set()

    async def work(caller: Client, shown: Progress, task: Any) -> Any:
        last = None
        async for reply in _replies(caller, batch, with_messages, wait):
            last = reply
            # A call that goes on may tell some again.
            ends = [end for end in reply.ends if end.message_id not in told]
            told.update(end.message_id for end in ends)
            if as_json:
                print_json({**plain(reply), "ends": [_masked(plain(end)) for end in ends]})
            else:
                for end in ends:
                    told_of = _masked(plain(end))
                    shown.console.out(*(told_of[name] for name in ("message_id", "mobile", "state", "result_code")))
            final = sum(each.messages for each in reply.states if each.state in FINAL_STATES)
            shown.update(task, total=reply.accepted, completed=final, states=_states(reply))
        return last

    with Progress(*columns, TimeRemainingColumn(), console=screen, disable=not screen.is_terminal) as shown:
        task = shown.add_task(batch, total=None, states="")
        last = client.run(lambda caller: work(caller, shown, task))
    if not as_json and last is not None:
        pairs(False, {"batch_id": batch, "accepted": last.accepted, "states": _states(last)}, "Final")


async def _replies(caller: Client, batch: str, with_messages: bool, wait: float) -> AsyncIterator[Any]:
    """What is told of a batch; a stream that breaks goes on where it was. Raises `grpc.aio.AioRpcError`."""
    import asyncio

    import grpc
    import grpc.aio

    from protos.smsgateway.v1 import sms_gateway_pb2 as pb

    loop = asyncio.get_running_loop()
    until = loop.time() + wait
    request = pb.FollowBatchRequest(batch_id=batch, with_messages=with_messages)
    breaks = 0
    while True:
        call = caller.gateway.FollowBatch(request, metadata=caller.metadata, timeout=max(0.001, until - loop.time()))
        try:
            async for reply in call:
                breaks = 0
                request.resume_token = reply.resume_token
                yield reply
        except grpc.aio.AioRpcError as error:
            breaks += 1
            if error.code() is not grpc.StatusCode.UNAVAILABLE or breaks > _BREAKS_MAX:
                raise
            await asyncio.sleep(_BREAK_SECONDS)
        else:
            return


def _masked(end: dict[str, Any]) -> dict[str, Any]:
    from smsgateway.mobile import mask_mobile

    return {**end, "mobile": mask_mobile(end["mobile"])}


def _states(reply: Any) -> str:
    from protos.smsgateway.v1 import sms_gateway_pb2 as pb
    from smsbill.tables import word

    return ", ".join(f"{each.messages:,} {word(pb.MessageState.DESCRIPTOR, each.state)}" for each in reply.states)
